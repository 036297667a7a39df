"""The meta-gradient that goes on into an extractor: against plain loops, by chunks; and the stream of its images."""

import copy
from typing import NamedTuple

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from leo.episodes import TaskStream
from leo.features import Normalizer
from leo.joint import ImageStream, ImageTasks, JointLearner, JointMetaLearning, image_table
from leo.meta_sgd import MetaSGD
from leo.prototypes import LinearPrototypes
from leo.update import MetaUpdate
from tests.leo.tables import make_table
from tests.leo.test_leo import make, oracle_loss

WIDTH = 12


class Network(nn.Module):
    """Two layers with a batch norm of fixed statistics: [n, 12] of uint8 images [n, 8, 8, 1]."""

    settings: dict = {}  # noqa: RUF012 (never changed)

    def __init__(self):
        super().__init__()
        self.first, self.norm, self.second = nn.Conv2d(1, 5, 3, stride=2), nn.BatchNorm2d(5), nn.Conv2d(5, WIDTH, 3)
        self.norm.running_mean.uniform_(-0.5, 0.5)
        self.norm.running_var.uniform_(0.5, 2.0)
        self.eval()
        self.num_seen = []

    def of_view(self, images):
        self.num_seen.append(len(images))
        x = images.permute(0, 3, 1, 2).to(self.first.weight) / 255
        return torch.tanh(self.second(torch.relu(self.norm(self.first(x))))).mean((2, 3))

    def in_parts(self, images):
        with torch.no_grad():
            return self.of_view(images)


class Store(NamedTuple):
    """The images of a split."""

    images: torch.Tensor
    offsets: torch.Tensor
    class_names: list


def make_store(sizes, seed=0):
    generator, offsets = torch.Generator().manual_seed(seed), torch.tensor([0, *sizes]).cumsum(0)
    images = torch.randint(256, (int(offsets[-1]), 8, 8, 1), generator=generator, dtype=torch.uint8)
    return Store(images, offsets, [f"class{seed}-{i}" for i in range(len(sizes))])


def make_images(num_shot, num_tasks=2, num_way=3, num_query=2):
    shape = (num_tasks, num_way, num_shot + num_query, 8, 8, 1)
    images = torch.randint(256, shape, generator=torch.Generator().manual_seed(5), dtype=torch.uint8)
    return ImageTasks(images[:, :, :num_shot], images[:, :, num_shot:])


def make_joint(learner, kind="standardize", chunk=None):
    torch.manual_seed(1)
    normalizer = Normalizer(kind, WIDTH)
    normalizer.mean.uniform_(-0.1, 0.1)
    normalizer.std.uniform_(0.5, 2.0)
    return JointLearner(learner, normalizer, Network(), chunk).double()


def plain_features(joint, images):
    """By a plain pass over the images [n, 8, 8, 1], every formula spelt out."""
    network, statistics = joint.extractor, joint.extractor.norm
    x = F.conv2d(images.double().permute(0, 3, 1, 2) / 255, network.first.weight, network.first.bias, stride=2)
    scale = statistics.weight / torch.sqrt(statistics.running_var + statistics.eps)
    x = (x - statistics.running_mean[:, None, None]) * scale[:, None, None] + statistics.bias[:, None, None]
    x = torch.tanh(F.conv2d(x.clamp_min(0), network.second.weight, network.second.bias)).mean((2, 3))
    if joint.normalizer.kind == "standardize":
        x = (x - joint.normalizer.mean) / joint.normalizer.std
        return x / x.norm(dim=1, keepdim=True) * WIDTH**0.5
    return x / x.norm(dim=1, keepdim=True)


def plain_tasks(joint, tasks):
    """The features of each task, image by image."""
    return [
        torch.stack(
            [torch.stack([plain_features(joint, images) for images in task]) for task in part]
        )
        for part in tasks
    ]  # fmt: skip


def meta_sgd_loss(learner, support, query):
    """The meta-loss of one task by an unrolled loop."""
    weights, labels = learner.initial_weights, torch.arange(len(support))
    for _ in range(learner.num_steps):
        inner = F.cross_entropy(
            (support @ weights.T).flatten(0, 1), labels.repeat_interleave(support.shape[1]), reduction="sum"
        )
        (gradient,) = torch.autograd.grad(inner, weights, create_graph=True, retain_graph=True)
        weights = weights - learner.inner_lr * gradient
    loss = F.cross_entropy((query @ weights.T).flatten(0, 1), labels.repeat_interleave(query.shape[1]))
    return loss + learner.l2_weight * 0.5 * learner.initial_weights.square().sum()


