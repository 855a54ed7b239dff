"""Writes expert stores: one layer's experts in memory at a time, to be continued where a killed process stopped.

Work goes on beside the store, in `.<name>.packing`, and takes its name when it is whole:

lock               held by the process that packs
progress           the contents as JSON, then the digest of each record that is written, a line each
store/experts.bin  the records
"""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from filelock import FileLock, Timeout
from xxhash import xxh3_128_hexdigest

from moe_beyond.errors import InputError
from moe_beyond.live.dense_model import fused_layers, open_checkpoint
from moe_beyond.live.store import MANIFEST, PAGE, RECORDS, Contents, Manifest, StoredParameter, read_manifest

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedModel

    from moe_beyond.capture.discovery import MoELayer
    from moe_beyond.capture.models import ModelSource

_ALIGNMENT = 64
"""Bytes; vector instructions load parameters from addresses of this kind."""
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}

Progress = Callable[[int, int], None]
"""Called with the experts that are written and all experts, after each."""
LoadedExperts = Callable[["MoELayer"], "AbstractContextManager[nn.Module]"]


def pack(source: ModelSource, folder: Path, *, progress: Progress | None = None) -> None:
    """Write the experts of a model's files to a store. One of the same weights is left as it is.

    Args:
        source: Whose experts; they get the dtype that `dtype` gives them in memory. No tokenizer is needed.
        folder: New or empty. Killed at any moment, the next call continues and ends with the same bytes.
        progress: Told after each expert.

    Raises:
        InputError: No model whose experts can be stored, a folder that holds anything else, another process that packs
            into it, a full disk.
    """
    checkpoint = open_checkpoint(source)
    contents = _contents(source.location, checkpoint.revision, checkpoint.layers)
    _write(contents, checkpoint.layers, checkpoint.loaded_experts, folder, progress)


def pack_model(
    model: PreTrainedModel, folder: Path, *, model_id: str, revision: str, progress: Progress | None = None
) -> None:
    """As `pack`, for a model that is in memory; `model_id` and `revision` name its weights."""
    layers = fused_layers(model)
    _write(_contents(model_id, revision, layers), layers, lambda layer: nullcontext(layer.experts), folder, progress)


