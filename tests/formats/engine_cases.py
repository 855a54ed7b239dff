"""One prompt of two tokens and two decoded ones, as each engine writes it: small files, made here from the layouts."""

import base64
import io
import json
import struct
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from moe_beyond.formats.importers import ShapeOverride
from tests.traces.random_traces import random_experts

LAYERS, NUM_EXPERTS, TOP_K, PREFILL = (1, 2, 3), 8, 2, 2
IDS = random_experts((4, 3), NUM_EXPERTS, TOP_K, 5)
"""Experts of the four tokens."""
WEIGHTS = (0.75, 0.25)
SHAPE = ShapeOverride(moe_layers="1-3", expert_size="1000", num_experts=NUM_EXPERTS, top_k=TOP_K)
GROUPS = (IDS[:PREFILL], IDS[2:3], IDS[3:4])
"""The same in batches as engines compute them."""


@dataclass(frozen=True)
class Case:
    """Files of a format, and what they say.

    Attributes:
        files: By name.
        first: Number of the first token that the format keeps.
        prefill: Tokens of prefill among them.
        weights: Whether there are weights.
        last: End of the tokens that the format keeps.
        said: What a person must say beside the model's shape.
        last_alone: The last layer of the prompt is there for its last token alone.
    """

    files: dict[str, bytes]
    first: int = 0
    prefill: int = PREFILL
    weights: bool = False
    last: int = 4
    said: dict[str, object] = field(default_factory=dict)
    last_alone: bool = False

    @property
    def shape(self):
        return ShapeOverride(**{**vars(SHAPE), **self.said})

    @property
    def expected(self):
        ids = IDS.copy()
        if self.last_alone:
            ids[:PREFILL, -1] = ids[PREFILL - 1, -1]
        return ids[self.first : self.last]


def ints(*numbers):
    """Little-endian int32."""
    return np.array(numbers, "<i4").tobytes()


def floats(*numbers):
    return np.array(numbers, "<f4").tobytes()


def layers_of(groups=GROUPS, layers=LAYERS, *, last_alone=False):
    """Layer and experts [tokens, k] in the order of computing."""
    for batch in groups:
        for place, layer in enumerate(layers):
            ids = batch[-1:, place] if last_alone and place == len(layers) - 1 else batch[:, place]
            yield layer, ids


def token_rows(groups=GROUPS):
    """Token, layer and experts, token after token."""
    number = 0
    for batch in groups:
        for token in batch:
            for layer, ids in zip(LAYERS, token, strict=True):
                yield number, layer, ids
            number += 1


def jsonl(rows):
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def strata(groups=GROUPS):
    return b"".join(ints(layer, TOP_K, *row) + floats(*WEIGHTS) for layer, ids in layers_of(groups) for row in ids)


def mbolt(groups=GROUPS):
    records = (
        ints(layer, TOP_K, len(ids), *ids.reshape(-1)) for layer, ids in layers_of(groups, (0, 1, 2), last_alone=True)
    )
    return b"MBLT" + ints(1, NUM_EXPERTS) + b"".join(records)


def mstr(groups=GROUPS):
    parts = [b"MSTR" + struct.pack("<III", 1, TOP_K, 4)]
    for layer, ids in layers_of(groups):
        parts.append(struct.pack("<BIB", layer, len(ids), len(ids) > 1) + ids.astype("<i2").tobytes())
    return b"".join(parts)


def probabilities(ids):
    """A softmax over all experts, the chosen ones on top in their order."""
    full = np.full(NUM_EXPERTS, 0.01, np.float32)
    full[ids] = 0.6, 0.3
    return full / full.sum()


def fitz():
    records = (ints(token, layer) + probabilities(ids).tobytes() for token, layer, ids in token_rows())
    # a layer without experts
    dense = (ints(token, 0) + np.full(NUM_EXPERTS, np.nan, "<f4").tobytes() for token in range(4))
    return b"RTRACE01" + ints(NUM_EXPERTS, 0) + b"".join([*dense, *records])


def lucebox(hidden=4):
    return b"".join(
        ints(layer, TOP_K) + floats(*np.linspace(-1, 1, hidden)) + ints(*row)
        for layer, ids in layers_of()
        for row in ids
    )


def colibri(extra=True):
    lines, call = [], 0
    for layer, ids in layers_of():
        for row, (a, b) in enumerate(ids.tolist()):
            lines.append(f"{call} {row} {layer} {a}:0.7500 {b}:0.2500")
        call += 1
        if extra and layer == 3:  # the draft head's
            lines.append(f"{call} 0 4 0:0.7500 1:0.2500")
            call += 1
    return ("\n".join(lines) + "\n").encode()


