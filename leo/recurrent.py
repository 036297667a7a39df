"""A recurrent model that goes on with a sequence by itself: one whose parameters a learner can generate."""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from runner.errors import InputError


class FreeRunning(nn.Module):
    """A recurrent network that reads the seen numbers of a sequence, then predicts on from its own predictions.

    One layer of H tanh units that sees the last number and its own state, and a readout of the change to the next
    number: H (H + 2) + H + 1 parameters. It is written in plain layers, since ``vmap`` has no rule for torch's own
    recurrent ones (``leo.any_module``).

    Args:
        num_hidden: H.
        num_predicted: Y, how many numbers follow.
    """

    def __init__(self, *, num_hidden: int, num_predicted: int) -> None:
        super().__init__()
        if num_hidden < 1 or num_predicted < 1:
            raise InputError(f"num_hidden={num_hidden} and num_predicted={num_predicted} must be at least 1")
        self.num_hidden, self.num_predicted = num_hidden, num_predicted
        self.cell, self.readout = nn.Linear(1 + num_hidden, num_hidden), nn.Linear(num_hidden, 1)

    def forward(self, x: Float[Tensor, "n X"]) -> Float[Tensor, "n Y"]:
        """What follows each row of ``x``."""
        state = x.new_zeros(len(x), self.num_hidden)
        for seen in x.split(1, dim=1):
            state = self.step(seen, state)
        predictions = [x[:, -1:] + self.readout(state)]
        while len(predictions) < self.num_predicted:
            state = self.step(predictions[-1], state)
            predictions.append(predictions[-1] + self.readout(state))
        return torch.cat(predictions, 1)

    def step(self, number: Float[Tensor, "n 1"], state: Float[Tensor, "n H"]) -> Float[Tensor, "n H"]:
        """The state after ``number``."""
        return self.cell(torch.cat([number, state], 1)).tanh()
