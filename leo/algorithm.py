"""Latent Embedding Optimization as the paper writes it: Algorithm 1, the fine-tuning of Section 4.2.3, and Eq. 6.

For any encoder, decoder and inner loss. What is a classifier or a whole model in particular is in ``leo.leo`` and in
``leo.regression``; the fast path of the classifier is in ``leo.closed_form``.
"""

from abc import abstractmethod
from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from leo import objective
from leo.inner_loops import descend
from leo.learner import MetaLearner
from leo.networks import Gaussian, stddev
from leo.noise import NO_NOISE, Noise


class InnerLoops(NamedTuple):
    """The path of the inner loops; index s is after s steps. All of it is differentiable to the meta-parameters.

    ``latents``: the codes z. ``decoded``: the parameters that the last code decodes to. ``finetuned``: the parameters
    of the model before and after each step of fine-tuning (of a classifier: means over a class's M weight vectors).
    """

    latents: list[Float[Tensor, "B N M Z"]]
    decoded: Tensor
    finetuned: list[Tensor]


class Adaptation(NamedTuple):
    """The path of one adaptation: the distribution of the codes, and ``InnerLoops``."""

    code: Gaussian
    latents: list[Float[Tensor, "B N M Z"]]
    decoded: Tensor
    finetuned: list[Tensor]

    @property
    def weights(self) -> Tensor:
        """The parameters of the adapted model."""
        return self.finetuned[-1]


