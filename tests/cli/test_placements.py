"""The command writes a file that reads back, says what it is worth, and refuses where pinning loses."""

import json
from dataclasses import replace

import pytest
from typer.testing import CliRunner

from moe_beyond.cli import app
from moe_beyond.formats.placements import FORMATS, ModelShape, Options, read
from moe_beyond.traces import store
from tests.advisor.placed import favourites, turning

SHAPE = ModelShape((1, 2, 3), 4, 16, 2)


@pytest.fixture
def files(tmp_path):
    store.write_parquet(favourites(24), tmp_path / "trace.parquet")
    store.write_parquet(turning(24), tmp_path / "turning.parquet")
    return tmp_path


def run(*words):
    return CliRunner().invoke(app, [str(word) for word in words])


def test_a_placement_is_written_with_its_figure(files):
    out = files / "out"
    words = ("export", "placement", "fitz-pins", files / "trace.parquet", out, "--slots", 1, "--json")
    result = run(*words)
    assert result.exit_code == 0, result.stderr
    found = json.loads(result.stdout)
    assert read("fitz-pins", out, SHAPE)[1][0] == 0
    assert (found["model_layers"], found["dense_layers"], found["experts"]) == (4, [0], 3)
    assert found["made_from_prompts"] + found["held_out"]["prompts"] == 24
    assert found["held_out"]["verdict"].startswith("pin: ")
    for name in ("pinned", "lru", "layer_lru"):
        assert {"hit_rate", "ms_per_token", "mib_per_token"} <= set(found["held_out"][name])
    assert "EXPERT_CACHE_PIN_LIST=out" in found["load"]
    # what stands there may be the engine's own
    assert "out: was not written by this command" in run(*words[:-1]).stderr
    out.unlink()
    assert "- Pin: " in run(*words[:-1]).stdout


@pytest.mark.parametrize("name", FORMATS)
def test_every_format_can_be_asked_for(files, name):
    moved = store.read_parquet(files / "trace.parquet")
    meta = moved.metadata.model_copy(update={"layer_numbers": (0, 1, 2)})
    store.write_parquet(replace(moved, metadata=meta), files / "flat.parquet")
    size = ("--budget-mib", 20 * 1000 / 2**20) if name.startswith("llamacpp") else ("--slots", 1)
    words = ("export", "placement", name, files / "flat.parquet", files / "out", *size, "--engine", "olmoe", "--json")
    result = run(*words, "--anyway")
    assert result.exit_code == 0, result.stderr
    read(name, files / "out", ModelShape((0, 1, 2), 3, 16, 2), Options(engine="olmoe"))


def test_where_pinning_loses_nothing_is_written_unless_asked_for(files):
    out = files / "out"
    words = ("export", "placement", "lucebox-hotness", files / "turning.parquet", out, "--slots", 2)
    result = run(*words)
    (line,) = result.stderr.splitlines()
    assert result.exit_code == 1
    assert "do not pin: LRU" in line
    assert "--anyway" in line
    assert not out.exists()
    assert run(*words, "--anyway").exit_code == 0
    assert out.read_text().startswith("# hotness table: n_layer=4")
    # a layout on the disk pins nothing
    out.unlink()
    assert run(*(word if word != "lucebox-hotness" else "sglang-counts" for word in words)).exit_code == 0


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("xml", "--slots", 1), "unknown placement format 'xml'; expected one of 0xbakeer-coverage"),
        (("fitz-pins",), "give either --budget-mib or --slots"),
        (("fitz-pins", "--slots", 99), "slots: 99 of each layer's 16 experts"),
        (("colibri-usage", "--slots", 1), "as --engine olmoe"),
        (("mbolt-perms", "--slots", 1), "of this model's 4 layers 0 are dense"),
        (("fitz-pins", "--slots", 1, "--model-layers", 3), "model layers: 3, but layer 3 has experts"),
        (("fitz-pins", "--slots", 1, "--top-k", 3), "--top-k 3: the source says 2; leave it out"),
        (("fitz-pins", "--slots", 1, "--device", "abacus"), "device 'abacus' is unknown"),
        (("fitz-pins", "--slots", 1, "--test", "none.parquet"), "none.parquet"),
    ],
)
def test_what_cannot_be_placed_is_one_line(files, words, message):
    name, *options = words
    result = run("export", "placement", name, files / "trace.parquet", files / "out", *options)
    assert result.exit_code == 1
    (line,) = result.stderr.splitlines()
    assert message in line
    assert not (files / "out").exists()


def test_a_format_of_whole_traces_is_still_the_first_word(files):
    assert run("export", "hub", files / "trace.parquet", files / "hub").exit_code == 0
    assert (files / "hub" / "README.md").exists()
    assert "placement" in run("export", "--help").stdout
