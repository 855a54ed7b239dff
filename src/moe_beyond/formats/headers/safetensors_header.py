"""The headers of a safetensors checkpoint: every shard's, from its first bytes, or its index and config.json.

`safetensors.safe_open` wants the tensors' data too, so that the few lines of the layout are read here:
https://github.com/huggingface/safetensors#format.
"""

from __future__ import annotations

import json
import math
import re
import struct
from pathlib import Path
from typing import Any

from moe_beyond.documents import require_plain
from moe_beyond.errors import InputError
from moe_beyond.formats.headers.model_sizes import ModelSizes, Part, Tensor, check_shape, sizes_of
from moe_beyond.formats.importers.layer_keys import integer
from moe_beyond.formats.importers.model_config import NAME as CONFIG
from moe_beyond.formats.importers.model_config import read_shape
from moe_beyond.formats.importers.moe_structure import NUM_EXPERTS, NUM_LAYERS, TOP_K, text_config
from moe_beyond.formats.importers.sources import read_json

INDEX = "model.safetensors.index.json"
# an index of 140,000 tensors has 15 MiB; JSON of a few bytes an item takes up to 25 times its size in memory
_MOST_JSON = 64 * 2**20
_MOST_BYTES = 2**50
_SHARD = re.compile(r"^(?P<stem>.*)-(?P<number>[0-9]{5})-of-(?P<count>[0-9]{5})\.safetensors$")
_BITS = {
    **dict.fromkeys(("F64", "I64", "U64", "C64"), 64),
    **dict.fromkeys(("F32", "I32", "U32"), 32),
    **dict.fromkeys(("F16", "BF16", "I16", "U16"), 16),
    **dict.fromkeys(("I8", "U8", "BOOL", "F8_E4M3", "F8_E5M2", "F8_E8M0", "F8_E4M3FNUZ", "F8_E5M2FNUZ"), 8),
    **{"F6_E2M3": 6, "F6_E3M2": 6, "F4": 4},
}
_LAYER = re.compile(r"(?:^|\.)(?:layers|h|blocks)\.([0-9]{1,5})\.")
# a tensor an expert, or one for all of a layer; Granite names its stacked projections after what they do
_EXPERTS = re.compile(r"\.experts\.(?:(?P<expert>[0-9]{1,5})\.)?|\.block_sparse_moe\.(?:input|output)_linear\.")
_EMBEDDINGS = re.compile(r"(?:^|\.)(?:embed_tokens|wte|word_embeddings|tok_embeddings)\.weight$")
_HEAD = re.compile(r"(?:^|\.)(?:lm_head|embed_out)\.weight$")
# what a token of text does not read: rows of a table, pictures and sound, layers that predict further tokens
_UNREAD = re.compile(r"(?:^|\.)(?:embed_tokens_per_layer|visual|vision\w*|audio\w*|multi_modal\w*|mtp|talker)\.")


def read_safetensors(path: Path) -> ModelSizes:
    """Sizes of the model that a file, an index or a folder of a checkpoint describes; config.json lies beside it.

    Raises:
        InputError: Damaged, cut short within a header, without config.json, of no mixture of experts, or shards are
            missing and there is no index.
    """
    folder = path if path.is_dir() else path.parent
    index = folder / INDEX
    if path.is_file() and path != index and _SHARD.match(path.name) is None:
        return _from_headers([path], path)
    shards = sorted(folder.glob("*.safetensors"))
    if index.is_file():
        fields = _index(index)
        named = sorted(set(fields["weight_map"].values()))
        if all((folder / name).is_file() for name in named):
            return _from_headers([folder / name for name in named], path)
        return _from_index(fields, index)
    named_shards = [found for shard in shards if (found := _SHARD.match(shard.name))]
    if named_shards:
        stem, count = named_shards[0]["stem"], int(named_shards[0]["count"])
        expected = [f"{stem}-{number:05d}-of-{count:05d}.safetensors" for number in range(1, count + 1)]
        missing = [name for name in expected if not (folder / name).is_file()]
        if missing:
            more = f" and {len(missing) - 3} more" if len(missing) > 3 else ""
            raise InputError(
                f"{folder}: shards are missing: {', '.join(missing[:3])}{more}; fetch their first bytes, or {INDEX}"
            )
        shards = [folder / name for name in expected]
    if not shards:
        raise InputError(f"{path}: holds no *.gguf, no *.safetensors and no {INDEX}; fetch one of them")
    return _from_headers(shards, path)


