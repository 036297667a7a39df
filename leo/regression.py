"""Learners that generate or adapt ALL parameters of a model, for any differentiable loss (Section 2.3.5).

LEO with one latent code a task, encoded from inputs and targets together, and its baselines MAML and Meta-SGD. The
inner gradients are autograd's, differentiated through (second order). P is the number of the model's parameters.
"""

import math
from abc import abstractmethod
from collections.abc import Callable, Sequence
from functools import partial
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from leo import objective
from leo.functions import ModelTasks
from leo.inference import InferenceModel
from leo.learner import MetaLearner
from leo.networks import Gaussian, RelationNetwork, glorot_linear, stddev

Loss = Callable[[Tensor, Tensor], Tensor]


def descend(
    start: Float[Tensor, "B *any"], rate: Tensor, max_norm: float, loss_of: Callable[[Tensor], Tensor]
) -> Float[Tensor, "B *any"]:
    """start - rate * gradient of each task's loss, each gradient scaled to a norm of at most ``max_norm``.

    Differentiable where gradients are enabled. Without the limit squared errors of steep functions diverge: a step too
    far makes the next gradient larger.
    """
    differentiable = torch.is_grad_enabled()
    with torch.enable_grad():
        start = start if differentiable else start.detach().requires_grad_()
        (gradient,) = torch.autograd.grad(loss_of(start).sum(), start, create_graph=differentiable)
    return Step.apply(start, rate, gradient, max_norm)


