"""Latent Embedding Optimization (Rusu et al., ICLR 2019, Algorithm 1) for a linear softmax classifier."""

from collections.abc import Sequence
from functools import partial
from typing import Literal, NamedTuple

import torch
from jaxtyping import Float, Int16
from torch import Tensor, nn

from leo import objective, softmax
from leo.dropout import dropout, random_bits
from leo.episodes import Tasks
from leo.inner_loops import LatentLoop, WeightStep, class_mean, spread
from leo.learner import Learner
from leo.networks import Decoder, Gaussian, RelationNetwork, decode, glorot_linear, stddev
from leo.products import linear
from leo.support import Support
from runner.errors import InputError


class Noise(NamedTuple):
    """All random numbers of one pass; None where nothing is sampled, or dropped.

    Standard-normal draws of the codes, and of the weights at each of S + 1 decodings; bits of the dropout masks of
    the support, at the encoder and at each of T inner steps, and of the queries.
    """

    latents: Float[Tensor, "B N M Z"] | None = None
    weights: Float[Tensor, "S_plus_1 B N M D"] | None = None
    support_bits: Int16[Tensor, "T_plus_1 B N K D"] | None = None
    query_bits: Int16[Tensor, "B N Q D"] | None = None


NO_NOISE = Noise()


class Adaptation(NamedTuple):
    """The path of one adaptation; index s is after s steps.

    Differentiable to the meta-parameters, but for the codes after the first: these are values alone.
    """

    code: Gaussian
    latents: list[Float[Tensor, "B N M Z"]]
    decoded: Float[Tensor, "B N M D"]
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
            raise InputError(f"latents={latents!r} is unknown; choose class or example")
        if initial_code not in ("encoder", "prior"):
            raise InputError(f"initial_code={initial_code!r} is unknown; choose encoder or prior")
        if not 0 <= dropout < 1:
            raise InputError(f"dropout={dropout} is not a rate; it must be at least 0 and below 1")
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

    def adapt(self, support: Float[Tensor, "B N K D"]) -> Float[Tensor, "B N D"]:
        """The classifier adapted to ``support``, by the means of codes and weights and without dropout."""
        return self.adaptation(support, NO_NOISE).weights

    def draw_noise(self, tasks: Tasks, generator: torch.Generator) -> Noise:
        """The random numbers of one training pass."""
        device = tasks.support.device
        noise = self.draw_samples(tasks.support.shape[:3], generator) if self.stochastic else Noise()
        if self.dropout:
            num_masks = 1 + self.num_latent_steps + self.num_finetune_steps
            noise = noise._replace(
                support_bits=random_bits(num_masks, *tasks.support.shape, device=device, generator=generator),
                query_bits=random_bits(*tasks.query.shape, device=device, generator=generator),
            )
        return noise

    def draw_samples(self, sizes: Sequence[int], generator: torch.Generator) -> Noise:
        """The random numbers of sampled adaptations, without dropout; ``sizes`` are B, N and K."""
        num_tasks, num_way, num_shot = sizes
        weight, num_codes = self.decoder.linear.weight, num_shot if self.latents == "example" else 1
        normal = partial(torch.randn, dtype=weight.dtype, device=weight.device, generator=generator)
        return Noise(
            latents=normal(num_tasks, num_way, num_codes, self.num_latents),
            weights=normal(self.num_latent_steps + 1, num_tasks, num_way, num_codes, self.num_features),
        )

    def encode(self, support: Float[Tensor, "B N K D"]) -> Gaussian:
        """The distribution of each class's code, [B, N, M, Z]: M = K equal copies where every example has its own."""
        num_tasks, num_way, num_shot, _ = support.shape
        code = self.relation(linear(support, self.encoder.weight)) if self.encodes else self.prior(num_tasks, num_way)
        return self.copies(code, num_shot)

    def prior(self, num_tasks: int, num_way: int) -> Gaussian:
        """N(0, 1) for each class, [B, N, Z]: exp(u) - 1 = 1."""
        mean = self.decoder.linear.weight.new_zeros(num_tasks, num_way, self.num_latents)
        return Gaussian(mean, torch.full_like(mean, 2.0).log())

    def copies(self, code: Gaussian, num_shot: int) -> Gaussian:
        """The class's distribution for each of its M codes."""
        num_codes = num_shot if self.latents == "example" else 1
        return Gaussian(*(part.unsqueeze(2).expand(-1, -1, num_codes, -1) for part in code))

    def adaptation(self, support: Float[Tensor, "B N K D"], noise: Noise) -> Adaptation:
        """Algorithm 1, lines 5-10, a function of the support and of ``noise``."""
        num_steps = self.num_latent_steps
        inputs = self.drop(support.expand(1 + num_steps + self.num_finetune_steps, *support.shape), noise.support_bits)
        code = self.encode(inputs[0])
        z = code.mean if noise.latents is None else code.mean + stddev(code.u) * noise.latents
        num_tasks, num_way, num_codes, _ = z.shape
        images = inputs[1:].flatten(2, 3)
        weights, path = LatentLoop.apply(
            z.flatten(0, 2),
            self.latent_lr if num_steps else z.new_empty(self.num_latents),
            self.decoder.matrix(sampled=noise.weights is not None),
            None if noise.weights is None else noise.weights.flatten(1, 3),
            images[:num_steps],
            num_way,
        )
        # Steps of the M vectors of a class are equal, so their mean takes the same step.
        finetuned = [class_mean(weights, num_tasks, num_way)]
        if self.num_finetune_steps:
            rate = self.finetune_lr / num_codes
            for of_step in images[num_steps:]:
                finetuned.append(WeightStep.apply(finetuned[-1], rate, of_step))
        latents = [z, *path.view(num_steps, *z.shape)]
        return Adaptation(code, latents, weights.view(*z.shape[:3], -1), finetuned)

    def adapt_to(self, support: Support, noise: Noise = NO_NOISE) -> Float[Tensor, "B N D"]:
        """``adapt`` where classes differ in their number of images; sampled by the ``noise`` of ``draw_samples``.

        Algorithm 1 step by step. Every class has as many codes as a class of training, ``num_shot`` with
        ``latents=example``.
        """
        num_tasks, num_way, _ = support.class_mean.shape
        if self.encodes:
            codes = support.images @ self.encoder.weight.T
            code = self.relation.weighted(codes, support.partner_mean, support.class_mean)
        else:
            code = self.prior(num_tasks, num_way)
        code = self.copies(code, support.num_shot)
        z = code.mean if noise.latents is None else code.mean + stddev(code.u) * noise.latents
        matrix = self.decoder.matrix(sampled=noise.weights is not None)
        draws = [None] * (self.num_latent_steps + 1) if noise.weights is None else noise.weights.flatten(1, 3).unbind()
        for eps in draws[:-1]:
            weights, slope = decode(z.flatten(0, 2), matrix, eps, num_way)
            g = spread(support.loss_gradient(class_mean(weights, num_tasks, num_way)), len(weights))
            factor = g if slope is None else torch.cat([g, g * slope], dim=1)
            z = z - self.latent_lr * (factor @ matrix).view_as(z)
        weights, _ = decode(z.flatten(0, 2), matrix, draws[-1], num_way)
        classifier = class_mean(weights, num_tasks, num_way)
        for _ in range(self.num_finetune_steps):
            classifier = classifier - self.finetune_lr / z.shape[2] * support.loss_gradient(classifier)
        return classifier

    def meta_loss(self, tasks: Tasks, generator: torch.Generator) -> dict[str, Tensor]:
        """Eq. 6, ``loss``, and its terms before their weights; means over the tasks."""
        return self.objective(tasks, self.draw_noise(tasks, generator))

    def objective(self, tasks: Tasks, noise: Noise) -> dict[str, Tensor]:
        """``meta_loss`` with given random numbers."""
        path = self.adaptation(tasks.support, noise)
        logits = softmax.logits(path.weights, self.drop(tasks.query, noise.query_bits))
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
        if noise.latents is not None:
            terms["kl"] = objective.kl_divergence(path.code, path.latents[0], noise.latents).mean()
            loss = loss + self.kl_weight * terms["kl"]
        return {"loss": loss, **terms, "accuracy": softmax.accuracy(logits.detach()).mean()}

    def drop(self, x: Float[Tensor, "*any D"], bits: Int16[Tensor, "*any D"] | None) -> Float[Tensor, "*any D"]:
        """``x`` under the dropout mask of ``bits``; unchanged where there are none."""
        return x if bits is None else dropout(x, self.dropout, bits)
