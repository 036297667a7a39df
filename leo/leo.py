"""LEO for a linear softmax classifier (Rusu et al., ICLR 2019): the parts that ``leo.algorithm`` puts together."""

from collections.abc import Sequence
from functools import partial
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from leo import steps
from leo.algorithm import InnerLoops, LatentEmbeddingOptimization
from leo.closed_form import LatentLoop, WeightLoop, adapted_by_means, query_loss
from leo.episodes import Tasks
from leo.kernels import steps_for
from leo.learner import Learner
from leo.networks import Decoder, Gaussian, RelationNetwork, glorot_linear, stddev
from leo.noise import NO_NOISE, Noise
from leo.products import linear
from leo.support import AnySupport, Support, examples_of, images_of, sizes_of, support_loss
from runner.errors import InputError

__all__ = ["LEO", "NO_NOISE", "Noise"]


class LEO(LatentEmbeddingOptimization, Learner):
    """Latent Embedding Optimization that generates the weights of a linear softmax classifier.

    Args:
        num_features: D.
        num_latents: Z.
        latents: ``class`` (the paper: one code a class) or ``example`` (the released code: one a support image, their
            logits averaged). Equal where K = 1.
        initial_code: ``encoder``, or ``prior``: drawn from N(0, 1), whose mean 0 is used where nothing is sampled.
        stochastic: whether codes and weights are sampled in training. In evaluation they are the means.
        num_latent_steps, num_finetune_steps: S and F, inner steps in latent space and in weight space.
        latent_lr, finetune_lr: initial value of the learned rates, one for each latent and feature dimension.
        dropout: rate at the encoder's input and at each prediction, in training.
        kl_weight, encoder_penalty_weight, l2_weight, orthogonality_weight: beta, gamma, lambda_1, lambda_2 of Eq. 6.
        inner_loops: ``closed_form``: the inner gradients written out (``leo.closed_form``), for this decoder and this
            inner loss alone; ``autograd``: those of ``leo.algorithm``, for anything that a subclass overrides;
            ``auto``: the closed form where it applies. Equal, but for rounding, where both apply.
    """

    decoder: Decoder

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
        inner_loops: Literal["auto", "closed_form", "autograd"] = "auto",  # which older checkpoints do not name
    ) -> None:
        super().__init__(
            num_latent_steps=num_latent_steps,
            num_finetune_steps=num_finetune_steps,
            kl_weight=kl_weight,
            encoder_penalty_weight=encoder_penalty_weight,
            l2_weight=l2_weight,
            orthogonality_weight=orthogonality_weight,
        )
        if latents not in ("class", "example"):
            raise InputError(f"latents={latents!r} is unknown; choose class or example")
        if initial_code not in ("encoder", "prior"):
            raise InputError(f"initial_code={initial_code!r} is unknown; choose encoder or prior")
        if not 0 <= dropout < 1:
            raise InputError(f"dropout={dropout} is not a rate; it must be at least 0 and below 1")
        if inner_loops not in ("auto", "closed_form", "autograd"):
            raise InputError(f"inner_loops={inner_loops!r} is unknown; choose auto, closed_form or autograd")
        self.num_features, self.num_latents, self.latents = num_features, num_latents, latents
        self.stochastic, self.dropout, self.form = stochastic, dropout, inner_loops
        self.encodes = initial_code == "encoder"
        if self.encodes:
            self.encoder = glorot_linear(num_features, num_latents)
            self.relation = RelationNetwork(num_latents)
        self.decoder = Decoder(num_latents, num_features)
        self.set_rates(num_latents, latent_lr, num_features, finetune_lr)
        if inner_loops == "closed_form":
            self.check_closed_form()

    def adapt(self, support: AnySupport) -> Float[Tensor, "B N D"]:
        """The classifier adapted to ``support``, by the means of codes and weights and without dropout."""
        if torch.is_grad_enabled() or not self.steps_by_scores(support):
            return self.adaptation(support).weights
        z = self.encode(support).mean
        num_codes = z.shape[2]
        return adapted_by_means(
            z.mean(2),
            self.latent_lr / num_codes if self.num_latent_steps else z.new_empty(0),
            self.decoder.matrix(sampled=False),
            self.finetune_lr / num_codes if self.num_finetune_steps else z.new_empty(0),
            examples_of(support),
            self.num_latent_steps,
            self.num_finetune_steps,
        )

    def steps_by_scores(self, support: AnySupport) -> bool:
        """Whether ``closed_form.adapted_by_means`` knows this learner, and is cheaper than its steps one by one."""
        if self.form == "autograd" or self.closed_form_obstacle(is_data=True) is not None:
            return False
        if any(getattr(type(self), name) is not getattr(LEO, name) for name in ("adaptation", "inner_loops", "seen")):
            return False
        (_, num_way, _), num_images = sizes_of(support), examples_of(support).images.shape[-2]
        # Products of all pairs of images against two of images and classifiers at each step.
        return num_images <= 2 * num_way * max(1, self.num_finetune_steps - 1)

    def encode(self, support: AnySupport) -> Gaussian:
        """The distribution of each class's code, [B, N, M, Z]: M = K equal copies where every example has its own."""
        num_tasks, num_way, num_shot = sizes_of(support)
        if not self.encodes:
            code = self.prior(num_tasks, num_way)
        elif isinstance(support, Support):
            codes = support.images @ self.encoder.weight.T
            code = self.relation.weighted(codes, support.partner_mean, support.class_mean)
        else:
            code = self.relation(linear(support, self.encoder.weight))
        return self.copies(code, num_shot)

    def prior(self, num_tasks: int, num_way: int) -> Gaussian:
        """N(0, 1) for each class, [B, N, Z]: exp(u) - 1 = 1."""
        mean = next(self.parameters()).new_zeros(num_tasks, num_way, self.num_latents)
        return Gaussian(mean, torch.full_like(mean, 2.0).log())

    def copies(self, code: Gaussian, num_shot: int) -> Gaussian:
        """The class's distribution for each of its M codes: ``num_shot`` with ``latents=example``, else one."""
        num_codes = num_shot if self.latents == "example" else 1
        return Gaussian(*(part.unsqueeze(2).expand(-1, -1, num_codes, -1) for part in code))

    def decode(self, z: Float[Tensor, "B N M Z"], eps: Float[Tensor, "B N M D"] | None) -> Float[Tensor, "B N M D"]:
        """Weights w ~ N(mean(z), stddev(z)) of each code (Eq. 4); at z = 0 stddev is Glorot's, sqrt(2 / (N + D))."""
        mean, u = self.decoder(z)
        if eps is None:
            return mean
        return mean + stddev(u, steps.glorot_stddev(z.shape[1], self.num_features)) * eps

    def model_parameters(self, decoded: Float[Tensor, "B N M D"]) -> Float[Tensor, "B N D"]:
        """The classifier of the M weight vectors of each class, whose logits are averaged."""
        return decoded.mean(2)

    def inner_loss(self, parameters: Float[Tensor, "B N M D"], support: AnySupport) -> Float[Tensor, " B"]:
        """The cross-entropy of each task, summed over its support (Eq. 5)."""
        return support_loss(self.model_parameters(parameters), support)

    def query_terms(self, parameters: Float[Tensor, "B N D"], tasks: Tasks, noise: Noise) -> dict[str, Tensor]:
        """Mean cross-entropy and accuracy of the queries."""
        loss, accuracy = query_loss(parameters, tasks.query, noise.query_bits, self.dropout)
        return {"query_loss": loss, "accuracy": accuracy}

    def draw_noise(self, tasks: Tasks, generator: torch.Generator) -> Noise:
        """The random numbers of one training pass."""
        noise = self.draw_samples(tasks.support.shape[:3], generator) if self.stochastic else Noise()
        if self.dropout:
            num_masks = 1 + self.num_latent_steps + self.num_finetune_steps
            weight = next(self.parameters())
            bits = partial(steps_for(weight).random_bits, device=weight.device, generator=generator)
            noise = noise._replace(
                support_bits=bits(num_masks, *tasks.support.shape), query_bits=bits(*tasks.query.shape)
            )
        return noise

    def draw_samples(self, sizes: Sequence[int], generator: torch.Generator) -> Noise:
        """The random numbers of sampled adaptations, without dropout; ``sizes`` are B, N and K."""
        num_tasks, num_way, num_shot = sizes
        weight, num_codes = next(self.parameters()), num_shot if self.latents == "example" else 1
        normal = partial(steps_for(weight).normal, like=weight, generator=generator)
        return Noise(
            latents=normal(num_tasks, num_way, num_codes, self.num_latents),
            weights=normal(self.num_latent_steps + 1, num_tasks, num_way, num_codes, self.num_features),
        )

    def seen(self, support: AnySupport, noise: Noise) -> Sequence[AnySupport]:
        """The support, under a fresh dropout mask at the encoder and at each inner step."""
        if isinstance(support, Support):
            return super().seen(support, noise)
        if noise.support_bits is None:
            return super().seen(support, noise)
        form = steps if support.requires_grad else steps_for(support)  # the kernels are for data
        return form.dropout(support, self.dropout, noise.support_bits).unbind()

    def inner_loops(self, z: Float[Tensor, "B N M Z"], seen: Sequence[AnySupport], noise: Noise) -> InnerLoops:
        """Those of ``leo.algorithm``, in closed form where it is asked for or applies."""
        is_data = not any(images_of(support).requires_grad for support in seen[:1])
        if self.form == "autograd" or (self.form == "auto" and self.closed_form_obstacle(is_data) is not None):
            return super().inner_loops(z, seen, noise)
        self.check_closed_form(is_data)
        (num_tasks, num_way, num_codes, _), num_steps = z.shape, self.num_latent_steps
        # A ``Support`` is seen as it is, by every step.
        is_shared = len(seen) > 0 and isinstance(seen[0], Support)
        examples = [examples_of(seen[0])] * len(seen) if is_shared else [examples_of(support) for support in seen]
        weights, path = LatentLoop.apply(
            z.flatten(0, 2),
            self.latent_lr if num_steps else z.new_empty(self.num_latents),
            self.decoder.matrix(sampled=noise.weights is not None),
            None if noise.weights is None else noise.weights.flatten(1, 3),
            [images for images, _ in examples[:num_steps]],
            examples[0].labels if num_steps else None,
            num_tasks,
            num_way,
        )
        # Steps of the M vectors of a class are equal, so their mean takes the same step.
        finetuned = [steps.class_mean(weights, num_tasks, num_way)]
        if self.num_finetune_steps:
            images = [images for images, _ in examples[num_steps:]]
            finetuned += WeightLoop.apply(finetuned[0], self.finetune_lr / num_codes, images, examples[0].labels)
        return InnerLoops([z, *path.view(num_steps, *z.shape)], weights.view(*z.shape[:3], -1), finetuned)

    def closed_form_obstacle(self, is_data: bool) -> str | None:
        """What the closed form of the inner loops does not know of this learner; None: nothing, it applies.

        ``is_data``: whether the support needs no gradient.
        """
        if not is_data:
            return "the support needs a gradient"
        for name in ("decode", "inner_loss", "model_parameters"):
            if getattr(type(self), name) is not getattr(LEO, name):
                return f"{type(self).__name__} has a method {name} of its own"
        if type(self.decoder) is not Decoder or self.decoder.linear.bias is not None:
            return f"the decoder of {type(self).__name__} is not LEO's linear one"
        if self.max_norm is not None:
            return "its inner gradients are limited by max_norm"
        return None

    def check_closed_form(self, is_data: bool = True) -> None:
        """Raise where the closed form of the inner loops is asked for and does not apply."""
        obstacle = self.closed_form_obstacle(is_data)
        if obstacle is not None:
            raise InputError(
                f"inner_loops=closed_form knows LEO's linear decoder and softmax loss alone, and {obstacle}; "
                f"choose inner_loops=auto or autograd"
            )