def _from_headers(paths: list[Path], where: Path) -> ModelSizes:
    """Sizes by the shapes and offsets of the tensors themselves."""
    tensors = [tensor for path in paths for tensor in read_header(path)]
    if len({tensor.name for tensor in tensors}) < len(tensors):
        raise InputError(f"{where}: two shards hold a tensor of one name; fetch them again")
    config = _read_config(paths[0].with_name(CONFIG))
    text, config_name = text_config(config), f"{where}: {CONFIG}"
    has_head = any(_HEAD.search(tensor.name) for tensor in tensors)

    def part_of(tensor: Tensor) -> Part:
        layer, experts = _LAYER.search(tensor.name), _EXPERTS.search(tensor.name)
        unread = _UNREAD.search(tensor.name) is not None
        # without an output head of its own a model reads the embeddings as one
        unread |= has_head and _EMBEDDINGS.search(tensor.name) is not None
        # a vision tower has layers of its own, and so may a module that predicts further tokens
        layer_number = int(layer[1]) if layer and not unread else None
        expert = None if experts is None or experts["expert"] is None else int(experts["expert"])
        stacked = expert is not None or (tensor.shape and tensor.shape[0] >= num_experts)
        return Part(layer_number, experts is not None and not unread and bool(stacked), expert, not unread)

    num_experts = integer(text, NUM_EXPERTS, config_name)
    return sizes_of(
        tensors,
        part_of,
        name=_name(config),
        source=f"headers of {len(paths)} safetensors file{'s' if len(paths) > 1 else ''}",
        num_layers=integer(text, NUM_LAYERS, config_name),
        num_experts=num_experts,
        top_k=integer(text, TOP_K, config_name),
        where=str(where),
    )


def _from_index(fields: dict[str, Any], where: Path) -> ModelSizes:
    """Sizes of experts by config.json; what the index's total leaves is dense."""
    config = _read_config(where.with_name(CONFIG))
    meta, num_layers = read_shape(json.dumps(config).encode(), str(where.with_name(CONFIG)))
    check_shape(num_layers, meta.num_experts, meta.top_k, str(where))
    names = list(fields["weight_map"])
    # layers that predict further tokens hold experts too, as large as those of the last layer
    beyond = {int(found[1]) for name in names if _EXPERTS.search(name) and (found := _LAYER.search(name))}
    further = meta.num_experts * meta.expert_bytes[-1] * len([layer for layer in beyond if layer >= num_layers])
    total = fields["metadata"].get("total_size") if isinstance(fields.get("metadata"), dict) else None
    routed = meta.num_experts * sum(meta.expert_bytes)
    if type(total) is not int or not routed + further < total <= _MOST_BYTES:
        raise InputError(
            f"{where}: metadata.total_size is {total!r:.40}, the experts of {CONFIG} have {routed + further} bytes; "
            "fetch the first bytes of every shard instead"
        )
    text, embeddings = text_config(config), 0
    if any(_HEAD.search(name) for name in names):
        bits = 32 if "float32" in str(text.get("dtype") or text.get("torch_dtype")) else 16
        rows, width = (text.get(key) for key in ("vocab_size", "hidden_size"))
        embeddings = rows * width * bits // 8 if type(rows) is type(width) is int else 0
    dense = total - routed - further - embeddings
    if dense <= 0 or embeddings < 0:
        raise InputError(f"{where}: metadata.total_size is {total}, less than experts and embeddings of {CONFIG}")
    return ModelSizes(
        name=_name(config),
        source=f"{INDEX} and {CONFIG}; bytes of an expert follow from the latter",
        num_layers=num_layers,
        num_experts=meta.num_experts,
        top_k=meta.top_k,
        layer_numbers=meta.layer_numbers,
        expert_bytes=meta.expert_bytes,
        dense_bytes=dense,
        other_bytes=further + embeddings,
    )


