import subprocess
import sys

import pytest

from moe_beyond.errors import InputError
from moe_beyond.files import folder_digest
from moe_beyond.tracking.dvc import read_stage, receipts, restore_outs, write_receipt


def dvc(folder, *words):
    subprocess.run([sys.executable, "-m", "dvc", *words], cwd=folder, check=True, capture_output=True)


def test_digests_equal_dvcs_own(tmp_path):
    (tmp_path / "data" / "deep").mkdir(parents=True)
    (tmp_path / "data" / "b.txt").write_text("b\n")
    (tmp_path / "data" / "deep" / "a.txt").write_bytes(bytes(range(256)) * 9000)
    (tmp_path / "single.bin").write_bytes(b"x")
    dvc(tmp_path, "init", "--no-scm", "-q")
    dvc(tmp_path, "add", "-q", "data", "single.bin")
    for name in ("data", "single.bin"):
        assert f"md5: {folder_digest(tmp_path / name)}" in (tmp_path / f"{name}.dvc").read_text()


def test_outs_metrics_and_plots_are_outs(tmp_path):
    (tmp_path / "dvc.yaml").write_text(
        "stages:\n  a:\n    cmd: x\n    deps: [d]\n    params: [seed, {other.yaml: [k]}]\n"
        "    outs: [o, {p: {persist: true}}]\n    metrics: [{m.json: {cache: false}}]\n    plots: [f]\n"
        "  c:\n    cmd: x\n    always_changed: true\n"
    )
    stage = read_stage(tmp_path / "dvc.yaml", "a")
    expected = (("d",), ("o", "p", "m.json", "f"), ("seed", "other.yaml"), False)
    assert (stage.deps, stage.outs, stage.params, stage.always_changed) == expected
    assert read_stage(tmp_path / "dvc.yaml", "c").always_changed
    with pytest.raises(InputError, match="no stage 'b'; it has a, c"):
        read_stage(tmp_path / "dvc.yaml", "b")


def test_a_failed_stages_former_outs_come_back_cached_or_not(tmp_path):
    make = "mkdir -p out/deep none && cp in.txt out/deep/a && echo 1 > b && test $(cat in.txt) = good"
    (tmp_path / "in.txt").write_text("good")
    stage = f"cmd: {make}\n    deps: [in.txt]\n    outs: [out, none]\n    metrics: [b: {{cache: false}}]\n"
    (tmp_path / "dvc.yaml").write_text(f"stages:\n  a:\n    {stage}")
    dvc(tmp_path, "init", "--no-scm", "-q")
    dvc(tmp_path, "repro", "-q")
    (tmp_path / "dvc.yaml").write_text((tmp_path / "dvc.yaml").read_text().replace(make, "exit 1"))
    with pytest.raises(subprocess.CalledProcessError):
        dvc(tmp_path, "repro", "-q")
    assert not (tmp_path / "out").exists()
    restore_outs(tmp_path, "a")
    assert (tmp_path / "out/deep/a").read_text() == "good"
    assert (tmp_path / "b").read_text() == "1\n"
    assert list((tmp_path / "none").iterdir()) == []
    # what is there is left alone, and so is a stage that DVC does not know
    (tmp_path / "b").write_text("mine")
    restore_outs(tmp_path, "a")
    restore_outs(tmp_path, "unknown")
    assert (tmp_path / "b").read_text() == "mine"


def test_receipts_are_read_in_the_order_of_the_stages(tmp_path):
    for stage in ("train", "split"):
        write_receipt(tmp_path, stage, f"key of {stage}")
    assert list(receipts(tmp_path).items()) == [("split", "key of split"), ("train", "key of train")]
