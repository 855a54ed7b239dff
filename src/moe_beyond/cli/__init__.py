"""moe-beyond on the command line: thin over the library, a family of commands a file.

`--json` prints one JSON document, errors are one line. Each command imports what it needs: `--help` stays quick.
"""

from moe_beyond.cli import before_download, caches, fitting, live, placements, predictors, registry, traces
from moe_beyond.cli.common import app
from moe_beyond.cli.progress import shown
from moe_beyond.masking import mask_output

__all__ = [
    "app",
    "before_download",
    "caches",
    "fitting",
    "live",
    "main",
    "placements",
    "predictors",
    "registry",
    "traces",
]


def main() -> None:
    """Entry point of the `moe-beyond` command."""
    mask_output()
    with shown():
        app()
