"""Shifts and scaling of image batches, against values written out by hand."""

import pytest
import torch

from pretrain.augment import RandomShift, reflect, to_float


def test_to_float_scales_each_channel() -> None:
    images = torch.tensor([[[[0, 255], [51, 102]]]], dtype=torch.uint8)  # one image of 1x2 pixels, two channels
    scaled = to_float(images, mean=torch.tensor([0.5, 0.2]), std=torch.tensor([0.5, 0.1]))
    # Channel 0: 0, 0.2 -> -1, -0.6; channel 1: 1, 0.4 -> 8, 2.
    torch.testing.assert_close(scaled, torch.tensor([[[[-1.0, -0.6]], [[8.0, 2.0]]]]))


def test_reflection_mirrors_at_the_edge_pixels() -> None:
    assert reflect(torch.arange(-2, 6), 4).tolist() == [2, 1, 0, 1, 2, 3, 2, 1]


def test_every_image_is_one_of_the_shifts_and_all_shifts_occur() -> None:
    torch.manual_seed(0)
    image = torch.arange(2 * 5 * 6, dtype=torch.uint8).reshape(5, 6, 2)
    padded = torch.nn.functional.pad(image.permute(2, 0, 1).float(), (1, 1, 1, 1), mode="reflect")
    windows = [
        padded[:, top : top + 5, left : left + 6].permute(1, 2, 0).byte() for top in range(3) for left in range(3)
    ]
    shifted = RandomShift(max_shift=1)(image.expand(200, -1, -1, -1))
    assert shifted.dtype == torch.uint8
    matches = torch.stack([(shifted == window).flatten(1).all(dim=1) for window in windows])
    assert matches.sum(dim=0).eq(1).all()
    assert matches.any(dim=1).all()


def test_no_shift_changes_nothing() -> None:
    images = torch.randint(256, (3, 4, 4, 1), dtype=torch.uint8)
    assert torch.equal(RandomShift(max_shift=0)(images), images)


def test_shifts_that_cannot_be() -> None:
    with pytest.raises(ValueError, match="max_shift=-1 is negative"):
        RandomShift(max_shift=-1)
    with pytest.raises(ValueError, match=r"max_shift=4 .* 4x6; choose at most 3"):
        RandomShift(max_shift=4)(torch.zeros(1, 4, 6, 1, dtype=torch.uint8))
