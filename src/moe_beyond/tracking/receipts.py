"""Receipts: the file beside a stage's outs that names the MLflow run which made them."""

from __future__ import annotations

import json
from pathlib import Path

from moe_beyond.settings import STAGES


def receipts(root: Path) -> dict[str, str]:
    """Run id of every stage that has left a receipt, in the stages' order."""
    paths = {stage: root / "reports" / stage / "run.json" for stage in STAGES}
    return {
        stage: json.loads(path.read_text(encoding="utf-8"))["run_id"] for stage, path in paths.items() if path.exists()
    }