def read_header(path: Path) -> list[Tensor]:
    """The tensors of one file.

    Raises:
        InputError: It cannot be read, is damaged, or ends within the header.
    """
    begin = _read(path, 8)
    length = struct.unpack("<Q", begin)[0] if len(begin) == 8 else 0
    if not 2 <= length <= _MOST_JSON:
        raise InputError(f"{path}: not the beginning of a safetensors file: a header of {length} bytes; fetch it again")
    data = _read(path, 8 + length)[8:]
    if len(data) < length:
        raise InputError(
            f"{path}: ends within its header, after {8 + len(data)} bytes; fetch the first {8 + length} at least"
        )
    header = read_json(data, str(path))
    entries = header.items() if isinstance(header, dict) else ()
    tensors = [_tensor(name, entry, path) for name, entry in entries if name != "__metadata__"]
    end = 0
    for begins, ends, _ in sorted(tensors):
        if begins != end:
            raise InputError(f"{path}: a damaged header: tensors leave or share bytes at {end}; fetch it again")
        end = ends
    return [tensor for _, _, tensor in tensors]


def _tensor(name: str, entry: Any, path: Path) -> tuple[int, int, Tensor]:
    """Where a tensor begins and ends in the data, and what it is."""
    shape, offsets, dtype = (
        (entry.get("shape"), entry.get("data_offsets"), entry.get("dtype")) if isinstance(entry, dict) else (None,) * 3
    )
    if not (
        isinstance(shape, list)
        and isinstance(offsets, list)
        and len(offsets) == 2
        and all(type(value) is int and 0 <= value <= _MOST_BYTES for value in (*shape, *offsets))
    ):
        raise InputError(f"{path}: tensor {name!r:.80} lacks shape or data_offsets; fetch the file again")
    begins, ends = offsets
    bits = _BITS.get(str(dtype))
    if bits is None:
        raise InputError(f"{path}: tensor {name!r:.80}: dtype {dtype!r:.40} is unknown")
    if math.prod(shape) * bits != 8 * (ends - begins):
        raise InputError(
            f"{path}: tensor {name!r:.80}: {dtype} of shape {shape!r:.60} and {ends - begins} bytes; fetch it again"
        )
    return begins, ends, Tensor(name, tuple(shape), ends - begins)


def _read_config(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise InputError(f"{path}: no such file; fetch the model's: headers do not say how many experts a token uses")
    config = read_json(_read(path, _MOST_JSON), str(path))
    if not isinstance(config, dict):
        raise InputError(f"{path}: expected an object, found {type(config).__name__}")
    return config


def _index(path: Path) -> dict[str, Any]:
    fields = read_json(_read(path, _MOST_JSON), str(path))
    names = fields.get("weight_map") if isinstance(fields, dict) else None
    shards = list(names.values()) if isinstance(names, dict) else []
    if not shards or not all(isinstance(name, str) and Path(name).name == name for name in shards):
        raise InputError(f"{path}: weight_map does not name a file for each tensor; fetch it again")
    return dict(fields)


def _name(config: dict[str, Any]) -> str:
    return str(config.get("_name_or_path") or config.get("model_type") or "unknown")


def _read(path: Path, most: int) -> bytes:
    try:
        with require_plain(path).open("rb") as file:
            return file.read(most)
    except OSError as error:
        raise InputError(f"{path}: not readable ({error.strerror})") from error
