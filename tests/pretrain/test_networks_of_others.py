"""Networks of torchvision and timm: their features and pictures are those that the libraries make themselves."""

import copy
import pickle

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from sklearn.datasets import load_sample_image
from torch import nn
from torchvision.models import ResNet18_Weights, get_model

from fewshot.loading import backbone_config
from pretrain.extractor import pretrained_extractor, read_extractor, write_extractor
from pretrain.network import state_sha256
from pretrain.sources.images import standard
from pretrain.torchvision_model import TorchvisionModel

PHOTOGRAPH = Image.fromarray(load_sample_image("china.jpg"))
RESNET18 = ["backbone.network=resnet18"]


def stored(extractor):
    """The photograph as an image store holds it, [1, S, S, 3]."""
    return torch.tensor(standard(PHOTOGRAPH, extractor.image_size, extractor.mode, extractor.framing))[None]


@pytest.fixture
def resnet18(tmp_path, monkeypatch):
    """A ResNet-18 of random weights, which lie where torch's cache has those of ImageNet."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    torch.manual_seed(0)
    model = get_model("resnet18", weights=None).eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1)
    cache = tmp_path / "hub" / "checkpoints"
    cache.mkdir(parents=True)
    torch.save(model.state_dict(), cache / "resnet18-f37072fd.pth")
    return model.requires_grad_(False)


def test_features_of_torchvision_are_its_own(resnet18, tmp_path):
    backbone = backbone_config("torchvision", RESNET18)
    assert backbone["pretrained"]["weights_name"] == "IMAGENET1K_V1"
    extractor = pretrained_extractor(backbone, own=[])
    pixels = ResNet18_Weights.DEFAULT.transforms()(PHOTOGRAPH)[None]
    resnet18.fc = nn.Identity()
    torch.testing.assert_close(extractor(stored(extractor)), resnet18(pixels), rtol=0, atol=0.02)
    third = pretrained_extractor(backbone, own=[], layer="layer3")
    x = resnet18.maxpool(resnet18.relu(resnet18.bn1(resnet18.conv1(pixels))))
    expected = resnet18.layer3(resnet18.layer2(resnet18.layer1(x))).mean((2, 3))
    found = third(stored(third))
    torch.testing.assert_close(found, expected, rtol=0, atol=0.02)
    # One state, whatever layer is taken; it goes through a file, a copy and a pickle.
    assert state_sha256(third.state_dict()) == state_sha256(extractor.state_dict())
    digest = write_extractor(tmp_path / "extractor.safetensors", third)
    origin = {"checkpoint": digest, "layer": "layer3", "extractor": "", "data": "", "crop": "full"}
    for again in (
        read_extractor(tmp_path / "extractor.safetensors", origin),
        copy.deepcopy(third),
        pickle.loads(pickle.dumps(third)),
    ):
        assert torch.equal(again(stored(third)), found)
    with pytest.raises(ValueError, match=r"is not the one that the learner was trained on: its SHA-256 is"):
        read_extractor(tmp_path / "extractor.safetensors", origin | {"checkpoint": "0" * 64})


@pytest.mark.parametrize("network", ["vit_b_16", "googlenet", "densenet121", "squeezenet1_0"])
def test_what_the_last_linear_layer_reads(network):
    if network == "squeezenet1_0":
        with pytest.raises(ValueError, match="squeezenet1_0 of torchvision has no linear layer"):
            TorchvisionModel(network=network)
        return
    widths = {"vit_b_16": 768, "googlenet": 1024, "densenet121": 1024}
    with torch.device("meta"):
        model = TorchvisionModel(network=network).eval()
        assert model.features(torch.zeros(1, 3, 224, 224), ["pooled"])["pooled"].shape == (1, widths[network])


def test_mistakes_are_one_line(resnet18, tmp_path, monkeypatch):
    def refused(message, *settings, error=ValueError, layer=None):
        with pytest.raises(error, match=message):
            pretrained_extractor(backbone_config("torchvision", settings), own=[])(torch.zeros(1, 224, 224, 3).byte())

    refused(
        "backbone.network=resnet19 is no classification model of torchvision; did you mean resnet1",
        "backbone.network=resnet19",
    )
    refused("backbone.pretrained.weights=V9 are none of resnet18 of torchvision; it has IMAGENET1K_V1",
            *RESNET18, "backbone.pretrained.weights=V9")  # fmt: skip
    refused("layer 'layr3' is neither 'pooled' nor a node of resnet18 of torchvision; did you mean layer3", *RESNET18,
            "backbone.mid_level=layr3")  # fmt: skip
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "empty"))

    def unreachable(*_):
        raise OSError("no network")

    monkeypatch.setattr(torch.hub, "download_url_to_file", unreachable)
    refused(r"the weights of resnet18 are not on this machine, and https://.*resnet18-f37072fd.pth cannot be fetched "
            r".no network.: put that file there as .*empty/hub/checkpoints/resnet18-f37072fd.pth, or",
            *RESNET18, error=FileNotFoundError)  # fmt: skip
    torch.save({"conv1.weight": torch.zeros(1)}, tmp_path / "half.pth")
    refused("half.pth does not hold the weights of resnet18 of torchvision: it lacks bn1.weight",
            *RESNET18, f"backbone.pretrained.file={tmp_path / 'half.pth'}")  # fmt: skip


def test_features_of_timm_are_its_own(tmp_path):
    timm = pytest.importorskip("timm")
    torch.manual_seed(0)
    model = timm.create_model("test_resnet.r160_in1k", pretrained=False).eval()
    save_file(model.state_dict(), tmp_path / "weights.safetensors")
    settings = [
        "backbone.network=test_resnet.r160_in1k",
        f"backbone.pretrained.file={tmp_path / 'weights.safetensors'}",
    ]
    backbone = backbone_config("timm", settings)
    extractor = pretrained_extractor(backbone, own=[])
    transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model), is_training=False)
    expected = model.forward_head(model.forward_features(transform(PHOTOGRAPH)[None]), pre_logits=True)
    torch.testing.assert_close(extractor(stored(extractor)), expected, rtol=0, atol=0.02)
    assert (backbone["name"], backbone["pretrained"]["weights"]) == (
        "timm-test_resnet.r160_in1k",
        "timm/test_resnet.r160_in1k",
    )
    with pytest.raises(ValueError, match="backbone.network=resnet19 is no model of timm; did you mean"):
        backbone_config("timm", ["backbone.network=resnet19"])


def test_weights_of_timm_that_cannot_be_fetched_are_one_line(monkeypatch):
    pytest.importorskip("timm")
    from pretrain import timm_model

    def unreachable(*_):
        raise OSError("no network")

    monkeypatch.setattr(timm_model, "hf_hub_download", unreachable)
    with pytest.raises(
        FileNotFoundError, match=r"the weights timm/test_vit.r160_in1k are not on this machine and cannot be"
    ):
        pretrained_extractor(backbone_config("timm", ["backbone.network=test_vit.r160_in1k"]), own=[])