def prototypes_loss(learner, support, query):
    """The meta-loss of one task: cosine to the centroids of unit vectors, times the scale."""
    labels = torch.arange(len(support)).repeat_interleave(query.shape[1])
    support, query = ((x @ learner.linear.weight.T) for x in (support, query))
    support, query = (x / x.norm(dim=-1, keepdim=True) for x in (support, query))
    centroids = support.mean(1) / support.mean(1).norm(dim=-1, keepdim=True)
    loss = F.cross_entropy(learner.log_scale.exp() * (query.flatten(0, 1) @ centroids.T), labels)
    return loss + learner.l2_weight * 0.5 * learner.linear.weight.square().sum()


def make_learner(method):
    torch.manual_seed(0)
    if method == "meta_sgd":
        learner = MetaSGD(num_features=WIDTH, num_way=3, num_steps=4, inner_lr=0.4, l2_weight=0.1).double()
        nn.init.normal_(learner.initial_weights)
        return learner
    if method == "prototypes":
        return LinearPrototypes(num_features=WIDTH, num_dimensions=7, scale=5.0, l2_weight=0.1).double()
    return make(**{"leo": {}, "dropout": {"dropout": 0.3}, "example": {"latents": "example"}}[method])


def by_name(joint, loss):
    gradients = torch.autograd.grad(loss, list(joint.parameters()), allow_unused=True)
    return {
        name: torch.zeros_like(parameter) if gradient is None else gradient
        for (name, parameter), gradient in zip(joint.named_parameters(), gradients, strict=True)
    }


@pytest.mark.parametrize("kind", ["standardize", "l2"])
@pytest.mark.parametrize("num_shot", [1, 3])
@pytest.mark.parametrize("method", ["leo", "dropout", "example", "meta_sgd", "prototypes"])
def test_gradients_of_extractor_and_learner_are_those_of_a_plain_unrolled_loop(method, num_shot, kind):
    joint, tasks = make_joint(make_learner(method), kind), make_images(num_shot)
    noise = joint.draw_noise(tasks, torch.Generator().manual_seed(3))
    loss = joint.objective(tasks, noise)["loss"]
    support, query = plain_tasks(joint, tasks)
    if method in ("meta_sgd", "prototypes"):
        of_task = {"meta_sgd": meta_sgd_loss, "prototypes": prototypes_loss}[method]
        expected = torch.stack([of_task(joint.learner, *task) for task in zip(support, query, strict=True)]).mean()
    else:
        expected = oracle_loss(joint.learner, (support, query), noise)
    torch.testing.assert_close(loss, expected, rtol=1e-10, atol=1e-12)
    expected_gradients = by_name(joint, expected)
    assert expected_gradients["extractor.first.weight"].norm() > 1e-4
    for name, gradient in by_name(joint, loss).items():
        torch.testing.assert_close(gradient, expected_gradients[name], rtol=1e-9, atol=1e-12, msg=name)


@pytest.mark.parametrize("chunk", [1, 5, 1000])
def test_chunks_have_the_gradient_of_the_whole_batch(chunk):
    """In float64; 18 images, none of which is held longer than its chunk: each goes twice through the network."""
    whole, tasks = make_joint(make_learner("leo")), make_images(1)
    parts = JointLearner(whole.learner, whole.normalizer, whole.extractor, chunk)
    noise = whole.draw_noise(tasks, torch.Generator().manual_seed(3))
    expected = by_name(whole, whole.objective(tasks, noise)["loss"])
    whole.extractor.num_seen.clear()
    for name, gradient in by_name(parts, parts.objective(tasks, noise)["loss"]).items():
        torch.testing.assert_close(gradient, expected[name], rtol=1e-12, atol=1e-14, msg=name)
    assert sum(whole.extractor.num_seen) == 2 * 18
    assert max(whole.extractor.num_seen) == min(chunk, 18)


class Noisy(nn.Module):
    """Adds random grey levels."""

    def forward(self, images):
        return images + torch.randint(100, images.shape, dtype=torch.uint8)


SIZES = {"num_way": 3, "num_shot": 2, "num_query": 3, "batch_size": 4, "batches_per_epoch": 8, "batches_per_step": 2}


def make_stream(stores, augment=None, seed=2):
    return ImageStream(
        image_table(stores), augment, **SIZES, generator=torch.Generator().manual_seed(seed)
    )  # fmt: skip


@pytest.mark.parametrize("augment", [None, Noisy()], ids=["plain", "augmented"])
def test_tasks_are_those_of_a_run_on_features_and_their_images_those_of_the_rows(augment):
    stores = [make_store([9, 6, 7], 0), make_store([8, 5], 1)]
    frozen = TaskStream(make_table([9, 6, 7, 8, 5]), **SIZES, generator=torch.Generator().manual_seed(2))
    stream, images = make_stream(stores, augment), torch.cat([store.images for store in stores])
    assert image_table(stores).class_names == [name for store in stores for name in store.class_names]
    for _ in range(2 * stream.batches_per_block + 1):
        batch, expected = stream.next_batch(), frozen.next_batch()
        assert torch.equal(batch.images, expected.images)
        assert torch.equal(batch.classes, expected.classes)
    support, query = stream.gather(batch)
    rows = images[batch.images]
    if augment is None:
        assert torch.equal(torch.cat([support, query], 2), rows)
    else:
        added = torch.cat([support, query], 2) - rows  # modulo 256
        assert added.max() < 100
        assert len(added.flatten(0, 2).unique(dim=0)) == 4 * 3 * 5  # each image its own
    assert support.shape == (4, 3, 2, 8, 8, 1)


