"""The extractor's convolutions, counted, and the features that belong to each count."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from pretrain.wide_resnet import WideResNet


def build(**changes: Any) -> WideResNet:
    settings: dict[str, Any] = {
        "depth": 10,
        "width": 1,
        "num_classes": 3,
        "in_channels": 1,
        "strides": (2, 2, 2),
        "dropout": 0.0,
    }
    return WideResNet(**settings | changes)


@pytest.mark.parametrize("depth", [10, 16, 28])
def test_the_name_counts_the_convolutions(depth: int) -> None:
    network = build(depth=depth).eval()
    run: list[nn.Module] = []
    convolutions = [module for module in network.modules() if isinstance(module, nn.Conv2d)]
    for convolution in convolutions:
        convolution.register_forward_hook(lambda module, _inputs, _output: run.append(module))
    network(torch.zeros(1, 1, 8, 8))
    assert len(convolutions) == len(run) == depth
    assert set(convolutions) == set(run)
    shortcuts = [layer for layer, conv in enumerate(convolutions, start=1) if conv.kernel_size == (1, 1)]
    assert tuple(shortcuts) == network.shortcut_layers


def test_layer_21_of_wrn_28_10_opens_group_3() -> None:
    with torch.device("meta"):
        network = build(depth=28, width=10, in_channels=3)
    convolutions = [module for module in network.modules() if isinstance(module, nn.Conv2d)]
    layer_21 = convolutions[21 - 1]
    assert layer_21 is network.blocks[8].conv1
    assert (layer_21.in_channels, layer_21.out_channels, layer_21.kernel_size) == (320, 640, (3, 3))
    assert network.shortcut_layers == (2, 11, 20)
    assert network.penultimate == 28
    assert network.features(torch.zeros(2, 3, 80, 80, device="meta"), [21])[21].shape == (2, 640)


def test_number_of_parameters() -> None:
    # WRN-10-2, one channel, 347 classes. Convolutions: stem 9 * 16 = 144; a group from a to b channels has a
    # shortcut of ab, 3x3 convolutions of 9ab and 9bb, norms of 2a and 2b:
    #   16 -> 32:    512 +  4,608 +   9,216 +  32 +  64 =  14,432
    #   32 -> 64:  2,048 + 18,432 +  36,864 +  64 + 128 =  57,536
    #   64 -> 128: 8,192 + 73,728 + 147,456 + 128 + 256 = 229,760
    # Final norm 2 * 128 = 256; classifier 128 * 347 + 347 = 44,763. All: 346,891.
    assert num_parameters(depth=10, width=2, num_classes=347, in_channels=1) == 346_891
    # WRN-28-10, RGB, 64 classes. Stem 27 * 16 = 432; a group from a to b channels has four blocks:
    # ab + 9ab + 7 * 9bb and norms of 2a + 7 * 2b:
    #   16 -> 160:     25,600 +  1,612,800 +    32 + 2,240 =  1,640,672
    #   160 -> 320:   512,000 +  6,451,200 +   320 + 4,480 =  6,968,000
    #   320 -> 640: 2,048,000 + 25,804,800 +   640 + 8,960 = 27,862,400
    # Final norm 2 * 640 = 1,280; classifier 640 * 64 + 64 = 41,024. All: 36,513,808, the paper's 36.5 million.
    assert num_parameters(depth=28, width=10, num_classes=64, in_channels=3) == 36_513_808


def test_number_of_operations() -> None:
    # WRN-28-10, 80x80 RGB, 64 classes; multiply-adds of an image. A convolution of k x k from a to b channels makes
    # k k a b for each pixel it puts out. Stem, 80x80 pixels: 27 * 16 * 6,400 = 2,764,800. A group from a to b
    # channels has a shortcut of ab, one 3x3 convolution of 9ab and seven of 9bb, at 40x40, 20x20 and 10x10 pixels:
    #   16 -> 160:  (2,560 +    23,040 +  1,612,800) * 1,600 = 2,621,440,000
    #   160 -> 320: (51,200 +   460,800 +  6,451,200) *   400 = 2,785,280,000
    #   320 -> 640: (204,800 + 1,843,200 + 25,804,800) *  100 = 2,785,280,000
    # Classifier 640 * 64 = 40,960. All: 8,194,805,760, each two operations.
    forward = 2 * 8_194_805_760
    with torch.device("meta"):
        network = build(depth=28, width=10, in_channels=3, num_classes=64)
        images = torch.zeros(2, 3, 80, 80)
    with FlopCounterMode(display=False) as counter:
        logits = network(images)
    assert counter.get_total_flops() == 2 * forward
    # Backward, the gradients of input and weight cost as much each; the stem needs none of its input.
    with FlopCounterMode(display=False) as counter:
        logits.sum().backward()
    assert counter.get_total_flops() == 2 * (2 * forward - 2 * 2_764_800)


def num_parameters(**settings: int) -> int:
    with torch.device("meta"):
        return sum(parameter.numel() for parameter in build(**settings).parameters())


def test_features_are_the_modules_applied_by_hand() -> None:
    torch.manual_seed(0)
    network = build(depth=16).eval()
    for name, buffer in network.named_buffers():
        if name.endswith(("running_mean", "running_var")):
            buffer.uniform_(0.5, 2)
    images = torch.randn(2, 1, 8, 8)
    blocks: list[Any] = list(network.blocks)
    first, second, third = blocks[:3]
    by_hand = {}
    stem = network.stem(images)
    by_hand[1] = active = F.relu(first.norm1(stem))
    shortcut = first.shortcut(active)  # layer 2
    by_hand[3] = active = F.relu(first.norm2(first.conv1(active)))
    stream = shortcut + first.conv2(active)
    by_hand[4] = active = F.relu(second.norm1(stream))
    by_hand[5] = active = F.relu(second.norm2(second.conv1(active)))
    stream = stream + second.conv2(active)
    by_hand[6] = active = F.relu(third.norm1(stream))
    shortcut = third.shortcut(active)  # layer 7
    by_hand[8] = F.relu(third.norm2(third.conv1(active)))

    features = network.features(images, list(by_hand))
    assert features.keys() == by_hand.keys()
    for layer, activation in by_hand.items():
        torch.testing.assert_close(features[layer], activation.mean(dim=(2, 3)), rtol=0, atol=0)


def test_the_classifier_reads_the_penultimate_features() -> None:
    network = build().eval()
    images = torch.randn(2, 1, 8, 8)
    features = network.features(images, [network.penultimate])[10]
    torch.testing.assert_close(network(images), network.classifier(features), rtol=0, atol=0)
    assert network(images).shape == (2, 3)


def test_a_pass_ends_after_the_last_layer_asked_for() -> None:
    network = build()
    run: list[nn.Module] = []
    blocks: list[Any] = list(network.blocks)
    for block in blocks:
        block.conv1.register_forward_hook(lambda conv, _inputs, _output: run.append(conv))
    network.features(torch.zeros(1, 1, 8, 8), [3, 1])
    assert run == [blocks[0].conv1]


def test_strides_take_80_pixels_to_10() -> None:
    network = build(in_channels=3)
    sizes: list[int] = []
    network.norm.register_forward_hook(lambda _norm, _inputs, output: sizes.extend(output.shape[2:]))
    network(torch.zeros(1, 3, 80, 80))
    assert sizes == [10, 10]


def test_dropout_changes_training_only() -> None:
    network = build(dropout=0.5)
    images = torch.randn(4, 1, 8, 8)
    assert not torch.equal(network(images), network(images))
    network.eval()
    assert torch.equal(network(images), network(images))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"depth": 27}, "depth=27 .* 22 or 28"),
        ({"depth": 4}, "depth=4 .* nearest is 10$"),
        ({"depth": 9}, "depth=9 .* nearest is 10$"),
        ({"strides": (1, 2)}, r"strides=\[1, 2\] has 2 entries; give one per group, 3"),
    ],
)
def test_settings_that_make_no_network(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build(**changes)


@pytest.mark.parametrize(
    ("layer", "message"),
    [
        (2, "layer 2 of WRN-10-1 is a shortcut.* choose 1 or 3"),
        (5, "choose 4 or 6"),
        (8, "choose 7 or 9"),
        (0, "layer 0 is not in WRN-10-1; its layers are 1 to 10"),
        (11, "layer 11 is not in WRN-10-1"),
    ],
)
def test_layers_without_features(layer: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build().features(torch.zeros(1, 1, 8, 8), [1, layer])
