"""A model without its experts is that of `from_pretrained` in all else, and never needs the experts' memory."""

import json
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.utils.quantization_config import Mxfp4Config

from moe_beyond.capture.models import ModelSource
from moe_beyond.live.dense_model import fused_layers, load_without_experts
from moe_beyond.live.packing import pack
from moe_beyond.live.store import ExpertStore
from tests.capture.capture_case import tiny_tokenizer
from tests.capture.tiny_models import tiny_model
from tests.live.store_case import ARCHITECTURES, read_record, small_source
from tests.traces.refusals import refused


def whole_model(source, **options):
    return AutoModelForCausalLM.from_pretrained(source.location, **options).eval()


def expert_names(model):
    return {f"{layer.name}.{name}" for layer in fused_layers(model) for name, _ in layer.experts.named_parameters()}


def fill_from_store(model, store):
    """Put the records of a store in place of the experts on the meta device."""
    for index, layer in enumerate(fused_layers(model)):
        records = [store.views(read_record(store, index * store.num_experts + e)) for e in range(store.num_experts)]
        for name in records[0]:
            stacked = torch.stack([record[name] for record in records])
            setattr(layer.experts, name, torch.nn.Parameter(stacked))


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_all_but_the_experts_is_loaded_and_with_them_the_logits_are_the_same(architecture, tmp_path):
    source = small_source(tmp_path / "model", architecture, tie_word_embeddings=architecture == "mixtral")
    whole, dense = whole_model(source), load_without_experts(source).model
    experts = expert_names(whole)
    assert experts == {name for name, tensor in dense.state_dict().items() if tensor.is_meta}
    for (name, expected), (_, found) in zip(whole.state_dict().items(), dense.state_dict().items(), strict=True):
        assert (expected.shape, expected.dtype) == (found.shape, found.dtype)
        assert name in experts or torch.equal(expected, found), name
    # those that are not in files too
    assert all(torch.equal(buffer, dense.get_buffer(name)) for name, buffer in whole.named_buffers())
    tied = (dense.get_output_embeddings().weight is dense.get_input_embeddings().weight, architecture == "mixtral")
    assert tied[0] == tied[1]
    assert type(dense) is type(whole) and not dense.training
    assert dense.generation_config.to_dict() == whole.generation_config.to_dict()
    pack(source, tmp_path / "store")
    with ExpertStore.open(tmp_path / "store") as store:
        fill_from_store(dense, store)
    ids_BS = torch.tensor([[3, 4, 5, 6, 7, 8]])
    # weights at other addresses may be added up in another order
    torch.testing.assert_close(dense(ids_BS).logits, whole(ids_BS).logits, rtol=1e-5, atol=1e-5)


def test_the_precision_is_a_choice_as_in_from_pretrained(tmp_path):
    source = small_source(tmp_path / "model")
    dense = load_without_experts(ModelSource(source.location, dtype="bfloat16")).model
    assert {tensor.dtype for tensor in dense.parameters()} == {torch.bfloat16}


def test_another_loading_is_whole_again_afterwards(tmp_path):
    source = small_source(tmp_path / "model")
    load_without_experts(source)
    assert not any(tensor.is_meta for tensor in whole_model(source).parameters())


def quantise_to_mxfp4(folder):
    """Replace a gpt-oss model's experts by random ones in four bits, as the published files have them."""
    tensors, generator = load_file(folder / "model.safetensors"), torch.Generator().manual_seed(0)
    for name in [name for name in tensors if name.endswith(("experts.gate_up_proj", "experts.down_proj"))]:
        experts, inputs, outputs = tensors.pop(name).shape
        shape = (experts, outputs, inputs // 32)
        tensors[f"{name}_blocks"] = torch.randint(0, 256, (*shape, 16), dtype=torch.uint8, generator=generator)
        tensors[f"{name}_scales"] = torch.randint(120, 127, shape, dtype=torch.uint8, generator=generator)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    quantise_config(folder, {"quant_method": "mxfp4", "modules_to_not_convert": ["self_attn", "router", "lm_head"]})


def quantise_config(folder, quantisation):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"quantization_config": quantisation}))


