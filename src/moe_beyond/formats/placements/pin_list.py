"""fitz's pin list, version 1: a line `layer i: e e e`, the most used first, for every layer of the model.

Layers are numbered as in the model; those without experts have an empty line, experts that were never used are left
out (emit_pin_list of fitz_tec 0.1.1, tools/build_pin_list.py). The engine's own reader is not public: this one refuses
whatever the tool does not write.
"""

from __future__ import annotations

from moe_beyond.errors import InputError
from moe_beyond.formats.placements.options import Options
from moe_beyond.formats.placements.placement import ModelShape, Placement
from moe_beyond.formats.placements.strict import distinct_experts, integer, lines_of

_TITLE = "# EXPERT_CACHE_PIN_LIST v1"


def said(placement: Placement, _options: Options) -> list[list[int]]:
    """Experts that were used, of every layer of the model, the most used first."""
    rows: list[list[int]] = [[] for _ in range(placement.model_layers)]
    for layer, order_E, counts_E in zip(
        placement.counts.layer_numbers, placement.order_LE, placement.counts.counts_LE, strict=True
    ):
        rows[layer] = order_E[counts_E[order_E] > 0].tolist()
    return rows


def render(rows: list[list[int]], placement: Placement, _options: Options) -> bytes:
    """The file."""
    model = placement.model
    lines = [
        _TITLE,
        f"# source trace: {' '.join(placement.counts.source.split())}",
        f"# top_k: {model.require_top_k('the pin list')}",
        "# format: 'layer <il>: <eid_most_freq> <eid_next> ...' (descending by activation count)",
        f"n_layer {model.model_layers}",
        f"n_expert {model.num_experts}",
        *(f"layer {layer}: {' '.join(map(str, row))}" for layer, row in enumerate(rows)),
    ]
    return ("\n".join(lines) + "\n").encode()


def parse(data: bytes, model: ModelShape, _options: Options) -> list[list[int]]:
    """The experts of each layer of the model."""
    first, *rest = lines_of(data)
    if first != _TITLE:
        raise InputError(f"line 1: expected {_TITLE!r}, found {first[:40]!r}")
    lines = [line for line in rest if not line.startswith("#")]
    head = [f"n_layer {model.model_layers}", f"n_expert {model.num_experts}"]
    if lines[:2] != head:
        raise InputError(f"expected {head[0]!r} and {head[1]!r} for this model, found {lines[:2]}")
    if len(lines) != 2 + model.model_layers:
        raise InputError(f"{len(lines) - 2} layer lines, expected {model.model_layers}")
    rows = []
    for layer, line in enumerate(lines[2:]):
        begin = f"layer {layer}: "
        if not line.startswith(begin):
            raise InputError(f"expected {begin!r}, found {line[:40]!r}")
        experts = [integer(part, begin) for part in line.removeprefix(begin).split(" ") if part]
        distinct_experts(experts, model.num_experts, begin[:-2])
        if bool(experts) != (layer in model.layer_numbers):
            raise InputError(
                f"layer {layer} {'is dense and lists experts' if experts else 'lists none of its experts'}"
            )
        rows.append(experts)
    return rows
