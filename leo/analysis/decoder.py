"""Figure 5b: what the decoder does to lengths."""

import torch
from jaxtyping import Float
from torch import Tensor

from leo.leo import LEO


def singular_values(learner: LEO) -> Float[Tensor, " Z"]:
    """Of the map from a code to the mean of its weights, largest first; above 1 where a step becomes longer."""
    return torch.linalg.svdvals(learner.decoder.matrix(sampled=False))
