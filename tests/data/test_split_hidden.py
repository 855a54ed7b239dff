"""The extract stage keeps hidden states, and the split stage gives each split those of its prompts."""

from dataclasses import replace

import numpy as np

from moe_beyond.capture.settings import ExtractSettings, TracesSettings, TransformersSource
from moe_beyond.data.splitting import SPLITS
from moe_beyond.traces import store
from stages import extract, split
from tests.capture.capture_case import save_tiny_model, tiny_tokenizer
from tests.traces.test_store import assert_same_hidden


def test_each_split_has_the_hidden_states_of_its_prompts(tmp_path):
    model = save_tiny_model(tmp_path / "model", "qwen3_moe", vocab_size=len(tiny_tokenizer()))
    rng, words = np.random.default_rng(1), ["a", "few", "words", "to", "learn", "from", "and", "more"]
    for name in ("known", "other"):
        (tmp_path / f"{name}.txt").write_text("".join(" ".join(rng.choice(words, 9)) + "\n" for _ in range(24)))
    source = TransformersSource(model=str(model), prompts="known.txt", held_out_prompts="other.txt")
    settings = ExtractSettings(decode_tokens=3, shard_prompts=10, hidden_states="all", hidden_share=0.7)
    traces = TracesSettings(source="transformers", transformers=source)
    extract.main(tmp_path, extract.Params(seed=1, traces=traces, extract=settings))
    split.main(tmp_path, split.Params())
    whole = store.read_parquet(tmp_path / "data/traces")
    assert 0 < (whole.hidden.rows_T >= 0).mean() < 1
    assert whole.hidden.routers is not None
    found = 0
    for name in SPLITS:
        part = store.open_working(tmp_path / "data/splits" / name)
        prompts = np.array([whole.prompt_ids.index(prompt) for prompt in part.prompt_ids])
        assert_same_hidden(part, whole.select(prompts))
        found += len(part.hidden.gate_inputs_SYD)
    assert found == len(whole.hidden.gate_inputs_SYD)
    # a shard without hidden states costs the splits that hold its prompts theirs, and no other
    shard = sorted((tmp_path / "data/traces").glob("*.parquet"))[0]
    trace = store.read_parquet(shard)
    store.write_parquet(replace(trace, hidden=None), shard)
    split.main(tmp_path, split.Params())
    for name in SPLITS:
        part = store.open_working(tmp_path / "data/splits" / name)
        assert (part.hidden is None) == bool(set(part.prompt_ids) & set(trace.prompt_ids))
