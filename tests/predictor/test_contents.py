"""A predictor is believed only by its digest: whatever is changed in its directory is named before it is used."""

import json
import shutil

import numpy as np
import pytest

from moe_beyond.errors import InputError, TamperedError
from moe_beyond.predictor.contents import MANIFEST, Contents, write_manifest
from moe_beyond.predictor.runtime import OnnxPredictor


@pytest.fixture
def copy(exported, tmp_path):
    return shutil.copytree(exported[0], tmp_path / "predictor")


def use_all(directory):
    """Everything that can be asked of a predictor."""
    for precision in ("fp32", "int8"):
        predictor = OnnxPredictor(directory, precision=precision)
        predictor.stream().step("word", None)
        predictor.layer_step_ms(1)
    Contents(directory).read("training_prompts.txt")
    return predictor.charge


def damaged(data, draw):
    """Cut off, one bit flipped, a stretch overwritten, or something added."""
    at = int(draw.integers(len(data)))
    kind = draw.integers(4)
    if kind == 0:
        return data[:at]
    if kind == 1:
        return data[:at] + bytes([data[at] ^ (1 << int(draw.integers(8)))]) + data[at + 1 :]
    if kind == 2:
        stretch = draw.bytes(int(draw.integers(1, 40)))
        return data[:at] + stretch + data[at + len(stretch) :]
    return data + draw.bytes(int(draw.integers(1, 40)))


def test_every_damage_to_every_file_is_refused_in_one_line(copy):
    use_all(copy)
    draw = np.random.default_rng(5)
    for path in sorted(copy.iterdir()):
        whole = path.read_bytes()
        for _ in range(25):
            changed = damaged(whole, draw)
            if changed == whole:
                continue
            path.write_bytes(changed)
            with pytest.raises(InputError, match=path.name) as caught:
                use_all(copy)
            assert len(str(caught.value).splitlines()) == 1
            if path.name != MANIFEST:
                assert isinstance(caught.value, TamperedError)
        path.write_bytes(whole)
    use_all(copy)


def test_a_file_that_the_manifest_does_not_name_is_not_read(copy):
    manifest = json.loads((copy / MANIFEST).read_text())
    del manifest["files"]["layer_step.onnx"]
    (copy / MANIFEST).write_text(json.dumps(manifest))
    with pytest.raises(TamperedError, match=r"layer_step.onnx: manifest.json does not name this file"):
        OnnxPredictor(copy).layer_step_ms(1)


def test_without_a_manifest_nothing_is_opened(copy):
    (copy / MANIFEST).unlink()
    with pytest.raises(InputError, match=r"manifest.json: no such file; run the export stage first"):
        OnnxPredictor(copy)
    write_manifest(copy, "1.18")
    use_all(copy)
