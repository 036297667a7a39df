"""Latent Embedding Optimization (Rusu et al., ICLR 2019, Algorithm 1) for a linear softmax classifier."""

from typing import Literal, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from leo import objective, softmax
from leo.dropout import dropout
from leo.episodes import Tasks
from leo.learner import Learner
from leo.networks import Decoder, Gaussian, RelationNetwork, glorot_linear, stddev


class Noise(NamedTuple):
    """Standard-normal draws of one pass: the latent codes, and one draw of weights for each decoding."""

    latents: Float[Tensor, "B N M Z"]
    weights: Float[Tensor, "B S_plus_1 N M D"]


class Adaptation(NamedTuple):
    """The path of one adaptation. Index s is after s steps; all are differentiable to the meta-parameters."""

    code: Gaussian
    latents: list[Float[Tensor, "B N M Z"]]
    decoded: list[Float[Tensor, "B N M D"]]
    finetuned: list[Float[Tensor, "B N D"]]

    @property
    def weights(self) -> Float[Tensor, "B N D"]:
        """The adapted classifier."""
        return self.finetuned[-1]


class LEO(Learner):
    """LEO: encode a task to latent codes, take gradient steps there, decode, fine-tune the weights.

    Algorithm 1's inner loops are written with the gradient of the support loss in closed form, so that one ordinary
    backward pass gives the exact (second-order) meta-gradient.

    Args:
        num_features: D.
        num_latents: Z.
        latents: ``class`` (the paper: one code a class) or ``example`` (the released code: one a support image, their
            logits averaged). Equal where K = 1.
        initial_code: ``encoder``, or ``prior``: drawn from N(0, 1), whose mean 0 is used where nothing is sampled.
        stochastic: whether codes and weights are sampled in training. In evaluation they are the means.
        num_latent_steps, num_finetune_steps: inner steps in latent space and in weight space.
        latent_lr, finetune_lr: initial value of the learned rates, one for each latent and feature dimension.
        dropout: rate at the encoder's input and at each prediction, in training.
        kl_weight, encoder_penalty_weight, l2_weight, orthogonality_weight: beta, gamma, lambda_1, lambda_2 of Eq. 6.
    """

    def __init__(
        self,
        *,
        num_features: int,
        num_latents: int,
        latents: Literal["class", "example"],
        initial_code: Literal["encoder", "prior"],
        stochastic: bool,
        num_latent_steps: int,
        num_finetune_steps: int,
        latent_lr: float,
        finetune_lr: float,
        dropout: float,
        kl_weight: float,
        encoder_penalty_weight: float,
        l2_weight: float,
        orthogonality_weight: float,
    ) -> None:
        super().__init__()
        if latents not in ("class", "example"):
            raise ValueError(f"latents={latents!r} is unknown; choose class or example")
        if initial_code not in ("encoder", "prior"):
            raise ValueError(f"initial_code={initial_code!r} is unknown; choose encoder or prior")
        if not 0 <= dropout < 1:
            raise ValueError(f"dropout={dropout} is not a rate; it must be at least 0 and below 1")
        self.num_features, self.num_latents, self.latents = num_features, num_latents, latents
        self.stochastic, self.dropout = stochastic, dropout
        self.num_latent_steps, self.num_finetune_steps = num_latent_steps, num_finetune_steps
        self.kl_weight, self.encoder_penalty_weight = kl_weight, encoder_penalty_weight
        self.l2_weight, self.orthogonality_weight = l2_weight, orthogonality_weight
        self.encodes = initial_code == "encoder"
        if self.encodes:
            self.encoder = glorot_linear(num_features, num_latents)
            self.relation = RelationNetwork(num_latents)
        self.decoder = Decoder(num_latents, num_features)
        if num_latent_steps:
            self.latent_lr = nn.Parameter(torch.full((num_latents,), float(latent_lr)))
        if num_finetune_steps:
            self.finetune_lr = nn.Parameter(torch.full((num_features,), float(finetune_lr)))

    def adapt(
        self, support: Float[Tensor, "B N K D"], generator: torch.Generator | None = None
    ) -> Float[Tensor, "B N D"]:
        """The classifier adapted to ``support``."""
        return self.adaptation(support, self.draw_noise(support, generator), generator).weights

    def draw_noise(self, support: Float[Tensor, "B N K D"], generator: torch.Generator | None) -> Noise | None:
        """The draws of one stochastic pass; None where codes and weights are their means."""
        if not (self.training and self.stochastic):
            return None
        num_tasks, num_way, num_shot, num_features = support.shape
        num_codes = num_shot if self.latents == "example" else 1

        def normal(*shape: int) -> Tensor:
            return torch.randn(shape, dtype=support.dtype, device=support.device, generator=generator)

        return Noise(
            normal(num_tasks, num_way, num_codes, self.num_latents),
            normal(num_tasks, self.num_latent_steps + 1, num_way, num_codes, num_features),
        )

    def encode(self, support: Float[Tensor, "B N K D"]) -> Gaussian:
        """The distribution of each class's code, [B, N, M, Z]: M = K equal copies where every example has its own."""
        num_tasks, num_way, num_shot, _ = support.shape
        if self.encodes:
            mean, u = self.relation(self.encoder(support))
        else:  # exp(u) - 1 = 1
            mean = support.new_zeros(num_tasks, num_way, self.num_latents)
            u = torch.full_like(mean, 2.0).log()
        num_codes = num_shot if self.latents == "example" else 1
        return Gaussian(*(part.unsqueeze(2).expand(-1, -1, num_codes, -1) for part in (mean, u)))

    def adaptation(
        self, support: Float[Tensor, "B N K D"], noise: Noise | None, generator: torch.Generator | None = None
    ) -> Adaptation:
        """Algorithm 1, lines 5-10, with given ``noise``; ``generator`` draws the dropout masks."""
        code = self.encode(self.drop(support, generator))
        z = code.mean if noise is None else code.mean + stddev(code.u) * noise.latents
        latents, decoded = [z], []
        for step in range(self.num_latent_steps):
            weights, pullback = self.decoder(z, None if noise is None else noise.weights[:, step])
            # The logit of a class is the mean over its M weight vectors: each gets 1 / M of their common gradient.
            gradient = softmax.loss_gradient(weights.mean(2), self.drop(support, generator)) / weights.shape[2]
            z = z - self.latent_lr * pullback(gradient.unsqueeze(2).expand_as(weights))
            latents.append(z)
            decoded.append(weights)
        weights, _ = self.decoder(z, None if noise is None else noise.weights[:, -1])
        decoded.append(weights)
        # Steps of the M vectors of a class are equal, so their mean takes the same step.
        num_codes, weights = weights.shape[2], weights.mean(2)
        finetuned = [weights]
        for _ in range(self.num_finetune_steps):
            gradient = softmax.loss_gradient(weights, self.drop(support, generator)) / num_codes
            weights = weights - self.finetune_lr * gradient
            finetuned.append(weights)
        return Adaptation(code, latents, decoded, finetuned)

    def meta_loss(self, tasks: Tasks, generator: torch.Generator) -> dict[str, Tensor]:
        """Eq. 6, ``loss``, and its terms before their weights; means over the tasks."""
        noise = self.draw_noise(tasks.support, generator)
        path = self.adaptation(tasks.support, noise, generator)
        logits = softmax.logits(path.weights, self.drop(tasks.query, generator))
        terms = {
            "query_loss": softmax.cross_entropy(logits).mean(),
            "encoder_penalty": objective.encoder_penalty(path.latents[0], path.latents[-1]).mean(),
            "l2": objective.l2(parameter for parameter in self.parameters() if parameter.ndim == 2),
            "orthogonality": objective.orthogonality(self.decoder.linear.weight),
        }
        loss = (
            terms["query_loss"]
            + self.encoder_penalty_weight * terms["encoder_penalty"]
            + self.l2_weight * terms["l2"]
            + self.orthogonality_weight * terms["orthogonality"]
        )
        if noise is not None:
            terms["kl"] = objective.kl_divergence(path.code, path.latents[0], noise.latents).mean()
            loss = loss + self.kl_weight * terms["kl"]
        return {"loss": loss, **terms, "accuracy": softmax.accuracy(logits.detach()).mean()}

    def drop(self, x: Float[Tensor, "*any D"], generator: torch.Generator | None) -> Float[Tensor, "*any D"]:
        """``x`` with a fresh dropout mask, in training."""
        if not self.training or self.dropout == 0:
            return x
        assert generator is not None, "dropout in training needs a generator"
        return dropout(x, self.dropout, generator)
