"""Small GGUF files with the tensors of eight architectures, written by the package gguf."""

from dataclasses import dataclass, field

import numpy as np
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, GGUFWriter

Q = GGMLQuantizationType
EXPERTS, TOP_K, WIDTH, HALF = 8, 2, 256, 512


@dataclass(frozen=True)
class Architecture:
    """How a model family names and stores its experts.

    Attributes:
        layers: Decoder layers.
        dense: Those without experts.
        projections: Of an expert: name -> rows, columns.
        types: Of the projections' tensors, in turn by layer.
        biases: Whether experts have them.
        further: Layers at the end that predict further tokens.
        tied: Whether embeddings are the output head too.
        listed: Whether each expert has tensors of its own.
    """

    layers: int = 3
    dense: tuple[int, ...] = ()
    projections: dict[str, tuple[int, int]] = field(
        default_factory=lambda: {"gate_exps": (HALF, WIDTH), "up_exps": (HALF, WIDTH), "down_exps": (WIDTH, HALF)}
    )
    types: tuple[Q, ...] = (Q.Q4_K,)
    biases: bool = False
    further: int = 0
    tied: bool = False
    listed: bool = False


ARCHITECTURES = {
    "qwen3moe": Architecture(types=(Q.Q4_K, Q.Q6_K)),
    "deepseek2": Architecture(layers=4, dense=(0,), types=(Q.IQ2_XXS, Q.Q5_K)),
    "gpt-oss": Architecture(types=(Q.MXFP4,), biases=True),
    "llama": Architecture(types=(Q.Q3_K,)),  # Mixtral
    "glm4moe": Architecture(layers=5, dense=(0,), further=1, types=(Q.Q8_0,)),
    "llama4": Architecture(layers=4, dense=(0, 2), types=(Q.IQ4_XS,)),
    "lfm2moe": Architecture(layers=4, dense=(0, 1), tied=True, types=(Q.BF16,)),
    "gemma4": Architecture(
        projections={"gate_up_exps": (2 * HALF, WIDTH), "down_exps": (WIDTH, HALF)}, tied=True, types=(Q.Q4_0, Q.Q4_1)
    ),
    "llama-2023": Architecture(types=(Q.Q2_K,), listed=True),  # Mixtral, an expert a tensor
}


def write(path, name, alignment=32, **changes):
    """Write the file, or its shards, with tensors of zeros; returns where it is."""
    made, arch = ARCHITECTURES[name], name.removesuffix("-2023")
    writer = GGUFWriter(path, arch, **changes)
    writer.add_custom_alignment(alignment)
    writer.add_name(f"a small {name}")
    writer.add_block_count(made.layers)
    writer.add_expert_count(EXPERTS)
    writer.add_expert_used_count(TOP_K)
    if made.further:
        writer.add_nextn_predict_layers(made.further)
    writer.add_token_list([f"token {i}" for i in range(300)])
    writer.add_token_scores([0.0] * 300)
    writer.add_chat_template("{{ messages }}" * 200)
    tensor(writer, "token_embd.weight", (300, WIDTH), Q.Q8_0)
    tensor(writer, "output_norm.weight", (WIDTH,), Q.F32)
    if not made.tied:
        tensor(writer, "output.weight", (300, WIDTH), Q.Q6_K)
    for layer in range(made.layers):
        tensor(writer, f"blk.{layer}.attn_q.weight", (WIDTH, WIDTH), Q.F16)
        if layer in made.dense:
            tensor(writer, f"blk.{layer}.ffn_down.weight", (WIDTH, HALF), Q.Q4_K)
            continue
        tensor(writer, f"blk.{layer}.ffn_gate_inp.weight", (EXPERTS, WIDTH), Q.F32)
        tensor(writer, f"blk.{layer}.ffn_gate_shexp.weight", (HALF, WIDTH), Q.Q8_0)
        for projection, shape in made.projections.items():
            kind = made.types[layer % len(made.types)]
            if made.listed:
                for expert in range(EXPERTS):
                    stem = projection.removesuffix("_exps")
                    tensor(writer, f"blk.{layer}.ffn_{stem}.{expert}.weight", shape, kind)
                continue
            tensor(writer, f"blk.{layer}.ffn_{projection}.weight", (EXPERTS, *shape), kind)
            if made.biases:
                tensor(writer, f"blk.{layer}.ffn_{projection}.bias", (EXPERTS, shape[0]), Q.F32)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def tensor(writer, name, shape, kind):
    weights, block_bytes = GGML_QUANT_SIZES[kind]
    *outer, last = shape
    writer.add_tensor(name, np.zeros((*outer, last // weights * block_bytes), np.uint8), raw_dtype=kind)