class Step(torch.autograd.Function):
    """start - rate * gradient, each gradient (the last dimension) scaled to a norm of at most ``max_norm``.

    In closed form, which takes fewer operations than autograd's derivative of the limit.
    """

    @staticmethod
    def forward(ctx: Any, start: Tensor, rate: Tensor, gradient: Tensor, max_norm: float) -> Tensor:
        ctx.max_norm = max_norm
        ctx.scale = max_norm / gradient.norm(dim=-1, keepdim=True).clamp_min(max_norm)
        limited = ctx.scale * gradient
        ctx.save_for_backward(rate, limited)
        return torch.addcmul(start, rate, limited, value=-1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, to_end: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        rate, limited = ctx.saved_tensors
        to_limited = -rate * to_end
        # A limited gradient has a fixed length: only what is across it passes.
        along = (to_limited * limited).sum(-1, keepdim=True) / ctx.max_norm**2 * (ctx.scale < 1)
        to_gradient = torch.addcmul(to_limited, along, limited, value=-1).mul_(ctx.scale)
        return to_end, -(to_end * limited).sum_to_size(rate.shape), to_gradient, None


class ModelLearner(MetaLearner):
    """A method that turns a task's examples into the parameters of ``model``.

    Args:
        model: what is adapted.
        loss: of predictions [B, n, Y] and targets [B, n, Y], one number a task: of the support, averaged over its
            examples, in the inner loop, and of the queries.
        max_norm: of the gradient of one task in an inner step.
    """

    def __init__(self, model: InferenceModel, loss: Loss, max_norm: float) -> None:
        super().__init__()
        self.model, self.loss, self.max_norm = model, loss, max_norm

    def step(self, start: Float[Tensor, "B *any"], rate: Tensor, loss_of: Callable[[Tensor], Tensor]) -> Tensor:
        """``start`` after an inner step."""
        return descend(start, rate, self.max_norm, loss_of)

    @abstractmethod
    def sample(
        self, x: Float[Tensor, "B K X"], y: Float[Tensor, "B K Y"], generator: torch.Generator
    ) -> Float[Tensor, "B P"]:
        """Adapted parameters, one draw for each task; ``generator`` draws what is sampled."""


class ModelNoise(NamedTuple):
    """The standard-normal draws of one pass: of the codes, and of the parameters at each of S + 1 decodings."""

    latents: Float[Tensor, "B 1 1 Z"]
    parameters: Float[Tensor, "S_plus_1 B P"]


class ModelAdaptation(NamedTuple):
    """The path of one adaptation; ``latents[s]`` and ``parameters[s]`` are after s steps."""

    code: Gaussian
    latents: list[Float[Tensor, "B 1 1 Z"]]
    parameters: list[Float[Tensor, "B P"]]


def bias_free(sizes: Sequence[int]) -> nn.Sequential:
    """A perceptron without biases, ReLU between its layers."""
    layers = [layer for num_in, num_out in pairwise(sizes) for layer in (glorot_linear(num_in, num_out), nn.ReLU())]
    return nn.Sequential(*layers[:-1])


class Softplus(torch.autograd.Function):
    """log(1 + exp(u)), twice differentiable. torch's own, and log1p, take ten times as long on a CPU."""

    @staticmethod
    def forward(ctx: Any, u: Tensor) -> Tensor:
        ctx.save_for_backward(u)
        return u.relu() + (1 + (-u.abs()).exp()).log()

    @staticmethod
    def backward(ctx: Any, to_value: Tensor) -> Tensor:
        (u,) = ctx.saved_tensors
        return to_value * u.sigmoid()


class ModelLEO(ModelLearner):
    """LEO with one latent code a task that generates the whole model. Sampled in training and evaluation alike.

    Standard deviations start near 1 for codes and near the share ``noise_scale`` of the model's ``scale`` for
    parameters. They are softplus(u), not exp(u): without biases u grows with the inputs, and with exp one of some
    thousand samples was off by many orders of magnitude.

    Args:
        num_inputs: of the encoder: numbers of one example, x and y together.
        num_latents: Z.
        num_hidden: units of the two hidden layers of the encoder, and of the decoder.
        num_latent_steps, num_finetune_steps: inner steps in latent space and in parameter space.
        latent_lr, finetune_lr: initial value of the learned rates, one for each latent dimension and parameter.
        noise_scale: share of the model's ``scale`` that parameters are first drawn with.
        kl_weight, encoder_penalty_weight, l2_weight, orthogonality_weight: beta, gamma, lambda_1, lambda_2 of Eq. 6.
    """

    def __init__(
        self,
        *,
        model: InferenceModel,
        loss: Loss,
        max_norm: float,
        num_inputs: int,
        num_latents: int,
        num_hidden: int,
        num_latent_steps: int,
        num_finetune_steps: int,
        latent_lr: float,
        finetune_lr: float,
        noise_scale: float,
        kl_weight: float,
        encoder_penalty_weight: float,
        l2_weight: float,
        orthogonality_weight: float,
    ) -> None:
        super().__init__(model, loss, max_norm)
        self.num_latents, self.noise_scale = num_latents, noise_scale
        self.num_latent_steps, self.num_finetune_steps = num_latent_steps, num_finetune_steps
        self.kl_weight, self.encoder_penalty_weight = kl_weight, encoder_penalty_weight
        self.l2_weight, self.orthogonality_weight = l2_weight, orthogonality_weight
        num_parameters = len(model.scale)
        self.encoder = bias_free([num_inputs, num_hidden, num_hidden, num_latents])
        self.relation = RelationNetwork(num_latents)
        self.decoder = bias_free([num_latents, num_hidden, num_hidden, 2 * num_parameters])
        if num_latent_steps:
            self.latent_lr = nn.Parameter(torch.full((num_latents,), float(latent_lr)))
        if num_finetune_steps:
            self.finetune_lr = nn.Parameter(torch.full((num_parameters,), float(finetune_lr)))

    def draw_noise(self, support_x: Float[Tensor, "B K X"], generator: torch.Generator) -> ModelNoise:
        """The random numbers of one pass."""

        def normal(*shape: int) -> Tensor:
            return torch.randn(*shape, dtype=support_x.dtype, device=support_x.device, generator=generator)

        num_tasks = len(support_x)
        return ModelNoise(
            normal(num_tasks, 1, 1, self.num_latents),
            normal(self.num_latent_steps + 1, num_tasks, len(self.model.scale)),
        )

    def encode(self, x: Float[Tensor, "B K X"], y: Float[Tensor, "B K Y"]) -> Gaussian:
        """The distribution of each task's code, [B, 1, 1, Z]: one class with one code, for the terms of Eq. 6."""
        mean, u = self.relation(self.encoder(torch.cat([x, y], -1)).unsqueeze(1))
        sd = Softplus.apply(u) / math.log(2)  # 1 at u = 0
        return Gaussian(mean.unsqueeze(2), sd.log1p().unsqueeze(2))  # of which ``stddev`` makes sd again

    def decode(self, z: Float[Tensor, "B 1 1 Z"], eps: Float[Tensor, "B P"]) -> Float[Tensor, "B P"]:
        """The parameters that code z and draw ``eps`` make."""
        mean, u = self.decoder(z.flatten(1)).chunk(2, -1)
        return torch.addcmul(mean, Softplus.apply(u), self.noise_scale / math.log(2) * self.model.scale * eps)

    def adaptation(self, x: Float[Tensor, "B K X"], y: Float[Tensor, "B K Y"], noise: ModelNoise) -> ModelAdaptation:
        """Algorithm 1, lines 5-10."""

        def loss_of(parameters: Tensor) -> Tensor:
            return self.loss(self.model(parameters, x), y)

        def loss_of_code(z: Tensor, eps: Tensor) -> Tensor:
            return loss_of(self.decode(z, eps))

        code = self.encode(x, y)
        latents = [code.mean + stddev(code.u) * noise.latents]
        for eps in noise.parameters[:-1]:
            latents.append(self.step(latents[-1], self.latent_lr, partial(loss_of_code, eps=eps)))
        parameters = [self.decode(latents[-1], noise.parameters[-1])]
        for _ in range(self.num_finetune_steps):
            parameters.append(self.step(parameters[-1], self.finetune_lr, loss_of))
        return ModelAdaptation(code, latents, parameters)

    def sample(
        self, x: Float[Tensor, "B K X"], y: Float[Tensor, "B K Y"], generator: torch.Generator
    ) -> Float[Tensor, "B P"]:
        """Adapted parameters, one draw for each task."""
        return self.adaptation(x, y, self.draw_noise(x, generator)).parameters[-1]

    def meta_loss(self, tasks: ModelTasks, generator: torch.Generator) -> dict[str, Tensor]:
        """Eq. 6, ``loss``, and its terms before their weights; means over the tasks."""
        return self.objective(tasks, self.draw_noise(tasks.support_x, generator))

    def objective(self, tasks: ModelTasks, noise: ModelNoise) -> dict[str, Tensor]:
        """``meta_loss`` with given random numbers."""
        path = self.adaptation(tasks.support_x, tasks.support_y, noise)
        matrices = [layer.weight for layer in self.decoder if isinstance(layer, nn.Linear)]
        terms = {
            "query_loss": self.loss(self.model(path.parameters[-1], tasks.query_x), tasks.query_y).mean(),
            "kl": objective.kl_divergence(path.code, path.latents[0], noise.latents).mean(),
            "encoder_penalty": objective.encoder_penalty(path.latents[0], path.latents[-1]).mean(),
            "l2": objective.l2(parameter for parameter in self.parameters() if parameter.ndim == 2),
            "orthogonality": torch.stack([objective.orthogonality(matrix) for matrix in matrices]).mean(),
        }
        loss = (
            terms["query_loss"]
            + self.kl_weight * terms["kl"]
            + self.encoder_penalty_weight * terms["encoder_penalty"]
            + self.l2_weight * terms["l2"]
            + self.orthogonality_weight * terms["orthogonality"]
        )
        return {"loss": loss, **terms}


class ModelMetaSGD(ModelLearner):
    """Learned initial parameters and gradient steps from there: MAML, or Meta-SGD where the rates are learned too.

    Args:
        num_steps: inner steps.
        inner_lr: their rate, or its initial value.
        learn_rates: whether each parameter has a learned rate of its own.
    """

    def __init__(
        self,
        *,
        model: InferenceModel,
        loss: Loss,
        max_norm: float,
        num_steps: int,
        inner_lr: float,
        learn_rates: bool,
    ) -> None:
        super().__init__(model, loss, max_norm)
        self.num_steps = num_steps
        self.initial_parameters = nn.Parameter(model.scale * torch.randn(len(model.scale)))
        rates = torch.full_like(model.scale, float(inner_lr))
        self.inner_lr: Tensor
        if learn_rates:
            self.inner_lr = nn.Parameter(rates)
        else:
            self.register_buffer("inner_lr", rates)

    def adapt(self, x: Float[Tensor, "B K X"], y: Float[Tensor, "B K Y"]) -> Float[Tensor, "B P"]:
        """The parameters after ``num_steps`` gradient steps on the support loss."""
        parameters = self.initial_parameters.expand(len(x), -1)
        for _ in range(self.num_steps):
            parameters = self.step(parameters, self.inner_lr, lambda p: self.loss(self.model(p, x), y))
        return parameters

    def sample(
        self, x: Float[Tensor, "B K X"], y: Float[Tensor, "B K Y"], generator: torch.Generator
    ) -> Float[Tensor, "B P"]:
        """Adapted parameters. Nothing is drawn: samples are equal."""
        return self.adapt(x, y)

    def meta_loss(self, tasks: ModelTasks, generator: torch.Generator) -> dict[str, Tensor]:
        """The query loss, mean over the tasks."""
        parameters = self.adapt(tasks.support_x, tasks.support_y)
        loss = self.loss(self.model(parameters, tasks.query_x), tasks.query_y).mean()
        return {"loss": loss, "query_loss": loss}
