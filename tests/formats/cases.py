"""A small valid source of every format, as files of text."""

import csv
import io
import json

import numpy as np

from moe_beyond.formats import importers
from tests.traces.random_traces import random_experts

TOKENS = ["<｜begin▁of▁sentence｜>", 'Ġ"', '"', ",", "a\n", '""",', "Ġünï"]  # noqa: RUF001 - the tokenizer's own
# four layers, the first of them dense
CONFIG = {"model_type": "deepseek_v3", "num_hidden_layers": 4, "first_k_dense_replace": 1}
CONFIG |= {"n_routed_experts": 8, "num_experts_per_tok": 2, "torch_dtype": "bfloat16"}
CONFIG |= {"hidden_size": 16, "intermediate_size": 64, "moe_intermediate_size": 4}
BESIDE = {"config.json": json.dumps(CONFIG).encode()}
PAPER, SMALL, GPT_OSS = (26, 64, 6), (3, 8, 2), (24, 32, 4)


def experts(tokens, shape, seed=0):
    """Distinct experts of each token and layer, of a model of so many layers, experts and k."""
    layers, num_experts, top_k = shape
    return random_experts((tokens, layers), num_experts, top_k, seed)


def table(rows, terminator="\r\n"):
    """A CSV."""
    buffer = io.StringIO(newline="")
    csv.writer(buffer, lineterminator=terminator).writerows(rows)
    return buffer.getvalue().encode()


def routed(experts_TLK, tokens, terminator="\r\n"):
    """A prompt of the paper's."""
    ids = experts_TLK.tolist()
    rows = [[layer + 1, 0, token, ids[t][layer]] for layer in range(26) for t, token in enumerate(tokens)]
    return table([["Layer ID", "Batch Number", "Token", "Activated Expert IDs"], *rows], terminator)


def predicted(experts_TLK, named_TLK):
    """What the paper's predictor named for a prompt."""
    ids, named = (np.sort(each_TLK, axis=2).tolist() for each_TLK in (experts_TLK, named_TLK))
    rows = [[layer + 1, t, ids[t][layer], named[t][layer]] for layer in range(26) for t in range(len(named))]
    return table([["Layer ID", "Token", "Activated Expert IDs", "Predicted Expert IDs"], *rows])


def scores(sequences, layer):
    """A layer of ESFT's scores; expert e has the weight 1 / (2 + e)."""
    flat = [sequence[:, layer].reshape(-1).tolist() for sequence in sequences]
    lines = ["\t".join([*map(str, ids), "", *(f"{1 / (2 + expert):.4f}" for expert in ids)]) for ids in flat]
    return ("\n".join(lines) + "\n").encode()


def fingerprint():
    """Three prompt tokens, four generated ones, of which the last was never fed back."""
    ids, draw = experts(3, GPT_OSS).tolist(), np.random.default_rng(0)
    weights = np.sort(draw.dirichlet(np.ones(4), (3, 24)))[..., ::-1].tolist()

    def layer(t, i):
        return {"selected_experts": ids[t][i], "selected_probs": weights[t][i]}

    data = [{f"token_{t + 3}": {f"layer_{i}": layer(t, i) for i in range(24)}} for t in range(3)]
    return {"dataset": "mmlu", "full_text": list("abcDEFG"), "generated_only": list("DEFG"), "router_data": data}


ROUTE_HEAD = """# route_trace v1
# model=/x/Toy-Q4.gguf arch=toy n_layer=3 n_expert=4 n_expert_used=2
# layer=0 expert_bytes=0 dense_bytes=9
# layer=1 expert_bytes=100 dense_bytes=9
# layer=2 expert_bytes=200 dense_bytes=9
turn,phase,step,layer,slot,expert,weight,residency,expert_bytes
"""
# two prefill tokens (the last layer for the second one alone), one decoded token
_ROUTED = [(0, 0, 1, (3, 0)), (0, 1, 1, (1, 2)), (0, 1, 2, (2, 3)), (1, 2, 1, (0, 1)), (1, 2, 2, (3, 1))]
ROUTE = "".join(
    f"0,{phase},{step},{layer},{slot},{expert},{0.75 - 0.5 * slot},0,100\n"
    for phase, step, layer, pair in _ROUTED
    for slot, expert in enumerate(pair)
)


def arrays(**named):
    """An .npz."""
    buffer = io.BytesIO()
    np.savez(buffer, **named)
    return buffer.getvalue()


def batch(experts_TLK, *, last_alone=False):
    """A batch of llama.cpp's, its last layer for the last token alone if `last_alone`."""
    parts = [experts_TLK[-1:, 2] if last_alone and layer == 2 else experts_TLK[:, layer] for layer in range(3)]
    return "".join(f"{layer + 1},{expert}\n" for layer, part in enumerate(parts) for expert in part.reshape(-1))


_PAPER, SEQUENCES = experts(3, PAPER), [experts(2, PAPER), experts(3, PAPER, 1)]
IDS = {"prompt_token_ids": [1, 2], "token_ids": [3, 4, 5]}
SOURCES = {
    "moe-beyond-csv": {
        "formatted/prompt_1_data_formatted.csv": routed(_PAPER, TOKENS[1:4]),
        "predicted/prompt_1_data_predicted.csv": predicted(_PAPER, _PAPER),
    },
    "esft": {f"law/expert_weights_{layer + 1}.txt": scores(SEQUENCES, layer) for layer in range(26)},
    "gpt-oss-fingerprint": {"x.json": json.dumps(fingerprint()).encode()},
    "bigmoe-route": {"toy.route.csv": (ROUTE_HEAD + ROUTE).encode()},
    "vllm-npz": {"a.npz": arrays(routed_experts=experts(4, SMALL), **IDS)} | BESIDE,
    "llamacpp-csv": {"a.csv": (batch(experts(3, SMALL)) + batch(experts(1, SMALL, 1))).encode()} | BESIDE,
}


def write(folder, files):
    """The folder with these files."""
    for name, data in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    return folder


def read(name, folder, files, **how):
    """These files, read as a format."""
    return importers.read(name, write(folder, files), **how)
