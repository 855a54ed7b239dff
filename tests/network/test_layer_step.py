from dataclasses import replace

import pytest
import torch

from moe_beyond.network.layer_step import LayerStep
from tests.predictor.small import SHAPE


def layer_step(shape=SHAPE):
    torch.manual_seed(0)
    step = LayerStep(shape).eval()
    with torch.no_grad():
        for parameter in step.parameters():
            torch.nn.init.normal_(parameter, std=0.5)
    return step


def inputs(shape, batch, seed=0):
    draw = torch.Generator().manual_seed(seed)
    scores = torch.rand(batch, shape.num_layers, shape.num_experts, generator=draw)
    experts = scores.argsort(dim=-1)[..., : shape.top_k]
    logits = torch.randn(batch, shape.num_layers, shape.num_experts, generator=draw)
    return experts, logits, torch.randn(batch, shape.layer_width, generator=draw)


@pytest.mark.parametrize(("layers", "horizon", "reach"), [(3, 2, 4), (7, 3, 3), (5, 4, 9), (2, 3, 4), (1, 1, 1)])
def test_layer_by_layer_equals_all_layers_at_once(layers, horizon, reach):
    shape = replace(SHAPE, num_layers=layers, horizon=horizon, reach=reach)
    step = layer_step(shape)
    experts, logits, context = inputs(shape, 5)
    with torch.no_grad():
        whole = step.all_layers(experts, logits, context)
        assert whole.shape == (horizon, 5, layers, shape.num_experts)
        evidence = torch.zeros(5, reach, shape.num_experts)
        for layer in range(layers):
            ahead, context, evidence = step(torch.tensor([layer]), experts[:, layer], logits, context, evidence)
            for h in range(min(horizon, layers - 1 - layer)):
                assert torch.allclose(ahead[:, h], whole[h, :, layer + 1 + h], atol=1e-4)


def test_before_anything_is_known_the_prediction_is_the_token_steps():
    step = layer_step()
    experts, logits, context = inputs(SHAPE, 4)
    whole = step.all_layers(experts, logits, context)
    for h in range(SHAPE.horizon):
        assert torch.equal(whole[h, :, : h + 1], logits[:, : h + 1])
        assert not torch.isclose(whole[h, :, h + 1 :], logits[:, h + 1 :]).all()


def test_a_reach_below_the_horizon_is_refused():
    with pytest.raises(ValueError, match="reach 1 is less than horizon 2"):
        LayerStep(replace(SHAPE, horizon=2, reach=1))