def _contents(model_id: str, revision: str, layers: list[MoELayer]) -> Contents:
    """The layout of the records, of which all layers must have the same."""
    num_experts, end = layers[0].num_experts, 0
    parameters = []
    for name, parameter in layers[0].experts.named_parameters():
        if parameter.ndim == 0 or parameter.shape[0] != num_experts:
            raise InputError(
                f"{model_id}: {layers[0].name}.{name} has shape {tuple(parameter.shape)}; expected {num_experts} experts "
                "along its first axis"
            )
        offset = -(-end // _ALIGNMENT) * _ALIGNMENT
        stored = StoredParameter(name=name, shape=tuple(parameter.shape[1:]), dtype=parameter.dtype, offset=offset)
        parameters.append(stored)
        end = offset + stored.nbytes
    contents = Contents(
        model_id=model_id,
        revision=revision,
        layer_numbers=tuple(layer.number for layer in layers),
        num_experts=num_experts,
        parameters=tuple(parameters),
        record_bytes=end,
        stride=-(-end // PAGE) * PAGE,
    )
    for layer in layers:
        _require_layout(contents, layer, layer.experts)
    return contents


def _require_layout(contents: Contents, layer: MoELayer, experts: nn.Module) -> None:
    def described(name: str, shape: tuple[int, ...], dtype: torch.dtype) -> str:
        return f"{name} {list(shape)} {str(dtype).removeprefix('torch.')}"

    expected = [described(stored.name, stored.shape, stored.dtype) for stored in contents.parameters]
    found = [described(name, tuple(tensor.shape[1:]), tensor.dtype) for name, tensor in experts.named_parameters()]
    if found != expected:
        raise InputError(
            f"{contents.model_id}: an expert of layer {layer.number} is {', '.join(found)}, but of layer "
            f"{contents.layer_numbers[0]} {', '.join(expected)}; a store needs one shape and dtype for all layers"
        )


def _write(
    contents: Contents, layers: list[MoELayer], loaded: LoadedExperts, folder: Path, progress: Progress | None
) -> None:
    work = folder.with_name(f".{folder.name}.packing")
    if _is_there(folder, contents) and not work.exists():
        return
    with _on_disk(folder, contents), _locked(work, folder):
        # what another process may have packed meanwhile, or left when it was killed
        if not _is_there(folder, contents):
            digests = _resume(work, contents)
            _append_records(work, contents, layers, loaded, digests, progress)
            _finish(work / "store", Manifest(contents=contents, digests=tuple(digests)).sealed(), folder)
        shutil.rmtree(work)


def _is_there(folder: Path, contents: Contents) -> bool:
    """Whether the folder is a store of the same experts; one that holds anything else is refused."""
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return False
    if not (folder / MANIFEST).exists():
        raise InputError(f"{folder}: holds other things than experts; give a new or empty folder")
    found = read_manifest(folder).contents
    if found.model_copy(update={"model_id": contents.model_id}) == contents:
        return True
    raise InputError(
        f"{folder}: holds the experts of {_named(found)}, not of {_named(contents)}; delete it or give another folder"
    )


def _named(contents: Contents) -> str:
    dtypes = sorted({str(stored.dtype).removeprefix("torch.") for stored in contents.parameters})
    return f"{contents.model_id} (revision {contents.revision}, {', '.join(dtypes)})"


@contextmanager
def _locked(work: Path, folder: Path) -> Iterator[None]:
    work.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(work / "lock", timeout=0):
            yield
    except Timeout as error:
        raise InputError(f"{folder}: another process is packing into it; wait for it or give another folder") from error


@contextmanager
def _on_disk(folder: Path, contents: Contents) -> Iterator[None]:
    """Raise in one line what the file system refuses."""
    try:
        yield
    except OSError as error:
        if error.errno in _FULL:
            raise _no_room(folder, contents.total_bytes) from error
        raise InputError(f"{folder}: cannot be written ({error.strerror}: {error.filename})") from error


def _no_room(folder: Path, needed: int) -> InputError:
    parent = next(path for path in folder.absolute().parents if path.exists())
    return InputError(
        f"{folder}: no room; its experts take {needed:,} bytes, {shutil.disk_usage(parent).free:,} more are free; free "
        "some and pack again, which goes on where it stopped"
    )


def _resume(work: Path, contents: Contents) -> list[str]:
    """Digests of the records that an interrupted process left whole, from the first on; all others are cut off."""
    progress, records = work / "progress", work / "store" / RECORDS
    lines = progress.read_text(encoding="utf-8", errors="replace").splitlines() if progress.exists() else []
    digests: list[str] = []
    if lines[:1] == [contents.model_dump_json()] and records.exists():
        with records.open("rb") as file:
            for digest in lines[1 : 1 + contents.num_model_experts]:
                if xxh3_128_hexdigest(file.read(contents.stride)) != digest:
                    break
                digests.append(digest)
    records.parent.mkdir(exist_ok=True)
    with records.open("ab") as file:
        file.truncate(len(digests) * contents.stride)
    progress.write_text("".join(f"{line}\n" for line in [contents.model_dump_json(), *digests]), encoding="utf-8")
    return digests


def _append_records(
    work: Path,
    contents: Contents,
    layers: list[MoELayer],
    loaded: LoadedExperts,
    digests: list[str],
    progress: Progress | None,
) -> None:
    """Write the records that are still missing; their digests are appended to `digests`."""
    total = contents.num_model_experts
    if shutil.disk_usage(work).free < (total - len(digests)) * contents.stride:
        raise _no_room(work, (total - len(digests)) * contents.stride)
    record = torch.zeros(contents.stride, dtype=torch.uint8)
    with (work / "store" / RECORDS).open("ab") as file, (work / "progress").open("a", encoding="utf-8") as written:
        for index, layer in enumerate(layers):
            first = len(digests) - index * contents.num_experts
            if first >= contents.num_experts:
                continue
            with loaded(layer) as experts:
                _require_layout(contents, layer, experts)
                for expert in range(first, contents.num_experts):
                    _fill(record, contents, experts, expert)
                    data = record.numpy().data
                    digests.append(xxh3_128_hexdigest(data))
                    file.write(data)
                    file.flush()
                    # a line without its record would be found out, a record without its line be written anew
                    written.write(f"{digests[-1]}\n")
                    written.flush()
                    if progress is not None:
                        progress(len(digests), total)
        os.fsync(file.fileno())


def _fill(record: torch.Tensor, contents: Contents, experts: nn.Module, expert: int) -> None:
    for stored in contents.parameters:
        parameter = experts.get_parameter(stored.name).detach()
        data = parameter[expert : expert + 1].cpu().contiguous().view(torch.uint8).flatten()
        record[stored.offset : stored.offset + stored.nbytes] = data


def _finish(store: Path, manifest: Manifest, folder: Path) -> None:
    """Give a whole store its manifest and then its name, each on the disk before the next."""
    with (store / MANIFEST).open("w", encoding="utf-8") as file:
        file.write(manifest.model_dump_json(indent=1) + "\n")
        file.flush()
        os.fsync(file.fileno())
    _sync_folder(store)
    store.rename(folder)
    _sync_folder(folder.parent)


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
