"""Text that comes with Python: English to train on, and source code as another domain.

English are the language reference's topics (`pydoc`) and the docstrings of the standard library, a document a topic or
module. Code is the same modules without their docstrings. Both change with Python's patch version, so a
user of the corpus records its `sha256`.
"""

from __future__ import annotations

import ast
import hashlib
import sysconfig
import tokenize
from dataclasses import dataclass
from pathlib import Path
from pydoc_data import topics

_NOT_STANDARD_LIBRARY = {
    "site-packages",
    "dist-packages",
    "test",
    "tests",
    "idle_test",
    "encodings",  # tables of characters, not prose or code
    "lib2to3",  # grammar data and fixers, removed in Python 3.13
    "pydoc_data",  # the topics themselves
    "__pycache__",
}
_MIN_CHARACTERS = 200


@dataclass(frozen=True)
class Document:
    """A text with a name that is unique in its domain."""

    name: str
    text: str


def english() -> list[Document]:
    """Topics of the language reference and docstrings of the standard library, sorted by name."""
    documents = [Document(f"topic/{name}", text.strip()) for name, text in topics.topics.items()]
    for name, source in _modules():
        documents.append(Document(f"module/{name}", "\n\n".join(docstrings(source))))
    return _long_enough(documents)


def code(characters: int) -> list[Document]:
    """Source code of some modules without their docstrings, a document a module, sorted by name.

    Args:
        characters: Modules are taken in an order that a digest of their names gives, until they have so many.
    """
    documents: list[Document] = []
    for name, source in sorted(_modules(), key=lambda module: _digest(module[0])):
        if sum(len(document.text) for document in documents) >= characters:
            break
        documents += _long_enough([Document(f"code/{name}", without_docstrings(source))])
    return sorted(documents, key=lambda document: document.name)


def is_held_out(document: Document, share: float) -> bool:
    """Whether a document belongs to the held-out `share`; decided by its name alone, so that no other matters."""
    return int.from_bytes(_digest(document.name)[:8], "big") < share * 2**64


def sha256(documents: list[Document]) -> str:
    """Digest of names and texts, in order."""
    digest = hashlib.sha256()
    for document in documents:
        digest.update(f"{document.name}\0{document.text}\0".encode())
    return digest.hexdigest()


def docstrings(source: str) -> list[str]:
    """Docstrings of a module, its classes and its functions, in the order of the source."""
    found = [(node.lineno, ast.literal_eval(node)) for node in _docstring_nodes(source)]
    return [text for _, text in sorted((line, _cleaned(text)) for line, text in found) if text]


def without_docstrings(source: str) -> str:
    """The source with the lines of its docstrings removed, comments kept."""
    lines = source.splitlines()
    dropped = {
        line for node in _docstring_nodes(source) for line in range(node.lineno, (node.end_lineno or node.lineno) + 1)
    }
    return "\n".join(text for number, text in enumerate(lines, 1) if number not in dropped).strip()


def _digest(name: str) -> bytes:
    return hashlib.sha256(name.encode()).digest()


def _docstring_nodes(source: str) -> list[ast.Constant]:
    scopes = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    nodes = []
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, scopes) or not node.body:
            continue
        first = node.body[0]
        if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant) and isinstance(first.value.value, str):
            nodes.append(first.value)
    return nodes


def _cleaned(text: str) -> str:
    lines = text.expandtabs().splitlines()
    margin = min((len(line) - len(line.lstrip()) for line in lines[1:] if line.strip()), default=0)
    return "\n".join([line.strip() for line in lines[:1]] + [line[margin:].rstrip() for line in lines[1:]]).strip()


def _modules() -> list[tuple[str, str]]:
    root = Path(sysconfig.get_paths()["stdlib"])
    modules = []
    for path in _python_files(root):
        with tokenize.open(path) as file:  # heeds the encoding that a source declares
            modules.append((path.relative_to(root).as_posix(), file.read()))
    return modules


def _python_files(directory: Path) -> list[Path]:
    """Python files below a directory, sorted; directories that are not the standard library are never entered."""
    files = []
    for entry in sorted(directory.iterdir()):
        if entry.is_dir() and entry.name not in _NOT_STANDARD_LIBRARY and not entry.name.startswith("config-"):
            files.extend(_python_files(entry))
        # generated at build time, with the build machine's paths
        elif entry.suffix == ".py" and not entry.name.startswith("_sysconfigdata"):
            files.append(entry)
    return files


def _long_enough(documents: list[Document]) -> list[Document]:
    kept = [document for document in documents if len(document.text) >= _MIN_CHARACTERS]
    return sorted(kept, key=lambda document: document.name)
