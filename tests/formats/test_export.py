"""What is exported can be read again: by us, by the Hub's conventions, by plain readers."""

import csv
import re
from dataclasses import replace

import numpy as np
import polars as pl
import yaml

from moe_beyond.formats import importers
from moe_beyond.formats.describe import describe, describe_path
from moe_beyond.formats.export import dataset_card, export
from moe_beyond.traces import store
from moe_beyond.traces.schema import TokenTexts
from tests.traces.random_traces import random_trace
from tests.traces.refusals import refused
from tests.traces.test_store import assert_same, full_trace


def test_a_description_counts_everything(tmp_path):
    held_out, prefill = np.array([False, True, False]), np.array([5, 4, 0], np.int32)
    trace = random_trace([5, 9, 4], layers=3, experts=16, top_k=2)
    trace = replace(trace, domains=("a", "b", "a"), held_out_P=held_out, num_prefill_P=prefill)
    facts = describe(trace)
    assert (facts["tokens"], facts["prefill_tokens"], facts["decode_tokens"]) == (18, 9, 9)
    assert [tuple(domain.values()) for domain in facts["domains"].values()] == [(2, 9, False), (1, 9, True)]
    assert (facts["activations"], facts["columns"]) == (18 * 3 * 2, [])
    store.write_parquet(trace, tmp_path / "a.parquet")
    assert describe_path(tmp_path)["file_bytes"] == (tmp_path / "a.parquet").stat().st_size
    assert describe(full_trace([3]))["columns"] == ["weights", "token_ids", "token_texts", "predicted_experts"]


def test_a_hub_dataset_has_splits_shards_and_a_card_whose_example_works(tmp_path, monkeypatch):
    trace = replace(full_trace([5, 9, 4]), held_out_P=np.array([False, True, False]), domains=("a", "b|c", "a"))
    export("hub", trace, tmp_path / "set")
    files = {f"{split}-00000-of-00001.parquet" for split in ("train", "test")}
    assert {path.name for path in (tmp_path / "set").iterdir()} == files | {"README.md", ".written-by-moe-beyond"}
    text = (tmp_path / "set" / "README.md").read_text()
    front = yaml.safe_load(text.split("---\n")[1])
    paths = [{"split": split, "path": f"{split}-*.parquet"} for split in ("train", "test")]
    assert front["configs"][0]["data_files"] == paths
    assert "| b\\|c | 1 | 9 | yes |" in text
    assert_same(store.read_parquet(tmp_path / "set").select(np.array([1, 0, 2])), replace(trace, hidden=None))
    monkeypatch.chdir(tmp_path / "set")
    names = {}
    exec(re.findall(r"```python\n(.*?)```", text, re.DOTALL)[0], names)  # noqa: S102 - the example that we print
    np.testing.assert_array_equal(names["first"], trace.experts_TLK[:5])


def test_a_hub_dataset_has_summaries_as_further_configurations(tmp_path):
    seen = []

    def summaries(trace):
        seen.append(trace.metadata.model_id)
        return {"card": pl.DataFrame({"model": ["m"], "verdict": ["go"]})}

    trace = full_trace([5])
    local = replace(trace, metadata=trace.metadata.model_copy(update={"model_id": "/home/alice/org name/mod:el"}))
    export("hub", local, tmp_path / "set", summaries)
    text = (tmp_path / "set" / "README.md").read_text()
    configs = yaml.safe_load(text.split("---\n")[1])["configs"]
    assert configs[1:] == [{"config_name": "card", "data_files": "card/*.parquet"}]
    assert pl.read_parquet(tmp_path / "set" / "card" / "mod_el.parquet").columns == ["model", "verdict"]
    assert (
        "- `card/`, a file a model: what decides whether offloading its experts pays; columns `model`, `verdict`"
        in text
    )
    assert seen == ["mod:el"]  # no place on this machine


def test_a_hub_dataset_names_no_place_on_this_machine(tmp_path):
    trace = full_trace([5])
    for given, shown in (
        ("prompts of /home/alice/my data/a.jsonl, ../b.jsonl", "prompts of a.jsonl, b.jsonl"),
        ("~/models/mixtral/", "mixtral"),
        ("/srv/models/mixtral", "mixtral"),
        ("file:///home/alice/a.csv", "a.csv"),
        (r"C:\Users\alice\a.csv", "a.csv"),
        ("https://github.com/org/name, docs/data", "https://github.com/org/name, docs/data"),
        ("mistralai/Mixtral-8x7B", "mistralai/Mixtral-8x7B"),
    ):
        local = replace(trace, metadata=trace.metadata.model_copy(update={"source": given, "model_id": given}))
        export("hub", local, tmp_path / "set")
        meta = store.read_parquet(tmp_path / "set").metadata
        assert (meta.source, meta.model_id) == (shown, shown)
        assert "alice" not in (tmp_path / "set/README.md").read_text()


def test_a_long_trace_becomes_several_shards(tmp_path, monkeypatch):
    monkeypatch.setattr("moe_beyond.formats.export._SHARD_TOKENS", 10)
    trace = random_trace([4] * 10)
    export("hub", trace, tmp_path / "set")
    assert len(list((tmp_path / "set").glob("*.parquet"))) == 5
    assert_same(store.read_parquet(tmp_path / "set"), trace)
    for licence, name in (("Apache-2.0", "apache-2.0"), ("MIT", "mit"), ("none stated", "other")):
        licensed = replace(trace, metadata=trace.metadata.model_copy(update={"licence": licence}))
        assert yaml.safe_load(dataset_card(licensed).split("---\n")[1])["license"] == name


def test_the_paper_s_csvs_round_trip(tmp_path):
    trace = random_trace([3, 5], layers=26, experts=64, top_k=6)
    texts = TokenTexts.encode(['Ġ"', ",", "a\r\n", '"', "é", "", "x", "\n"])
    export("moe-beyond-csv", replace(trace, token_texts=texts), tmp_path / "set")
    again = importers.read("moe-beyond-csv", tmp_path / "set")
    assert (again.prompt_ids, again.token_texts.decode()) == (("set/p0", "set/p1"), texts.decode())
    np.testing.assert_array_equal(again.experts_TLK, trace.experts_TLK)


def test_no_token_is_a_formula_in_the_paper_s_csvs(tmp_path):
    trace = random_trace([4, 3], layers=26, experts=64, top_k=6)
    texts = ['=HYPERLINK("http://a","b")', "+1", "-", "@a", "\t=1", "'=1", "a=b"]
    export("moe-beyond-csv", replace(trace, token_texts=TokenTexts.encode(texts)), tmp_path / "set")
    for path in (tmp_path / "set").glob("*.csv"):
        with path.open(newline="") as stream:
            cells = [cell for row in csv.reader(stream) for cell in row]
        assert not [cell for cell in cells if cell.startswith(tuple("=+-@\t\r\n"))]
    assert list(importers.read("moe-beyond-csv", tmp_path / "set").token_texts.decode()) == texts


def test_what_cannot_be_exported_is_refused(tmp_path):
    trace = random_trace([3, 5])
    refused("neither token strings nor ids", export, "moe-beyond-csv", trace, tmp_path / "set")
    same = replace(trace, prompt_ids=("a/1", "b/1"), token_ids_T=np.arange(8, dtype=np.int32))
    refused(r"two prompts would become 1_data\.csv", export, "moe-beyond-csv", same, tmp_path / "set")
    refused("unknown export format 'xml'; expected one of parquet, hub", export, "xml", trace, tmp_path / "set")
    assert not (tmp_path / "set").exists()
