r"""Flags of llama.cpp: whole layers of experts on the CPU, and sizes of caches.

`-ot <regex>=<buffer>` moves what the regex finds anywhere in a tensor's name; one that finds nothing is accepted
silently, and `blk\.1` finds blk.10 too (common/arg.cpp). `--n-cpu-moe N` moves the experts of layers 0 to N - 1, dense
ones counted. Routers (`ffn_gate_inp`, `exp_probs_b`) and shared experts (`_shexp`) stay where they are.
"""

from __future__ import annotations

import re

from moe_beyond.errors import InputError
from moe_beyond.formats.placements.options import Options
from moe_beyond.formats.placements.placement import ModelShape, Placement
from moe_beyond.formats.placements.strict import integer, lines_of

_SEPARATE = ("ffn_gate_exps", "ffn_up_exps", "ffn_down_exps")
_FUSED = ("ffn_gate_up_exps", "ffn_down_exps")
_CHUNKED = ("ffn_gate_chexps", "ffn_up_chexps", "ffn_down_chexps")
TENSORS = {
    **dict.fromkeys(
        ("qwen3moe", "qwen35moe", "deepseek2", "glm4moe", "gpt-oss", "llama4", "llama", "lfm2moe"), _SEPARATE
    ),
    "gemma4": _FUSED,
    "grovemoe": (*_SEPARATE, *_CHUNKED),
}
"""Expert tensors of a layer by architecture (src/llama-arch.cpp); `llama` is Mixtral's."""
# what --n-cpu-moe itself uses
_ANY = r"ffn_(up|down|gate|gate_up)_(ch|)exps"
_STAYS = ("ffn_gate_inp.weight", "exp_probs_b.bias", "ffn_gate_shexp.weight", "ffn_up_shexp.weight", "attn_q.weight")
_LINE = re.compile(r'-ot "([^"=,]+)=CPU"')


def said_override(placement: Placement, _options: Options) -> list[int]:
    """Layers whose experts go to the CPU; raises InputError where none must, or where a layer is split."""
    layers, slots_L = placement.counts.layer_numbers, placement.slots_L.tolist()
    if any(slots not in (0, placement.counts.num_experts) for slots in slots_L):
        raise InputError("llama.cpp keeps the experts of a layer in one tensor: whole layers can be placed, no less")
    moved = [layer for layer, slots in zip(layers, slots_L, strict=True) if not slots]
    if not moved:
        raise InputError("all experts fit into the budget: llama.cpp needs no flag to keep them there")
    return moved


def render_override(moved: list[int], _placement: Placement, options: Options) -> bytes:
    """The `-ot` flag, quoted for a shell."""
    layers = "|".join(map(str, moved))
    return f'-ot "blk\\.({layers})\\.{_pattern(options)}=CPU"\n'.encode()


def parse_override(data: bytes, model: ModelShape, options: Options) -> list[int]:
    """Layers that the flag moves, found as llama.cpp finds them: among the names of all tensors.

    Raises:
        InputError: The regex misses expert tensors of a layer that it moves, or finds others.
    """
    line = _one_line(data)
    match = _LINE.fullmatch(line)
    if not match:
        raise InputError(f'expected -ot "<regex>=CPU", found {line[:60]!r}')
    try:
        regex = re.compile(match[1])
    except re.error as error:
        raise InputError(f"{match[1][:60]!r} is no regular expression: {error}") from error
    wanted = [f"{name}.weight" for name in _tensors(options)]
    moved = []
    for layer in range(model.model_layers):
        found = {name for name in (*wanted, *_STAYS) if regex.search(f"blk.{layer}.{name}")}
        if found and (found != set(wanted) or layer not in model.layer_numbers):
            raise InputError(
                f"the regex finds {sorted(found)} of layer {layer}, expected all of its experts or nothing"
            )
        if found:
            moved.append(layer)
    if not moved:
        raise InputError("the regex finds no expert tensor; llama.cpp would not notice")
    return moved


def said_first_layers(placement: Placement, options: Options) -> int:
    """N: every layer before the first that stays, dense ones counted."""
    moved = said_override(placement, options)
    if moved != list(placement.counts.layer_numbers[: len(moved)]):
        raise InputError("--n-cpu-moe moves the first layers, the placement keeps one of them")
    return moved[-1] + 1


def render_first_layers(number: int, _placement: Placement, _options: Options) -> bytes:
    """The `--n-cpu-moe` flag."""
    return f"--n-cpu-moe {number}\n".encode()


def parse_first_layers(data: bytes, model: ModelShape, _options: Options) -> int:
    """N; refuses one that moves no experts, or names layers that the model does not have."""
    name, _, number = _one_line(data).partition(" ")
    if name != "--n-cpu-moe":
        raise InputError(f"expected --n-cpu-moe N, found {name[:40]!r}")
    value = integer(number, name)
    if not model.layer_numbers[0] < value <= model.model_layers:
        raise InputError(
            f"--n-cpu-moe {value}: experts lie in layers {model.layer_numbers[0]} to {model.layer_numbers[-1]}; "
            f"it moves those of layers 0 to {value - 1}"
        )
    return value


def said_sizes(placement: Placement, _options: Options) -> dict[str, str]:
    """Flag of each engine that has a cache of so many experts or bytes."""
    size = placement.budget_bytes or placement.kept_bytes
    mib = None if size is None else max(1, size // 2**20)
    each = placement.slots_of_each
    flags = {
        "BigMoeOnEdge": None if mib is None else f"--cache-mb {mib}",
        "KTransformers": f"--kt-num-gpu-experts {each}",
        "Strata": f"--expert-cache {placement.num_kept}",
        "thecodacus' llama.cpp": f"--moe-cache-slots {each}",
    }
    return {engine: flag for engine, flag in flags.items() if flag is not None}


def render_sizes(flags: dict[str, str], _placement: Placement, _options: Options) -> bytes:
    """A line `engine: flag` each."""
    return "".join(f"{engine}: {flag}\n" for engine, flag in flags.items()).encode()


def parse_sizes(data: bytes, model: ModelShape, _options: Options) -> dict[str, str]:
    """Flags by engine; refuses a size below 1, or more experts than there are."""
    most = {"KTransformers": model.num_experts, "thecodacus' llama.cpp": model.num_experts}
    most["Strata"] = model.num_experts * len(model.layer_numbers)
    flags: dict[str, str] = {}
    for number, line in enumerate(lines_of(data), 1):
        engine, _, flag = line.partition(": ")
        size = integer(flag.rpartition(" ")[2], f"line {number}")
        if engine in flags or not 1 <= size <= most.get(engine, size):
            raise InputError(f"line {number}: {line[:60]!r} stands there twice or is no size that the model can use")
        flags[engine] = flag
    return flags


def _tensors(options: Options) -> tuple[str, ...]:
    if options.architecture is None:
        return tuple(dict.fromkeys(name for names in TENSORS.values() for name in names))
    if options.architecture not in TENSORS:
        raise InputError(
            f"architecture {options.architecture!r}: names of its expert tensors are not known; known are "
            f"{', '.join(TENSORS)}; leave --arch out for a pattern that finds all of theirs"
        )
    return TENSORS[options.architecture]


def _pattern(options: Options) -> str:
    names = _tensors(options)
    return _ANY if options.architecture is None else f"({'|'.join(names)})"


def _one_line(data: bytes) -> str:
    lines = lines_of(data)
    if len(lines) != 1:
        raise InputError(f"{len(lines)} lines, expected one")
    return lines[0]
