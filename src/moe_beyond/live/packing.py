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
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from filelock import FileLock, Timeout
from xxhash import xxh3_128_hexdigest

from moe_beyond.errors import InputError
from moe_beyond.files import replacing
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
    _Packing(contents, checkpoint.layers, checkpoint.loaded_experts, folder, progress).run()


def pack_model(
    model: PreTrainedModel, folder: Path, *, model_id: str, revision: str, progress: Progress | None = None
) -> None:
    """As `pack`, for a model that is in memory; `model_id` and `revision` name its weights."""
    layers = fused_layers(model)
    contents = _contents(model_id, revision, layers)
    _Packing(contents, layers, lambda layer: nullcontext(layer.experts), folder, progress).run()


def _contents(model_id: str, revision: str, layers: list[MoELayer]) -> Contents:
    """The layout of the records, of which all layers must have the same."""
    num_experts, end = layers[0].num_experts, 0
    parameters = []
    for name, parameter in layers[0].experts.named_parameters():
        if parameter.ndim == 0 or parameter.shape[0] != num_experts:
            raise InputError(
                f"{model_id}: {layers[0].name}.{name} has shape {tuple(parameter.shape)}; expected {num_experts} "
                "experts along its first axis"
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


@dataclass(frozen=True)
class _Packing:
    contents: Contents
    layers: list[MoELayer]
    loaded: LoadedExperts
    folder: Path
    progress: Progress | None

    @property
    def work(self) -> Path:
        folder = self.folder.absolute()
        return folder.with_name(f".{folder.name}.packing")

    @property
    def records(self) -> Path:
        return self.work / "store" / RECORDS

    def run(self) -> None:
        if self.is_done() and not self.work.exists():
            return
        with self.told_by_the_disk(), self.locked():
            # what another process may have packed meanwhile, or left when it was killed
            if not self.is_done():
                digests = self.resume()
                if shutil.disk_usage(self.work).free < self.missing_bytes():
                    raise self.no_room()
                self.append(digests)
                self.finish(Manifest(contents=self.contents, digests=tuple(digests)).sealed())
            shutil.rmtree(self.work)

    def is_done(self) -> bool:
        """Whether the folder is a store of the same experts; one that holds anything else is refused."""
        folder, contents = self.folder, self.contents
        if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
            return False
        if not (folder / MANIFEST).exists():
            raise InputError(f"{folder}: holds other things than experts; give a new or empty folder")
        found = read_manifest(folder).contents
        if found.model_copy(update={"model_id": contents.model_id}) == contents:
            return True
        raise InputError(
            f"{folder}: holds the experts of {_named(found)}, not of {_named(contents)}; delete it or give another "
            "folder"
        )

    @contextmanager
    def locked(self) -> Iterator[None]:
        self.work.mkdir(parents=True, exist_ok=True)
        try:
            with FileLock(self.work / "lock", timeout=0):
                yield
        except Timeout as error:
            raise InputError(
                f"{self.folder}: another process is packing into it; wait for it or give another folder"
            ) from error

    @contextmanager
    def told_by_the_disk(self) -> Iterator[None]:
        """Raise in one line what the file system refuses."""
        try:
            yield
        except OSError as error:
            if error.errno in _FULL:
                raise self.no_room() from error
            raise InputError(f"{self.folder}: cannot be written ({error})") from error

    def no_room(self) -> InputError:
        return InputError(
            f"{self.folder}: no room for the experts; {self.missing_bytes():,} bytes are still to be written and "
            f"{shutil.disk_usage(self.work).free:,} are free: free some and pack again, which goes on where it stopped"
        )

    def missing_bytes(self) -> int:
        written = self.records.stat().st_size if self.records.exists() else 0
        return self.contents.total_bytes - written

    def resume(self) -> list[str]:
        """Digests of the records that an interrupted process left whole, from the first on; the rest is cut off."""
        progress, header = self.work / "progress", self.contents.model_dump_json()
        lines = progress.read_text(encoding="utf-8", errors="replace").splitlines() if progress.exists() else []
        digests: list[str] = []
        if lines[:1] == [header] and self.records.exists():
            with self.records.open("rb") as file:
                for digest in lines[1:]:
                    if xxh3_128_hexdigest(file.read(self.contents.stride)) != digest:
                        break
                    digests.append(digest)
        self.records.parent.mkdir(exist_ok=True)
        with self.records.open("ab") as file:
            file.truncate(len(digests) * self.contents.stride)
        with replacing(progress) as temporary:
            temporary.write_text("".join(f"{line}\n" for line in [header, *digests]), encoding="utf-8")
        return digests

    def append(self, digests: list[str]) -> None:
        """Write the records that are still missing and append their digests to `digests`."""
        contents, total = self.contents, self.contents.num_model_experts
        record = torch.zeros(contents.stride, dtype=torch.uint8)
        with self.records.open("ab") as file, (self.work / "progress").open("a", encoding="utf-8") as written:
            for index, layer in enumerate(self.layers):
                first = len(digests) - index * contents.num_experts
                if first >= contents.num_experts:
                    continue
                with self.loaded(layer) as experts:
                    _require_layout(contents, layer, experts)
                    for expert in range(first, contents.num_experts):
                        _fill(record, contents, experts, expert)
                        digests.append(xxh3_128_hexdigest(record.numpy().data))
                        file.write(record.numpy().data)
                        file.flush()
                        # a line whose record is damaged is found out, a record without a line is written again
                        written.write(f"{digests[-1]}\n")
                        written.flush()
                        if self.progress is not None:
                            self.progress(len(digests), total)
            os.fsync(file.fileno())

    def finish(self, manifest: Manifest) -> None:
        """Give the store its manifest and then its name, each on the disk before the next."""
        store = self.records.parent
        with (store / MANIFEST).open("w", encoding="utf-8") as file:
            file.write(manifest.model_dump_json(indent=1) + "\n")
            file.flush()
            os.fsync(file.fileno())
        _sync_folder(store)
        store.rename(self.folder)
        _sync_folder(self.folder.absolute().parent)


def _named(contents: Contents) -> str:
    dtypes = sorted({str(stored.dtype).removeprefix("torch.") for stored in contents.parameters})
    return f"{contents.model_id} (revision {contents.revision}, {', '.join(dtypes)})"


def _fill(record: torch.Tensor, contents: Contents, experts: nn.Module, expert: int) -> None:
    for stored in contents.parameters:
        parameter = experts.get_parameter(stored.name).detach()
        data = parameter[expert : expert + 1].cpu().contiguous().view(torch.uint8).flatten()
        record[stored.offset : stored.offset + stored.nbytes] = data


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
