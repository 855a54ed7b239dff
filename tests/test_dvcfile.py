import subprocess
import sys

import pytest

from moe_beyond.dvcfile import content_md5, read_stage
from moe_beyond.errors import InputError


def test_digests_equal_dvcs_own(tmp_path):
    (tmp_path / "data" / "deep").mkdir(parents=True)
    (tmp_path / "data" / "b.txt").write_text("b\n")
    (tmp_path / "data" / "deep" / "a.txt").write_bytes(bytes(range(256)) * 9000)
    (tmp_path / "single.bin").write_bytes(b"x")
    dvc = [sys.executable, "-m", "dvc"]
    subprocess.run([*dvc, "init", "--no-scm", "-q"], cwd=tmp_path, check=True)
    subprocess.run([*dvc, "add", "-q", "data", "single.bin"], cwd=tmp_path, check=True)
    for name in ("data", "single.bin"):
        assert f"md5: {content_md5(tmp_path / name)}" in (tmp_path / f"{name}.dvc").read_text()


def test_outs_metrics_and_plots_are_outs(tmp_path):
    (tmp_path / "dvc.yaml").write_text(
        "stages:\n  a:\n    cmd: x\n    deps: [d]\n    params: [seed, {other.yaml: [k]}]\n"
        "    outs: [o, {p: {persist: true}}]\n    metrics: [{m.json: {cache: false}}]\n    plots: [f]\n"
    )
    stage = read_stage(tmp_path / "dvc.yaml", "a")
    assert stage.deps == ("d",)
    assert stage.outs == ("o", "p", "m.json", "f")
    assert stage.params == ("seed", "other.yaml")
    with pytest.raises(InputError, match="no stage 'b'; it has a"):
        read_stage(tmp_path / "dvc.yaml", "b")