def test_a_resumed_stream_augments_as_an_uninterrupted_one_and_leaves_other_random_numbers_alone():
    stores, torch_state = [make_store([9, 6, 7])], torch.get_rng_state()
    straight, resumed = (make_stream(stores, Noisy(), seed) for seed in (2, 99))
    for _ in range(straight.batches_per_block + 3):
        straight.gather(straight.next_batch())
    resumed.load_state_dict(copy.deepcopy(straight.state_dict()))
    batches = [[stream.gather(stream.next_batch()) for _ in range(3)] for stream in (straight, resumed)]
    for one, other in zip(*batches, strict=True):
        assert torch.equal(one.support, other.support)
        assert torch.equal(one.query, other.query)
    assert not torch.equal(batches[0][0].query, batches[0][1].query)
    assert torch.equal(torch.get_rng_state(), torch_state)


def make_module(chunk=None, **extractor):
    learner = make_learner("leo")
    module = JointMetaLearning(
        learner, make_joint(learner, "l2").float().normalizer, extractor=Network(),
        optimizer=lambda groups: torch.optim.Adam(groups, lr=0.01), schedule=None, clip_value=0.1, clip_norm=0.1,
        diverged="skip", max_diverged=0.1, seed=0, captured=False, chunk=chunk, **extractor,
    )  # fmt: skip
    return module, module.configure_optimizers()


def make_update(module, optimizer):
    stream = make_stream([make_store([9, 6, 7])])
    return MetaUpdate(
        module.trained(), optimizer, None, stream=stream, clip_value=0.1, clip_norm=0.1,
        generator=torch.Generator().manual_seed(1), diverged="skip",
    )  # fmt: skip


def test_the_extractor_has_its_own_rate_and_decay_and_changes_nothing_in_the_learners_step():
    """After an Adam step, each weight has moved by about its rate; with a rate of 0, not at all, whatever the decay."""
    moved = {}
    for rate, decay in ((0.0, 0.5), (0.003, 0.0)):
        torch.manual_seed(0)
        module, optimizer = make_module(extractor_lr=rate, weight_decay=decay)
        assert [group["weight_decay"] for group in optimizer.param_groups] == [0, decay]
        before = {name: value.clone() for name, value in module.state_dict().items()}
        update = make_update(module, optimizer)
        update([update.stream.next_batch()])
        moved[rate] = {name: value - before[name] for name, value in module.state_dict().items()}
    for name, change in moved[0.003].items():
        if name.startswith("learner."):
            assert torch.equal(change, moved[0.0][name]), name
        else:
            assert not moved[0.0][name].any(), name
    for name in ("first.weight", "norm.bias", "second.weight"):
        assert moved[0.003][f"extractor.{name}"].abs().max().item() == pytest.approx(0.003, rel=1e-2)
    assert not moved[0.003]["extractor.norm.running_mean"].any()
    assert not moved[0.003]["normalizer.mean"].any()


def test_a_diverged_task_is_left_out_of_the_extractors_gradient_too():
    """One task whose loss is not finite: the step is the one of the others alone."""

    class Breaking(JointLearner):
        def objective(self, tasks, noise):
            terms = super().objective(tasks, noise)
            is_white = (tasks.support == 255).flatten(1).all(1).any()
            return terms | {"loss": terms["loss"] * (torch.inf if is_white else 1)}

    torch.manual_seed(0)
    module, optimizer = make_module(extractor_lr=0.003, weight_decay=0.0)
    joint = Breaking(module.learner, module.normalizer, module.extractor, None)
    update = make_update(module, optimizer)
    update.learner = joint
    tasks = make_images(2, num_tasks=3)
    tasks.support[1] = 255
    noise = joint.draw_noise(tasks, torch.Generator().manual_seed(1))
    rows = torch.tensor([0, 2])
    expected = JointLearner(module.learner, module.normalizer, module.extractor, None)
    expected = by_name(expected, expected.objective(
        ImageTasks(tasks.support[rows], tasks.query[rows]), noise.of_tasks(rows))["loss"])  # fmt: skip
    outcome = update.answer(update.differentiate(tasks, noise), tasks, noise)
    assert outcome.num_diverged == 1
    for name, parameter in joint.named_parameters():
        torch.testing.assert_close(parameter.grad, expected[name], msg=name)
