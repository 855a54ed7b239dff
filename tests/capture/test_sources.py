"""Models and prompts that users bring, and what they are told when these cannot be traced."""

import json

import pytest

from moe_beyond.capture.models import ModelSource, load
from moe_beyond.capture.settings import ExtractSettings, TransformersSource
from moe_beyond.capture.shards import capture
from moe_beyond.capture.sources import transformers_job, transformers_prompts
from moe_beyond.traces import store
from tests.capture.capture_case import save_tiny_model, tiny_tokenizer
from tests.traces.refusals import refused


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    # a vocabulary that holds all of the tokenizer's
    return save_tiny_model(tmp_path_factory.mktemp("model"), "qwen3_moe", vocab_size=len(tiny_tokenizer()))


def write_prompts(path, *names):
    path.write_text("\n".join(json.dumps({"id": name, "prompt": f"a few words {name}"}) for name in names))
    return str(path)


def test_a_local_model_is_traced_over_prompts_from_files(model, tmp_path):
    settings, known = ExtractSettings(decode_tokens=3), write_prompts(tmp_path / "known.jsonl", "a", "b")
    other = write_prompts(tmp_path / "other.jsonl", "c")
    source = TransformersSource(model=str(model), prompts=known, held_out_prompts=other)
    prompts = transformers_prompts(source, settings, tmp_path)
    capture(transformers_job(source, settings, 1), prompts, tmp_path, tmp_path / "traces")
    trace = store.read_parquet(tmp_path / "traces")
    assert (trace.prompt_ids, trace.domains) == (("a", "b", "c"), ("known", "known", "other"))
    assert trace.held_out_P.tolist() == [False, False, True]
    assert trace.metadata.model_id == str(model)
    assert trace.metadata.model_revision == load(ModelSource(str(model))).revision
    assert trace.token_texts.decode()[:2] == ["a", "Ġfew"]
    source = source.model_copy(update={"held_out_prompts": write_prompts(tmp_path / "other.jsonl", "a")})
    refused(r"other\.jsonl: id 'a' also stands in .*known\.jsonl", transformers_prompts, source, settings, tmp_path)


NO_MODEL = [
    (None, "{folder}: no config.json there"),
    ("{", r"{folder}: cannot be loaded \("),
    ('{"model_type": "nothing-known"}', "expected a folder of a causal language model with its tokenizer"),
]


@pytest.mark.parametrize(("config", "message"), NO_MODEL)
def test_a_folder_of_no_model_is_refused(tmp_path, config, message):
    if config is not None:
        (tmp_path / "config.json").write_text(config)
    refused(message.format(folder=tmp_path), load, ModelSource(str(tmp_path)))


def test_a_hub_id_that_cannot_be_reached_is_refused(monkeypatch):
    # no answer from any hub, as without a network
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    message = r"nobody/no-such-model: cannot be loaded \(.*check the id, the network"
    refused(message, load, ModelSource("nobody/no-such-model"))


def test_the_revision_of_a_hub_model_is_its_commit(tmp_path, monkeypatch):
    commit = "0123456789abcdef0123456789abcdef01234567"
    cached = tmp_path / "models--some--model"
    save_tiny_model(cached / "snapshots" / commit, "qwen3_moe")
    (cached / "refs").mkdir()
    (cached / "refs" / "main").write_text(commit)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    assert {load(ModelSource("some/model", revision)).revision for revision in (None, "main", commit)} == {commit}


def test_the_revision_of_a_folder_names_its_weights_and_precision_is_a_choice(model, tmp_path):
    other = save_tiny_model(tmp_path / "other", "qwen3_moe")
    assert load(ModelSource(str(model))).revision != load(ModelSource(str(other))).revision
    sizes = [load(ModelSource(str(model), dtype=dtype)).model.dtype.itemsize for dtype in ("bfloat16", "auto")]
    assert sizes == [2, 4]


def test_other_devices_need_a_package_that_is_named(model, monkeypatch):
    monkeypatch.setattr("moe_beyond.capture.models.find_spec", lambda _name: None)
    message = "traces.transformers.device_map: 'auto' needs the package accelerate"
    refused(message, load, ModelSource(str(model), device_map="auto"))
