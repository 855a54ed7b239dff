"""`moe-beyond run`: a tiny model decoded with its experts on disk."""

import json
import re
import signal

import polars as pl
import pytest
from transformers import AutoConfig, AutoModelForCausalLM

from moe_beyond.live.store import MANIFEST, read_manifest
from tests.capture.capture_case import save_tiny_model
from tests.cli.started import started
from tests.cli.test_commands import error_of, printed, run

TOKENS = 12


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """With a vocabulary that the tokenizer's ids fit in."""
    return save_tiny_model(tmp_path_factory.mktemp("model"), "qwen3_moe", vocab_size=300)


@pytest.fixture
def words(model, tmp_path):
    """A run of two prompts that takes no file outside the folder."""
    (tmp_path / "prompts.txt").write_text("a few words\nand a few more words to learn from\n")
    options = {"--prompts": tmp_path / "prompts.txt", "--capacity": 9, "--experts": tmp_path / "experts"}
    return ["run", model, "--max-new-tokens", TOKENS, *(part for option in options.items() for part in option)]


def test_the_document_and_the_recording_agree(words, tmp_path):
    record = tmp_path / "run.csv"
    # slow enough that loading is what takes the time, however busy the machine is
    found = printed(*words, "--link-gb-per-s", 0.0005, "--record", record)
    rows = pl.read_csv(record, comment_prefix="#")
    assert (found["policy"], found["capacity_experts"], found["prompts_decoded"]) == ("lru", 9, 2)
    assert [text["prompt"] for text in found["texts"]] == ["prompts.txt:1", "prompts.txt:2"]
    assert found["tokens_decoded"] == rows.height <= 2 * TOKENS
    assert found["ms_per_token"] == pytest.approx(rows["wall_ms"].mean(), rel=1e-3)
    assert found["tokens_per_second"] == pytest.approx(1e3 / found["ms_per_token"])
    assert found["hit_rate"] == pytest.approx(rows["hits"].sum() / (rows["hits"] + rows["misses"]).sum())
    stride = read_manifest(tmp_path / "experts").contents.stride
    assert rows["read_bytes"].to_list() == (rows["misses"] * stride).to_list()
    assert set(rows["hits"] + rows["misses"]) == {3 * 2}, "top-k experts in each of three layers"
    fitted = printed("calibrate-device", record, tmp_path / "mine.yaml", "--resident-mib", 1)
    assert fitted["tokens"] == rows.height


def test_the_text_is_printed_and_the_store_is_written_once(words, tmp_path):
    first = run(*words, "--greedy")
    assert first.exit_code == 0, first.stderr
    assert "2 of 2 prompts: prompts.txt:2" in first.stderr
    written = (tmp_path / "experts" / MANIFEST).stat()
    again = printed(*words, "--greedy", "--policy", "layer_lru")
    assert (tmp_path / "experts" / MANIFEST).stat() == written
    # another lossless policy says the same
    assert all(text["text"].strip() in first.stdout for text in again["texts"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--prompts", "nowhere.jsonl"), "nowhere.jsonl: no such prompt file"),
        (("--link-gb-per-s", 0), "--link-gb-per-s: 0.0; give a number above 0"),
        (("--capacity", 1), "budget: holds 1 experts, a token of .* uses 2 in a layer; give at least 2 experts"),
        (("--budget-mib", 3), "give either --capacity in experts or --budget-mib in MiB"),
        (("--dtype", "int4"), "--dtype: 'int4'; give auto, float32, bfloat16 or float16"),
        (("--policy", "belady"), "policy belady: decides from a whole trace and cannot run beside a model"),
        (("--policy", "lexi"), "policy 'lexi' learns from other prompts; name a trace of them with --train"),
        (("--policy", "prefetch_lru"), "policy 'prefetch_lru' needs a predictor; name its folder with --predictor"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(words, options, message):
    assert re.search(message, error_of(*words, *options))


def test_a_predictor_of_another_shape_is_refused(words, exported):
    message = error_of(*words, "--policy", "prefetch_lru", "--predictor", exported[0])
    assert "experts" in message and "predictor" in message


def test_a_model_without_experts_and_a_store_of_another_one_are_refused(words, tmp_path):
    assert run(*words).exit_code == 0
    other = save_tiny_model(tmp_path / "other", "mixtral", vocab_size=300)
    assert f"{tmp_path / 'experts'}: holds the experts of" in error_of("run", other, *words[2:])
    sizes = {"hidden_size": 32, "intermediate_size": 16, "num_attention_heads": 4, "num_hidden_layers": 1}
    dense = AutoModelForCausalLM.from_config(AutoConfig.for_model("llama", vocab_size=300, **sizes))
    dense.save_pretrained(tmp_path / "other")
    assert "no experts found in a model of type 'llama'" in error_of("run", tmp_path / "other", *words[2:])


def test_ctrl_c_ends_with_what_was_decoded_and_whole_files(words, tmp_path):
    record = tmp_path / "run.csv"
    # reading the second prompt alone loads experts for seconds, however few tokens are drawn
    options = ("--link-gb-per-s", 0.00002, "--record", record, "--json", "--max-new-tokens", 2)
    process = started(*words, *options)
    # the first prompt is done: the second is under way
    while "1 of 2 prompts" not in process.stderr.readline():
        assert process.poll() is None
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert err.splitlines()[-1] == "interrupted after 1 of 2 prompts"
    found = json.loads(out)
    assert (found["prompts_decoded"], found["tokens_decoded"]) == (1, pl.read_csv(record, comment_prefix="#").height)
    assert not list(tmp_path.glob("*.tmp*")) and read_manifest(tmp_path / "experts")


def test_ctrl_c_before_any_token_leaves_no_recording(words, tmp_path, monkeypatch):
    def interrupted(*_args, **_options):
        raise KeyboardInterrupt

    monkeypatch.setattr("moe_beyond.live.decoding.decode", interrupted)
    result = run(*words, "--record", tmp_path / "run.csv")
    assert result.exit_code == 130
    assert result.stderr.splitlines()[-1] == "interrupted before a token was decoded"
    assert not (tmp_path / "run.csv").exists()
