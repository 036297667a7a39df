"""Dropout's rate, independence and source of randomness."""

import pytest
import torch

from leo.dropout import dropout, random_bits


def dropped(x, rate, generator):
    return dropout(x, rate, random_bits(*x.shape, device=x.device, generator=generator))


@pytest.mark.parametrize("rate", [0.1, 0.307651, 0.9])
def test_rate_and_scale(rate):
    result = dropped(torch.ones(1000, 1001), rate, torch.Generator().manual_seed(0))
    zeros = (result == 0).double().mean().item()
    assert zeros == pytest.approx(rate, abs=4 * (rate * (1 - rate) / 1_001_000) ** 0.5 + 2**-17)
    kept = result[result != 0]
    torch.testing.assert_close(kept, torch.full_like(kept, 1 / (1 - rate)), rtol=1e-3, atol=0)
    assert result.mean().item() == pytest.approx(1, abs=0.02)


def test_elements_and_calls_are_independent():
    """Four elements share one random integer: neighbours at lags 1 to 4 must not be correlated, nor must calls."""
    generator = torch.Generator().manual_seed(0)
    first, second = (dropped(torch.ones(400_000), 0.3, generator) != 0 for _ in range(2))
    for a, b in [(first[lag:], first[:-lag]) for lag in (1, 2, 3, 4)] + [(first, second)]:
        correlation = torch.corrcoef(torch.stack([a.float(), b.float()]))[0, 1]
        assert abs(correlation) < 4 / 400_000**0.5
    for place in range(4):  # each part of the integer has the same rate
        assert (~first[place::4]).float().mean().item() == pytest.approx(0.3, abs=0.006)


def test_masks_come_from_the_generator_alone():
    x = torch.randn(3, 5)
    masks = [dropped(x, 0.5, torch.Generator().manual_seed(seed)) for seed in (1, 1, 2)]
    assert torch.equal(masks[0], masks[1])
    assert not torch.equal(masks[0], masks[2])


def test_of_all_numbers_the_smallest_are_dropped():
    """Each of the 2^16 numbers once: as many are dropped as the rate says, to the last one."""
    every = torch.arange(-(2**15), 2**15).to(torch.int16)
    kept = dropout(torch.ones(2**16), 0.3, every) != 0
    assert torch.equal(kept, torch.arange(2**16) >= 19661)  # 0.3 * 65,536 = 19,660.8
