"""A plain LEO: one task at a time, every formula of the paper spelt out, inner gradients by autograd.

Slow and obvious; what the library computes is compared with it.
"""

import math

import torch
import torch.nn.functional as F


def sample(mean, u, eps, offset):
    """Eq. 4-5 with the released code's standard deviation."""
    std = torch.clamp(torch.exp(u) - (1 - offset), min=1e-10)
    return mean + std * eps, std


def class_codes(leo, support):
    """Mean and u of each class's code, by looping over all ordered pairs of support images."""
    num_way, num_shot, _ = support.shape
    if not leo.encodes:
        shape = (num_way, leo.num_latents)
        return support.new_zeros(shape), support.new_full(shape, math.log(2))
    codes = support.reshape(num_way * num_shot, -1) @ leo.encoder.weight.T
    outputs = []
    for left in codes:
        per_pair = []
        for right in codes:
            h = torch.cat([left, right])
            h = torch.relu(leo.relation.first.weight @ h)
            h = torch.relu(leo.relation.second.weight @ h)
            per_pair.append(leo.relation.third.weight @ h)
        outputs.append(torch.stack(per_pair).mean(0))
    by_class = torch.stack(outputs).reshape(num_way, num_shot, -1).mean(1)
    return by_class[:, : leo.num_latents], by_class[:, leo.num_latents :]


def decode(leo, z, eps):
    num_way, _, _ = z.shape
    parameters = z @ leo.decoder.linear.weight.T
    mean, u = parameters[..., : leo.num_features], parameters[..., leo.num_features :]
    return mean if eps is None else sample(mean, u, eps, math.sqrt(2 / (num_way + leo.num_features)))[0]


def class_loss(weights, x):
    """Cross-entropy of each image of [N, K, D] under weights [N, M, D]: logits averaged over the M vectors."""
    num_way, num_images, _ = x.shape
    logits = torch.einsum("ikd,jmd->ikjm", x, weights).mean(-1)
    labels = torch.arange(num_way).repeat_interleave(num_images)
    return F.cross_entropy(logits.reshape(-1, num_way), labels, reduction="none")


def task_loss(leo, support, query, noise, latents, order=2):
    """The meta-loss of one task. ``order`` 1 detaches the inner gradients, as a wrong implementation would."""
    graph = order == 2
    num_codes = support.shape[1] if latents == "example" else 1
    mean, u = (part.unsqueeze(1).repeat(1, num_codes, 1) for part in class_codes(leo, support))
    eps_latent, eps_weights = noise if noise is not None else (None, [None] * (leo.num_latent_steps + 1))
    loss = 0.0
    if noise is None:
        z = mean + 0.0
    else:
        z, std = sample(mean, u, eps_latent, 0.0)
        log_q = -0.5 * eps_latent**2 - torch.log(std) - 0.5 * math.log(2 * math.pi)
        log_p = -0.5 * z**2 - 0.5 * math.log(2 * math.pi)
        loss = loss + leo.kl_weight * (log_q - log_p).mean()
    initial = z
    for step in range(leo.num_latent_steps):
        z = z if z.requires_grad else z.requires_grad_()
        inner = class_loss(decode(leo, z, eps_weights[step]), support).sum()
        (gradient,) = torch.autograd.grad(inner, z, create_graph=graph, retain_graph=True)
        z = z - leo.latent_lr * gradient
    weights = decode(leo, z, eps_weights[-1])
    for _ in range(leo.num_finetune_steps):
        inner = class_loss(weights, support).sum()
        (gradient,) = torch.autograd.grad(inner, weights, create_graph=graph, retain_graph=True)
        weights = weights - leo.finetune_lr * gradient
    loss = loss + class_loss(weights, query).mean()
    loss = loss + leo.encoder_penalty_weight * ((z.detach() - initial) ** 2).mean()
    matrices = [parameter for parameter in leo.parameters() if parameter.ndim == 2]
    loss = loss + leo.l2_weight * sum(0.5 * (matrix**2).sum() for matrix in matrices)
    rows = leo.decoder.linear.weight.T
    cosines = torch.stack([torch.stack([a @ b / (a.norm() * b.norm()) for b in rows]) for a in rows])
    return loss + leo.orthogonality_weight * ((cosines - torch.eye(len(rows), dtype=rows.dtype)) ** 2).mean()
