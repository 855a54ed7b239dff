"""Which format a file has, by what it holds.

A table of recognisers: each looks at the name and the beginning of a file and says why it is of its format, or nothing.
Binary formats without a mark are recognised by records that fit one another; two may fit, and then a person must say.
"""

from __future__ import annotations

import json
import re
import zipfile
from collections.abc import Callable
from io import BytesIO
from itertools import islice
from pathlib import Path, PurePosixPath
from struct import error as struct_error
from struct import unpack_from
from typing import Literal

from moe_beyond.errors import DAMAGE_ERRORS, InputError
from moe_beyond.formats.importers.sources import members

Kind = Literal["trace", "counts"]
_HEAD = 65536
_MOST_FILES = 50
_MOST_LAYERS, _MOST_EXPERTS = 1024, 65536


def recognise(source: Path) -> tuple[Kind, str, str]:
    """What a file, folder or archive holds: kind, name of the format, and why.

    Raises:
        InputError: None fits, or several do; names them all.
    """
    found: dict[tuple[Kind, str], str] = {}
    for name, stream in islice(members(source, ""), _MOST_FILES):
        file = PurePosixPath(name)
        head = stream.read() if file.suffix in (".npz", ".pt") else stream.read(_HEAD)
        for (kind, format_), test in _TESTS.items():
            reason = test(name, head)
            if reason:
                found.setdefault((kind, format_), f"{file.name} {reason}")
    if not found:
        raise InputError(f"{source}: no known format; name one of {', '.join(sorted({name for _, name in _TESTS}))}")
    listed = [f"{name} ({reason})" for (_, name), reason in found.items()]
    if len(found) > 1:
        raise InputError(f"{source}: could be {' or '.join(listed)}; name the format instead of auto")
    ((kind, format_), reason), *_ = found.items()
    return kind, format_, reason


_Test = Callable[[str, bytes], str | None]


def _begins(*beginnings: bytes) -> _Test:
    def test(_: str, head: bytes) -> str | None:
        return next((f"begins with {start.decode()!r}" for start in beginnings if head.startswith(start)), None)

    return test


def _first_line(pattern: str, what: str) -> _Test:
    def test(_: str, head: bytes) -> str | None:
        line = head.removeprefix(b"\xef\xbb\xbf").partition(b"\n")[0].rstrip(b"\r")
        return f"has {what} in its first line" if re.fullmatch(pattern.encode(), line) else None

    return test


def _named(pattern: str, ending: str = "") -> _Test:
    def test(name: str, _: bytes) -> str | None:
        plain = name.removesuffix(".gz").removesuffix(".xz")
        return f"is named {ending or 'so'}" if re.search(pattern, plain) else None

    return test


def _json_lines(*keys: str) -> _Test:
    def test(_: str, head: bytes) -> str | None:
        for line in head.split(b"\n")[:4]:
            try:
                fields = json.loads(line)
            except (ValueError, RecursionError):
                return None
            if isinstance(fields, dict) and fields.keys() >= set(keys):
                return f"has objects with {', '.join(keys)}"
        return None

    return test


def _json(key: str) -> _Test:
    def test(name: str, head: bytes) -> str | None:
        whole = re.sub(rb"^\xef\xbb\xbf", b"", head).lstrip()[:1] in (b"{", b"[") and ".json" in name
        return f"is JSON with {key!r}" if whole and ".jsonl" not in name and f'"{key}"'.encode() in head else None

    return test


def _zip(ending: str, member: str, content: bytes = b"") -> _Test:
    def test(name: str, data: bytes) -> str | None:
        if not name.endswith(ending) or not data.startswith(b"PK"):
            return None
        try:
            with zipfile.ZipFile(BytesIO(data)) as archive:
                inner = next((entry for entry in archive.namelist() if entry.endswith(member)), None)
                # a pickle is looked through for a word, never loaded
                if inner is None or (content and content not in archive.open(inner).read(_HEAD)):
                    return None
        except DAMAGE_ERRORS:
            return None
        return f"holds {content.decode() or member.removesuffix('.npy')}"

    return test


def _records(size: Callable[[bytes, int], int | None], what: str) -> _Test:
    """Records without a mark: each must fit, the first ones to the end of what was read."""

    def test(name: str, head: bytes) -> str | None:
        if not head or b"\0" not in head[:64] or PurePosixPath(name).suffix not in (".bin", ""):
            return None
        at = count = 0
        while at < len(head):
            try:
                length = size(head, at)
            except struct_error:
                length = None if len(head) < _HEAD else len(head)
            if not length:
                return None
            at, count = at + length, count + 1
        # the head may end inside a record
        return f"has {what}" if count > 1 and (at == len(head) or len(head) == _HEAD) else None

    return test


def _ids_fit(ids: tuple[int, ...]) -> bool:
    return all(0 <= expert < _MOST_EXPERTS for expert in ids)


def _strata(data: bytes, at: int) -> int | None:
    layer, k = unpack_from("<ii", data, at)
    if not (0 <= layer < _MOST_LAYERS and 1 <= k <= 256):
        return None
    ids = unpack_from(f"<{k}i", data, at + 8)
    weights = unpack_from(f"<{k}f", data, at + 8 + 4 * k)
    # weights as small as floats made of small integers are ids
    fits = _ids_fit(ids) and len(set(ids)) == k and all(w == 0 or 1e-9 < w < 1e3 for w in weights) and any(weights)
    return 8 + 8 * k if fits else None


