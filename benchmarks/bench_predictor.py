"""Speed of both steps beside the paper's network, in one run. Prints `NAME VALUE TARGET`; exits 1 if one falls short.

    python benchmarks/bench_predictor.py [--repeats 300]

All three are ONNX graphs on onnxruntime and one thread, with random weights at DeepSeek-V2-Lite's shape (26 layers, 64
experts, top-6): what a step takes depends on sizes, not on what was learnt. The paper's network answers for as many
tokens as fit its 512 rows, in one call; that is what it runs whenever a prompt has grown by a token. Rounds alternate.
Ours are medians of wall time, theirs of processor time, which neighbours on the machine would otherwise lengthen more.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path

import numpy as np
import onnxruntime as ort
import torch

from moe_beyond.data.tokens import MAX_NGRAMS, TokenEncoder
from moe_beyond.network.checkpoint import Checkpoint
from moe_beyond.network.layer_step import LayerStep
from moe_beyond.network.network import TokenStep
from moe_beyond.network.onnx import export_steps, write_graph
from moe_beyond.paper.network import PublishedNetwork, PublishedShape
from moe_beyond.predictor.runtime import OnnxPredictor
from moe_beyond.predictor.shape import NetworkShape
from moe_beyond.traces.schema import TraceMetadata
from moe_beyond.training.settings import TrainSettings

NUM_LAYERS, NUM_EXPERTS, TOP_K, KNOWN_TOKENS = 26, 64, 6, 8000
WIDTH, DEPTH, HEADS = 512, 1, 8
SETTINGS = TrainSettings(letter_buckets=8192, reach=10, layer_width=192, layer_hidden=384)
"""The size that `make deepseek` trains."""
TOKEN_STEP_SPEEDUP, LAYER_STEP_SHARE = 20, 0.1
ROUNDS = 3


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--repeats", type=int, default=300, help="Token steps a round.")
    repeats = parser.parse_args().repeats
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        predictor, published = ours(Path(folder)), theirs(Path(folder) / "published.onnx")
        rounds = [
            (predictor.token_step_ms(repeats), predictor.layer_step_ms(10 * repeats), seconds(published) * 1e3)
            for _ in range(ROUNDS)
        ]
    token_ms, layer_ms, published_ms = (statistics.median(column) for column in zip(*rounds, strict=True))
    print(f"token step {token_ms:.3f} ms, layer step {layer_ms:.4f} ms, the paper's network {published_ms:.1f} ms")
    speedup, share = published_ms / token_ms, layer_ms / token_ms
    print(f"token_step_speed_over_published_network {speedup:.4g} >={TOKEN_STEP_SPEEDUP}")
    print(f"layer_step_time_over_token_step {share:.4g} <={LAYER_STEP_SHARE}")
    sys.exit(not (speedup >= TOKEN_STEP_SPEEDUP and share <= LAYER_STEP_SHARE))


def ours(directory: Path) -> OnnxPredictor:
    """Both steps, exported."""
    given = {
        "num_layers": NUM_LAYERS,
        "num_experts": NUM_EXPERTS,
        "top_k": TOP_K,
        "num_tokens": KNOWN_TOKENS + 1,
        "width": WIDTH,
        "depth": DEPTH,
        "heads": HEADS,
    }
    rest = {field.name: getattr(SETTINGS, field.name) for field in fields(NetworkShape) if field.name not in given}
    shape = NetworkShape(**given, **rest)
    metadata = TraceMetadata(
        model_id="random weights",
        layer_numbers=tuple(range(1, NUM_LAYERS + 1)),
        num_experts=NUM_EXPERTS,
        top_k=TOP_K,
        expert_bytes=(1,) * NUM_LAYERS,
        source="drawn at random",
        licence="none",
    )
    encoder = TokenEncoder(tuple(f"word{i}" for i in range(KNOWN_TOKENS)), SETTINGS.letter_buckets)
    export_steps(Checkpoint(TokenStep(shape).eval(), LayerStep(shape).eval(), encoder, metadata), directory, 20)
    return OnnxPredictor(directory)


def theirs(path: Path) -> Callable[[], object]:
    """The paper's network over one full window, as a call."""
    shape = PublishedShape(NUM_LAYERS, NUM_EXPERTS, KNOWN_TOKENS + 1, SETTINGS.letter_buckets)
    draw = torch.Generator().manual_seed(0)
    inputs = (
        torch.randint(0, shape.num_tokens, (1, shape.window), generator=draw),
        torch.randint(0, shape.letter_buckets, (1, shape.window, MAX_NGRAMS), generator=draw),
        torch.ones(1, shape.window, dtype=torch.bool),
    )
    network = PublishedNetwork(shape, "leaky").eval()
    names = ["tokens", "letters", "real"]
    write_graph(
        network,
        inputs,
        path,
        axes=dict.fromkeys(("tokens_BT", "letters_BTG", "real_BT")),
        input_names=names,
        output_names=["logits"],
        opset=20,
    )
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    feed = {name: value.numpy() for name, value in zip(names, inputs, strict=True)}
    with torch.no_grad():
        expected = network(*inputs).numpy()
    assert np.allclose(session.run(["logits"], feed)[0], expected, atol=1e-3), "the exported network answers otherwise"
    return lambda: session.run(["logits"], feed)


def seconds(work: Callable[[], object], repeats: int = 5) -> float:
    """Median processor time of a call after one to warm up."""
    times = []
    for _ in range(repeats + 1):
        start = time.process_time()
        work()
        times.append(time.process_time() - start)
    return statistics.median(times[1:])


if __name__ == "__main__":
    main()
