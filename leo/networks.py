"""The three networks of LEO (Section 2.3) and the diagonal Gaussian they produce. None of them has a bias."""

from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from leo.kernels import steps_for
from leo.products import linear, product
from leo.steps import STDDEV_FLOOR

PAIRS_IN_CACHE = 1 << 11  # of images, whose hidden layers take 2 MB for 64 latents
PAIRS_PER_PART = 1 << 15  # of images, whose hidden layer is held at a time: 16 MB for 64 latents


def glorot_linear(num_in: int, num_out: int) -> nn.Linear:
    """A linear map without bias, Glorot-uniform as in the released code."""
    linear = nn.Linear(num_in, num_out, bias=False)
    nn.init.xavier_uniform_(linear.weight)
    return linear


class Gaussian(NamedTuple):
    """A diagonal Gaussian. ``u`` is what the network gave for the standard deviation (see ``stddev``)."""

    mean: Float[Tensor, "B N *M Z"]
    u: Float[Tensor, "B N *M Z"]


def stddev(u: Float[Tensor, "*any"], offset: float | Tensor = 0.0) -> Float[Tensor, "*any"]:
    """max(exp(u) - (1 - offset), 1e-10), by expm1 so that small u keeps its digits in float32."""
    return (torch.expm1(u) + offset).clamp_min(STDDEV_FLOOR)


class SecondLayer(torch.autograd.Function):
    """The means over pairs of images of the relation network's second layer. ``apply(halves, weight, num_way)``.

    The first layer's sums [B, n, 2H] of each of n images, on the left of a pair and on the right; weight [H, H].
    Returns the mean of relu(weight relu(left_i + right_j)) over partners j and over the images i of each class,
    [B, N, H]. Written out, as the tensors of all pairs are the largest of an update.
    """

    @staticmethod
    def forward(ctx: Any, halves: Tensor, weight: Tensor, num_way: int) -> Tensor:
        ctx.form = steps_for(halves, weight)
        if any(ctx.needs_input_grad):
            pairs, hidden = SecondLayer.of_pairs(ctx.form, halves, weight)
            ctx.save_for_backward(weight, pairs, hidden)
            means: Tensor = ctx.form.pair_means(hidden, num_way)
            return means
        parts = halves.split(max(1, PAIRS_IN_CACHE // halves.shape[1] ** 2))
        return torch.cat(
            [ctx.form.pair_means(SecondLayer.of_pairs(ctx.form, part, weight)[1], num_way) for part in parts]
        )

    @staticmethod
    def of_pairs(form: Any, halves: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
        """Of all pairs: the first layer after its relu, the second before it, each [B, n, n, H]."""
        pairs = form.pairs(halves)
        return pairs, product(pairs.flatten(0, 2), weight).view_as(pairs)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, to_means: Tensor) -> tuple[Tensor | None, ...]:
        weight, pairs, hidden = ctx.saved_tensors
        to_hidden = ctx.form.pair_means_backward(to_means.contiguous(), hidden).flatten(0, 2)
        to_weight = to_hidden.T @ pairs.flatten(0, 2)  # of these layouts torch's own product is the faster one
        to_pairs = product(to_hidden, weight.T).view_as(pairs)
        return ctx.form.pairs_backward(to_pairs, pairs), to_weight, None


class RelationNetwork(nn.Module):
    """Class codes from the codes of all support images: the relation network and the averages of Eq. 3.

    A three-layer network (ReLU after the first two) sees each ordered pair of images, self pairs included; its
    outputs are averaged over the partner and over the images of a class. Factored, exactly: the first layer is
    linear in each half of the pair, and the last comes after the averages.
    """

    def __init__(self, num_latents: int) -> None:
        super().__init__()
        self.first, self.second, self.third = (glorot_linear(2 * num_latents, 2 * num_latents) for _ in range(3))

    def forward(self, codes: Float[Tensor, "B N K Z"]) -> Gaussian:
        """The distribution of each class's latent code, [B, N, Z]."""
        first, second, third = self.first.weight, self.second.weight, self.third.weight
        pair = codes.flatten(1, 2)  # [B, NK, Z]
        halves = linear(pair, torch.cat(first.chunk(2, dim=1)))  # [B, NK, 4Z]: of an image on the left, on the right
        by_class = SecondLayer.apply(halves, second, codes.shape[1])  # [B, N, 2Z]
        mean, u = linear(by_class, third).chunk(2, dim=-1)
        return Gaussian(mean, u)

    def weighted(
        self, codes: Float[Tensor, "n Z"], partner_mean: Float[Tensor, "B n"], class_mean: Float[Tensor, "B N n"]
    ) -> Gaussian:
        """The same with given means over partners and over the images of a class: each row makes B sets of classes.

        A few images at a time meet their partners, so that memory does not grow with the square of their number.
        """
        from_left, from_right = self.first.weight.chunk(2, dim=1)
        left, right = codes @ from_left.T, codes @ from_right.T
        by_class = codes.new_zeros(*class_mean.shape[:2], left.shape[1])
        num_rows = max(1, PAIRS_PER_PART // len(codes))
        for rows, members in zip(left.split(num_rows), class_mean.split(num_rows, dim=2), strict=True):
            hidden = (rows.unsqueeze(1) + right).relu() @ self.second.weight.T  # [num_rows, n, 2Z]
            by_class = by_class + members @ (partner_mean @ hidden.relu()).transpose(0, 1)
        mean, u = (by_class @ self.third.weight.T).chunk(2, dim=-1)
        return Gaussian(mean, u)


class Decoder(nn.Module):
    """Mean and u of a classifier's weights from latent codes, both linear (Eq. 4)."""

    def __init__(self, num_latents: int, num_features: int) -> None:
        super().__init__()
        self.linear = glorot_linear(num_latents, 2 * num_features)

    def forward(self, z: Float[Tensor, "*any Z"]) -> tuple[Float[Tensor, "*any D"], Float[Tensor, "*any D"]]:
        """Mean and u of the weights."""
        mean, u = self.linear(z).chunk(2, -1)
        return mean, u

    def matrix(self, sampled: bool) -> Float[Tensor, "_ Z"]:
        """From a code to the mean of its weights, [D, Z], and where they are sampled to u below it, [2D, Z]."""
        return self.linear.weight if sampled else self.linear.weight.chunk(2)[0]