def megatron(groups=GROUPS, *, logits=True):
    """The trace and its sidecars."""
    lines, states, weights = [], b"", b""
    for record, (layer, ids) in enumerate(layers_of(groups)):
        row = {"step": record // 3, "stage": "pre_dispatch", "block": "decoder", "layer": layer, "rank": 0}
        row |= {"num_tokens": len(ids), "topk": TOP_K, "top_indices": np.sort(ids, axis=1).tolist()}
        row |= {"hs_offset": len(states), "hs_bytes": 8 * len(ids), "hs_shape": [len(ids), 4]}
        states += bytes(8 * len(ids))
        if logits:
            row |= {"logit_offset": len(weights), "logit_bytes": 16 * len(ids), "logit_shape": [len(ids), NUM_EXPERTS]}
            numbers = np.log(np.stack([probabilities(chosen) for chosen in ids])).astype(np.float32)
            weights += (numbers.view(np.uint32) >> 16).astype("<u2").tobytes()
        lines.append(row)
        if layer == 3:
            lines.append({"block": "mtp", "mtp_idx": 0, "layer": 0})
    files = {"router_trace_rank0.jsonl": jsonl(lines), "hidden_states_rank0.bin": states}
    return files | ({"logits_rank0.bin": weights} if logits else {})


def sglang_json(tokens=3, prompt=PREFILL, completion=2, dense=False):
    ids = IDS[:tokens].astype("<i4")
    if dense:
        ids = np.concatenate([np.zeros((tokens, 1, TOP_K), "<i4"), ids], axis=1)
    text = base64.b64encode(ids.tobytes()).decode()
    answer = {"choices": [{"index": 0, "sgl_ext": {"routed_experts": text}}]}
    return json.dumps(answer | {"usage": {"prompt_tokens": prompt, "completion_tokens": completion}}).encode()


def saved(document):
    """A `.pt`."""
    buffer = io.BytesIO()
    torch.save(document, buffer)
    return buffer.getvalue()


def recorder_pass(number, ids, positions, *, extend=None, mode=None):
    """A record of SGLang's recorder; four layers, the first of them dense; experts lie in reversed places."""
    chosen = torch.full((4, len(positions), 8), -1, dtype=torch.int32)
    chosen[1:, :, :TOP_K] = torch.tensor((NUM_EXPERTS - 1 - ids).transpose(1, 0, 2).copy())
    fields = {"forward_pass_id": number, "rank": 0, "gatherer_key": "primary", "input_ids": [p + 10 for p in positions]}
    fields |= {"positions": positions, "extend_seq_lens": extend, "forward_mode": mode or (1 if extend else 2)}
    return fields | {"topk_ids_of_layer": chosen, "misc_objects": []}


PLACES = torch.arange(NUM_EXPERTS - 1, -1, -1).repeat(4, 1)
PASSES = [
    recorder_pass(0, IDS[:2], [0, 1], extend=[2]),
    recorder_pass(1, IDS[2:3], [2]),
    recorder_pass(2, IDS[3:], [3]),
]


def recorder(records=PASSES):
    return saved({"records": records, "last_physical_to_logical_map": PLACES})


def npz(**arrays):
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    return buffer.getvalue()


def bakeer():
    """Two sequences of two tokens."""
    files = {
        f"trace/layer{layer}.npz": npz(
            indices=np.ascontiguousarray(IDS[:, place], np.int16),
            weights=np.full((4, TOP_K), WEIGHTS, np.float16),
            scores=np.zeros(0, np.float16),
            category=np.array(["code"] * 2 + ["prose"] * 2),
            token=np.array([11, 12, 21, 22], np.int32),
        )
        for place, layer in enumerate(LAYERS)
    }
    seqs = [{"id": "a", "category": "code", "n": 2}, {"id": "b", "category": "prose", "n": 2}]
    return {"meta.json": json.dumps({"seqs": seqs}).encode()} | files


def parquet(**columns):
    buffer = io.BytesIO()
    pq.write_table(pa.table(columns), buffer)
    return buffer.getvalue()


def flame():
    scores = pa.array([list(WEIGHTS)] * 4, pa.list_(pa.float16()))
    files = {"samples/000.parquet": parquet(token_id=pa.array([5, 6, 7, 8], pa.int32()))}
    for place, layer in enumerate(LAYERS):
        ids = pa.array(IDS[:, place].tolist(), pa.list_(pa.int16()))
        files[f"actives/iter_10/layer_{layer:02}.parquet"] = parquet(scores=scores, indices=ids)
    return files


def flash_moe():
    rows = [{"label": "run"}]
    for layer, ids in layers_of():
        union = sorted(set(ids.reshape(-1).tolist())) if len(ids) > 1 else ids[0].tolist()
        rows.append(
            {"layer": layer, "n_tokens": len(ids), "n_experts": len(union), "expert_ids": union, "slot_ids": union}
        )
    return jsonl(rows)


def route(request, token, layer, ids):
    row = {"type": "route", "req_id": request, "token_idx": token, "layer": layer, "topk_ids": list(map(int, ids))}
    return row | {"topk_weights": list(WEIGHTS)}


def vllm_routes(requests=("a", "b")):
    """A profile pass, then the same tokens for each request."""
    rows = [{"type": "meta", "model_id": "m/x", "top_k": TOP_K, "num_experts": NUM_EXPERTS}]
    rows += [route("r0", token, layer, (6, 3)) for layer in LAYERS for token in range(20)]
    rows += [route(request, token, layer, ids) for request in requests for token, layer, ids in token_rows()]
    return jsonl(rows)


def _a(pos, layer, ids):
    return f"{pos},{layer},{','.join(map(str, ids.tolist()))}\n"


def moe_trace_a(groups=GROUPS):
    """Prompt tokens count down to -1 in each batch, decode steps up from 0."""
    lines, step = [], 0
    for batch in groups:
        prompt = len(batch) > 1
        lines += [
            _a(n - len(batch) if prompt else step, layer, batch[n, place])
            for place, layer in enumerate(LAYERS)
            for n in range(len(batch))
        ]
        step = 0 if prompt else step + 1
    return "".join(lines).encode()


def moe_trace_c(groups=GROUPS):
    records = [ints(layer, len(ids), TOP_K, *ids.reshape(-1)) for layer, ids in layers_of(groups, last_alone=True)]
    # one fork writes a record twice
    return b"".join([*records[:2], records[1], *records[2:]])


def moe_trace_f():
    lines = ["phase,token,layer,rank,expert"]
    for token, layer, ids in token_rows():
        phase = "prefill" if token < PREFILL else "decode"
        lines += [f"{phase},{token},{layer},{rank},{expert}" for rank, expert in enumerate(ids.tolist())]
    return "\n".join(lines).encode()


_ROWS = list(token_rows())
CASES = {
    "strata": Case({"x.bin": strata()}, weights=True),
    "mbolt": Case({"x.mblt": mbolt()}, last_alone=True),
    "mstr": Case({"x.4L.mstr": mstr()}),
    "fitz": Case({"x.rtrace": fitz()}, weights=True, said={"prefill_tokens": "2"}),
    "lucebox": Case({"x.bin": lucebox()}, said={"prefill_tokens": "2", "hidden_size": 4}),
    "colibri": Case({"x.txt": colibri()}, weights=True),
    "megatron": Case(megatron(), weights=True),
    "sglang-json": Case({"x.json": sglang_json()}, last=3),
    "sglang-recorder": Case({"x.pt": recorder()}),
    "0xbakeer-npz": Case(bakeer(), prefill=4, weights=True),
    "flame": Case(flame(), prefill=4, weights=True),
    "flash-moe": Case({"x.jsonl": flash_moe()}, first=2, prefill=0),
    "lattice": Case(
        {
            "x.jsonl": jsonl(
                {"layer_idx": layer, "token_idx": token, "selected_ids": ids.tolist(), "gate_weights": list(WEIGHTS)}
                for token, layer, ids in _ROWS
            )
        },
        weights=True,
        said={"prefill_tokens": "2"},
    ),
    "vllm-routes": Case({"x.jsonl": vllm_routes()}, weights=True, prefill=0, said={"prefill_tokens": "0"}),
    "moe-trace-a": Case({"x.csv": moe_trace_a()}),
    "moe-trace-b": Case(
        {"x.jsonl": jsonl({"pos": token, "layer": layer, "experts": ids.tolist()} for token, layer, ids in _ROWS)},
        said={"prefill_tokens": "2"},
    ),
    "moe-trace-c": Case({"x.bin": moe_trace_c()}, last_alone=True),
    "moe-trace-d": Case(
        {
            "x.txt": "".join(
                f"7 {token - 2} {layer} {' '.join(map(str, ids))}\n" for token, layer, ids in _ROWS if token > 1
            ).encode()
        },
        first=2,
        prefill=0,
    ),
    "moe-trace-f": Case({"x.csv": moe_trace_f()}),
}
"""Every format of an engine by its name."""
