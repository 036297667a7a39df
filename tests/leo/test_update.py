"""A meta-update against its parts done by hand; on CUDA, the captured graph against one kernel after another."""

import copy

import pytest
import torch

from leo.captured_update import CapturedUpdate
from leo.episodes import Tasks, TaskStream
from leo.update import MetaUpdate
from tests.leo.tables import make_table
from tests.leo.test_leo import make


def make_update(kind, device="cpu", num_steps=8, diverged="skip"):
    """An update of a small LEO with dropout, and the stream of its tasks."""
    table = make_table([9] * 6, 12).to(device)
    leo = make(dropout=0.2).float().to(device)
    optimizer = torch.optim.Adam(leo.parameters(), lr=0.01, fused=True)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=num_steps)
    generator = torch.Generator(device).manual_seed(1)
    stream = TaskStream(
        table, num_way=3, num_shot=2, num_query=2, batch_size=4, batches_per_epoch=8, batches_per_step=8,
        generator=torch.Generator(device).manual_seed(2),
    )  # fmt: skip
    update = kind(
        leo, optimizer, schedule, stream=stream, clip_value=0.1, clip_norm=0.1, generator=generator, diverged=diverged,
    )  # fmt: skip
    return update, stream


def test_an_update_is_a_clipped_adam_step_at_the_scheduled_rate():
    update, stream = make_update(MetaUpdate)
    leo, generator = copy.deepcopy(update.learner), torch.Generator().manual_seed(1)
    moments = {name: [torch.zeros_like(p), torch.zeros_like(p)] for name, p in leo.named_parameters()}
    for step in range(3):
        tasks = stream.next_batch()
        features = stream.table.features[tasks.images]
        loss = leo.meta_loss(Tasks(features[:, :, :2], features[:, :, 2:]), generator)["loss"]
        leo.zero_grad()
        loss.backward()
        torch.testing.assert_close(update([tasks])[0].terms["loss"], loss.detach())
        rate = 0.01 * (1 + torch.cos(torch.tensor(step * torch.pi / 8)).item()) / 2
        for name, parameter in leo.named_parameters():
            gradient = parameter.grad.clamp(-0.1, 0.1)
            gradient = gradient * (0.1 / max(gradient.norm().item(), 0.1))
            first, second = moments[name]
            first.mul_(0.9).add_(gradient, alpha=0.1)
            second.mul_(0.999).add_(gradient**2, alpha=0.001)
            hat = (first / (1 - 0.9 ** (step + 1)), second / (1 - 0.999 ** (step + 1)))
            with torch.no_grad():
                parameter -= rate * hat[0] / (hat[1].sqrt() + 1e-8)
        for ours, expected in zip(update.learner.parameters(), leo.parameters(), strict=True):
            torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="CUDA graphs need a GPU")
def test_a_replayed_graph_does_what_single_kernels_do():
    plain, stream = make_update(MetaUpdate, "cuda")
    captured, same_stream = make_update(CapturedUpdate, "cuda")
    pairs = ((plain, stream), (captured, same_stream))
    for _ in range(4):
        expected, actual = (of([tasks.next_batch(), tasks.next_batch()]) for of, tasks in pairs)
        for one, other in zip(actual, expected, strict=True):
            torch.testing.assert_close(one.terms["loss"], other.terms["loss"], rtol=1e-4, atol=1e-5)
    for ours, expected in zip(captured.learner.parameters(), plain.learner.parameters(), strict=True):
        torch.testing.assert_close(ours, expected, rtol=1e-3, atol=1e-4)
