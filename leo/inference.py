"""Inference models: functions of an input and of a vector of parameters that a learner generates; and their losses."""

from collections.abc import Sequence
from itertools import pairwise
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor, nn

from runner.errors import InputError


@runtime_checkable
class InferenceModel(Protocol):
    """What a learner asks of the model whose parameters it generates.

    ``scale`` [P] is the spread of fresh parameters: where learners start.
    """

    scale: Tensor

    def __call__(self, parameters: Float[Tensor, "B P"], x: Float[Tensor, "B n X"]) -> Float[Tensor, "B n Y"]:
        """Predictions of each task's model."""


class MLP(nn.Module):
    """A perceptron with ReLU between its layers.

    Its parameters in order: of each layer the matrix [out, in], row by row, then the bias [out]. ``scale`` is
    Glorot's standard deviation of the layer, sqrt(2 / (in + out)), for biases too.

    Args:
        sizes: of the input, of each hidden layer, and of the output.
    """

    scale: Tensor

    def __init__(self, *, sizes: Sequence[int]) -> None:
        super().__init__()
        if len(sizes) < 2 or min(sizes) < 1:
            raise InputError(f"sizes={list(sizes)} must name the input and the output, each of at least 1")
        self.shapes = [shape for num_in, num_out in pairwise(sizes) for shape in ((num_out, num_in), (num_out,))]
        scales = [
            torch.full((num_out * (num_in + 1),), (2 / (num_in + num_out)) ** 0.5)
            for num_in, num_out in pairwise(sizes)
        ]
        self.register_buffer("scale", torch.cat(scales), persistent=False)

    def split(self, parameters: Float[Tensor, "B P"]) -> list[Tensor]:
        """The matrices and biases of each task, [B, *shape]."""
        parts = parameters.split([torch.Size(shape).numel() for shape in self.shapes], 1)
        return [part.unflatten(1, shape) for part, shape in zip(parts, self.shapes, strict=True)]

    def forward(self, parameters: Float[Tensor, "B P"], x: Float[Tensor, "B n X"]) -> Float[Tensor, "B n Y"]:
        """Predictions of each task's perceptron."""
        parts = self.split(parameters)
        for i in range(0, len(parts), 2):
            if i:
                x = x.relu()
            x = torch.baddbmm(parts[i + 1].unsqueeze(1), x, parts[i].mT)
        return x


def squared_error(prediction: Float[Tensor, "B n Y"], y: Float[Tensor, "B n Y"]) -> Float[Tensor, " B"]:
    """Mean squared error of each task."""
    return (prediction - y).square().mean((1, 2))
