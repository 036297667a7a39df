"""A plain LEO: one task at a time, every formula of the paper spelt out, inner gradients by autograd.

Slow and obvious. Its speed is what the benchmarks compare with, its numbers are what the tests compare with. It reads
the parameters and settings of a ``leo.leo.LEO`` and shares nothing else with it.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from leo.features import FeatureTable
from leo.leo import LEO


class TaskNoise(NamedTuple):
    """The normal draws of one task: codes [N, M, Z] and the weights of each decoding [S + 1, N, M, D]."""

    latents: Tensor
    weights: Tensor


def same(x: Tensor) -> Tensor:
    """No dropout."""
    return x


def sample(mean: Tensor, u: Tensor, eps: Tensor, offset: float) -> tuple[Tensor, Tensor]:
    """A draw of Eq. 3 or 4 with the released code's standard deviation, and that deviation."""
    std = torch.clamp(torch.exp(u) - (1 - offset), min=1e-10)
    return mean + std * eps, std


def class_codes(leo: LEO, support: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and u of each class's code [N, Z]: Eq. 3 on all ordered pairs of the support [N, K, D]."""
    num_way, num_shot, _ = support.shape
    if not leo.encodes:
        shape = (num_way, leo.num_latents)
        return support.new_zeros(shape), support.new_full(shape, math.log(2))
    codes = support.reshape(num_way * num_shot, -1) @ leo.encoder.weight.T
    left, right = torch.broadcast_tensors(codes[:, None], codes[None, :])
    h = torch.cat([left, right], dim=-1)
    h = torch.relu(h @ leo.relation.first.weight.T)
    h = torch.relu(h @ leo.relation.second.weight.T)
    outputs = (h @ leo.relation.third.weight.T).mean(1)
    by_class = outputs.reshape(num_way, num_shot, -1).mean(1)
    return by_class[:, : leo.num_latents], by_class[:, leo.num_latents :]


def decode(leo: LEO, z: Tensor, eps: Tensor | None) -> Tensor:
    """Weights [N, M, D] of codes [N, M, Z]."""
    parameters = z @ leo.decoder.linear.weight.T
    mean, u = parameters[..., : leo.num_features], parameters[..., leo.num_features :]
    return mean if eps is None else sample(mean, u, eps, math.sqrt(2 / (len(z) + leo.num_features)))[0]


def class_loss(weights: Tensor, x: Tensor) -> Tensor:
    """Cross-entropy of each image of [N, K, D] under weights [N, M, D]: logits averaged over the M vectors."""
    num_way, num_images, _ = x.shape
    logits = (x.flatten(0, 1) @ weights.flatten(0, 1).T).unflatten(1, weights.shape[:2]).mean(-1)
    labels = torch.arange(num_way, device=x.device).repeat_interleave(num_images)
    return F.cross_entropy(logits, labels, reduction="none")


def adapt(
    leo: LEO,
    support: Tensor,
    noise: TaskNoise | None,
    drop: Callable[[Tensor], Tensor],
    *,
    second_order: bool = True,
) -> dict[str, Tensor]:
    """Algorithm 1, lines 7 to 14, and fine-tuning (Section 4.2.3) on one task's support [N, K, D].

    Weights [N, M, D], codes before and after, the standard deviation of the first.
    """
    num_codes = support.shape[1] if leo.latents == "example" else 1
    mean, u = (part.unsqueeze(1).repeat(1, num_codes, 1) for part in class_codes(leo, drop(support)))
    z, std = (mean + 0.0, mean) if noise is None else sample(mean, u, noise.latents, 0.0)
    initial = z
    for step in range(leo.num_latent_steps):
        z = z if z.requires_grad else z.requires_grad_()
        loss = class_loss(decode(leo, z, None if noise is None else noise.weights[step]), drop(support)).sum()
        (gradient,) = torch.autograd.grad(loss, z, create_graph=second_order, retain_graph=True)
        z = z - leo.latent_lr * gradient
    weights = decode(leo, z, None if noise is None else noise.weights[-1])
    for _ in range(leo.num_finetune_steps):
        weights = weights if weights.requires_grad else weights.requires_grad_()
        loss = class_loss(weights, drop(support)).sum()
        (gradient,) = torch.autograd.grad(loss, weights, create_graph=second_order, retain_graph=True)
        weights = weights - leo.finetune_lr * gradient
    return {"weights": weights, "initial": initial, "adapted": z, "std": std}


def task_loss(
    leo: LEO,
    support: Tensor,
    query: Tensor,
    noise: TaskNoise | None,
    drop: Callable[[Tensor], Tensor] = same,
    *,
    second_order: bool = True,
) -> Tensor:
    """The meta-loss of one task, Eq. 6. Without ``second_order`` the inner gradients are cut off (wrong)."""
    path = adapt(leo, support, noise, drop, second_order=second_order)
    initial, adapted = path["initial"], path["adapted"]
    loss = class_loss(path["weights"], drop(query)).mean()
    loss = loss + leo.encoder_penalty_weight * ((adapted.detach() - initial) ** 2).mean()
    if noise is not None:
        log_q = -0.5 * noise.latents**2 - torch.log(path["std"]) - 0.5 * math.log(2 * math.pi)
        log_p = -0.5 * initial**2 - 0.5 * math.log(2 * math.pi)
        loss = loss + leo.kl_weight * (log_q - log_p).mean()
    matrices = [parameter for parameter in leo.parameters() if parameter.ndim == 2]
    loss = loss + leo.l2_weight * sum(0.5 * (matrix**2).sum() for matrix in matrices)
    rows = leo.decoder.linear.weight.T
    cosines = rows @ rows.T / (rows.norm(dim=1, keepdim=True) * rows.norm(dim=1))
    identity = torch.eye(len(rows), dtype=rows.dtype, device=rows.device)
    return loss + leo.orthogonality_weight * ((cosines - identity) ** 2).mean()


def sample_task(
    table: FeatureTable, num_way: int, num_images: int, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Classes [N] and rows [N, m] of one task, by permutations."""
    device = table.features.device
    classes = torch.randperm(len(table.class_names), generator=generator, device=device)[:num_way]
    rows = []
    for label in classes.tolist():
        first, last = table.offsets[label].item(), table.offsets[label + 1].item()
        rows.append(first + torch.randperm(last - first, generator=generator, device=device)[:num_images])
    return classes, torch.stack(rows)


class Update:
    """One meta-update after another: sampling, a loop over tasks, backward, clipping, Adam."""

    def __init__(
        self, leo: LEO, table: FeatureTable, *, num_way: int, num_shot: int, num_query: int, tasks_per_batch: int,
        lr: float, clip: float, seed: int,
    ) -> None:  # fmt: skip
        self.leo, self.table, self.clip = leo, table, clip
        self.num_way, self.num_shot, self.num_query = num_way, num_shot, num_query
        self.tasks_per_batch = tasks_per_batch
        self.generator = torch.Generator(table.features.device).manual_seed(seed)
        self.optimizer = torch.optim.Adam(leo.parameters(), lr=lr)

    def drop(self, x: Tensor) -> Tensor:
        """Dropout by a Bernoulli draw of each element."""
        keep = 1 - self.leo.dropout
        return x * torch.empty_like(x).bernoulli_(keep, generator=self.generator) / keep

    def __call__(self) -> None:
        leo, device = self.leo, self.table.features.device
        num_codes = self.num_shot if leo.latents == "example" else 1
        losses = []
        for _ in range(self.tasks_per_batch):
            _, rows = sample_task(self.table, self.num_way, self.num_shot + self.num_query, self.generator)
            images = self.table.features[rows]
            noise = TaskNoise(
                torch.randn(self.num_way, num_codes, leo.num_latents, generator=self.generator, device=device),
                torch.randn(
                    leo.num_latent_steps + 1, self.num_way, num_codes, leo.num_features,
                    generator=self.generator, device=device,
                ),
            )  # fmt: skip
            support, query = images[:, : self.num_shot], images[:, self.num_shot :]
            losses.append(task_loss(leo, support, query, noise if leo.stochastic else None, self.drop))
        self.optimizer.zero_grad()
        torch.stack(losses).mean().backward()
        torch.nn.utils.clip_grad_value_(leo.parameters(), self.clip)
        for parameter in leo.parameters():
            torch.nn.utils.clip_grad_norm_(parameter, self.clip)
        self.optimizer.step()


@torch.no_grad()
def test_task(leo: LEO, table: FeatureTable, classes: Tensor, support: Tensor) -> float:
    """Accuracy of one task on all images of its ``classes`` [N] that are not in its ``support`` rows [N, K]."""
    with torch.enable_grad():
        path = adapt(leo, table.features[support], None, same)
    weights = path["weights"].mean(1)
    num_correct, num_queries = 0, 0
    for position, label in enumerate(classes.tolist()):
        rows = torch.arange(int(table.offsets[label]), int(table.offsets[label + 1]), device=support.device)
        rows = rows[~torch.isin(rows, support[position])]
        best = (table.features[rows] @ weights.T).argmax(1)
        num_correct += int((best == position).sum())
        num_queries += len(rows)
    return num_correct / num_queries
