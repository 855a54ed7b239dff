"""A real model decoded with its experts on disk, beside what the simulator says and what link and compute allow.

    python benchmarks/bench_live.py [--only agreement|memory]

Prints `NAME VALUE TARGET`; exits 1 if one falls short.

Agreement: a model with experts of 4.5 MiB is decoded under prefetching policies on links slowed down to three
bandwidths, at three budgets, and its trace is replayed on a device measured over a run of LRU. Medians over links and
budgets of the difference of hit rates, in points, and of the error of the time of a token.

Memory: a model with 3 GiB of experts decodes in a process that may hold 1.2 GiB of data. Its time of a token is
compared with what the model takes with all experts in memory, plus its misses at the bandwidth of the store.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerFast

from moe_beyond.capture.discovery import moe_layers
from moe_beyond.capture.generation import route_batch
from moe_beyond.capture.hooks import RoutingRecorder
from moe_beyond.capture.models import ModelSource
from moe_beyond.capture.prompts import EncodedPrompt
from moe_beyond.capture.settings import ExtractSettings
from moe_beyond.live.check import check
from moe_beyond.live.decoding import decode, peak_memory_mib
from moe_beyond.live.dense_model import load_without_experts
from moe_beyond.live.packing import pack, pack_model
from moe_beyond.live.recording import decoded, means, table
from moe_beyond.live.session import Case, metadata_of, offloaded
from moe_beyond.live.store import ExpertStore, aligned_buffer
from moe_beyond.live.verify import ours
from moe_beyond.network.checkpoint import load_checkpoint, save_checkpoint
from moe_beyond.network.export import export_predictor
from moe_beyond.network.settings import ExportSettings
from moe_beyond.predictor.baselines import Popularity
from moe_beyond.predictor.runtime import OnnxPredictor
from moe_beyond.simulator.policies.next_layer import MixtralOffloading, NextLayerMap
from moe_beyond.simulator.policies.on_demand import Lru
from moe_beyond.simulator.policies.predictions import Predictions
from moe_beyond.simulator.schedule.events import events_of
from moe_beyond.traces.schema import Trace, trace_of, validate
from moe_beyond.training.fit import fit
from moe_beyond.training.settings import TrainSettings
from moe_beyond.training.size import Size

SEED = 7
VOCABULARY = 512
SHARED: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
}
SHARED |= {"eos_token_id": None, "pad_token_id": 0, "intermediate_size": 256, "tie_word_embeddings": False}
SMALL = SHARED | {"hidden_size": 512, "moe_intermediate_size": 768, "num_hidden_layers": 8}
SMALL |= {"num_experts": 16, "num_local_experts": 16, "num_experts_per_tok": 2, "head_dim": 64}
LARGE = SHARED | {"hidden_size": 1024, "moe_intermediate_size": 1024, "num_hidden_layers": 8}
LARGE |= {"num_experts": 32, "num_local_experts": 32, "num_experts_per_tok": 4, "head_dim": 64}
LINKS_GB_PER_S, BUDGETS = (0.3, 0.6, 1.2), (16, 32, 64)
HIT_RATE_POINTS, TIME_ERROR = 1.0, 0.1
LIMIT_BYTES, LARGE_BUDGET, SPEED = 1.2 * 2**30, 34, 0.8
TRAINING_PROMPTS, TEST_PROMPTS, PROMPT_TOKENS, NEW_TOKENS = 160, 3, 24, 24


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--only", choices=["agreement", "memory", "limited"])
    parser.add_argument("--folder", type=Path)
    given = parser.parse_args()
    torch.set_num_threads(1)
    if given.only == "limited":
        print(json.dumps(decode_limited(given.folder)))
        return
    kept = True
    with tempfile.TemporaryDirectory(dir=given.folder) as folder:
        if given.only != "memory":
            kept &= agreement(part(folder, "small"))
        if given.only != "agreement":
            kept &= memory(part(folder, "large"))
    sys.exit(not kept)


def part(folder: str, name: str) -> Path:
    """A folder of one benchmark."""
    made = Path(folder) / name
    made.mkdir()
    return made


def agreement(folder: Path) -> bool:
    """Whether the simulator is right about prefetching policies."""
    model, tokenizer = model_of(SMALL), tokenizer_of()
    pack_model(model, folder / "experts", model_id="small", revision="random")
    rows = []
    with ExpertStore.open(folder / "experts") as store:
        training, test = traces_of(model, store)
        predictor = predictor_of(training, folder)
        charge, popularity_LE = predictor.charge, Popularity.fit(training).popularity_LE
        predictions = Predictions(
            predictor, test, events_of(test), charge.token_step_ms, charge.layer_step_ms, popularity_LE
        )
        width = training.metadata.top_k
        names = ("predictor_layer_prefetch_anticipate", "predictor_layer_prefetch_lru")
        checks = [Case(*ours(predictions, predictor, name, width, 0.0)) for name in names]
        checks.append(Case(MixtralOffloading(NextLayerMap.fit(training))))
        for gb_per_s in LINKS_GB_PER_S:
            for budget in BUDGETS:
                found = check(
                    model, tokenizer, store, test, checks, capacity_experts=budget, lookahead=2, gb_per_s=gb_per_s
                )
                place = {"gb_per_s": pl.lit(gb_per_s), "budget": pl.lit(budget)}
                rows.append(found.filter(pl.col("policy") != Lru.name).with_columns(**place))
    every = pl.concat(rows).with_columns(
        points=100 * (pl.col("modelled_hit_rate") - pl.col("hit_rate")).abs(),
        error=(pl.col("modelled_ms_per_token") / pl.col("ms_per_token") - 1).abs(),
    )
    columns = ("gb_per_s", "budget", "policy", "hit_rate", "modelled_hit_rate", "ms_per_token", "modelled_ms_per_token")
    for row in every.select(columns).iter_rows():
        print("{} GB/s, {} experts, {}: hit rate {:.3f} ({:.3f}), {:.1f} ms ({:.1f})".format(*row))
    kept = True
    for policy in every["policy"].unique(maintain_order=True):
        mine = every.filter(pl.col("policy") == policy)
        points, error = statistics.median(mine["points"]), statistics.median(mine["error"])
        short = policy.removeprefix("predictor_")
        print(f"live_{short}_hit_rate_points {points:.4g} <={HIT_RATE_POINTS:g}")
        print(f"live_{short}_time_error {error:.4g} <={TIME_ERROR:g}")
        kept &= points <= HIT_RATE_POINTS and error <= TIME_ERROR
    return kept


def memory(folder: Path) -> bool:
    """Whether a model that does not fit decodes, and how near to what is possible."""
    write_large(folder / "model")
    source = ModelSource(str(folder / "model"), dtype="float32")
    pack(source, folder / "experts")
    with ExpertStore.open(folder / "experts") as store:
        gb_per_s = read_gb_per_s(store)
        experts_gib = store.num_model_experts * store.record_bytes / 2**30
    whole = AutoModelForCausalLM.from_pretrained(source.location, dtype=torch.float32).eval()
    compute_ms = ms_per_token(whole)
    del whole
    script = [sys.executable, __file__, "--only", "limited", "--folder", str(folder)]
    # every thread's stack and glibc's arenas count as data
    few = {"MALLOC_ARENA_MAX": "1", "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    done = subprocess.run(script, stdout=subprocess.PIPE, text=True, check=True, env=os.environ | few)
    found = json.loads(done.stdout.splitlines()[-1])
    allowed_ms = compute_ms + found["read_bytes"] / gb_per_s / 1e6
    print(
        f"{experts_gib:.2f} GiB of experts, {LIMIT_BYTES / 2**30:.1f} GiB of data allowed, {found['peak_mib']:.0f} MiB "
        f"resident at most: {found['ms_per_token']:.1f} ms a token, {found['hit_rate']:.3f} hits; "
        f"{compute_ms:.1f} ms to compute, {gb_per_s:.2f} GB/s to read"
    )
    speed = allowed_ms / found["ms_per_token"]
    print(f"live_speed_of_what_link_and_compute_allow {speed:.4g} >={SPEED:g}")
    return bool(speed >= SPEED)


def decode_limited(folder: Path) -> dict[str, float]:
    """In a process of its own: decode with little memory."""
    resource.setrlimit(resource.RLIMIT_DATA, (int(LIMIT_BYTES), int(LIMIT_BYTES)))
    loaded = load_without_experts(ModelSource(str(folder / "model"), dtype="float32"))
    settings = ExtractSettings(decode_tokens=NEW_TOKENS, decoding="greedy")
    prompts = prompts_of(1, SEED)
    with ExpertStore.open(folder / "experts") as store:
        policy, meta = Lru(), metadata_of(loaded.model, store)
        budget = policy.budget(meta, LARGE_BUDGET)
        with offloaded(loaded.model, store, policy, budget, len(prompts), lanes=2) as experts:
            decode(loaded.model, loaded.tokenizer, prompts, experts, settings, seed=SEED)
    rows = means(table(experts.times))
    hits = sum(row.hits for row in decoded(experts.times)) / (meta.token_cycle * len(decoded(experts.times)))
    return {
        "ms_per_token": rows["wall_ms"],
        "read_bytes": rows["read_bytes"],
        "hit_rate": hits,
        "peak_mib": peak_memory_mib(),
    }


def ms_per_token(model: PreTrainedModel) -> float:
    """Of a model in memory, over the same prompt."""
    ends: list[float] = []
    handle = model.register_forward_hook(lambda *_: ends.append(time.perf_counter()))
    settings = ExtractSettings(decode_tokens=NEW_TOKENS, decoding="greedy")
    decode(model, tokenizer_of(), prompts_of(1, SEED), None, settings, seed=SEED)
    handle.remove()
    return 1e3 * float(np.diff(ends).mean())


def read_gb_per_s(store: ExpertStore) -> float:
    """How fast whole experts can be read in random order, without anything else."""
    buffer = aligned_buffer(store.stride).numpy().data
    order = np.random.default_rng(SEED).permutation(store.num_model_experts)[:100]
    began = time.perf_counter()
    for expert in order.tolist():
        store.read(expert, buffer, 0, store.stride)
    return float(len(order) * store.stride / (time.perf_counter() - began) / 1e9)


def model_of(shape: dict[str, Any]) -> PreTrainedModel:
    """Random weights; routers have favourites."""
    torch.manual_seed(SEED)
    model: Any = AutoModelForCausalLM.from_config(AutoConfig.for_model("qwen3_moe", **shape)).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("mlp.gate.weight"):
                parameter.normal_(std=0.3)
    return model  # type: ignore[no-any-return]


def write_large(folder: Path) -> None:
    """A checkpoint written layer by layer, as hubs hold them, so that it is never in memory whole."""
    config = AutoConfig.for_model("qwen3_moe", **LARGE)
    with torch.device("meta"):
        structure: Any = AutoModelForCausalLM.from_config(config)
    draw = torch.Generator().manual_seed(SEED)
    weights: dict[str, torch.Tensor] = {}
    index: dict[str, str] = {}
    for name, parameter in structure.named_parameters():
        if ".experts." not in name:
            value = torch.ones(parameter.shape) if parameter.ndim == 1 else torch.empty(parameter.shape)
            weights[name] = (
                value if parameter.ndim == 1 else value.normal_(0, 0.3 if "gate" in name else 0.02, generator=draw)
            )
    folder.mkdir()
    save_file(weights, folder / "dense.safetensors")
    index |= dict.fromkeys(weights, "dense.safetensors")
    hidden, inner = LARGE["hidden_size"], LARGE["moe_intermediate_size"]
    shapes = {"gate_proj": (inner, hidden), "up_proj": (inner, hidden), "down_proj": (hidden, inner)}
    for layer in range(LARGE["num_hidden_layers"]):
        part = {
            f"model.layers.{layer}.mlp.experts.{expert}.{name}.weight": torch.empty(shape).uniform_(
                -0.03, 0.03, generator=draw
            )
            for expert in range(LARGE["num_experts"])
            for name, shape in shapes.items()
        }
        save_file(part, folder / f"layer-{layer}.safetensors")
        index |= dict.fromkeys(part, f"layer-{layer}.safetensors")
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": index}))
    config.save_pretrained(folder)
    tokenizer_of().save_pretrained(folder)


def tokenizer_of() -> PreTrainedTokenizerFast:
    """A word for each id."""
    words = WordLevel({f"word{token}": token for token in range(VOCABULARY)}, unk_token="word0")  # noqa: S106 - a token, no password
    return PreTrainedTokenizerFast(tokenizer_object=Tokenizer(words))


def prompts_of(count: int, seed: int) -> list[EncodedPrompt]:
    """Random tokens, some of them common."""
    rng = np.random.default_rng(seed)
    tokens = np.minimum(rng.zipf(1.3, (count, PROMPT_TOKENS)), VOCABULARY - 1)
    return [EncodedPrompt(f"{seed}-{row}", "random", False, tuple(ids.tolist())) for row, ids in enumerate(tokens)]


def traces_of(model: PreTrainedModel, store: ExpertStore) -> tuple[Trace, Trace]:
    """What predictors are fitted on, and what is decoded."""
    meta = metadata_of(model, store)
    with RoutingRecorder(moe_layers(model)) as recorder:
        training, test = [], []
        settings = ExtractSettings(decode_tokens=NEW_TOKENS)
        fitted = prompts_of(TRAINING_PROMPTS, SEED)
        for start in range(0, len(fitted), 40):
            training += route_batch(model, recorder, fitted[start : start + 40], settings, SEED)
        for prompt in prompts_of(TEST_PROMPTS, SEED + 1):
            test += route_batch(model, recorder, [prompt], settings, SEED)
    strings = tokenizer_of()

    def trace(captured: list[Any]) -> Trace:
        named = [replace(one, token_texts=strings.convert_ids_to_tokens(one.token_ids_T.tolist())) for one in captured]
        return validate(trace_of(meta, named), "benchmark")

    return trace(training), trace(test)


def predictor_of(training: Trace, folder: Path) -> OnnxPredictor:
    """A predictor that was trained in seconds."""
    last = training.num_prompts // 8
    order = np.arange(training.num_prompts)
    splits = {"train": training.select(order[last:]), "validation": training.select(order[:last])}
    settings = TrainSettings(epochs=6, embedding_width=32, layer_width=32, layer_hidden=16, window=32)
    done = fit(
        splits["train"],
        splits["validation"],
        Size(64, 1, 2),
        settings,
        epochs=6,
        seed=SEED,
        scratch=folder / "scratch",
    )
    save_checkpoint(done.checkpoint, folder / "checkpoint")
    export_predictor(load_checkpoint(folder / "checkpoint"), folder / "predictor", splits, ExportSettings())
    return OnnxPredictor(folder / "predictor")


if __name__ == "__main__":
    main()
