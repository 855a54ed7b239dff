"""Every writer makes the toy file of its format, byte for byte, from the toy's counts; a real file reads strictly."""

import itertools
import lzma

import numpy as np
import pytest

from moe_beyond.formats.placements import FORMATS, ModelShape, Placement, encode, read
from moe_beyond.formats.placements.strict import json_of
from tests.formats.placements.small import DENSE, FLAT, OPTIONS, counts_of, toy
from tests.phone_traces import shared

FILES = {
    "strata-strp": ("strata-expert-profile.bin", FLAT),
    "strata-json": ("strata-twin.json", FLAT),
    "thecodacus-profile": ("thecodacus-profile.csv", FLAT),
    "fitz-pins": ("fitz.pinlist", DENSE),
    "colibri-usage": ("colibri.coli_usage", DENSE),
    "lucebox-hotness": ("lucebox-hotness.csv", DENSE),
    "sglang-counts": ("sglang-logical_count.json", DENSE),
    "mbolt-perms": ("mbolt-perms.json", FLAT),
    "mesh-llm-ranking": ("mesh-llm-ranking.csv", FLAT),
}


@pytest.mark.parametrize("name", FILES)
def test_the_toy_file_is_made_from_the_toy_s_counts(name, tmp_path):
    file, layers = FILES[name]
    path, placement = shared("..", "placements", "toy", file), toy(name, layers)
    encode(name, placement, OPTIONS).save(tmp_path / file)
    assert (tmp_path / file).read_bytes() == path.read_bytes()
    assert read(name, path, placement.model, OPTIONS) == FORMATS[name].said(placement, OPTIONS)


def test_mbolt_s_own_permutations_read_and_its_counts_give_its_order():
    real = shared("..", "placements", "mbolt-perms.qwen3-30b.real.json")
    layers = tuple(range(48))
    document = read("mbolt-perms", real, ModelShape(layers, 48, 128, 8))
    counts = np.array([layer["heat"] for layer in document["layers"]]).astype(np.int64)
    placement = Placement.of(counts_of(counts, layers, top_k=8), "model", slots=8)
    made = FORMATS["mbolt-perms"].said(placement, OPTIONS)
    assert [layer["heat_perm"] for layer in made["layers"]] == [layer["heat_perm"] for layer in document["layers"]]
    assert made["n_tokens"] == document["n_tokens"]


def test_chains_follow_the_pairs_as_mbolt_s_do():
    """From its published pairs, the frequent ones, most of its chain comes out: it was fitted to part of the trace."""
    text = lzma.decompress(shared("engines", "mbolt", "coactivation_qwen3-30b-a3b.json.xz").read_bytes())
    layer = json_of(text)["layers"][0]
    together = np.zeros((1, 128, 128), np.int64)
    for a, b, count, _ in layer["pairs"]:
        together[0, a, b] = together[0, b, a] = count
    counts = counts_of([layer["heat"]], (0,), top_k=8)
    placement = Placement.of(counts, "model", slots=8, together_LEE=together)
    chain = FORMATS["mbolt-perms"].said(placement, OPTIONS)["layers"][0]["chain_perm"]
    assert sorted(chain) == list(range(128))
    ours, theirs = ({*itertools.pairwise(perm)} for perm in (chain, layer["chain_order"]))
    assert len(ours & theirs) > 40
