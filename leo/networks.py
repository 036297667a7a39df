"""The three networks of LEO (Section 2.3) and the diagonal Gaussian they produce. None of them has a bias."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

STDDEV_FLOOR = 1e-10


def glorot_linear(num_in: int, num_out: int) -> nn.Linear:
    """A linear map without bias, Glorot-uniform as in the released code."""
    linear = nn.Linear(num_in, num_out, bias=False)
    nn.init.xavier_uniform_(linear.weight)
    return linear


class Gaussian(NamedTuple):
    """A diagonal Gaussian. ``u`` is what the network gave for the standard deviation (see ``stddev``)."""

    mean: Float[Tensor, "B N *M Z"]
    u: Float[Tensor, "B N *M Z"]


def stddev(u: Float[Tensor, "*any"], offset: float = 0.0) -> Float[Tensor, "*any"]:
    """max(exp(u) - (1 - offset), 1e-10), by expm1 so that small u keeps its digits in float32."""
    return (torch.expm1(u) + offset).clamp_min(STDDEV_FLOOR)


class RelationNetwork(nn.Module):
    """Class codes from the codes of all support images: the relation network and Eq. 3's averages.

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
        num_latents = codes.shape[-1]
        pair = codes.flatten(1, 2)  # [B, NK, Z]
        left, right = pair @ first[:, :num_latents].T, pair @ first[:, num_latents:].T
        hidden = torch.relu(left.unsqueeze(2) + right.unsqueeze(1))  # [B, NK, NK, 2Z]
        hidden = torch.relu(hidden @ second.T)
        by_class = hidden.mean(2).unflatten(1, codes.shape[1:3]).mean(2)  # [B, N, 2Z]
        mean, u = (by_class @ third.T).chunk(2, dim=-1)
        return Gaussian(mean, u)


class Decoder(nn.Module):
    """Classifier weights from latent codes: w ~ N(mean(z), stddev(z)), both linear in z before ``stddev`` (Eq. 5)."""

    def __init__(self, num_latents: int, num_features: int) -> None:
        super().__init__()
        self.linear = glorot_linear(num_latents, 2 * num_features)

    def forward(
        self, z: Float[Tensor, "B N M Z"], eps: Float[Tensor, "B N M D"] | None
    ) -> tuple[Float[Tensor, "B N M D"], Callable[[Tensor], Tensor]]:
        """Weights w = mean + stddev * eps (mean alone where ``eps`` is None) and the pullback g -> (dw/dz)^T g.

        At z = 0 the standard deviation is Glorot's, sqrt(2 / (N + D)).
        """
        mean_map, u_map = self.linear.weight.chunk(2)  # [D, Z] each
        mean = z @ mean_map.T
        if eps is None:
            return mean, lambda gradient: gradient @ mean_map
        num_way, num_features = eps.shape[1], eps.shape[-1]
        u = z @ u_map.T
        scale = stddev(u, offset=(2 / (num_way + num_features)) ** 0.5)
        slope = torch.where(scale > STDDEV_FLOOR, u.exp(), 0.0) * eps
        return mean + scale * eps, lambda gradient: gradient @ mean_map + (gradient * slope) @ u_map
