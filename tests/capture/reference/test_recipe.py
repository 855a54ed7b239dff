"""From nothing to a folder that transformers loads, with held-out text to trace beside the model."""

import numpy as np
import pytest

from moe_beyond.capture.models import ModelSource, load
from moe_beyond.capture.reference import recipe
from moe_beyond.capture.reference.corpus import Document
from moe_beyond.capture.reference.model import train_tokenizer
from moe_beyond.capture.reference.prompts import reference_job, reference_prompts, windows
from moe_beyond.capture.settings import ExtractSettings
from moe_beyond.capture.shards import capture
from moe_beyond.errors import InputError
from moe_beyond.traces import store
from tests.capture.reference.test_training import TEXT, TINY


@pytest.fixture(scope="module")
def documents():
    return recipe.collect(TINY)


@pytest.fixture(scope="module")
def made(tmp_path_factory, documents):
    # the whole recipe on a little of the text
    few = recipe.Corpus(documents.train[:12], documents.held_out[:12], documents.code[:4])
    folder = tmp_path_factory.mktemp("made")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(recipe, "collect", lambda _settings: few)
        metrics, history = recipe.make(TINY, 1, folder, folder / "reference")
    return folder, metrics, history, few


def test_training_held_out_and_code_documents_are_apart(documents):
    parts = (documents.train, documents.held_out, documents.code)
    assert all(parts)
    names = [document.name for part in parts for document in part]
    assert len(set(names)) == len(names)


def test_the_folder_loads_and_holds_the_text_it_was_not_trained_on(made):
    folder, metrics, history, few = made
    loaded = load(ModelSource(str(folder / "reference")))
    assert loaded.model.config.n_routed_experts == TINY.num_experts
    assert sum(p.numel() for p in loaded.model.parameters()) == metrics["parameters"]
    for domain, part in ((recipe.ENGLISH, few.held_out), (recipe.CODE, few.code)):
        assert recipe.read_held_out(folder / "reference", domain) == part
    assert metrics["validation_cross_entropy"] == history.validation_loss[-1] < metrics["initial_cross_entropy"]
    assert "sha256" in (folder / "reference" / "README.md").read_text()
    assert not list((folder / ".scratch").glob("*"))


def test_unigram_cross_entropy_by_hand():
    # add-one counts 3, 2, 1 of three tokens
    measured = recipe.unigram_cross_entropy(np.array([0, 0, 1]), np.array([0, 2]), 3)
    assert measured == pytest.approx(-(np.log(3 / 6) + np.log(1 / 6)) / 2)


def test_its_routing_can_be_traced(made, tmp_path):
    folder = made[0] / "reference"
    sizes = {"english_prompts": 5, "code_prompts": 2, "min_prompt_tokens": 4, "max_prompt_tokens": 9}
    settings = ExtractSettings(**sizes, decode_tokens=3)
    prompts = reference_prompts(folder, settings, seed=1)
    assert [prompt.domain for prompt in prompts] == ["english"] * 5 + ["code"] * 2
    assert [prompt.held_out for prompt in prompts] == [False] * 5 + [True] * 2
    capture(reference_job(folder, settings, 1), prompts, tmp_path, tmp_path / "traces")
    trace = store.read_parquet(tmp_path / "traces")
    assert trace.metadata.layer_numbers == (1, 2)
    assert trace.metadata.expert_bytes == (3 * 32 * 8 * 4,) * 2
    assert set(trace.num_prefill_P.tolist()) <= set(range(4, 10))


def test_windows_do_not_overlap_and_are_found_in_their_documents():
    tokenizer = train_tokenizer(TEXT, 300)
    cut = windows(TEXT, tokenizer, (5, 11), count=30, domain="d", held_out=False, seed=4)
    assert len({window.prompt_id for window in cut}) == 30
    texts, used = {document.name: tokenizer(document.text)["input_ids"] for document in TEXT}, []
    for window in cut:
        (name, start), length = window.prompt_id.split("#"), len(window.token_ids)
        assert 5 <= length <= 11
        assert tuple(texts[name][int(start) : int(start) + length]) == window.token_ids
        used += [(name, place) for place in range(int(start), int(start) + length)]
    assert len(set(used)) == len(used)


def test_too_little_text_for_the_prompts_is_refused():
    short, tokenizer = [Document("short", "the quick brown foxes.")], train_tokenizer(TEXT, 300)
    with pytest.raises(InputError, match="english has text for 1 prompts of 5 to 5 tokens, 2 are needed"):
        windows(short, tokenizer, (5, 5), count=2, domain="english", held_out=False, seed=1)
