"""A path is a name, not a pattern: `[`, `*` and `?` in the name of a folder mean themselves."""

import ast
from pathlib import Path

ROOT = Path(__file__).parents[1]


def test_polars_reads_the_file_of_that_name():
    """Else `runs[1]/history.csv` is not found, or is another file, that of a folder `runs1`."""
    patterns = []
    for path in sorted((ROOT / "src").rglob("*.py")):
        for call in (node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)):
            name, first = ast.unparse(call.func), ast.unparse(call.args[0]) if call.args else ""
            reads = name in ("pl.read_csv", "pl.scan_csv", "pl.read_parquet", "pl.scan_parquet")
            content = first == "text" or any(word in first for word in ("encode()", "read_bytes()", "BytesIO"))
            if reads and not content and not any(word.arg == "glob" for word in call.keywords):
                patterns.append(f"{path.relative_to(ROOT)}:{call.lineno}: {ast.unparse(call)}")
    assert patterns == []
