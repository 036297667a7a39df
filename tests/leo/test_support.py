"""Classes of different numbers of images: equal to training where they are equal, else to an oracle of plain loops."""

import math

import pytest
import torch
import torch.nn.functional as F

import leo.networks as leo_networks
from leo.leo import Noise
from leo.meta_sgd import MetaSGD
from leo.prototypes import LinearPrototypes, NearestCentroid
from leo.support import Support, labelled
from tests.leo.test_leo import ABLATIONS, make, make_tasks

SHOTS = [1, 4, 2]  # of three classes


def equal_support(num_shot):
    """The same task as training has it, and as a support in shuffled order."""
    tasks = make_tasks(num_shot, num_tasks=1)
    labels = torch.arange(3).repeat_interleave(num_shot)
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
    return tasks.support, labelled(tasks.support[0].flatten(0, 1)[order], labels[order], num_shot, 3)


def unequal_support(num_shot, num_way=3):
    images = make_tasks(4).support[0]
    rows = [(label, image) for label, count in enumerate(SHOTS) for image in images[label, :count]]
    order = [3, 0, 6, 1, 5, 2, 4]
    return labelled(
        torch.stack([rows[i][1] for i in order]), torch.tensor([rows[i][0] for i in order]), num_shot, num_way
    )


def learners():
    torch.manual_seed(0)
    meta_sgd = MetaSGD(num_features=12, num_way=3, num_steps=4, inner_lr=0.3, l2_weight=0.0)
    torch.nn.init.normal_(meta_sgd.initial_weights)
    return {
        "meta_sgd": meta_sgd.double(),
        "centroid": NearestCentroid(num_features=12),
        "prototypes": LinearPrototypes(num_features=12, num_dimensions=5, scale=7.0, l2_weight=0.0).double(),
        **{f"leo-{name}-{latents}": make(latents=latents, **ABLATIONS[name])
           for name in ABLATIONS for latents in ("class", "example")},
    }  # fmt: skip


