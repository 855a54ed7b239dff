"""Placements in the words of each engine: which experts stay in fast memory, from counts of their uses.

A format is three functions over a `Placement`: what its file says, the file, and a strict reader written from the
engine's layout. What was written is read back and compared before it takes its name.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from moe_beyond.errors import InputError, naming
from moe_beyond.files import replacing
from moe_beyond.formats.placements import (
    colibri,
    keep_lists,
    llamacpp,
    lucebox,
    mbolt,
    mesh_llm,
    pin_list,
    sglang,
    strata,
    thecodacus,
)
from moe_beyond.formats.placements.options import Options
from moe_beyond.formats.placements.placement import ModelShape, Placement, Split

__all__ = [
    "FORMATS",
    "Encoded",
    "Format",
    "ModelShape",
    "Options",
    "Placement",
    "Split",
    "encode",
    "load_line",
    "of_name",
    "read",
]


@dataclass(frozen=True)
class Format:
    """How an engine takes a placement.

    Attributes:
        said: What a placement's file says, as `parse` returns it.
        render: The bytes of a file that says this.
        parse: Reads these for a model; raises InputError for all that the engine refuses or takes silently.
        split: How the engine deals a budget out to layers.
        load: How the engine is told of the file: `{file}`, and of a placement `{slots}` of each layer, `{experts}` of
            the model and `{share}`.
        pins: Whether the engine keeps just these experts in fast memory. Others only order, balance or size.
    """

    said: Callable[[Placement, Options], Any]
    render: Callable[[Any, Placement, Options], bytes]
    parse: Callable[[bytes, ModelShape, Options], Any]
    split: Split
    load: str
    pins: bool = True


def _tensors(*, steps: bool, split: Split, load: str) -> Format:
    return Format(
        sglang.said_counts,
        lambda counts, _placement, _options: sglang.render_tensor(counts, steps=steps),
        lambda data, model, _: sglang.parse_tensor(data, model, steps=steps),
        split,
        load,
    )


FORMATS: dict[str, Format] = {
    "0xbakeer-coverage": Format(
        keep_lists.said,
        keep_lists.render,
        keep_lists.parse,
        "layer",
        "EXPERT_PROFILE=<folder of {file}> PRUNE_KEEP={share}",
    ),
    "cache-sizes": Format(
        llamacpp.said_sizes, llamacpp.render_sizes, llamacpp.parse_sizes, "layer", "the line of the engine", pins=False
    ),
    "colibri-usage": Format(colibri.said, colibri.render, colibri.parse, "model", "PIN={file}"),
    "fitz-pins": Format(
        pin_list.said,
        pin_list.render,
        pin_list.parse,
        "layer",
        "EXPERT_CACHE_PIN_LIST={file}, or fitz bench --pin-list {file} -c <slots of the cache> -P {slots}",
    ),
    "ktransformers-2d": _tensors(
        steps=False,
        split="layer",
        load="--kt-expert-placement-strategy frequency --kt-expert-frequency-file {file} --kt-num-gpu-experts {slots} "
        "--init-expert-location trivial",
    ),
    "ktransformers-3d": _tensors(
        steps=True,
        split="model",
        load="--kt-expert-placement-strategy frequency --init-expert-location {file}, {experts} experts of the whole "
        "model on the GPU",
    ),
    "llamacpp-n-cpu-moe": Format(
        llamacpp.said_first_layers,
        llamacpp.render_first_layers,
        llamacpp.parse_first_layers,
        "last layers",
        "llama-server -ngl 99 $(cat {file})",
    ),
    "llamacpp-ot": Format(
        llamacpp.said_override,
        llamacpp.render_override,
        llamacpp.parse_override,
        "layers",
        "eval llama-server -ngl 99 $(cat {file})",
    ),
    "lucebox-hotness": Format(lucebox.said, lucebox.render, lucebox.parse, "model", "DFLASH_<ARCH>_HOTNESS={file}"),
    "mbolt-perms": Format(
        mbolt.said, mbolt.render, mbolt.parse, "model", "mbolt's rewriting with {file} and --layout chain", pins=False
    ),
    "mesh-llm-ranking": Format(
        mesh_llm.said, mesh_llm.render, mesh_llm.parse, "model", "moe plan --ranking-file {file}", pins=False
    ),
    "sglang-counts": Format(
        sglang.said_counts,
        sglang.render_counts,
        sglang.parse_counts,
        "model",
        "--init-expert-location {file}",
        pins=False,
    ),
    "sglang-map": Format(
        sglang.said_map,
        sglang.render_map,
        sglang.parse_map,
        "layer",
        "--init-expert-location {file} --ep-num-redundant-experts {slots}",
        pins=False,
    ),
    "strata-json": Format(
        strata.said_json, strata.render_json, strata.parse_json, "model", "where the engine takes STRP as JSON: {file}"
    ),
    "strata-strp": Format(
        strata.said, strata.render, strata.parse, "model", "--expert-profile {file} --expert-cache {experts}"
    ),
    "thecodacus-profile": Format(
        thecodacus.said,
        thecodacus.render,
        thecodacus.parse,
        "layer",
        "llama-server -ngl 99 -ncmoe 99 --moe-cache-profile {file} --moe-cache-slots {slots}",
    ),
}


def of_name(name: str) -> Format:
    """A format; raises InputError that lists them all for a wrong name."""
    if name not in FORMATS:
        raise InputError(f"unknown placement format {name!r}; expected one of {', '.join(FORMATS)}")
    return FORMATS[name]


@dataclass(frozen=True)
class Encoded:
    """A placement in a format's words, before it is a file.

    Attributes:
        name: Of the format.
        model: What the file is for.
        options: What the format needed beside the placement.
        said: What the file says.
        data: Its bytes.
    """

    name: str
    model: ModelShape
    options: Options
    said: Any
    data: bytes

    def save(self, path: Path) -> None:
        """Write the file; what stood at `path` is replaced when the new one reads back as it should.

        Raises:
            InputError: A folder stands there, or the one around it cannot be written to.
        """
        with replacing(path) as temporary:
            temporary.write_bytes(self.data)
            if read(self.name, temporary, self.model, self.options) != self.said:
                raise AssertionError(f"{path}: {self.name} reads back otherwise than it was written")


def encode(name: str, placement: Placement, options: Options | None = None) -> Encoded:
    """A placement for an engine.

    Args:
        name: One of `FORMATS`.
        placement: What stays where.
        options: What the format needs beside it.

    Raises:
        InputError: An unknown format, or a placement that the engine cannot take.
    """
    options, chosen = options or Options(), of_name(name)
    said = chosen.said(placement, options)
    return Encoded(name, placement.model, options, said, chosen.render(said, placement, options))


def read(name: str, path: Path, model: ModelShape, options: Options | None = None) -> Any:
    """What a file says, read strictly: what the engine takes silently is refused too.

    Args:
        name: One of `FORMATS`.
        path: The file.
        model: The model that it is for.
        options: What the format needs beside it.

    Returns:
        As the module of the format says: counts, orders or flags.

    Raises:
        InputError: An unknown format, no file, or one that is not the format's or not the model's.
    """
    chosen = of_name(name)
    try:
        data = path.read_bytes()
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}; name a file of format {name}") from error
    with naming(path):
        return chosen.parse(data, model, options or Options())


def load_line(name: str, placement: Placement, path: Path) -> str:
    """How the engine is told of the file."""
    chosen = of_name(name)
    slots = int(placement.slots_L.max())
    share = f"{(slots - 0.5) / placement.counts.num_experts:.6g}"
    return chosen.load.format(file=path.name, slots=slots, experts=placement.num_kept, share=share)
