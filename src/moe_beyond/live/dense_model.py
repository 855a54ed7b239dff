"""A model from its files with all weights but those of its experts, which stay on the meta device.

transformers does the loading, so dtypes, tied weights, buffers and conversions are those of `from_pretrained`. Only
which tensors it is given differs, and that they are read one by one: a mapped file would count as memory.
"""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from safetensors import safe_open
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel
from transformers.core_model_loading import (
    WeightConverter,
    WeightRenaming,
    convert_and_load_state_dict_in_model,
    rename_source_key,
)
from transformers.utils.quantization_config import Mxfp4Config

from moe_beyond.capture.discovery import MoELayer, moe_layers
from moe_beyond.capture.models import LoadedModel, ModelSource, in_one_line, loading, revision
from moe_beyond.errors import InputError

if TYPE_CHECKING:
    from torch import nn

_PATCHING = threading.Lock()
_LOADER = "_load_pretrained_model"
"""The static method in which transformers fills a model on the meta device from its files."""


@dataclass(frozen=True)
class Checkpoint:
    """A model's structure, all on the meta device, and its weight files.

    Attributes:
        model: The structure.
        layers: Its MoE layers in rising order.
        revision: Names the weights.
    """

    model: PreTrainedModel
    layers: list[MoELayer]
    revision: str
    _source: ModelSource
    _files: _Files

    @contextmanager
    def loaded_experts(self, layer: MoELayer) -> Iterator[nn.Module]:
        """The experts module of one layer with its weights, which go again at the end.

        Raises:
            InputError: The files lack a weight of it, or hold one that does not fit.
        """
        inside = f"{layer.name}."
        with in_one_line(self._source):
            info = self._files.load(self.model, lambda target: target.startswith(inside))
        for name, report in info.conversion_errors.items():  # a traceback, the error, where it was
            raise InputError(f"{self._source.location}: {name} cannot be converted ({report.strip().splitlines()[-2]})")
        missing = [name for name, parameter in layer.experts.named_parameters() if parameter.is_meta]
        if missing:
            raise InputError(
                f"{self._source.location}: its weight files hold no {inside}{missing[0]} that fits config.json; fetch "
                "the model again"
            )
        yield layer.experts
        layer.experts.to("meta")
        _give_back_freed_memory()


def load_without_experts(source: ModelSource) -> LoadedModel:
    """Load model and tokenizer as `capture.models.load` does, the parameters of experts modules on the meta device.

    Raises:
        InputError: As for `load`; a model whose experts are no fused parameters, weights that are not in safetensors,
            or quantised other than in MXFP4; a device map of several devices.
    """
    if source.device_map.partition(":")[0] not in ("cpu", "cuda"):
        raise InputError(f"device_map {source.device_map!r}: a model without its experts needs one device: cpu or cuda")
    with loading(source) as options:
        tokenizer = AutoTokenizer.from_pretrained(source.location, **options)
        model, _ = _from_pretrained(source, options, dense=True)
        return LoadedModel(model.eval(), tokenizer, revision(source, options))


def open_checkpoint(source: ModelSource) -> Checkpoint:
    """Open a model whose experts are to be loaded a layer at a time, on the CPU; its dense weights are not loaded.

    Raises:
        InputError: As for `load_without_experts`; no tokenizer is needed.
    """
    source = replace(source, device_map="cpu")
    with loading(source) as options:
        model, files = _from_pretrained(source, options, dense=False)
        return Checkpoint(model, moe_layers(model), revision(source, options), source, files)


def fused_layers(model: PreTrainedModel) -> list[MoELayer]:
    """The model's MoE layers in rising order, each with its experts in fused parameters.

    Raises:
        InputError: It has none, or keeps a list of experts.
    """
    layers = moe_layers(model)
    if any(layer.router is not None for layer in layers):
        raise InputError(
            f"{model.config.name_or_path or type(model).__name__}: keeps each layer's experts as a list of modules "
            f"({layers[0].name}); only fused experts, as transformers' own models have, can be loaded one by one"
        )
    return layers


