"""The shape of a model from its Hugging Face `config.json`, for formats that hold expert ids and nothing else."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

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
    """What a person says of a model where its config.json is wrong or cannot say it.

    Attributes:
        moe_layers: Numbers of the layers with experts, such as `1-47` or `1,3,5`.
        expert_size: Bytes of one expert, or the GGUF type of its tensors.
    """

    moe_layers: str | None = None
    expert_size: str | None = None

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


def shape_beside(source: Path, override: ShapeOverride) -> tuple[TraceMetadata, int]:
    """Read the config.json in a folder or archive, or beside a single file.

    Returns:
        The model's shape as metadata of a trace of all MoE layers, without a source; and the number of decoder layers,
        dense ones included.

    Raises:
        InputError: There is none, it is not JSON, or it describes no mixture of experts.
    """
    if is_single_file(source):
        beside = source.parent / NAME
        if not beside.is_file():
            raise InputError(f"{source}: no {NAME} beside it; {_FIX}")
        apart = {name: (source.parent / name).read_bytes() for name in APART if (source.parent / name).is_file()}
        return read_shape(beside.read_bytes(), str(beside), override, apart)
    # `quantize_config.json` of older quantisers ends alike
    found = {name: stream.read() for name, stream in members(source, NAME, fix=_FIX)}
    configs = [name for name in found if PurePosixPath(name).name == NAME]
    if not configs:
        raise InputError(f"{source}: holds no file named {NAME}; {_FIX}")
    name = min(configs, key=lambda candidate: (candidate.count("/"), candidate))
    folder = PurePosixPath(name).parent
    apart = {other: found[str(folder / other)] for other in APART if str(folder / other) in found}
    return read_shape(found[name], locate(source, name), override, apart)


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
    top_k = integer(text, TOP_K, where)
    structure = structure_of(config, named, where)
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
        model_id=str(config.get("_name_or_path") or config.get("model_type") or "unknown"),
        layer_numbers=tuple(layers),
        num_experts=structure.num_experts,
        top_k=top_k,
        expert_bytes=tuple(sizes),
        source="",
        licence="none stated",
    )
    return metadata, structure.num_layers
