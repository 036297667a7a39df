"""Learners that generate or adapt ALL parameters of a model, for any differentiable loss (Section 2.3.5).

LEO with one latent code a task, encoded from inputs and targets together, and its baselines MAML and Meta-SGD. The
inner gradients are autograd's, differentiated through (second order). P is the number of the model's parameters.
"""

import math
from abc import abstractmethod
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from leo.algorithm import LatentEmbeddingOptimization
from leo.functions import Examples, ModelTasks
from leo.inference import InferenceModel
from leo.inner_loops import descend
from leo.learner import MetaLearner
from leo.networks import Gaussian, RelationNetwork, glorot_linear
from leo.noise import Noise

Loss = Callable[[Tensor, Tensor], Tensor]


class ModelLearner(MetaLearner):
    """A method that turns a task's examples into the parameters of ``model``.

    ``loss`` is of predictions [B, n, Y] and targets [B, n, Y], one number a task: of the support, averaged over its
    examples, in the inner loop, and of the queries.
    """

    model: InferenceModel
    loss: Loss

    @abstractmethod
    def sample(
        self, x: Float[Tensor, "B K X"], y: Float[Tensor, "B K Y"], generator: torch.Generator
    ) -> Float[Tensor, "B P"]:
        """Adapted parameters, one draw for each task; ``generator`` draws what is sampled."""

    def query_loss(self, parameters: Float[Tensor, "B P"], query: Examples) -> Float[Tensor, " B"]:
        """The loss of each task's queries; not finite where the parameters are not."""
        losses = self.loss(self.model(parameters, query.x), query.y)
        return losses.masked_fill(~parameters.detach().isfinite().all(1), torch.nan)


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


class ModelLEO(LatentEmbeddingOptimization, ModelLearner):
    """LEO with one latent code a task that generates the whole model. Sampled in training and evaluation alike.

    Standard deviations start near 1 for codes and near the share ``noise_scale`` of the model's ``scale`` for
    parameters. They are softplus(u), not exp(u): without biases u grows with the inputs, and with exp one of some
    thousand samples was off by many orders of magnitude.

    Args:
        model, loss: see ``ModelLearner``.
        max_norm: limit of each task's gradient in an inner step; None: none.
        num_inputs: of the encoder: numbers of one example, x and y together.
        num_latents: Z.
        num_hidden: units of the two hidden layers of the encoder.
        num_decoder_hidden: of the decoder; None: as many.
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
        max_norm: float | None,
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
        num_decoder_hidden: int | None = None,
    ) -> None:
        super().__init__(
            num_latent_steps=num_latent_steps,
            num_finetune_steps=num_finetune_steps,
            kl_weight=kl_weight,
            encoder_penalty_weight=encoder_penalty_weight,
            l2_weight=l2_weight,
            orthogonality_weight=orthogonality_weight,
            max_norm=max_norm,
        )
        self.model, self.loss, self.num_latents, self.noise_scale = model, loss, num_latents, noise_scale
        num_parameters = len(model.scale)
        self.encoder = bias_free([num_inputs, num_hidden, num_hidden, num_latents])
        self.relation = RelationNetwork(num_latents)
        num_hidden = num_decoder_hidden or num_hidden
        self.decoder = bias_free([num_latents, num_hidden, num_hidden, 2 * num_parameters])
        self.set_rates(num_latents, latent_lr, num_parameters, finetune_lr)

    def draw_noise(self, tasks: ModelTasks, generator: torch.Generator) -> Noise:
        """The random numbers of one training pass."""
        return self.draw_samples(tasks.support_x, generator)

    def draw_samples(self, support_x: Float[Tensor, "B K X"], generator: torch.Generator) -> Noise:
        """The random numbers of one adaptation of each task."""

        def normal(*shape: int) -> Tensor:
            return torch.randn(*shape, dtype=support_x.dtype, device=support_x.device, generator=generator)

        num_tasks = len(support_x)
        return Noise(
            normal(num_tasks, 1, 1, self.num_latents),
            normal(self.num_latent_steps + 1, num_tasks, len(self.model.scale)),
        )

    def encode(self, support: Examples) -> Gaussian:
        """The distribution of each task's code, [B, 1, 1, Z]: one class with one code, for the terms of Eq. 6."""
        mean, u = self.relation(self.encoder(torch.cat(support, -1)).unsqueeze(1))
        sd = Softplus.apply(u) / math.log(2)  # 1 at u = 0
        return Gaussian(mean.unsqueeze(2), sd.log1p().unsqueeze(2))  # of which ``stddev`` makes sd again

    def decode(self, z: Float[Tensor, "B 1 1 Z"], eps: Float[Tensor, "B P"] | None) -> Float[Tensor, "B P"]:
        """The parameters that code z and draw ``eps`` make; their mean where that is None."""
        mean, u = self.decoder(z.flatten(1)).chunk(2, -1)
        if eps is None:
            return mean
        return torch.addcmul(mean, Softplus.apply(u), self.noise_scale / math.log(2) * self.model.scale * eps)

    def inner_loss(self, parameters: Float[Tensor, "B P"], support: Examples) -> Float[Tensor, " B"]:
        """The loss of each task's support."""
        return self.loss(self.model(parameters, support.x), support.y)

    def query_terms(self, parameters: Float[Tensor, "B P"], tasks: ModelTasks, noise: Noise) -> dict[str, Tensor]:
        """The mean loss of the queries."""
        return {"query_loss": self.query_loss(parameters, tasks.query).mean()}

    def sample(
        self, x: Float[Tensor, "B K X"], y: Float[Tensor, "B K Y"], generator: torch.Generator
    ) -> Float[Tensor, "B P"]:
        """Adapted parameters, one draw for each task."""
        return self.adaptation(Examples(x, y), self.draw_samples(x, generator)).weights


class ModelMetaSGD(ModelLearner):
    """Learned initial parameters and gradient steps from there: MAML, or Meta-SGD where the rates are learned too.

    Args:
        model, loss: see ``ModelLearner``.
        max_norm: limit of each task's gradient in an inner step; None: none.
        num_steps: inner steps.
        inner_lr: their rate, or its initial value.
        learn_rates: whether each parameter has a learned rate of its own.
    """

    def __init__(
        self,
        *,
        model: InferenceModel,
        loss: Loss,
        max_norm: float | None,
        num_steps: int,
        inner_lr: float,
        learn_rates: bool,
    ) -> None:
        super().__init__()
        self.model, self.loss, self.max_norm, self.num_steps = model, loss, max_norm, num_steps
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
            parameters = descend(parameters, self.inner_lr, lambda p: self.loss(self.model(p, x), y), self.max_norm)
        return parameters

    def sample(
        self, x: Float[Tensor, "B K X"], y: Float[Tensor, "B K Y"], generator: torch.Generator
    ) -> Float[Tensor, "B P"]:
        """Adapted parameters. Nothing is drawn: samples are equal."""
        return self.adapt(x, y)

    def objective(self, tasks: ModelTasks, noise: Noise) -> dict[str, Tensor]:
        """The query loss, mean over the tasks."""
        loss = self.query_loss(self.adapt(*tasks.support), tasks.query).mean()
        return {"loss": loss, "query_loss": loss}
