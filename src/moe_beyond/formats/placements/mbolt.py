"""mbolt's `perms.json`: in which order a GGUF's experts are stored, by use, by cliques or by chains.

perm[p] is the expert stored at place p; index in `layers` is N of blk.N, so every layer must have experts (cli.py and
rewrite.py of doramirdor/mbolt@e7e9dbf7). Cliques are communities of experts that tokens use together, the most used
community first, in each the most used expert first; a chain goes from a clique's most used expert to the one most often
used with it, and so on. Where it is not known which experts are used together, both are the order by use.
"""

from __future__ import annotations

import json
from typing import Any

import networkx as nx
import numpy as np

from moe_beyond.errors import InputError
from moe_beyond.formats.placements.options import Options
from moe_beyond.formats.placements.placement import Ints, ModelShape, Placement
from moe_beyond.formats.placements.strict import counts_of_layers, json_of

_TOP_CLIQUES, _OF_A_CLIQUE = 8, 16
_PERMS = ("clique_perm", "chain_perm", "heat_perm")


def said(placement: Placement, _options: Options) -> dict[str, Any]:
    """The document; raises InputError for a model with dense layers."""
    placement.model.require_no_dense_layers("perms.json")
    counts = placement.counts
    tokens = int(counts.counts_LE[0].sum()) // (counts.top_k or 1)
    layers = [_layer(placement, layer) for layer in range(counts.num_layers)]
    return {"n_layers": counts.num_layers, "n_expert": counts.num_experts, "n_tokens": tokens, "layers": layers}


def render(document: dict[str, Any], _placement: Placement, _options: Options) -> bytes:
    """The file."""
    return json.dumps(document).encode()


def parse(data: bytes, model: ModelShape, _options: Options) -> dict[str, Any]:
    """The document, whose permutations and counts are the model's."""
    model.require_no_dense_layers("perms.json")
    document = json_of(data)
    keys = {"n_layers", "n_expert", "n_tokens", "layers"}
    if not isinstance(document, dict) or not keys <= set(document):
        raise InputError(f"expected an object with {', '.join(sorted(keys))}")
    shape = (document["n_layers"], document["n_expert"])
    if shape != (model.model_layers, model.num_experts):
        raise InputError(f"layers and experts {shape}, the model has {(model.model_layers, model.num_experts)}")
    layers = document["layers"]
    if not isinstance(layers, list) or len(layers) != model.model_layers:
        raise InputError(f"layers: expected {model.model_layers} of them")
    for number, layer in enumerate(layers):
        _check(layer, number, model.num_experts)
    counts_of_layers([[int(value) for value in layer["heat"]] for layer in layers], model.layer_numbers)
    return document


def _check(layer: Any, number: int, num_experts: int) -> None:
    if not isinstance(layer, dict) or layer.get("layer") != number:
        raise InputError(f"layers: entry {number} is not that of layer {number}")
    every = list(range(num_experts))
    for name in _PERMS:
        perm = layer.get(name)
        if not isinstance(perm, list) or not all(type(expert) is int for expert in perm) or sorted(perm) != every:
            raise InputError(f"layer {number}: {name} is no permutation of 0 to {num_experts - 1}")
    heat, cliques = layer.get("heat"), layer.get("top_cliques")
    if not isinstance(heat, list) or len(heat) != num_experts or not all(map(_is_count, heat)):
        raise InputError(f"layer {number}: heat must hold {num_experts} counts from 0 up")
    if not isinstance(cliques, list) or not all(
        isinstance(clique, list) and all(expert in every for expert in clique) for clique in cliques
    ):
        raise InputError(f"layer {number}: top_cliques must hold lists of experts")


def _is_count(value: Any) -> bool:
    return type(value) is float and value.is_integer() and value >= 0


def _layer(placement: Placement, layer: int) -> dict[str, Any]:
    by_use = placement.order_LE[layer].tolist()
    cliques, chains = [by_use], [by_use]
    together_LEE, heat_E = placement.together_LEE, placement.counts.counts_LE[layer]
    if together_LEE is not None:
        cliques = _cliques(together_LEE[layer], heat_E)
        chains = [_chain(clique, together_LEE[layer], heat_E) for clique in cliques]
    return {
        "layer": layer,
        "clique_perm": [expert for clique in cliques for expert in clique],
        "chain_perm": [expert for chain in chains for expert in chain],
        "heat_perm": by_use,
        "heat": [float(n) for n in heat_E],
        "top_cliques": [clique[:_OF_A_CLIQUE] for clique in cliques[:_TOP_CLIQUES]] if together_LEE is not None else [],
    }


def _cliques(together_EE: Ints, heat_E: Ints) -> list[list[int]]:
    graph = nx.Graph()
    graph.add_nodes_from(range(len(heat_E)))
    pairs = np.argwhere(np.triu(together_EE, 1) > 0).tolist()
    graph.add_weighted_edges_from((a, b, float(together_EE[a, b])) for a, b in pairs)
    found = nx.community.greedy_modularity_communities(graph, weight="weight") if pairs else [range(len(heat_E))]
    cliques = [sorted(clique, key=lambda expert: (-heat_E[expert], expert)) for clique in found]
    return sorted(cliques, key=lambda clique: (-heat_E[clique].sum(), clique))


def _chain(clique: list[int], together_EE: Ints, heat_E: Ints) -> list[int]:
    chain, left = clique[:1], clique[1:]
    while left:
        chain.append(max(left, key=lambda expert: (together_EE[chain[-1], expert], heat_E[expert])))
        left.remove(chain[-1])
    return chain
