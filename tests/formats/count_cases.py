"""The same counts as each tool writes them: layers 1 to 3 with experts, layer 0 without."""

import json
import struct

import numpy as np
import torch

from tests.formats.engine_cases import NUM_EXPERTS, saved, vllm_routes

COUNTS_LE = np.random.default_rng(8).integers(0, 9, (3, NUM_EXPERTS)) + np.eye(3, NUM_EXPERTS, dtype=int)
WITH_DENSE = np.concatenate([np.zeros((1, NUM_EXPERTS), int), COUNTS_LE])


def _text(text):
    return struct.pack("<Q", len(text)) + text.encode()


def gguf(counts_LE=COUNTS_LE, kind="imatrix", layers=(1, 2, 3), names=("ffn_gate_exps", "ffn_down_exps")):
    """An imatrix as GGUF, made by hand."""
    tensors = [
        (f"blk.{layer}.{name}.weight.counts", row)
        for layer, row in zip(layers, counts_LE, strict=True)
        for name in names
    ]
    head = b"GGUF" + struct.pack("<IQQ", 3, len(tensors), 2)
    head += _text("general.type") + struct.pack("<I", 8) + _text(kind)
    head += _text("imatrix.datasets") + struct.pack("<IIQ", 9, 8, 1) + _text("toy.txt")
    body = b""
    for name, row in tensors:
        # ne[0] = 1, ne[1] = experts, float32
        head += _text(name) + struct.pack("<IQQIQ", 2, 1, len(row), 0, len(body))
        body += np.asarray(row, "<f4").tobytes()
        body += bytes(-len(body) % 32)
    return head + bytes(-len(head) % 32) + body


def coli_usage():
    lines = ["-1 4 8", "-2 1 3841822045"]
    lines += [f"{layer} {e} {n}" for layer, row in enumerate(WITH_DENSE) for e, n in enumerate(row.tolist()) if n]
    return "\n".join([*lines, "4 0 7", ""]).encode()  # the last one is the draft head's


def hotness():
    rows = [",".join(map(str, row)) for row in WITH_DENSE.tolist()]
    return "\n".join(["# hotness table: n_layer=4 n_expert=8 n_expert_used=2", "# rows are layers", *rows, ""]).encode()


def _layers():
    return [
        {"layer": layer, "heat": row, "pairs": []} for layer, row in zip((1, 2, 3), COUNTS_LE.tolist(), strict=True)
    ]


COUNTS = {
    "coli-usage": {"x.coli_usage": coli_usage()},
    "imatrix": {"x.gguf": gguf()},
    "logical-count-json": {"x.json": json.dumps({"logical_count": WITH_DENSE.tolist()}).encode()},
    "logical-count-pt": {
        "x.pt": saved({"rank": 0, "logical_count": torch.tensor(np.stack([WITH_DENSE, 0 * WITH_DENSE]))})
    },
    "lucebox-hotness": {"x.csv": hotness()},
    "mbolt-heat": {"x.json": json.dumps({"model": "m", "k": 2, "layers": _layers()}).encode()},
    "vllm-routes": {"x.jsonl": vllm_routes(("a",))},
}
"""Every format of counts by its name."""
