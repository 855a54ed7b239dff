"""The text that comes with Python, taken the same way on every machine."""

import ast
import sysconfig

import pytest

from moe_beyond.capture.reference import corpus
from moe_beyond.capture.reference.corpus import Document

SOURCE = '''"""A module.

    Indented further.
"""
import os  # kept
class A:
    """A class."""
    async def f(self):
        "One line."
        text = """not a docstring"""
        return text
    def g(self): pass
'''


@pytest.fixture(scope="module")
def english():
    return corpus.english()


def test_docstrings_and_code_are_taken_apart():
    assert corpus.docstrings(SOURCE) == ["A module.\n\nIndented further.", "A class.", "One line."]
    rest = corpus.without_docstrings(SOURCE)
    present = [text in rest for text in ("A module", "A class", "One line", "# kept", '"""not a docstring"""')]
    assert present == [False] * 3 + [True] * 2
    ast.parse(rest)


def test_the_standard_library_is_read_and_packages_that_are_installed_change_nothing(english, tmp_path, monkeypatch):
    assert "module/argparse.py" in {document.name for document in english}
    assert len([document for document in english if document.name.startswith("topic/")]) > 50
    for folder in ("lib", "lib/site-packages/somebody", "lib/test", "lib/inner"):
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / "module.py").write_text(f'"""{folder} {"text " * 60}"""')
    monkeypatch.setattr(sysconfig, "get_paths", lambda: {"stdlib": str(tmp_path / "lib")})
    modules = [document.name for document in corpus.english() if document.name.startswith("module/")]
    assert modules == ["module/inner/module.py", "module/module.py"]


def test_collecting_again_gives_the_same_documents(english):
    assert corpus.sha256(corpus.english()) == corpus.sha256(english)
    names = [document.name for document in english]
    assert names == sorted(set(names))
    # the digest depends on names, texts and order
    one, two = Document("a", "text"), Document("b", "text")
    assert len({corpus.sha256(part) for part in ([one, two], [two, one], [one], [Document("a", "Text"), two])}) == 4


def test_a_document_s_side_depends_on_its_name_alone(english):
    held_out = [document for document in english if corpus.is_held_out(document, 0.25)]
    assert 0.15 < len(held_out) / len(english) < 0.35
    assert all(corpus.is_held_out(Document(document.name, "other"), 0.25) for document in held_out)
    # a larger share keeps the documents of a smaller one
    assert all(corpus.is_held_out(document, 0.5) for document in held_out)


def test_code_stops_once_it_has_enough_and_is_another_domain_than_english(english):
    code = corpus.code(200_000)
    lengths = [len(document.text) for document in code]
    assert 200_000 <= sum(lengths) < 200_000 + max(lengths)
    assert {document.name for document in corpus.code(50_000)} < {document.name for document in code}
    assert not {document.text for document in english} & {document.text for document in code}
