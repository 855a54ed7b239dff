import pytest
import torch

from moe_beyond.live.quantiser import INT4, INT8, TERNARY, Quantiser
from moe_beyond.live.store import StoredParameter

ROWS, COLUMNS, BIAS = 12, 100, 7


def parameters(dtype=torch.float32):
    matrix = StoredParameter(name="w", shape=(ROWS, COLUMNS), dtype=dtype, offset=0)
    return matrix, StoredParameter(name="b", shape=(BIAS,), dtype=dtype, offset=(matrix.nbytes + 63) // 64 * 64)


def round_trip(weights, levels, dtype=torch.float32):
    """Weights and bias as they come back."""
    matrix, bias = parameters(dtype)
    record = torch.zeros(bias.offset + bias.nbytes, dtype=torch.uint8)
    record[: matrix.nbytes].view(dtype)[:] = weights.flatten()
    record[bias.offset :].view(dtype)[:] = torch.linspace(-1, 1, BIAS)
    quantiser, back = Quantiser((matrix, bias), levels), torch.zeros_like(record)
    quantiser.unpack(quantiser.pack(record), back)
    assert torch.equal(back[bias.offset :], record[bias.offset :]), "a bias stays as it is"
    return back[: matrix.nbytes].view(dtype).view(ROWS, COLUMNS).float()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_weight_is_off_by_half_a_step_at_most(dtype):
    weights = torch.randn(ROWS, COLUMNS, generator=torch.Generator().manual_seed(1)).to(dtype).float()
    for levels in (INT4, INT8):
        largest = weights.view(ROWS, 2, 50).abs().amax(dim=2, keepdim=True)
        # rounding of the step to float16 and of the weight to its dtype comes on top
        bound = largest / (levels - 1) + largest * (2**-10 if dtype == torch.float32 else 2**-7)
        assert ((round_trip(weights, levels, dtype) - weights).view(ROWS, 2, 50).abs() <= bound).all()


def test_more_levels_lose_less():
    weights = torch.randn(ROWS, COLUMNS, generator=torch.Generator().manual_seed(2))
    errors = [float((round_trip(weights, n) - weights).square().mean()) for n in (2, TERNARY, 4, 8, INT4, INT8)]
    assert errors == sorted(errors, reverse=True)
    # of one bit for a normal variable no scale loses less than 1 - 2 / pi of the variance
    assert errors[0] == pytest.approx(1 - 2 / torch.pi, rel=0.1)


@pytest.mark.parametrize("levels", [2, 3, 4, 8, 16, 256])
def test_weights_of_so_many_levels_come_back_exactly(levels):
    codes = torch.arange(ROWS * COLUMNS).view(ROWS, COLUMNS) * 7 % levels
    codes[:, [0, 50]] = 0
    weights = (codes - (levels - 1) / 2) * 2.0**-6
    assert torch.equal(round_trip(weights, levels), weights)
    assert torch.equal(round_trip(torch.zeros(ROWS, COLUMNS), levels), torch.zeros(ROWS, COLUMNS))


@pytest.mark.parametrize(("levels", "bits"), [(2, 1), (3, 2), (4, 2), (8, 3), (16, 4), (256, 8)])
def test_bytes_are_those_of_the_bits_steps_and_biases(levels, bits):
    expected = ROWS * COLUMNS * bits / 8 + ROWS * 2 * 2 + BIAS * 4
    # each part starts at a multiple of 8
    assert 0 <= Quantiser(parameters(), levels).nbytes - expected <= 3 * 8
