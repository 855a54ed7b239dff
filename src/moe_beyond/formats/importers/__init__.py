"""Published traces of other projects, read into a `Trace`. A format is a module with one `read(source, domain)`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np

from moe_beyond.errors import InputError
from moe_beyond.formats.importers import (
    bakeer_npz,
    bigmoe_route,
    colibri,
    esft,
    fitz,
    flame,
    flash_moe,
    gpt_oss_fingerprint,
    lattice,
    llamacpp_csv,
    lucebox,
    mbolt,
    megatron,
    moe_beyond_csv,
    moe_trace,
    mstr,
    sglang_json,
    sglang_recorder,
    strata,
    vllm_npz,
    vllm_routes,
)
from moe_beyond.formats.importers.model_config import NONE, ShapeOverride
from moe_beyond.traces.schema import Trace, validate

# these say the model's shape themselves; the others read it from a config.json, or from what a person says
_COMPLETE: dict[str, Callable[[Path, str | None], Trace]] = {
    "moe-beyond-csv": moe_beyond_csv.read,
    "esft": esft.read,
    "gpt-oss-fingerprint": gpt_oss_fingerprint.read,
    "bigmoe-route": bigmoe_route.read,
}
_WITH_CONFIG: dict[str, Callable[[Path, str | None, ShapeOverride], Trace]] = {
    "vllm-npz": vllm_npz.read,
    "llamacpp-csv": llamacpp_csv.read,
    "0xbakeer-npz": bakeer_npz.read,
    "colibri": colibri.read,
    "fitz": fitz.read,
    "flame": flame.read,
    "flash-moe": flash_moe.read,
    "lattice": lattice.read,
    "lucebox": lucebox.read,
    "mbolt": mbolt.read,
    "megatron": megatron.read,
    **moe_trace.READERS,
    "mstr": mstr.read,
    "sglang-json": sglang_json.read,
    "sglang-recorder": sglang_recorder.read,
    "strata": strata.read,
    "vllm-routes": vllm_routes.read,
}
__all__ = ["FORMATS", "ShapeOverride", "read"]
FORMATS = (*_COMPLETE, *_WITH_CONFIG)


def read(
    format: str,  # noqa: A002 - the word that people use on the command line
    source: Path,
    *,
    domain: str | None = None,
    held_out: bool = False,
    privacy: Literal["text", "ids", "routing"] = "text",
    shape: ShapeOverride = NONE,
) -> Trace:
    """Read a published trace set.

    Args:
        format: One of `FORMATS`.
        source: The folder, archive (tar, zip) or file as it was published.
        domain: Name of the data set; by default the one of the format or the source's name.
        held_out: Keep all of these prompts for testing only.
        privacy: `ids` drops token strings and hidden states, which can tell the text, `routing` drops token ids too.
        shape: What is said of the model and of prefill where neither config.json nor the format can say it.

    Raises:
        InputError: An unknown format, or the first rule of the format or the schema that is broken.
    """
    if shape.hidden_size is not None and format != "lucebox":
        raise InputError(f"format {format} has no width to be said; leave --hidden-size out")
    if shape.prefill_tokens is not None and format == "vllm-npz":
        raise InputError(f"format {format} says the prompt's length itself; leave --prefill-tokens out")
    if format in _WITH_CONFIG:
        trace = _WITH_CONFIG[format](source, domain, shape)
    elif format not in _COMPLETE:
        raise InputError(f"unknown trace format {format!r}; expected one of {', '.join(FORMATS)}, or auto")
    elif shape:
        raise InputError(
            f"format {format} says the model's layers and bytes itself; leave --moe-layers and --expert-size out, and "
            "what else describes the model"
        )
    else:
        trace = _COMPLETE[format](source, domain)
    trace = replace(trace, held_out_P=np.full(trace.num_prompts, held_out, np.bool_))
    if privacy != "text":
        trace = replace(trace, token_texts=None, hidden=None)
    if privacy == "routing":
        trace = replace(trace, token_ids_T=None)
    return validate(trace, str(source))