class _Files:
    """Weight files whose tensors are read when they are needed, and how transformers converts them.

    Attributes:
        tensors: Slices of safetensors by the checkpoint's key.
        targets: The parameter that each becomes, or the first of several.
    """

    def __init__(self, model: PreTrainedModel, paths: list[str], load_config: Any) -> None:
        self._load_config = load_config
        self.tensors: dict[str, Any] = {}
        for path in paths:
            if not path.endswith(".safetensors"):
                raise InputError(
                    f"{path}: only safetensors can be read one tensor at a time; load the model once and write it anew "
                    "with save_pretrained"
                )
            file: Any = safe_open(path, framework="pt", device="cpu", backend="pread")
            self.tensors |= {key: file.get_slice(key) for key in file.keys()}  # noqa: SIM118 - not a mapping
        mapping = load_config.weight_mapping or []
        renamings = [entry for entry in mapping if isinstance(entry, WeightRenaming)]
        converters = [entry for entry in mapping if isinstance(entry, WeightConverter)]
        names = model.state_dict()
        self.targets = {}
        for key in self.tensors:
            target, _ = rename_source_key(key, renamings, converters, model.base_model_prefix, names)
            if target not in names:  # transformers then takes the key as it is
                target, _ = rename_source_key(key, [], [], model.base_model_prefix, names)
            self.targets[key] = target

    def load(self, model: PreTrainedModel, wanted: Callable[[str], bool]) -> Any:
        """Load the parameters whose names are wanted; returns what transformers says about it."""
        tensors = {key: tensor for key, tensor in self.tensors.items() if wanted(self.targets[key])}
        return convert_and_load_state_dict_in_model(model, tensors, self._load_config)[0]


def _from_pretrained(source: ModelSource, options: Mapping[str, Any], *, dense: bool) -> tuple[PreTrainedModel, _Files]:
    """`from_pretrained` with the experts, or without `dense` all weights, left on the meta device."""
    config = AutoConfig.from_pretrained(source.location, **options)
    opened: list[_Files] = []

    def load_some(model: PreTrainedModel, _state: None, paths: list[str], load_config: Any) -> tuple[Any, None]:
        files = _Files(model, paths, load_config)
        opened.append(files)
        kept = {f"{layer.name}.{name}" for layer in fused_layers(model) for name, _ in layer.experts.named_parameters()}
        if not dense:
            kept = set(model.state_dict())
        info = files.load(model, lambda target: target not in kept)
        # neither missing nor to be drawn at random
        info.missing_keys -= kept
        for name in kept:
            model.get_parameter_or_buffer(name)._is_hf_initialized = True
        return info, None

    with _instead_of_loading(load_some):
        model = AutoModelForCausalLM.from_pretrained(
            source.location,
            config=config,
            dtype=source.dtype,
            device_map=None if source.device_map == "cpu" else source.device_map,
            **_dequantised(source, config),
            **options,
        )
    return model, opened[0]


def _give_back_freed_memory() -> None:
    """Return the free parts of the heap to the system: glibc splits the blocks of one layer, and the next takes new."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def _dequantised(source: ModelSource, config: Any) -> dict[str, Any]:
    """Options that make plain tensors of quantised weights."""
    quantisation = getattr(config, "quantization_config", None)
    if not quantisation:
        return {}
    method = quantisation.get("quant_method", "a method without a name")
    if method != "mxfp4":
        raise InputError(
            f"{source.location}: its weights are quantised with {method}, so its experts are no plain tensors; take "
            "the model in full or half precision, or with mxfp4"
        )
    return {"quantization_config": Mxfp4Config(dequantize=True)}


@contextmanager
def _instead_of_loading(load_some: Callable[..., Any]) -> Iterator[None]:
    """Let `load_some` fill the models that this thread loads, where transformers would load all their weights."""
    owner = threading.get_ident()
    with _PATCHING:
        whole = getattr(PreTrainedModel, _LOADER)

        def load(*args: Any, **options: Any) -> Any:
            return (load_some if threading.get_ident() == owner else whole)(*args, **options)

        setattr(PreTrainedModel, _LOADER, staticmethod(load))
        try:
            yield
        finally:
            setattr(PreTrainedModel, _LOADER, staticmethod(whole))
