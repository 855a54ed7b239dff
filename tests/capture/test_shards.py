"""Shards: bounded, resumable to the byte, shared between processes, and never mixed up between jobs."""

import multiprocessing
import random
import signal
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from moe_beyond.capture.generation import keeps_hidden
from moe_beyond.capture.models import load
from moe_beyond.capture.prompts import EncodedPrompt
from moe_beyond.capture.reference.prompts import reference_job
from moe_beyond.capture.settings import ExtractSettings
from moe_beyond.capture.shards import capture, capture_key
from moe_beyond.traces import store
from moe_beyond.traces.hidden import beside
from tests.capture.capture_case import NUM_PROMPTS, case_job, case_prompts, file_bytes, run_case, save_tiny_model
from tests.traces.refusals import refused


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return save_tiny_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def unbroken(model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("unbroken")
    run_case(model, folder, folder / "traces")
    return file_bytes(folder / "traces")


def test_a_capture_holds_every_prompt_in_order(model, tmp_path):
    prompts = case_prompts()
    counts = capture(case_job(model), prompts, tmp_path, tmp_path / "traces")
    trace = store.read_parquet(tmp_path / "traces")
    found = (trace.prompt_ids, trace.domains, trace.held_out_P.tolist(), trace.num_prefill_P.tolist())
    given = [(prompt.prompt_id, prompt.domain, prompt.held_out, len(prompt.token_ids)) for prompt in prompts]
    assert list(zip(*found, strict=True)) == given
    prefill, tokens = int(trace.num_prefill_P.sum()), trace.num_tokens
    decoded = {"decode_tokens": tokens - prefill, "prefill_tokens": prefill}
    assert counts == {"prompts": NUM_PROMPTS, "tokens": tokens} | decoded
    assert (trace.metadata.expert_bytes, trace.metadata.decoding) == ((6144, 6144), "sampled")
    assert len(list((tmp_path / "traces").glob("*.parquet"))) == NUM_PROMPTS // 2
    assert not (tmp_path / ".scratch" / "extract").exists()


@pytest.mark.parametrize("trials", [3, pytest.param(20, marks=pytest.mark.slow)])
def test_a_killed_capture_keeps_its_shards_and_ends_with_the_same_bytes(model, unbroken, tmp_path, trials):
    # processes start from one that has the imports done, so that a kill meets the capture and not the imports
    processes = multiprocessing.get_context("forkserver")
    imports = ["moe_beyond.capture.shards", "transformers.models.deepseek_v2.modeling_deepseek_v2"]
    processes.set_forkserver_preload(imports)
    generator = random.Random(11)  # noqa: S311 - moments, not secrets
    killed_inside = kept = 0
    for trial in range(10 * trials):  # on a busy machine a kill may come too late: it does not count
        if killed_inside == trials:
            break
        root, output = tmp_path / f"root{trial}", tmp_path / f"traces{trial}"
        process = processes.Process(target=run_case, args=(model, root, output))
        process.start()
        shards = generator.randrange(NUM_PROMPTS // 2)
        while process.is_alive() and len(list(root.glob(".scratch/extract/*/part-*.parquet"))) < shards:
            time.sleep(0.001)
        process.join(generator.uniform(0, 0.03))
        process.kill()
        process.join()
        killed_inside += process.exitcode == -signal.SIGKILL and not output.exists()
        finished = list(root.glob(".scratch/extract/*/part-*.parquet"))
        times = {path.name: path.stat().st_mtime_ns for path in finished}
        # routers come when all shards are there
        values = [*finished, *(path for shard in finished for path in beside(shard).glob("*_S*D.npy"))]
        found = {str(path.relative_to(path.parents[path.suffix == ".npy"])): path.read_bytes() for path in values}
        assert found.items() <= unbroken.items(), "a shard is not whole"
        run_case(model, root, output)
        assert file_bytes(output) == unbroken
        assert times == {name: (output / name).stat().st_mtime_ns for name in times}, "a shard was made again"
        kept += len(finished) * (process.exitcode == -signal.SIGKILL)
    assert kept, "every process ended before it was killed; the test shows nothing"


def test_processes_share_the_work_and_give_the_same_bytes(model, unbroken, tmp_path):
    capture(case_job(model, workers=2), case_prompts(), tmp_path, tmp_path / "traces")
    assert file_bytes(tmp_path / "traces") == unbroken


def captured(folder, *job, count=NUM_PROMPTS, **settings):
    capture(case_job(*job, **settings), case_prompts(count), folder, folder / "traces")
    return store.read_parquet(folder / "traces")


def test_a_batch_of_another_size_draws_the_same_tokens(model, tmp_path):
    one, two = captured(tmp_path, model), captured(tmp_path, model, batch_prompts=5, shard_prompts=10)
    np.testing.assert_array_equal(one.token_ids_T, two.token_ids_T)
    np.testing.assert_array_equal(one.experts_TLK, two.experts_TLK)


def test_another_job_has_another_key_and_more_processes_are_none(model):
    job, prompts = case_job(model), case_prompts()
    changes = ({}, {"workers": 4}, {"temperature": 0.5}, {"decode_tokens": 5}, {"hidden_share": 0.5})
    keys = [capture_key(case_job(model, **change), prompts, "r") for change in changes]
    assert keys[0] == keys[1]
    assert len({*keys, capture_key(job, prompts, "other weights"), capture_key(job, prompts[1:], "r")}) == 6


def test_privacy_decides_what_is_stored(model, tmp_path):
    for privacy, texts, ids in (("text", True, True), ("ids", False, True), ("routing", False, False)):
        trace = captured(tmp_path, model, count=4, privacy=privacy, weights=ids)
        kept = [column is not None for column in (trace.token_texts, trace.token_ids_T, trace.weights_TLK)]
        assert kept == [texts, ids, ids]


def test_a_given_text_is_traced_as_it_stands(model, tmp_path):
    trace = captured(tmp_path, model, count=4, decode_tokens=0)
    assert trace.metadata.decoding == "teacher-forced"
    assert trace.token_ids_T.tolist() == [token for prompt in case_prompts(4) for token in prompt.token_ids]


def test_hidden_states_of_whole_prompts_lie_beside_each_shard_with_the_routers(model, tmp_path):
    trace = captured(tmp_path, model)
    hidden, tokens = trace.hidden, np.arange(trace.num_tokens)
    kept_P = [keeps_hidden(name, case_job(model).settings, seed=3) for name in trace.prompt_ids]
    assert 0 < sum(kept_P) < NUM_PROMPTS
    kept_T = np.repeat(kept_P, np.diff(trace.prompt_offsets))
    np.testing.assert_array_equal(hidden.rows_T >= 0, kept_T)
    network = load(case_job(model).model).model
    for layer, number in enumerate(trace.metadata.layer_numbers):
        inputs_TD, _ = hidden.of_layer(hidden.gate_inputs_SYD, layer, tokens)
        best_T = (inputs_TD @ network.model.layers[number].mlp.gate.weight.detach().numpy().T).argmax(-1)
        np.testing.assert_array_equal(best_T[kept_T], trace.experts_TLK[kept_T, layer, 0])
        chosen_TK = hidden.routers.choose(layer, inputs_TD[kept_T], 3)
        np.testing.assert_array_equal(chosen_TK[:, 0], best_T[kept_T])
    # the layers of a run of the text at once, which transformers itself returns
    start, end = trace.prompt_offsets[kept_P.index(True) :][:2]
    ids = torch.tensor([trace.token_ids_T[start:end].tolist()])
    with torch.inference_mode():
        output = network.model(ids, output_hidden_states=True)
    for layer, number in enumerate(trace.metadata.layer_numbers):
        found_TD, _ = hidden.of_layer(hidden.layer_inputs_SYD, layer, slice(start, end))
        np.testing.assert_allclose(found_TD, output.hidden_states[number][0], atol=2e-2, rtol=2e-2)
    found_TD, _ = hidden.final(slice(start, end))
    np.testing.assert_allclose(found_TD, output.last_hidden_state[0], atol=2e-2, rtol=2e-2)


def test_what_is_kept_of_hidden_states_is_a_choice_and_said_beforehand(model, tmp_path, capfd):
    trace = captured(tmp_path, model, count=4, hidden_states="gates", hidden_layers=[1], hidden_share=1.0)
    hidden = trace.hidden
    assert (hidden.layers, hidden.layer_inputs_SYD, hidden.final_states_SD) == ((1,), None, None)
    assert hidden.gate_inputs_SYD.shape == (trace.num_tokens, 1, 32)
    tokens = sum(len(prompt.token_ids) for prompt in case_prompts(4)) + 4 * 6
    said = capfd.readouterr().err
    assert f"at most {tokens * 32 * 2:,} bytes on disk; {tokens} tokens of 4 prompts, 1 layers" in said
    assert captured(tmp_path, model, count=4, hidden_states=None).hidden is None
    message = "extract.hidden_layers: 2; the model has MoE layers 0 to 1"
    refused(message, captured, tmp_path, model, count=4, hidden_layers=[2])
    assert captured(tmp_path, model, count=4, privacy="ids").hidden is None
    assert "they can tell the text" in capfd.readouterr().err


def test_which_prompts_keep_hidden_states_depends_on_name_and_seed_alone(model):
    settings = case_job(model).settings
    kept = {seed: [keeps_hidden(f"p{number}", settings, seed) for number in range(1000)] for seed in (1, 2)}
    assert kept[1] != kept[2]
    # four standard deviations
    assert abs(np.mean(kept[1]) - 0.6) < 4 * (0.24 / 1000) ** 0.5
    all_of_them = settings.model_copy(update={"hidden_share": 1.0})
    assert all(keeps_hidden(f"p{number}", all_of_them, 1) for number in range(1000))


def test_the_reference_model_keeps_hidden_states_unless_told_otherwise():
    said = [None, "none", "gates"]
    jobs = [reference_job(Path("m"), ExtractSettings(hidden_states=hidden), 1) for hidden in said]
    assert [job.settings.kept_hidden for job in jobs] == ["all", "none", "gates"]


def test_a_prompt_beyond_the_context_is_named(model, tmp_path):
    long = [EncodedPrompt("long", "d", False, tuple([5] * 123))]
    folders = tmp_path, tmp_path / "traces"
    capture(case_job(model, decode_tokens=5), long, *folders)
    message = r"'long' has 123 tokens, with 6 to decode .* context of 128"
    refused(message, capture, case_job(model, decode_tokens=6), long, *folders)
    refused("no prompts to trace", capture, case_job(model), [], *folders)


def test_former_traces_stay_until_the_new_ones_are_complete(model, tmp_path):
    (tmp_path / "traces").mkdir()
    (tmp_path / "traces" / "former").write_text("former")
    refused("no config.json", capture, case_job(tmp_path / "traces"), case_prompts(), tmp_path, tmp_path / "traces")
    assert (tmp_path / "traces" / "former").read_text() == "former"
    capture(case_job(model), case_prompts(2), tmp_path, tmp_path / "traces")
    files = {path.name for path in (tmp_path / "traces").iterdir()}
    assert files == {"part-00000-of-00001.parquet", "part-00000-of-00001.hidden"}


def test_what_was_half_written_of_hidden_states_is_not_kept(model, unbroken, tmp_path):
    key = capture_key(case_job(model), case_prompts(), load(case_job(model).model).revision)
    shards = tmp_path / ".scratch" / "extract" / key
    for folder in (".part-00000-of-00012.hidden.host.1.tmp", "part-00001-of-00012.hidden"):
        (shards / folder).mkdir(parents=True)
        (shards / folder / "hidden.json").write_text("{")
        (shards / folder / ".hidden.json.host.1.tmp").touch()
    run_case(model, tmp_path, tmp_path / "traces")
    assert file_bytes(tmp_path / "traces") == unbroken
