"""The released TensorFlow code's own numbers (tests/golden/README.md), in float64 and in float32.

``LEO_TEST_DEVICE=cuda`` computes ours on a GPU.
"""

import json
import os
from functools import cache
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from leo import objective, softmax
from leo.clipping import clip_gradients
from leo.episodes import Tasks
from leo.leo import LEO, Noise

DEVICE = os.environ.get("LEO_TEST_DEVICE", "cpu")
GOLDEN = Path(__file__).parent.parent / "golden"
CASES = ["case_a_5way1shot", "case_c_3way2shot", "case_d_5way1shot_full"]
VARIABLES = {
    "encoder_w": "encoder.weight",
    "relation_w0": "relation.first.weight",
    "relation_w1": "relation.second.weight",
    "relation_w2": "relation.third.weight",
    "decoder_w": "decoder.linear.weight",
    "inner_lr": "latent_lr",
    "finetuning_lr": "finetune_lr",
}


def to_ours(name, array):
    """The released variable in our layout: matrices transposed, rates flat."""
    tensor = torch.from_numpy(np.asarray(array)).to(DEVICE)
    return tensor.flatten() if name.endswith("lr") else tensor.T


@cache
def golden(case):
    with np.load(GOLDEN / f"{case}.npz") as archive:
        return {key: archive[key] for key in archive.files}


def learner_of(case, dtype=torch.float64, **changes):
    data, meta = golden(case), json.loads(str(golden(case)["meta_json"]))
    settings = {
        "num_features": meta["embedding_dim"],
        "num_latents": meta["num_latents"],
        "latents": "example",
        "initial_code": "encoder",
        "stochastic": True,
        "num_latent_steps": meta["inner_unroll_length"],
        "num_finetune_steps": meta["finetuning_unroll_length"],
        "latent_lr": 1.0,
        "finetune_lr": 1.0,
        "dropout": 0.0,
        "kl_weight": meta["kl_weight"],
        "encoder_penalty_weight": meta["encoder_penalty_weight"],
        "l2_weight": meta["l2_penalty_weight"],
        "orthogonality_weight": float(np.float32(meta["orthogonality_penalty_weight"])),
    }
    leo = LEO(**settings | changes).to(DEVICE, dtype)
    variables = {ours: to_ours(name, data[f"var/{name}"]).to(dtype) for name, ours in VARIABLES.items()}
    leo.load_state_dict({name: variables[name] for name, _ in leo.named_parameters()})
    return leo


def tensors_of(case, dtype=torch.float64):
    data = golden(case)
    support, query, latent, weights = (
        torch.from_numpy(data[key]).to(DEVICE, dtype)
        for key in ("input/tr_input", "input/val_input", "eps/latent", "eps/decoder")
    )
    return SimpleNamespace(support=support, query=query, noise=Noise(latent, weights.transpose(0, 1)))


def decodings(leo, path, noise):
    """The weights [B, N, M, D] decoded from the codes before and after each latent step."""
    draws = [None] * len(path.latents) if noise.weights is None else noise.weights
    return [leo.decode(z, eps) for z, eps in zip(path.latents, draws, strict=True)]


def per_task_losses(leo, inputs):
    """``total_loss`` of each task, assembled from the learner's parts, and the parts."""
    noise = inputs.noise if leo.training else Noise()
    path = leo.adaptation(inputs.support, noise)
    decoded = decodings(leo, path, noise)
    logits = softmax.logits(path.weights, inputs.query)
    parts = {
        "query_logits": logits,
        "query_loss": softmax.cross_entropy(logits).mean((1, 2)),
        "query_accuracy": softmax.accuracy(logits),
        "l2_term": leo.l2_weight * objective.l2(p for p in leo.parameters() if p.ndim == 2),
        "orthogonality_term": leo.orthogonality_weight * objective.orthogonality(leo.decoder.linear.weight),
        "latent_dist_mean": path.code.mean,
        "latent_dist_u": path.code.u,
        "latents_initial": path.latents[0],
        "latents_adapted": path.latents[-1],
        "weights_after_latent_loop": path.decoded,
        "weights_after_finetuning": path.decoded + (path.weights - path.finetuned[0]).unsqueeze(2),
        "support_losses_latent": torch.stack(
            [softmax.cross_entropy(softmax.logits(w.mean(2), inputs.support)) for w in decoded], 1
        ),
        "support_losses_finetune": torch.stack(
            [softmax.cross_entropy(softmax.logits(w, inputs.support)) for w in path.finetuned[1:]], 1
        ),
    }
    total = parts["query_loss"] + parts["l2_term"] + parts["orthogonality_term"]
    if leo.training:
        parts["kl"] = objective.kl_divergence(path.code, path.latents[0], inputs.noise.latents)
        parts["encoder_penalty"] = objective.encoder_penalty(path.latents[0], path.latents[-1])
        total = total + leo.kl_weight * parts["kl"] + leo.encoder_penalty_weight * parts["encoder_penalty"]
    return total, parts


