"""Shifts, crops, colours and scaling of image batches, against values written out by hand."""

from typing import Any

import pytest
import torch

from pretrain.augment import Crop, InceptionAugment, RandomShift, reflect, resize_windows, to_float

LUMA = torch.tensor([0.299, 0.587, 0.114])


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


def test_a_window_of_a_ramp_is_a_ramp() -> None:
    # Pixel (i, j) is 10 i + j. The window of rows 2 to 8 and columns 4 to 9 in 5x5 pixels has steps of 1.2 and 1, and
    # its first pixel's centre is at row 2 + 0.6 - 0.5 and column 4 + 0.5 - 0.5.
    image = (10 * torch.arange(10)[:, None] + torch.arange(12)).byte()[None, :, :, None]
    rows, columns = 2.1 + 1.2 * torch.arange(5), 4.0 + torch.arange(5)
    expected = 10 * rows[:, None] + columns
    window = torch.tensor([5 / 10, 6.5 / 12, 6 / 10, 5 / 12])
    mirror = torch.tensor([1, 1, 1, -1])
    both = resize_windows(image.expand(2, -1, -1, -1), torch.stack([window, window * mirror]), 5)
    torch.testing.assert_close(both[:, 0], torch.stack([expected, expected.flip(1)]))


def test_ten_views_are_the_centre_the_corners_and_their_mirrors() -> None:
    images = torch.randint(256, (3, 8, 8, 3), dtype=torch.uint8)
    crop = Crop(area=0.25, size=4)  # 4 of 8 pixels
    cuts = [images[:, top : top + 4, left : left + 4] for top, left in [(2, 2), (0, 0), (0, 4), (4, 0), (4, 4)]]
    expected = [view for cut in cuts for view in (cut, cut.flip(2))]
    views = [view(images) for view in crop.multiview()]
    assert len(views) == 10
    assert all(torch.equal(view, cut) for view, cut in zip(views, expected, strict=True))
    assert torch.equal(crop(images), expected[0])


def test_crops_that_cannot_be() -> None:
    with pytest.raises(ValueError, match=r"area=1.1 is not a fraction"):
        Crop(area=1.1, size=4)
    with pytest.raises(ValueError, match=r"size=0 must be at least 1"):
        Crop(area=0.5, size=0)


def inception(**changes: Any) -> InceptionAugment:
    """Nothing but the mirror, unless changed."""
    neutral: dict[str, Any] = {"area": (1, 1), "aspect": (1, 1), "brightness": 0, "contrast": 0, "saturation": 0}
    return InceptionAugment(**{"size": 8, "hue": 0} | neutral | changes)


def test_half_of_the_images_are_mirrored() -> None:
    torch.manual_seed(0)
    image = torch.randint(256, (8, 8, 3), dtype=torch.uint8)
    out = inception()(image.expand(200, -1, -1, -1))
    straight, mirrored = ((out == side).flatten(1).all(dim=1) for side in (image, image.flip(1)))
    assert (straight ^ mirrored).all()
    assert 70 < mirrored.sum() < 130


def test_windows_have_the_area_and_aspect_asked_for_and_stay_inside() -> None:
    torch.manual_seed(0)
    augment = inception(area=(0.2, 0.8), aspect=(0.5, 2))
    vertical, horizontal, height, width = augment.windows(2000, 60, 80, torch.device("cpu")).T
    width = width.abs()
    area, aspect = height * width, (width * 80) / (height * 60)
    assert area.min() == pytest.approx(0.2, abs=0.01)
    assert area.max() == pytest.approx(0.8, abs=0.01)
    assert aspect.min() == pytest.approx(0.5, abs=0.02)
    assert aspect.max() == pytest.approx(2, abs=0.05)
    assert aspect.log().mean().abs() < 0.2
    for centre, side in ((vertical, height), (horizontal, width)):
        assert (centre - side / 2).min() == pytest.approx(0, abs=0.01)
        assert (centre + side / 2).max() == pytest.approx(1, abs=0.01)
        assert (centre - side / 2).min() > -1e-6
        assert (centre + side / 2).max() < 1 + 1e-6


def luma(images: torch.Tensor) -> torch.Tensor:
    return torch.einsum("c,bchw->bhw", LUMA, images)


def test_each_colour_change_alone() -> None:
    """On 200 copies of one image: what must stay, and that what changes fills its range, by image."""
    torch.manual_seed(0)
    images = (torch.rand(3, 5, 5) * 255).expand(200, -1, -1, -1)

    shift = inception(brightness=0.1).distort(images) - images
    assert shift.flatten(1).std(dim=1).max() < 1e-3
    assert (shift.min(), shift.max()) == pytest.approx((-25.5, 25.5), abs=1)

    deviation = images - images.mean((2, 3), keepdim=True)
    out = inception(contrast=0.5).distort(images)
    torch.testing.assert_close(out.mean((2, 3)), images.mean((2, 3)))
    factor = (out - images.mean((2, 3), keepdim=True)) / deviation
    assert factor.flatten(1).std(dim=1).max() < 1e-2
    assert (factor.min(), factor.max()) == pytest.approx((0.5, 1.5), abs=0.05)

    colour = images - luma(images)[:, None]
    out = inception(saturation=0.5).distort(images)
    torch.testing.assert_close(luma(out), luma(images), atol=0.02, rtol=0)
    factor = ((out - luma(out)[:, None]) * colour).flatten(1).sum(1) / colour.square().flatten(1).sum(1)
    torch.testing.assert_close(out - luma(out)[:, None], factor[:, None, None, None] * colour, atol=0.05, rtol=0)
    assert (factor.min(), factor.max()) == pytest.approx((0.5, 1.5), abs=0.05)

    out = inception(hue=0.2).distort(images)
    torch.testing.assert_close(luma(out), luma(images), atol=0.02, rtol=0)
    chroma = inception().to_yiq[1:]
    before, after = (torch.complex(*torch.einsum("kc,bchw->kbhw", chroma, part)) for part in (images, out))
    torch.testing.assert_close(after.abs(), before.abs(), atol=0.05, rtol=0)
    turns = (after / before).angle().flatten(1).median(dim=1)[0] / (2 * torch.pi)
    assert (turns.min(), turns.max()) == pytest.approx((-0.2, 0.2), abs=0.01)


def test_colours_are_limited_to_what_bytes_hold() -> None:
    torch.manual_seed(0)
    white = torch.full((50, 8, 8, 3), 250, dtype=torch.uint8)
    out = inception(brightness=0.1)(white)
    assert out.max() == 255
    assert out.min() >= 224


def test_augmentations_that_cannot_be() -> None:
    with pytest.raises(ValueError, match=r"images have 1 channels"):
        inception()(torch.zeros(2, 8, 8, 1, dtype=torch.uint8))
    with pytest.raises(ValueError, match=r"area=\[0, 1\] must be two rising fractions"):
        inception(area=(0, 1))
    with pytest.raises(ValueError, match=r"aspect=\[2, 1\] must be two rising positive"):
        inception(aspect=(2, 1))
