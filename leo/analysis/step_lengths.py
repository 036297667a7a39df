"""Figure 5c: how far each step of adaptation goes in weight space."""

import torch
from jaxtyping import Float
from torch import Tensor

from leo.analysis.trajectory import Trajectory


def step_lengths(path: Trajectory) -> Float[Tensor, "S B"]:
    """Euclidean length of each step, over all N D weights of a task."""
    return torch.stack(path.weights).diff(dim=0).flatten(2).norm(dim=2)