def _moe_trace_c(data: bytes, at: int) -> int | None:
    layer, tokens, k = unpack_from("<iii", data, at)
    if not (0 <= layer < _MOST_LAYERS and 1 <= k <= 256 and 1 <= tokens <= 2**20):
        return None
    ids = unpack_from(f"<{tokens * k}i", data, at + 12)
    distinct = all(len(set(ids[n : n + k])) == k for n in range(0, len(ids), k))
    return 12 + 4 * tokens * k if _ids_fit(ids) and distinct else None


def _lucebox(name: str, head: bytes) -> str | None:
    """The width of the hidden states is not known: one must fit such that every record has layer, k and k ids."""
    if PurePosixPath(name).suffix not in (".bin", "") or len(head) < 16:
        return None
    first_layer, k = unpack_from("<ii", head)
    if not (0 <= first_layer < _MOST_LAYERS and 1 <= k <= 256):
        return None
    for size in range(8 + 4 * k + 4, min(len(head) // 3, 16384 * 4), 4):
        records = [(unpack_from("<ii", head, at), at) for at in range(0, len(head) - size + 1, size)]
        if all(there == k and 0 <= layer < _MOST_LAYERS for (layer, there), _ in records[:3]) and all(
            there == k and 0 <= layer < _MOST_LAYERS and len(set(ids)) == k and _ids_fit(ids)
            for (layer, there), at in records
            for ids in [unpack_from(f"<{k}i", head, at + size - 4 * k)]
        ):
            hidden = (size - 8) // 4 - k
            return f"has records of layer, k, {hidden} numbers and k ids" if _floats(head, hidden) else None
    return None


def _floats(head: bytes, hidden: int) -> bool:
    """True where the numbers of the first record are those of hidden states, not of ids and weights."""
    numbers = unpack_from(f"<{hidden}f", head, 8)
    return all(number == 0 or 1e-9 < abs(number) < 1e9 for number in numbers)


_TESTS: dict[tuple[Kind, str], _Test] = {
    ("trace", "moe-beyond-csv"): _first_line(r".*Layer ID,.*Activated Expert IDs.*", "columns of expert ids"),
    ("trace", "esft"): _named(r"(^|/)expert_weights_[0-9]+\.txt$", "expert_weights_<layer>.txt"),
    ("trace", "gpt-oss-fingerprint"): _json("router_data"),
    ("trace", "bigmoe-route"): _begins(b"# route_trace"),
    ("trace", "vllm-npz"): _zip(".npz", "routed_experts.npy"),
    ("trace", "0xbakeer-npz"): _zip(".npz", "indices.npy"),
    ("trace", "llamacpp-csv"): _first_line(r'"?layer(_id)?"?,"?expert(s|_ids?)?"?|[0-9]+,[0-9]+', "layer and expert"),
    ("trace", "moe-trace-a"): _first_line(r"-?[0-9]+,[0-9]+(,-?[0-9]+)+", "pos, layer and ids"),
    ("trace", "moe-trace-b"): _json_lines("pos", "layer", "experts"),
    ("trace", "moe-trace-c"): _records(_moe_trace_c, "records of layer, tokens, k and ids"),
    ("trace", "moe-trace-d"): _first_line(r"[0-9]+ [0-9]+ [0-9]+( [0-9]+)+", "prompt, step, layer and ids"),
    ("trace", "moe-trace-f"): _first_line(
        r"phase,token,layer,rank,expert", "the columns phase,token,layer,rank,expert"
    ),
    ("trace", "colibri"): _first_line(r"[0-9]+ [0-9]+ [0-9]+( [0-9]+:[0-9.e+-]+)+", "call, row, layer and id:gate"),
    ("trace", "fitz"): _begins(b"RTRACE01"),
    ("trace", "flame"): _named(r"(^|/)actives/[^/]+/layer_[0-9]+\.parquet$", "actives/<checkpoint>/layer_<N>.parquet"),
    ("trace", "flash-moe"): _json_lines("layer", "n_tokens", "expert_ids"),
    ("trace", "lattice"): _json_lines("layer_idx", "token_idx", "selected_ids"),
    ("trace", "lucebox"): _lucebox,
    ("trace", "mbolt"): _begins(b"MBLT"),
    ("trace", "megatron"): _json_lines("block", "top_indices", "num_tokens"),
    ("trace", "mstr"): _begins(b"MSTR"),
    ("trace", "sglang-json"): _json("routed_experts"),
    ("trace", "sglang-recorder"): _zip(".pt", "data.pkl", b"topk_ids_of_layer"),
    ("trace", "strata"): _records(_strata, "records of layer, k, ids and weights"),
    ("trace", "vllm-routes"): _json_lines("type", "req_id", "topk_ids"),
    ("counts", "coli-usage"): _first_line(r"-[12] [0-9]+ [0-9]+", "the size of a model"),
    ("counts", "imatrix"): lambda _, head: (
        "is a GGUF of an imatrix" if head[:4] == b"GGUF" and b"imatrix" in head else None
    ),
    ("counts", "logical-count-json"): _json("logical_count"),
    ("counts", "logical-count-pt"): _zip(".pt", "data.pkl", b"logical_count"),
    ("counts", "lucebox-hotness"): _begins(b"# hotness table"),
    ("counts", "mbolt-heat"): _json("heat"),
}
