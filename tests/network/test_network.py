import torch

from moe_beyond.network.network import TokenStep, one_hot_routing
from moe_beyond.network.onnx import example_inputs
from tests.predictor.small import SHAPE


def network():
    torch.manual_seed(0)
    step = TokenStep(SHAPE).eval()
    for name, parameter in step.named_parameters():
        if name.endswith("distance_bias"):
            torch.nn.init.normal_(parameter)
    return step


def test_token_by_token_equals_the_whole_prompt_beyond_the_window():
    step = network()
    tokens, letters, previous, _, _ = example_inputs(SHAPE, 2, 20, 0)
    with torch.no_grad():
        whole, _, _, contexts, later = step(tokens, letters, previous, *step.empty_state(2))
        state = step.empty_state(2)
        for t in range(20):
            now = slice(t, t + 1)
            logits, *state, context, later_now = step(tokens[:, now], letters[:, now], previous[:, now], *state)
            assert torch.allclose(logits[:, 0], whole[:, t], atol=1e-5)
            assert torch.allclose(context[:, 0], contexts[:, t], atol=1e-5)
            assert torch.allclose(later_now[:, 0], later[:, t], atol=1e-5)
            assert state[0].shape[2] == min(t + 1, SHAPE.window - 1)


def test_absent_routing_is_no_expert():
    routing = torch.tensor([[[[0, 7], [8, 8]]]])
    assert one_hot_routing(routing, 8).reshape(2, 8).sum(dim=1).tolist() == [2, 0]


def test_class_prior_makes_untrained_probabilities_the_popularity():
    step = network()
    popularity = torch.rand(3, 8) * 0.8 + 0.1
    with torch.no_grad():
        step.output.weight.zero_()
    step.set_class_prior(popularity)
    logits, *_ = step(*example_inputs(SHAPE, 2, 4, 3))
    assert torch.allclose(logits.sigmoid(), popularity.expand(2, 4, 3, 8), atol=1e-5)
