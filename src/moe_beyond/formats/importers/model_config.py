"""The shape of a model from its Hugging Face `config.json`, for formats that hold expert ids and nothing else."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any

from moe_beyond.documents import read_plain, require_plain
from moe_beyond.errors import InputError
from moe_beyond.formats.importers.expert_bytes import from_config, sized
from moe_beyond.formats.importers.layer_keys import integer
from moe_beyond.formats.importers.moe_structure import TOP_K, structure_of, text_config
from moe_beyond.formats.importers.sources import is_single_file, locate, members, read_json
from moe_beyond.traces.schema import TraceMetadata

NAME = "config.json"
# where quantisers wrote what `quantization_config` says today, and their method
APART = {"hf_quant_config.json": "modelopt", "quantize_config.json": "gptq", "quant_config.json": "awq"}
_FIX = "copy the model's there: the format does not say how many experts the model has"


@dataclass(frozen=True)
class ShapeOverride:
    """What a person says of a model or a trace where config.json or the format cannot say it.

    Attributes:
        moe_layers: Numbers of the layers with experts, such as `1-47` or `1,3,5`.
        expert_size: Bytes of one expert, or the GGUF type of its tensors.
        num_experts: Experts of a layer.
        top_k: Experts per token.
        hidden_size: Width of the hidden states that stand among the ids of some formats.
        model_id: The model's name.
        prefill_tokens: How many of a prompt's first tokens were prefill, or `all`.
    """

    moe_layers: str | None = None
    expert_size: str | None = None
    num_experts: int | None = None
    top_k: int | None = None
    hidden_size: int | None = None
    model_id: str | None = None
    prefill_tokens: str | None = None

    def __bool__(self) -> bool:
        return self != ShapeOverride()

    def layers(self) -> list[int] | None:
        """The numbers that `moe_layers` names, rising. Raises InputError if it names none."""
        if self.moe_layers is None:
            return None
        found: set[int] = set()
        for part in self.moe_layers.split(","):
            ends = re.fullmatch(r"\s*([0-9]{1,4})(?:\s*-\s*([0-9]{1,4}))?\s*", part)
            if ends is None:
                raise InputError(
                    f"moe layers {self.moe_layers!r:.60}: expected numbers and ranges such as 1-47 or 1,3,5"
                )
            found |= set(range(int(ends[1]), int(ends[2] or ends[1]) + 1))
        return sorted(found)


NONE = ShapeOverride()


def shape_beside(
    source: Path, override: ShapeOverride, num_experts: int | None = None, top_k: int | None = None
) -> tuple[TraceMetadata, int]:
    """The model's shape: from the config.json in a folder or archive or beside a single file, or as a person says it.

    Args:
        source: The published folder, archive or file.
        override: What a person says.
        num_experts: Experts of a layer where the trace itself says it.
        top_k: Experts per token where the trace itself says it.

    Returns:
        The model's shape as metadata of a trace of all MoE layers, without a source; and the number of decoder layers,
        dense ones included.

    Raises:
        InputError: There is no config and too little is said, it is not JSON, or it describes no mixture of experts.
    """
    found = _config_beside(source)
    if found is None:
        return _said(source, replace(override, num_experts=override.num_experts or num_experts), top_k)
    shape, num_layers = read_shape(*found[:2], override, found[2])
    for word, ours, theirs in (("num-experts", shape.num_experts, num_experts), ("top-k", shape.top_k, top_k)):
        if theirs is not None and theirs != ours:
            raise InputError(
                f"{source}: the trace has {word.replace('num-', '')} {theirs}, {found[1]} says {ours}: another "
                f"model's; --{word} says it where the engine ran another number"
            )
    return shape, num_layers


def shape_of_layers(
    source: Path, override: ShapeOverride, layers: tuple[int, ...], num_experts: int
) -> tuple[str | None, int | None, tuple[int, ...] | None] | None:
    """Name, top-k and bytes of an expert of the model that some layers belong to; None where nothing is said of it.

    Args:
        source: A file, perhaps with a config.json beside it.
        override: What a person says.
        layers: Numbers of layers with experts.
        num_experts: Experts of a layer.

    Raises:
        InputError: The config.json is of another model: it has other experts, or none in these layers.
    """
    found = _config_beside(source)
    if found is None:
        size = override.expert_size
        if size is None:
            return None if override.model_id is None else (override.model_id, override.top_k, None)
        if re.fullmatch(r"[1-9][0-9]{0,12}", size) is None:
            raise InputError(f"expert size {size!r:.40}: expected bytes; a GGUF type needs the model's config.json")
        return override.model_id, override.top_k, (int(size),) * len(layers)
    shape, _ = read_shape(*found[:2], override, found[2])
    wrong = sorted(set(layers) - set(shape.layer_numbers))
    if wrong or num_experts != shape.num_experts:
        raise InputError(
            f"{source}: {num_experts} experts in layers {list(layers)!s:.60}; {found[1]} has {shape.num_experts}"
            f"{f', and no experts in layer {wrong[0]}' if wrong else ''}: another model's"
        )
    sizes = dict(zip(shape.layer_numbers, shape.expert_bytes, strict=True))
    return shape.model_id, shape.top_k, tuple(sizes[layer] for layer in layers)


def config_beside(source: Path) -> dict[str, Any]:
    """Fields of the language model in the config.json; none without one. Raises InputError if it is no JSON."""
    found = _config_beside(source)
    config = {} if found is None else read_json(*found[:2])
    return text_config(config) if isinstance(config, dict) else {}


def _config_beside(source: Path) -> tuple[bytes, str, dict[str, bytes]] | None:
    """The config.json, its name in messages, and the files of `APART` beside it."""
    if is_single_file(source):
        beside = require_plain(source.parent / NAME)
        if not beside.is_file():
            return None
        apart = {name: read_plain(source.parent / name) for name in APART if (source.parent / name).is_file()}
        return read_plain(beside), str(beside), apart
    # `quantize_config.json` of older quantisers ends alike
    found = {name: stream.read() for name, stream in members(source, NAME, required=False)}
    configs = [name for name in found if PurePosixPath(name).name == NAME]
    if not configs:
        return None
    name = min(configs, key=lambda candidate: (candidate.count("/"), candidate))
    for other in configs:
        if other.count("/") == name.count("/") and found[other] != found[name]:
            raise InputError(f"{locate(source, other)}: says another model than {name}; give one of the folders")
    folder = PurePosixPath(name).parent
    apart = {other: found[str(folder / other)] for other in APART if str(folder / other) in found}
    return found[name], locate(source, name), apart


def _said(source: Path, override: ShapeOverride, top_k: int | None) -> tuple[TraceMetadata, int]:
    """The shape by a person's words, and by the trace's."""
    layers, size, top_k = override.layers(), override.expert_size, override.top_k or top_k
    said = {"--moe-layers": layers, "--num-experts": override.num_experts, "--top-k": top_k, "--expert-size": size}
    missing = [word for word, value in said.items() if not value]
    if missing or not layers or not size or not top_k or not override.num_experts:
        there = "no config.json beside it" if is_single_file(source) else "holds no file named config.json"
        raise InputError(f"{source}: {there}; {_FIX}; or give {', '.join(missing)}")
    if re.fullmatch(r"[1-9][0-9]{0,12}", size) is None or int(size) > 2**40:
        raise InputError(
            f"expert size {size!r:.40}: expected bytes of one expert; a GGUF type needs the model's config.json"
        )
    if not (2 <= override.num_experts <= 65536 and 1 <= top_k <= override.num_experts):
        raise InputError(f"{source}: {override.num_experts} experts, top-{top_k}: not a mixture of experts")
    shape = TraceMetadata(
        model_id=override.model_id or "unknown",
        layer_numbers=tuple(layers),
        num_experts=override.num_experts,
        top_k=top_k,
        expert_bytes=(int(size),) * len(layers),
        source="",
        licence="none stated",
    )
    return shape, layers[-1] + 1


def read_shape(
    data: bytes, where: str, override: ShapeOverride = NONE, apart: dict[str, bytes] | None = None
) -> tuple[TraceMetadata, int]:
    """Parse a config.json and the files of `APART` beside it; as `shape_beside`."""
    config = read_json(data, where)
    if not isinstance(config, dict):
        raise InputError(f"{where}: expected an object, found {type(config).__name__}")
    for name, content in (apart or {}).items():
        fields = read_json(content, f"{where}, {name}")
        fields = fields.get("quantization", fields) if isinstance(fields, dict) else {}
        if "quantization_config" not in text_config(config):
            config = {**config, "quantization_config": {"quant_method": APART[name], **fields}}
    named, text = override.layers(), text_config(config)
    top_k = override.top_k or integer(text, TOP_K, where)
    structure = structure_of(config, named, where)
    if override.num_experts:
        structure = replace(structure, num_experts=override.num_experts)
    layers = [expert.layer for expert in structure.experts]
    if not layers or not 2 <= structure.num_experts <= 65536 or top_k > structure.num_experts:
        raise InputError(
            f"{where}: {len(layers)} layers with {structure.num_experts} experts, top-{top_k}: not a mixture of experts"
        )
    if layers[-1] >= structure.num_layers:
        raise InputError(f"{where}: layer {layers[-1]} of {structure.num_layers}; they count from 0")
    sizes = [
        sized(override.expert_size, expert, structure.num_layers)
        if override.expert_size
        else from_config(text, expert, structure.num_layers, where)
        for expert in structure.experts
    ]
    metadata = TraceMetadata(
        model_id=override.model_id or str(config.get("_name_or_path") or config.get("model_type") or "unknown"),
        layer_numbers=tuple(layers),
        num_experts=structure.num_experts,
        top_k=top_k,
        expert_bytes=tuple(sizes),
        source="",
        licence="none stated",
    )
    return metadata, structure.num_layers