def test_experts_in_mxfp4_are_stored_in_half_precision_without_kernels(tmp_path):
    source = small_source(tmp_path / "model", "gpt_oss", intermediate_size=32, dtype=torch.bfloat16)
    quantise_to_mxfp4(tmp_path / "model")
    pack(source, tmp_path / "store")
    layers = fused_layers(whole_model(source, quantization_config=Mxfp4Config(dequantize=True)))
    assert all(tensor.is_meta == ("experts" in name) for name, tensor in load_parameters(source))
    with ExpertStore.open(tmp_path / "store") as store:
        for name, tensor in store.views(read_record(store, store.num_experts + 2)).items():
            assert tensor.dtype == torch.bfloat16
            assert torch.equal(tensor, layers[1].experts.get_parameter(name)[2])


def load_parameters(source):
    return load_without_experts(source).model.named_parameters()


def test_other_quantisation_is_refused_with_its_name(tmp_path):
    source = small_source(tmp_path / "model")
    quantise_config(tmp_path / "model", {"quant_method": "gptq", "bits": 4})
    refused("quantised with gptq", load_without_experts, source)
    refused("quantised with gptq", pack, source, tmp_path / "store")
    assert not (tmp_path / "store").exists()


def test_what_is_no_model_with_fused_experts_is_refused(tmp_path, monkeypatch):
    refused("no config.json there", load_without_experts, ModelSource(str(tmp_path)))
    config = AutoConfig.for_model("llama", vocab_size=64, hidden_size=32, intermediate_size=16, num_hidden_layers=1)
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "dense")
    tiny_tokenizer().save_pretrained(tmp_path / "dense")
    refused("no experts found in a model of type 'llama'", load_without_experts, ModelSource(str(tmp_path / "dense")))
    small_source(tmp_path / "cut")
    weights = tmp_path / "cut" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-5000])
    refused(r"cut: cannot be loaded \(", load_without_experts, ModelSource(str(tmp_path / "cut")))
    refused("needs one device", load_without_experts, ModelSource(str(tmp_path / "cut"), device_map="auto"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    refused("check the id, the network", load_without_experts, ModelSource("nobody/no-such-model"))


def test_experts_in_a_list_of_modules_are_refused():
    model = tiny_model("mixtral")
    for layer in model.model.layers:
        layer.mlp.experts = torch.nn.ModuleList([torch.nn.Linear(4, 4)])
    refused("keeps each layer's experts as a list of modules", fused_layers, model)


FRUGAL = """
import re, resource, sys
from pathlib import Path
from moe_beyond.capture.models import ModelSource
from moe_beyond.live.dense_model import load_without_experts
from moe_beyond.live.packing import pack
source, folder, limit = ModelSource(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
def kib(name):
    return int(re.search(rf"{name}:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1])
Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
before = kib("VmRSS")
_, most = resource.getrlimit(resource.RLIMIT_DATA)
resource.setrlimit(resource.RLIMIT_DATA, ((kib("VmData") << 10) + limit, most))  # private memory, touched or not
load_without_experts(source)
resource.setrlimit(resource.RLIMIT_DATA, (most, most))
pack(source, folder)
print((kib("VmHWM") - before) << 10)
"""


def test_neither_loading_nor_packing_needs_memory_for_all_experts(tmp_path):
    sizes = {"hidden_size": 256, "intermediate_size": 384, "num_hidden_layers": 32, "num_local_experts": 8}
    source = small_source(tmp_path / "model", **sizes)
    limit = 120 << 20
    command = [sys.executable, "-c", FRUGAL, source.location, str(tmp_path / "store"), str(limit)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    with ExpertStore.open(tmp_path / "store") as store:
        total = store.num_model_experts * store.stride
    assert total > 300e6
    assert int(done.stdout.split()[-1]) < limit < total / 2