@pytest.mark.parametrize("num_shot", [1, 5])
@pytest.mark.parametrize("name", learners())
def test_equal_classes_adapt_as_in_training(name, num_shot):
    learner, (batch, support) = learners()[name].eval(), equal_support(num_shot)
    with torch.no_grad():
        torch.testing.assert_close(learner.adapt(support), learner.adapt(batch), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("latents", ["class", "example"])
def test_equal_classes_are_sampled_as_in_training(latents):
    leo, (batch, support) = make(latents=latents), equal_support(3)
    noise = leo.draw_samples((1, 3, 3), torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected = leo.adaptation(batch, noise).weights
        torch.testing.assert_close(leo.adaptation(support, noise).weights, expected, rtol=1e-10, atol=1e-10)
        assert (leo.adapt(support) - expected).abs().max() > 1e-3


def oracle_codes(leo, support):
    """Mean and u of each class: every ordered pair of images on its own, then means over what is there."""
    num_way = len(support.targets)
    outputs = [[] for _ in range(num_way)]
    for image, label in zip(support.images, support.targets.argmax(0).tolist(), strict=True):
        of_image = []
        for partner in support.images:
            pair = torch.cat([leo.encoder.weight @ image, leo.encoder.weight @ partner])
            hidden = torch.relu(leo.relation.first.weight @ pair)
            hidden = torch.relu(leo.relation.second.weight @ hidden)
            of_image.append(leo.relation.third.weight @ hidden)
        outputs[label].append(sum(of_image) / len(of_image))
    return torch.stack([sum(of_class) / len(of_class) for of_class in outputs]).chunk(2, dim=1)


def oracle_loss(weights, support):
    """Cross-entropy of each image, counted so that every class has ``num_shot``; weights [N, M, D].

    Where tasks of training had another number of classes, all together count as the geometric mean of both numbers.
    """
    shots, num_way = support.targets.sum(1), len(support.targets)
    of_class = support.num_shot * math.sqrt(support.num_way * num_way) / num_way
    total = 0
    for image, label in zip(support.images, support.targets.argmax(0).tolist(), strict=True):
        scores = torch.stack([sum(vector @ image for vector in of_class) / len(of_class) for of_class in weights])
        total = total - (of_class / shots[label]) * F.log_softmax(scores, dim=0)[label]
    return total


def oracle(leo, support, noise):
    """Algorithm 1 by autograd: classifiers [N, D]."""
    num_codes = support.num_shot if leo.latents == "example" else 1
    mean, u = (part.detach().unsqueeze(1).repeat(1, num_codes, 1) for part in oracle_codes(leo, support))
    num_way, num_features = len(mean), leo.num_features
    z = mean if noise.latents is None else mean + (u.exp() - 1).clamp_min(1e-10) * noise.latents[0]

    def decode(z, draw):
        parameters = z @ leo.decoder.linear.weight.T
        weights, u = parameters[..., :num_features], parameters[..., num_features:]
        if noise.weights is None:
            return weights
        floor = 1 - math.sqrt(2 / (num_way + num_features))
        return weights + (u.exp() - floor).clamp_min(1e-10) * noise.weights[draw, 0]

    for step in range(leo.num_latent_steps):
        z = z.detach().requires_grad_()
        (gradient,) = torch.autograd.grad(oracle_loss(decode(z, step), support), z)
        z = z - leo.latent_lr * gradient
    weights = decode(z, -1)
    for _ in range(leo.num_finetune_steps):
        weights = weights.detach().requires_grad_()
        (gradient,) = torch.autograd.grad(oracle_loss(weights, support), weights)
        weights = weights - leo.finetune_lr * gradient
    return weights.mean(1).detach()


@pytest.mark.parametrize("sampled", [False, True])
@pytest.mark.parametrize("latents", ["class", "example"])
@pytest.mark.parametrize(("num_shot", "num_way"), [(1, 3), (3, 7)])
def test_unequal_classes_are_the_oracles(num_shot, num_way, latents, sampled):
    leo, support = make(latents=latents), unequal_support(num_shot, num_way)
    generator = torch.Generator().manual_seed(2)
    noise = leo.draw_samples((1, 3, num_shot), generator) if sampled else Noise()
    with torch.no_grad():
        weights = leo.adaptation(support, noise).weights[0]
    torch.testing.assert_close(weights, oracle(leo, support, noise), rtol=1e-10, atol=1e-10)


def test_unequal_classes_of_meta_sgd_and_centroids():
    support, known = unequal_support(3), learners()
    meta_sgd = known["meta_sgd"]
    weights = meta_sgd.initial_weights.detach()
    for _ in range(meta_sgd.num_steps):
        weights = weights.detach().requires_grad_()
        (gradient,) = torch.autograd.grad(oracle_loss(weights.unsqueeze(1), support), weights)
        weights = weights - meta_sgd.inner_lr * gradient
    torch.testing.assert_close(meta_sgd.adapt(support)[0], weights)
    for centroid in (known["centroid"], known["prototypes"]):
        for label, direction in enumerate(centroid.adapt(support)[0]):
            members = F.normalize(centroid.embed(support.images[support.targets[label] == 1]), dim=1)
            torch.testing.assert_close(direction, F.normalize(members.sum(0), dim=0))


def test_an_image_left_out_is_as_if_it_were_not_there():
    leo, support = make(latents="example"), unequal_support(2)
    without = [i for i in range(len(support.images)) if i != 2]
    present = torch.ones(2, len(support.images), dtype=torch.bool)
    present[1, 2] = False
    with torch.no_grad():
        both = leo.adapt(support._replace(present=present))
        torch.testing.assert_close(both[0], leo.adapt(support)[0])
        rest = Support(support.images[without], support.targets[:, without], present[:1, without], 2, 3)
        torch.testing.assert_close(both[1], leo.adapt(rest)[0])


def test_many_images_meet_their_partners_a_few_at_a_time(monkeypatch):
    leo, support = make(), unequal_support(2)
    with torch.no_grad():
        expected = leo.adapt(support)
        monkeypatch.setattr(leo_networks, "PAIRS_PER_PART", 20)  # two images, with seven partners each
        torch.testing.assert_close(leo.adapt(support), expected)


def test_meta_sgd_knows_its_number_of_classes():
    support = unequal_support(2)
    two = labelled(support.images, support.targets.argmax(0).clamp(max=1), 2, 3)
    with pytest.raises(ValueError, match="the support has 2 classes, .* this one knows tasks of num_way=3 only"):
        learners()["meta_sgd"].adapt(two)