@pytest.mark.parametrize("form", ["closed_form", "autograd"])
@pytest.mark.parametrize("mode", ["train", "eval"])
@pytest.mark.parametrize("case", CASES)
def test_values(case, mode, form):
    leo = learner_of(case, inner_loops=form).train(mode == "train")
    with torch.no_grad():
        total, parts = per_task_losses(leo, tensors_of(case))
    parts["total_loss"] = total
    expected = {key.split("/")[1]: value for key, value in golden(case).items() if key.startswith(f"{mode}/")}
    if mode == "train":
        parts["batch_total_loss"] = total.mean()
    assert set(expected) - {"kl", "encoder_penalty"} <= set(parts)
    for name in expected.keys() & parts.keys():
        tolerance = {"kl": 1e-8, "total_loss": 1e-8, "batch_total_loss": 1e-8, "query_accuracy": 1e-6}.get(name, 1e-10)
        actual = np.broadcast_to(
            parts[name].cpu().numpy(), expected[name].shape
        )  # regularisers: one value for every task
        np.testing.assert_allclose(actual, expected[name], rtol=0, atol=tolerance, err_msg=name)


def tasks_of(case):
    inputs = tensors_of(case)
    return Tasks(inputs.support, inputs.query), inputs.noise


@pytest.mark.parametrize("form", ["closed_form", "autograd"])
@pytest.mark.parametrize("case", CASES)
def test_the_objective_is_the_released_total(case, form):
    """LEO's own Eq. 6 on the batch, not one that the test puts together."""
    data, (tasks, noise) = golden(case), tasks_of(case)
    terms = learner_of(case, inner_loops=form).objective(tasks, noise)
    weights = json.loads(str(data["meta_json"]))
    expected = {
        "loss": data["train/batch_total_loss"],
        "query_loss": data["train/query_loss"].mean(),
        "kl": data["train/kl"].mean(),
        "encoder_penalty": data["train/encoder_penalty"].mean(),
        "l2": data["train/l2_term"].mean() / weights["l2_penalty_weight"],
        "orthogonality": data["train/orthogonality_term"].mean() / weights["orthogonality_penalty_weight"],
        "accuracy": data["train/query_accuracy"].mean(),
    }
    assert terms.keys() == expected.keys()
    for name, value in expected.items():
        tolerance = {"loss": 1e-8, "kl": 1e-8, "accuracy": 1e-6, "orthogonality": 1e-7}.get(name, 1e-9)
        assert terms[name].item() == pytest.approx(float(value), rel=tolerance, abs=tolerance), name


@pytest.mark.parametrize("form", ["closed_form", "autograd"])
@pytest.mark.parametrize("case", CASES)
def test_ablations_are_parts_of_the_released_path(case, form):
    """What the released code recorded on its way is where the ablations of Table 2 end."""
    data, (tasks, noise) = golden(case), tasks_of(case)
    settings = json.loads(str(data["meta_json"]))
    deterministic = learner_of(case, inner_loops=form, stochastic=False, encoder_penalty_weight=0.0)
    total = deterministic.objective(tasks, deterministic.draw_noise(tasks, torch.Generator(DEVICE)))
    assert total["loss"].item() == pytest.approx(data["eval/total_loss"].mean(), rel=1e-8)
    with torch.no_grad():
        no_finetuning = learner_of(case, inner_loops=form, num_finetune_steps=0)
        weights = no_finetuning.adaptation(tasks.support, noise).weights
        expected = data["train/weights_after_latent_loop"].mean(2)
        np.testing.assert_allclose(weights.cpu().numpy(), expected, rtol=0, atol=1e-10)
        for steps in ({"num_latent_steps": 0, "num_finetune_steps": 0}, {"num_latent_steps": 0}):
            generator = learner_of(case, inner_loops=form, **steps)
            path = generator.adaptation(tasks.support, noise._replace(weights=noise.weights[:1]))
            np.testing.assert_allclose(
                path.latents[-1].cpu().numpy(), data["train/latents_initial"], rtol=0, atol=1e-10
            )
            # Before fine-tuning, the loss of the released code's first decoding.
            losses = softmax.cross_entropy(softmax.logits(path.finetuned[0], tasks.support)).cpu().numpy()
            np.testing.assert_allclose(losses, data["train/support_losses_latent"][:, 0], rtol=0, atol=1e-10)
            num_steps = 0 if "num_finetune_steps" in steps else settings["finetuning_unroll_length"]
            assert len(path.finetuned) == 1 + num_steps


