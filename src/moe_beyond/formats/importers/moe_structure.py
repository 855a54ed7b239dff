"""Which layers of a model have experts, and what an expert consists of, from the fields of its config.json.

transformers knows best: it builds the model that the config describes on PyTorch's meta device, without memory or
weights, and its modules are looked at. For a model that it does not know or cannot build, the config's own keys decide.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from moe_beyond.errors import InputError, first_line_of
from moe_beyond.formats.importers.expert_bytes import Expert, Matrix
from moe_beyond.formats.importers.layer_keys import integer, layers_by_keys

if TYPE_CHECKING:
    from moe_beyond.capture.discovery import MoELayer

log = logging.getLogger(__name__)
MAX_LAYERS = 1000
# the names that model families gave to one thing
NUM_LAYERS = ("num_hidden_layers", "n_layers", "n_layer", "num_layers")
NUM_EXPERTS = ("n_routed_experts", "num_experts", "num_local_experts", "moe_num_experts", "num_routed_experts")
TOP_K = (
    *("num_experts_per_tok", "num_experts_per_token", "moe_top_k", "moe_topk", "experts_per_token", "moe_k"),
    *("top_k_experts", "num_selected_experts"),
)
_HIDDEN = ("moe_latent_size", "moe_hidden_size", "hidden_size", "d_model", "n_embd")
_WIDTH = (
    *("moe_intermediate_size", "expert_ffn_hidden_size", "moe_ffn_hidden_size", "intermediate_size"),
    *("ffn_hidden_size", "d_ff"),
)


@dataclass(frozen=True)
class Structure:
    """A model's layers and experts.

    Attributes:
        num_layers: Decoder layers, dense ones included.
        num_experts: Routed experts of a layer.
        experts: What an expert of each MoE layer consists of, in rising order of the layers.
    """

    num_layers: int
    num_experts: int
    experts: tuple[Expert, ...]


def structure_of(config: dict[str, Any], layers: Sequence[int] | None, where: str) -> Structure:
    """The structure that a config describes, the language model's part of it.

    Args:
        config: Fields of a config.json.
        layers: The MoE layers, where a person names them.
        where: Names the file in messages.

    Raises:
        InputError: It describes no mixture of experts, or says in unknown words which layers have experts.
    """
    text = text_config(config)
    kinds = text.get("layers_block_type")
    num_layers = len(kinds) if isinstance(kinds, list) and kinds else integer(text, NUM_LAYERS, where)
    if num_layers > MAX_LAYERS:
        raise InputError(f"{where}: {num_layers} layers, expected at most {MAX_LAYERS}")
    num_experts = integer(text, NUM_EXPERTS, where)
    completed, found = _by_transformers(config, where)
    if found is not None:
        experts = found.experts
        if layers is not None:
            experts = tuple(_moved(experts[0], layer) for layer in layers)
        return Structure(num_layers, found.num_experts, experts)
    text = {**completed, **{key: value for key, value in text.items() if value is not None}}
    if layers is None:
        layers = layers_by_keys(text, num_layers, where)
    hidden, width = integer(text, _HIDDEN, where), integer(text, _WIDTH, where)
    # ReLU, squared or not, works without a gate
    gated = "relu" not in str(text.get("mlp_hidden_act") or text.get("hidden_act"))
    halves = ("gate_proj", "up_proj") if gated else ("up_proj",)
    matrices = (*(Matrix(half, width, hidden) for half in halves), Matrix("down_proj", hidden, width))
    return Structure(
        num_layers, num_experts, tuple(Expert(f"model.layers.{n}.mlp.experts", n, matrices) for n in layers)
    )


def _moved(expert: Expert, layer: int) -> Expert:
    return replace(expert, layer=layer, module=expert.module.replace(f".{expert.layer}.", f".{layer}.", 1))


def text_config(config: dict[str, Any]) -> dict[str, Any]:
    """A config with its language model's part, and what that says of feed-forward layers, in the place of the whole."""
    for key in ("thinker_config", "text_config", "language_config", "llm_config", "ffn_config"):
        if isinstance(config.get(key), dict):
            config = {**config, **config[key]}
    return config


