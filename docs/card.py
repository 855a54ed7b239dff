"""The figures of docs/card.md: what `moe-beyond card` says of a sample header, and how the band holds known models."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
from gguf import GGML_QUANT_SIZES, GGUFWriter
from gguf import GGMLQuantizationType as Q

from moe_beyond.assess.before_download import card, sentences
from moe_beyond.assess.known import SHOWN_SHARES, beside_table, known_curves, known_tables, outside_by_model
from moe_beyond.devices.device import load_device
from moe_beyond.devices.workload import MIB
from moe_beyond.formats.headers import read_sizes

_DEVICES, _BUDGET_MIB = ("phone_oneplus_15r", "laptop_nvme", "gpu_pcie4_wsl"), 4000


def example() -> str:
    """The sentences of a card, without its notes."""
    with tempfile.TemporaryDirectory() as folder:
        sizes = read_sizes(sample_header(Path(folder) / "model.gguf"))
    curves = known_curves([known_tables(None)[0]])
    found = card(sizes, [load_device(name) for name in _DEVICES], curves, budget_bytes=_BUDGET_MIB * MIB)
    return "\n".join(f"> {sentence}\n>" for sentence in sentences(found)).removesuffix("\n>")


def known_models() -> str:
    """A row a known model: hit rates of LRU, and where these lie to the band of the others."""
    tables = known_tables(None)
    curves = known_curves([tables[0]])
    outside = outside_by_model(curves)
    shares = [f"LRU at {share:.0%}" for share in SHOWN_SHARES]
    heading = ["model", "layers x experts, top-k", "tokens", *shares, "inside", "points outside at most"]
    rows = [heading, ["---"] * len(heading)]
    for row in beside_table(curves, [tables[1]]):
        rates = [f"{value:.0%}" for name, value in row.items() if name.startswith("lru")]
        shape, beyond = f"{row['num_layers']} x {row['num_experts']}, top-{row['top_k']}", outside[row["model"]]
        lies = [f"{np.mean(beyond == 0):.0%}", f"{100 * beyond.max():.0f}"]
        rows.append([row["model"], shape, f"{row['tokens']:,}", *rates, *lies])
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def sample_header(path: Path) -> Path:
    """Write the header alone of Qwen3-30B-A3B as llama.cpp quantises it to Q4_K_M; the published file has 18.6 GB."""
    layers, width, experts, half, rows = 48, 2048, 128, 768, 151_936
    writer = GGUFWriter(path, "qwen3moe")
    writer.add_name("Qwen3-30B-A3B")
    writer.add_block_count(layers)
    writer.add_expert_count(experts)
    writer.add_expert_used_count(8)
    writer.add_token_list([f"token {i}" for i in range(rows)])
    _promised(writer, "token_embd.weight", (rows, width), Q.Q4_K)
    _promised(writer, "output.weight", (rows, width), Q.Q6_K)
    _promised(writer, "output_norm.weight", (width,), Q.F32)
    for layer in range(layers):
        more = layer < layers // 8 or layer >= 7 * layers // 8 or (layer - layers // 8) % 3 == 2
        for name, shape, kind in (
            *(
                ("attn_q", (4096, width), Q.Q4_K),
                ("attn_k", (512, width), Q.Q4_K),
                ("attn_output", (width, 4096), Q.Q4_K),
            ),
            ("attn_v", (512, width), Q.Q6_K if more else Q.Q4_K),
            *(
                (norm, (size,), Q.F32)
                for norm, size in (("attn_norm", width), ("ffn_norm", width), ("attn_q_norm", 128))
            ),
            *(("attn_k_norm", (128,), Q.F32), ("ffn_gate_inp", (experts, width), Q.F32)),
            *((f"ffn_{half_name}_exps", (experts, half, width), Q.Q4_K) for half_name in ("gate", "up")),
            ("ffn_down_exps", (experts, width, half), Q.Q6_K if more else Q.Q4_K),
        ):
            _promised(writer, f"blk.{layer}.{name}.weight", shape, kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    writer.close()
    return path


def _promised(writer: GGUFWriter, name: str, shape: tuple[int, ...], kind: Q) -> None:
    """A tensor of which the header alone is written."""
    weights, block_bytes = GGML_QUANT_SIZES[kind]
    *outer, last = shape
    stored = (*outer, last // weights * block_bytes)
    writer.add_tensor_info(name, stored, np.dtype(np.uint8), int(np.prod(stored)), raw_dtype=kind)