def gradients(case, loss_of, dtype=torch.float64, form="closed_form"):
    leo = learner_of(case, dtype, inner_loops=form).train()
    loss_of(per_task_losses(leo, tensors_of(case, dtype))[0]).backward()
    return {name: leo.get_parameter(ours).grad for name, ours in VARIABLES.items()}


def relative_error(actual, expected):
    return ((actual - expected).norm() / expected.norm()).item()


@pytest.mark.parametrize(
    ("key", "loss_of"), [("grad_instance0", lambda loss: loss[0]), ("grad_batch", lambda loss: loss.mean())]
)
@pytest.mark.parametrize("form", ["closed_form", "autograd"])
@pytest.mark.parametrize("case", CASES)
def test_gradients(case, form, key, loss_of):
    actual = gradients(case, loss_of, form=form)
    compared = [name for name in VARIABLES if f"{key}/{name}" in golden(case)]
    assert len(compared) == (2 if (case, key) == ("case_d_5way1shot_full", "grad_batch") else 7)
    for name in compared:
        tolerance = 1e-6 if name.startswith(("encoder", "relation")) else 1e-8
        assert relative_error(actual[name], to_ours(name, golden(case)[f"{key}/{name}"])) < tolerance, name


@pytest.mark.parametrize("case", CASES[:2])
def test_clipping_and_adam(case):
    """Clipping as released; torch's Adam moments put through TensorFlow's formula (its epsilon stands elsewhere)."""
    data = golden(case)
    leo = learner_of(case).train()
    adam = torch.optim.Adam(leo.parameters(), lr=1e-3)
    theirs = {ours: to_ours(name, data[f"var/{name}"]).clone() for name, ours in VARIABLES.items()}
    for step in (1, 2, 3):
        leo.zero_grad()
        leo.load_state_dict(theirs)
        per_task_losses(leo, tensors_of(case))[0].mean().backward()
        clip_gradients(leo.parameters(), max_value=0.1, max_norm=0.1)
        if step == 1:
            for name, ours in VARIABLES.items():
                assert relative_error(leo.get_parameter(ours).grad, to_ours(name, data[f"clipped/{name}"])) < 1e-6
        adam.step()
        for name, ours in VARIABLES.items():
            state = adam.state[leo.get_parameter(ours)]
            rate = 1e-3 * (1 - 0.999**step) ** 0.5 / (1 - 0.9**step)
            theirs[ours] = theirs[ours] - rate * state["exp_avg"] / (state["exp_avg_sq"].sqrt() + 1e-8)
            torch_step = leo.get_parameter(ours).detach() - theirs[ours]
            assert torch_step.abs().max() < 5e-4
            if f"adam{step}/{name}" in data:
                difference = theirs[ours] - to_ours(name, data[f"adam{step}/{name}"])
                # TensorFlow keeps lr, betas and their powers in float32, which grows to 1e-8 by the third step.
                assert difference.abs().max() < (5e-9 if step == 1 else 2e-8), (step, name)


@pytest.mark.parametrize("case", CASES)
def test_float32_losses(case):
    """Float32 keeps the loss of every task within 1e-5."""
    single = torch.float32
    with torch.no_grad():
        total, parts = per_task_losses(learner_of(case, single).train(), tensors_of(case, single))
    for name, actual in (("total_loss", total), ("query_loss", parts["query_loss"])):
        np.testing.assert_allclose(actual.cpu().numpy(), golden(case)[f"train/{name}"], rtol=1e-5, err_msg=name)


def test_float32_gradients_at_full_size():
    """Float32 keeps every variable's meta-gradient within 1e-4, though most standard deviations are at the floor."""
    case = CASES[2]
    exact = gradients(case, lambda loss: loss.mean())
    single = gradients(case, lambda loss: loss.mean(), torch.float32)
    for name, gradient in exact.items():
        assert relative_error(single[name].double(), gradient) < 1e-4, name
