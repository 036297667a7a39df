"""Algorithm 1 in its readable form and in closed form; and what a subclass may override, by finite differences."""

import pytest
import torch
from torch import nn

from leo.episodes import Tasks
from leo.leo import LEO
from leo.meta_sgd import MetaSGD
from leo.networks import Gaussian
from leo.softmax import logits
from leo.support import Support, images_of, mean_over_class
from tests.leo.test_leo import ABLATIONS, DEFAULTS, gradients, make, make_tasks, noise_of
from tests.leo.test_support import equal_support, unequal_support


def pair(**changes):
    """The same learner in both forms."""
    return [make(**changes | {"inner_loops": form}) for form in ("closed_form", "autograd")]


@pytest.mark.parametrize("num_shot", [1, 5])
@pytest.mark.parametrize("latents", ["class", "example"])
@pytest.mark.parametrize("ablation", ABLATIONS)
def test_both_forms_have_one_objective_and_one_gradient(ablation, latents, num_shot):
    """With sampling, and with dropout; the path too, each part with its gradient."""
    changes, tasks = {"dropout": 0.3} | ABLATIONS[ablation] | {"latents": latents}, make_tasks(num_shot)
    of_form = []
    for leo in pair(**changes):
        noise = noise_of(leo, tasks, 3)
        terms, path = leo.objective(tasks, noise), leo.adaptation(tasks.support, noise)
        parts = [*path.latents, path.decoded, *path.finetuned]
        direction = torch.Generator().manual_seed(1)
        of_path = sum((part * torch.randn(part.shape, generator=direction).double()).sum() for part in parts)
        of_form.append((terms, parts, gradients(leo, terms["loss"]), gradients(leo, of_path)))
    for one, other in zip(*of_form, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("support", ["one shot", "five shots", "classes that differ", "one image left out"])
@pytest.mark.parametrize("latents", ["class", "example"])
@pytest.mark.parametrize("ablation", ABLATIONS)
def test_as_a_value_an_adaptation_takes_its_steps_by_scores(ablation, latents, support, monkeypatch):
    leo = make(**ABLATIONS[ablation] | {"latents": latents})
    supports = {
        "one shot": make_tasks(1).support,
        "five shots": make_tasks(5).support,
        "classes that differ": unequal_support(3, num_way=5),
        "one image left out": unequal_support(3)._replace(present=~torch.eye(7, dtype=torch.bool)[[2, 4]]),
    }
    expected = leo.adaptation(supports[support]).weights
    monkeypatch.setattr(leo, "adaptation", None)
    monkeypatch.setattr(LEO, "steps_by_scores", lambda self, support: True)  # cheaper or not
    with torch.no_grad():
        torch.testing.assert_close(leo.adapt(supports[support]), expected, rtol=1e-10, atol=1e-10)


def test_steps_are_taken_by_scores_where_that_is_cheaper_and_known():
    few, many = make_tasks(1).support, torch.randn(1, 2, 30, 12).double()
    assert make().steps_by_scores(few)
    assert not make().steps_by_scores(many)  # 60 images, whose products with each other are more than 2 classes' scores
    assert not make(inner_loops="autograd").steps_by_scores(few)
    assert not make_own(Curved).steps_by_scores(few)
    for name in ("adaptation", "inner_loops", "seen"):
        own = type("Own", (LEO,), {name: lambda self, *args: None})
        assert not make_own(own).steps_by_scores(few)


@pytest.mark.parametrize("sampled", [False, True])
@pytest.mark.parametrize("latents", ["class", "example"])
@pytest.mark.parametrize("ablation", ABLATIONS)
def test_both_forms_agree_where_classes_differ_in_their_images(ablation, latents, sampled):
    """With the gradient of a loss on the classifier; each adaptation also without one of its images."""
    support = unequal_support(3, num_way=5)
    present = torch.ones(3, len(support.images), dtype=torch.bool)
    present[torch.arange(1, 3), [2, 4]] = False
    support, of_form = support._replace(present=present), []
    for leo in pair(**ABLATIONS[ablation] | {"latents": latents}):
        noise = leo.draw_samples((3, 3, 3), torch.Generator().manual_seed(2)) if sampled else ()
        weights = leo.adaptation(support, *([noise] if noise else [])).weights
        of_form.append((weights, gradients(leo, weights.sin().sum())))
    for one, other in zip(*of_form, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("form", ["closed_form", "autograd"])
@pytest.mark.parametrize("latents", ["class", "example"])
def test_equal_classes_adapt_as_unequal_ones_that_happen_to_be_equal(latents, form):
    """The classifier, and the gradient of a loss on it."""
    leo, (batch, support) = make(latents=latents, inner_loops=form), equal_support(3)
    one, other = leo.adapt(batch), leo.adapt(support)
    torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-10)
    of_one, of_other = (gradients(leo, weights.sin().sum()) for weights in (one, other))
    torch.testing.assert_close(of_one, of_other, rtol=1e-10, atol=1e-10)


class Curved(LEO):
    """A decoder of two layers with a sigmoid between them."""

    def __init__(self, **settings):
        super().__init__(**settings)
        layers = nn.Linear(self.num_latents, 5), nn.Sigmoid(), nn.Linear(5, self.num_features)
        self.decoder = nn.Sequential(*layers)

    def decode(self, z, eps):
        weights = self.decoder(z)
        return weights if eps is None else weights + 0.1 * weights.sin() * eps


class Hinged(LEO):
    """A smooth hinge loss of the right class against each other one, in place of cross-entropy."""

    def inner_loss(self, parameters, support):
        scores = logits(self.model_parameters(parameters), support)  # [B, N, K, N]
        right = scores.diagonal(dim1=1, dim2=3).mT.unsqueeze(-1)
        return nn.functional.softplus(1 - right + scores).sum((1, 2, 3))


class Nearer(LEO):
    """A class's code is the mean of its own images' codes; any number of images a class."""

    def __init__(self, **settings):
        super().__init__(**settings)
        del self.relation
        self.second = nn.Linear(self.num_latents, 2 * self.num_latents, bias=False)

    def encode(self, support):
        codes = self.second(self.encoder(images_of(support)).tanh())
        mean, u = mean_over_class(codes, support).chunk(2, dim=-1)
        num_shot = support.num_shot if isinstance(support, Support) else support.shape[2]
        return self.copies(Gaussian(mean, u), num_shot)


class Pulled(LEO):
    """A penalty on the adapted codes, whose gradient goes through every latent step."""

    def objective(self, tasks, noise):
        terms = super().objective(tasks, noise)
        return terms | {"loss": terms["loss"] + self.adaptation(tasks.support, noise).latents[-1].square().mean()}


def make_own(kind, **changes):
    torch.manual_seed(0)
    return kind(**DEFAULTS | {"encoder_penalty_weight": 0.0} | changes).double()


@pytest.mark.parametrize("latents", ["class", "example"])
@pytest.mark.parametrize("kind", [Curved, Hinged, Nearer, Pulled])
def test_what_a_subclass_overrides_has_its_whole_gradient(kind, latents):
    """Central differences of the meta-loss along random directions of all parameters."""
    leo, tasks = make_own(kind, latents=latents, dropout=0.2), make_tasks(2)
    noise = noise_of(leo, tasks, 3)
    exact = gradients(leo, leo.objective(tasks, noise)["loss"])
    start = {name: value.clone() for name, value in leo.state_dict().items()}
    for seed in range(3):
        generator = torch.Generator().manual_seed(seed)
        direction = {name: torch.randn(value.shape, generator=generator).double() for name, value in start.items()}
        losses = []
        for sign in (1, -1):
            leo.load_state_dict({name: start[name] + sign * 1e-6 * direction[name] for name in start})
            losses.append(leo.objective(tasks, noise)["loss"].item())
        slope = sum((exact[name] * direction[name]).sum() for name in start).item()
        assert (losses[0] - losses[1]) / 2e-6 == pytest.approx(slope, rel=1e-6, abs=1e-8)


@pytest.mark.parametrize("kind", [Curved, Hinged])
def test_a_subclass_adapts_without_gradients_too(kind):
    leo, tasks = make_own(kind), make_tasks(2)
    with torch.no_grad():
        plain = leo.adapt(tasks.support)
    assert not plain.requires_grad
    torch.testing.assert_close(plain, leo.adapt(tasks.support).detach())


def test_an_own_encoder_takes_classes_of_any_number_of_images():
    leo, (batch, support) = make_own(Nearer, latents="example"), equal_support(3)
    torch.testing.assert_close(leo.adapt(batch), leo.adapt(support), rtol=1e-10, atol=1e-10)


def test_an_inner_step_on_a_parabola_by_hand():
    """z <- z - 0.3 * d/dz (2 z^2), twice, then 0.25 steps on w = 3 z: every number by hand, and its derivative."""

    class Parabola(Curved):
        def encode(self, support):
            mean = self.start.view(1, 1, 1, 1)
            return Gaussian(mean, torch.zeros_like(mean))

        def decode(self, z, eps):
            return 3 * z

        def inner_loss(self, parameters, support):
            return 2 * (parameters / 3).square().sum((1, 2, 3))

    changes = {"num_features": 1, "num_latents": 1, "num_latent_steps": 2, "num_finetune_steps": 1}
    leo = make_own(Parabola, **changes, latent_lr=0.3, finetune_lr=0.25)
    leo.start = nn.Parameter(torch.tensor(2.0).double())
    path = leo.adaptation(torch.zeros(1, 1, 1, 1).double())
    assert [z.item() for z in path.latents] == pytest.approx([2.0, -0.4, 0.08])  # each times 1 - 0.3 * 4
    assert path.decoded.item() == pytest.approx(0.24)
    assert path.weights.item() == pytest.approx(0.24 - 0.25 * 4 / 9 * 0.24)
    (slope,) = torch.autograd.grad(path.weights.sum(), leo.start)
    assert slope.item() == pytest.approx(3 * (-0.2) ** 2 * (1 - 1 / 9))


@pytest.mark.parametrize(
    ("kind", "reason"),
    [(Curved, "Curved has a method decode of its own"), (Hinged, "Hinged has a method inner_loss of its own")],
)
def test_the_closed_form_is_refused_where_it_does_not_apply(kind, reason):
    with pytest.raises(ValueError, match=f"inner_loops=closed_form .*, and {reason}; choose inner_loops=auto"):
        make_own(kind, inner_loops="closed_form")


def test_a_decoder_that_is_replaced_is_seen_too():
    """Its layers are what trains: auto takes autograd, closed_form is refused at the first adaptation."""
    tasks, leo = make_tasks(2), make(inner_loops="closed_form")
    expected = leo.adapt(tasks.support)
    leo.decoder.linear = nn.Linear(4, 24).double()  # with a bias
    with pytest.raises(ValueError, match="the decoder of LEO is not LEO's linear one"):
        leo.adapt(tasks.support)
    leo.form = "auto"
    assert (leo.adapt(tasks.support) - expected).abs().max() > 1e-3


@pytest.mark.parametrize("name", ["leo", "meta_sgd"])
def test_the_gradient_of_the_support_images_is_whole(name):
    """They may come from an extractor that is trained along: central differences of the adapted classifier."""
    learner = make() if name == "leo" else None
    if learner is None:
        torch.manual_seed(0)
        learner = MetaSGD(num_features=12, num_way=3, num_steps=3, inner_lr=0.3, l2_weight=0.0).double()
    support = make_tasks(2).support
    moved = support.clone().requires_grad_()
    (exact,) = torch.autograd.grad(learner.adapt(moved).sin().sum(), moved)
    direction = torch.randn(support.shape, generator=torch.Generator().manual_seed(0)).double()
    losses = [learner.adapt(support + sign * 1e-6 * direction).sin().sum().item() for sign in (1, -1)]
    assert (losses[0] - losses[1]) / 2e-6 == pytest.approx((exact * direction).sum().item(), rel=1e-6)
    if name == "leo":
        learner.form = "closed_form"
        with pytest.raises(ValueError, match="the support needs a gradient"):
            learner.adapt(moved)


def test_tasks_may_be_taken_in_parts():
    """The noise of some tasks is theirs: the objective of a batch is the mean over its parts."""
    leo, tasks = make(dropout=0.3, kl_weight=0.1), make_tasks(2, num_tasks=4)
    noise = noise_of(leo, tasks, 1)
    parts = [torch.tensor([0, 2]), torch.tensor([1, 3])]
    of_part = [leo.objective(Tasks(*(part[rows] for part in tasks)), noise.of_tasks(rows)) for rows in parts]
    whole = leo.objective(tasks, noise)
    for name, value in whole.items():
        torch.testing.assert_close((of_part[0][name] + of_part[1][name]) / 2, value, msg=name)