def _by_transformers(config: dict[str, Any], where: str) -> tuple[dict[str, Any], Structure | None]:
    """What transformers adds to the config, and the structure of the model that it builds; none if it builds none."""
    # only now: torch and transformers take seconds
    from huggingface_hub.errors import StrictDataclassError  # noqa: PLC0415
    from transformers import CONFIG_MAPPING, AutoModel, AutoModelForCausalLM  # noqa: PLC0415

    kind = config.get("model_type")
    if not isinstance(kind, str) or kind not in CONFIG_MAPPING:
        return {}, None
    # a private key can ask for kernels that are not installed, a quantisation for its package
    left_out = ("quantization_config", "compression_config", "dtype", "torch_dtype", "auto_map")
    fields = {key: value for key, value in config.items() if not key.startswith("_") and key not in left_out}
    completed: dict[str, Any] = {}
    try:
        with _meta_device():
            text: Any = CONFIG_MAPPING[kind].from_dict(fields).get_text_config()
            completed = text.to_dict()
            families: tuple[Any, ...] = (AutoModelForCausalLM, AutoModel)
            for family in families:
                if type(text) in family._model_mapping:
                    return completed, _look_at(family.from_config(text), text.num_hidden_layers)
    except (
        # what its code raises for fields that it does not expect
        *(ArithmeticError, AssertionError, AttributeError, ImportError, LookupError, OSError, RuntimeError, TypeError),
        *(ValueError, StrictDataclassError),
    ) as error:
        reason = first_line_of(error)
        log.warning(
            "%s: transformers builds no %s of it (%s: %.80s); its keys decide",
            where,
            kind,
            type(error).__name__,
            reason,
        )
    return completed, None


@contextmanager
def _meta_device() -> Iterator[None]:
    """Parameters without memory, and no word from transformers about what it thinks of a config."""
    import torch  # noqa: PLC0415
    from transformers.utils import logging as its_logging  # noqa: PLC0415

    level = its_logging.get_verbosity()
    its_logging.set_verbosity(logging.CRITICAL)
    try:
        with torch.device("meta"):
            yield
    finally:
        its_logging.set_verbosity(level)


def _look_at(model: Any, num_layers: int) -> Structure:
    from moe_beyond.capture.discovery import moe_layers  # noqa: PLC0415

    layers = moe_layers(model, readable=False)
    hidden = integer(model.config.to_dict(), _HIDDEN, "")
    experts = tuple(_expert(layer, hidden) for layer in layers)
    if any(len(expert.matrices) < 2 for expert in experts):
        raise InputError("an expert with one projection")
    return Structure(num_layers, layers[0].num_experts, experts)


def _expert(layer: MoELayer, hidden: int) -> Expert:
    matrices, biases = [], 0
    # a list of experts, or all of them in each tensor
    listed = hasattr(layer.experts, "append")
    for name, parameter in (next(layer.experts.children()) if listed else layer.experts).named_parameters():
        if not listed and parameter.shape[0] != layer.num_experts:
            continue  # shared by all
        *_, outputs, inputs = (1, *parameter.shape) if listed else parameter.shape
        if parameter.dim() < 3 - listed:
            biases += inputs
            continue
        is_down = re.search(r"down|w2|fc2", name) is not None
        if hidden in (outputs, inputs):  # some families keep inputs first
            outputs, inputs = (hidden, outputs * inputs // hidden) if is_down else (outputs * inputs // hidden, hidden)
        if "gate_up" in name:
            matrices += [Matrix(half, outputs // 2, inputs) for half in ("gate_proj", "up_proj")]
        else:
            kind = "down_proj" if is_down else "gate_proj" if re.search("gate|w1", name) else "up_proj"
            matrices.append(Matrix(kind, outputs, inputs))
    return Expert(layer.name, layer.number, tuple(matrices), biases)