class LatentEmbeddingOptimization(MetaLearner):
    """Encode a task to latent codes, take gradient steps there, decode, take gradient steps on the parameters.

    A subclass defines ``encode``, ``decode``, ``inner_loss`` and ``query_terms``, and may override each of them alone:
    the inner gradients are autograd's, differentiated through, so the meta-gradient is whole (second order) whatever
    these compute. It sets the modules ``decoder`` and what ``encode`` needs, then calls ``set_rates``.

    Args:
        num_latent_steps, num_finetune_steps: S and F, inner steps in latent space and in parameter space.
        kl_weight, encoder_penalty_weight, l2_weight, orthogonality_weight: beta, gamma, lambda_1, lambda_2 of Eq. 6.
        max_norm: limit of each task's inner gradients (see ``descend``); None: none, as in the paper.
    """

    decoder: nn.Module

    def __init__(
        self,
        *,
        num_latent_steps: int,
        num_finetune_steps: int,
        kl_weight: float,
        encoder_penalty_weight: float,
        l2_weight: float,
        orthogonality_weight: float,
        max_norm: float | None = None,
    ) -> None:
        super().__init__()
        self.num_latent_steps, self.num_finetune_steps = num_latent_steps, num_finetune_steps
        self.kl_weight, self.encoder_penalty_weight = kl_weight, encoder_penalty_weight
        self.l2_weight, self.orthogonality_weight = l2_weight, orthogonality_weight
        self.max_norm = max_norm

    def set_rates(self, num_latents: int, latent_lr: float, num_parameters: int, finetune_lr: float) -> None:
        """Make the learned rates of the inner steps, one for each dimension of a code and of the parameters."""
        if self.num_latent_steps:
            self.latent_lr = nn.Parameter(torch.full((num_latents,), float(latent_lr)))
        if self.num_finetune_steps:
            self.finetune_lr = nn.Parameter(torch.full((num_parameters,), float(finetune_lr)))

    @abstractmethod
    def encode(self, support: Any) -> Gaussian:
        """q(z | support), the distribution of each code (Eq. 3)."""

    @abstractmethod
    def decode(self, z: Float[Tensor, "B N M Z"], eps: Tensor | None) -> Tensor:
        """A sample of p(theta | z) by the draw ``eps``, its mean where that is None (Eq. 4)."""

    @abstractmethod
    def inner_loss(self, parameters: Tensor, support: Any) -> Float[Tensor, " B"]:
        """The loss of each task's support under decoded parameters (Eq. 5). It must be twice differentiable."""

    @abstractmethod
    def query_terms(self, parameters: Tensor, tasks: Any, noise: Noise) -> dict[str, Tensor]:
        """``query_loss``, the mean loss of the queries under the parameters of the model; and more to log."""

    def model_parameters(self, decoded: Tensor) -> Tensor:
        """The parameters of the model, from those that the codes decode to: here, the same."""
        return decoded

    def seen(self, support: Any, noise: Noise) -> Sequence[Any]:
        """What the encoder sees of the support, and what each of the S + F inner steps sees of it: here, all of it."""
        return [support] * (1 + self.num_latent_steps + self.num_finetune_steps)

    def adaptation(self, support: Any, noise: Noise = NO_NOISE) -> Adaptation:
        """Algorithm 1, lines 7 to 14, and fine-tuning (Section 4.2.3): a function of the support and of ``noise``."""
        first, *seen = self.seen(support, noise)
        code = self.encode(first)  # line 7: Eq. 3
        z = code.mean if noise.latents is None else code.mean + stddev(code.u) * noise.latents  # z ~ q(z | support)
        return Adaptation(code, *self.inner_loops(z, seen, noise))

    def inner_loops(self, z: Float[Tensor, "B N M Z"], seen: Sequence[Any], noise: Noise) -> InnerLoops:
        """Algorithm 1, lines 8 to 14, and fine-tuning (Section 4.2.3), from the first codes ``z``."""
        num_steps = self.num_latent_steps
        draws = [None] * (num_steps + 1) if noise.weights is None else noise.weights
        latents = [z]  # line 9

        def loss_of_code(z: Tensor, step: int) -> Tensor:  # lines 8 and 13: each code decodes by a draw of its own
            return self.inner_loss(self.decode(z, draws[step]), seen[step])  # line 11: Eq. 5

        for step in range(num_steps):  # lines 10 to 14
            loss_of = partial(loss_of_code, step=step)
            latents.append(descend(latents[-1], self.latent_lr, loss_of, self.max_norm))  # line 12
        parameters = decoded = self.decode(latents[-1], draws[-1])
        finetuned = [self.model_parameters(decoded)]
        for support in seen[num_steps:]:  # Section 4.2.3
            loss_of = partial(self.inner_loss, support=support)
            parameters = descend(parameters, self.finetune_lr, loss_of, self.max_norm)
            finetuned.append(self.model_parameters(parameters))
        return InnerLoops(latents, decoded, finetuned)

    def objective(self, tasks: Any, noise: Noise) -> dict[str, Tensor]:
        """Eq. 6, ``loss``, and its terms before their weights; means over the tasks."""
        path = self.adaptation(tasks.support, noise)
        terms = self.query_terms(path.weights, tasks, noise)
        loss = terms["query_loss"]  # Algorithm 1, line 15
        if noise.latents is not None:
            terms["kl"] = objective.kl_divergence(path.code, path.latents[0], noise.latents).mean()
            loss = loss + self.kl_weight * terms["kl"]
        terms["encoder_penalty"] = objective.encoder_penalty(path.latents[0], path.latents[-1]).mean()
        terms["l2"] = objective.l2(self.penalized())
        terms["orthogonality"] = objective.mean_orthogonality(self.decoder_matrices())
        loss = (
            loss
            + self.encoder_penalty_weight * terms["encoder_penalty"]
            + self.l2_weight * terms["l2"]  # R, Eq. 7
            + self.orthogonality_weight * terms["orthogonality"]
        )
        return {"loss": loss, **terms}

    def decoder_matrices(self) -> list[Tensor]:
        """The matrices whose rows the term of Eq. 7 makes orthogonal: those of the decoder's linear layers."""
        return [module.weight for module in self.decoder.modules() if isinstance(module, nn.Linear)]

    def penalized(self) -> list[Tensor]:
        """The matrices of encoder, relation network and decoder (Eq. 7)."""
        return [parameter for parameter in self.parameters() if parameter.ndim == 2]
