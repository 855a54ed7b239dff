import itertools
from dataclasses import replace

import pytest
import torch

from moe_beyond.network.hidden_step import HiddenStep
from tests.network.test_layer_step import inputs
from tests.predictor.small import SHAPE

READING = replace(SHAPE, hidden_size=12, hidden_rank=5, hidden_units=7, hidden_horizon=3)


def hidden_step(shape=READING):
    torch.manual_seed(0)
    step = HiddenStep(shape).eval()
    with torch.no_grad():
        for parameter in step.parameters():
            torch.nn.init.normal_(parameter, std=0.5)
    step.set_routers(*routers(shape))
    return step


def routers(shape):
    """Weights, what outputs move, slopes."""
    draw = torch.Generator().manual_seed(2)
    experts, horizon = shape.num_experts, shape.hidden_horizon
    sizes = ((experts, shape.hidden_size), (experts, horizon, experts), (horizon,))
    return [torch.randn(shape.num_layers, *size, generator=draw) for size in sizes]


def gates(shape, batch):
    return torch.randn(shape.num_layers, batch, shape.hidden_size, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(("layers", "horizon", "reach"), [(3, 2, 4), (7, 3, 2), (5, 4, 9), (2, 3, 4), (1, 1, 1)])
def test_layer_by_layer_equals_all_layers_at_once(layers, horizon, reach):
    shape = replace(READING, num_layers=layers, hidden_horizon=horizon, reach=reach)
    step = hidden_step(shape)
    experts, logits, context = inputs(shape, 5)
    gates_LBD = gates(shape, 5)
    with torch.no_grad():
        whole = step.all_layers(experts, logits, context, gates_LBD)
        assert whole.shape == (horizon, 5, layers, shape.num_experts)
        evidence = torch.zeros(5, max(reach, horizon), shape.num_experts)
        for layer in range(layers):
            known = torch.tensor([layer]), experts[:, layer], gates_LBD[layer]
            ahead, context, evidence = step(*known, logits, context, evidence)
            for h in range(min(horizon, layers - 1 - layer)):
                assert torch.allclose(ahead[:, h], whole[h, :, layer + 1 + h], atol=1e-4)


def test_a_layer_sees_what_the_routers_of_earlier_layers_read_and_nothing_later():
    step = hidden_step()
    experts, logits, context = inputs(READING, 4)
    before, changed = gates(READING, 4), gates(READING, 4)
    changed[1] += 1
    with torch.no_grad():
        whole, other = (step.all_layers(experts, logits, context, x) for x in (before, changed))
    # a layer's own answer depends on what its nearest known layer read: of layer 1 at horizon h that is layer 2 + h
    changed_HL = (whole != other).any(dim=-1).any(dim=1)
    for h in range(3):
        assert changed_HL[h].nonzero().flatten().tolist() == ([2 + h] if 2 + h < READING.num_layers else [])


def test_before_anything_is_learned_the_next_routers_speak_beside_the_token_step():
    torch.manual_seed(0)
    step, (experts, logits, context), inputs_LBD = HiddenStep(READING), inputs(READING, 4), gates(READING, 4)
    weights_LED, moved_LEHE, slope_LH = given = routers(READING)
    step.set_routers(*given)
    whole = step.all_layers(experts, logits, context, inputs_LBD)
    for b, h, layer in itertools.product(range(4), range(3), range(READING.num_layers)):
        expected, known = logits[b, layer], layer - h - 1
        if known >= 0:
            chosen, read = experts[b, known], inputs_LBD[known, b]
            shares = READING.top_k * torch.softmax((weights_LED[known] @ read)[chosen], dim=0)
            early = weights_LED[layer] @ read + shares @ moved_LEHE[known, chosen, h]
            falling = early.sort(descending=True).values
            above = slope_LH[known, h] * (early - (falling[READING.top_k - 1] + falling[READING.top_k]) / 2)
            expected = above / (1 + above.abs() / 30) + 0.25 * logits[b, layer]
        assert torch.allclose(whole[h, b, layer], expected, atol=1e-4)
