"""What a model weighs, told before its download: from a GGUF or safetensors header, or an index and config.json."""

from __future__ import annotations

from pathlib import Path

from moe_beyond.documents import require_plain
from moe_beyond.errors import InputError
from moe_beyond.formats.headers import gguf_header, safetensors_header
from moe_beyond.formats.headers.model_sizes import ModelSizes

__all__ = ["ModelSizes", "read_sizes"]


def read_sizes(path: Path) -> ModelSizes:
    """Sizes of the model in a file or folder; the beginnings of its files are enough.

    Args:
        path: A GGUF file, of a split one any shard; a safetensors file or an index with config.json beside it; or the
            folder that they lie in.

    Raises:
        InputError: Neither, several GGUF models in one folder, or as `read_gguf` and `read_safetensors`.
    """
    if require_plain(path).is_dir():
        models = sorted(
            file for file in path.glob("*.gguf") if not file.name.startswith("mmproj") and not _later_shard(file)
        )
        if len(models) > 1:
            raise InputError(f"{path}: holds {len(models)} GGUF models; name one, such as {models[0]}")
        return gguf_header.read_gguf(models[0]) if models else safetensors_header.read_safetensors(path)
    try:
        with path.open("rb") as file:
            is_gguf = file.read(4) == gguf_header.MAGIC
    except OSError as error:
        raise InputError(f"{path}: not readable ({error.strerror}); give a header, an index or their folder") from error
    return gguf_header.read_gguf(path) if is_gguf else safetensors_header.read_safetensors(path)


def _later_shard(path: Path) -> bool:
    found = gguf_header.SHARD.match(path.name)
    return found is not None and int(found["number"]) > 1
