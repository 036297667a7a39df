"""Oscillators: the motion against an integration of the equation, what is fitted to it, and the bands of samples."""

import math

import numpy as np
import pytest
import torch
from scipy.integrate import solve_ivp

from leo.forecasts import draw
from leo.functions import ModelTasks
from leo.model_problem import Sampled
from leo.oscillators import Autoregression, Coverage, Oscillators, Recurrence, motion
from leo.recurrent import FreeRunning
from leo.run import meta_train
from runner.errors import InputError
from runner.files import read_json
from sweeps.page import analyses

LIMITS = {
    "frequency": [0.4, 0.9], "damping": [0.05, 0.3], "drive": [0.0, 1.0], "drive_frequency": [0.2, 0.9],
    "num_seen": 10, "num_predicted": 20, "noise": 0.1,
}  # fmt: skip


@pytest.mark.parametrize("values", [(0.7, 0.1, 1.0, 0.5, 0.3, -0.4, 2.0), (0.4, 0.3, 0.8, 0.9, -1.0, 1.0, 5.0)])
def test_the_motion_solves_the_equation(values):
    frequency, damping, drive, drive_frequency, start, velocity, phase = values
    t = torch.arange(30, dtype=torch.float64)

    def right_side(time, state):
        force = frequency**2 * drive * math.cos(drive_frequency * time + phase)
        return [state[1], force - 2 * damping * frequency * state[1] - frequency**2 * state[0]]

    expected = solve_ivp(right_side, (0, 29), [start, velocity], t_eval=t.numpy(), rtol=1e-10, atol=1e-10).y[0]
    found = motion(*(torch.tensor([value], dtype=torch.float64) for value in values), t)
    np.testing.assert_allclose(found.numpy(), expected, atol=1e-7)


def test_tasks_have_the_noise_and_the_start_that_they_say():
    tasks = Oscillators(**LIMITS).sample(2000, 3, 4, torch.Generator().manual_seed(0))
    assert [part.shape for part in tasks] == [(2000, 3, 10), (2000, 3, 20), (2000, 4, 10), (2000, 4, 20), (2000, 4, 20)]
    noise = tasks.query_y - tasks.truth
    assert noise.std().item() == pytest.approx(0.1, rel=0.02)
    assert abs(noise.mean().item()) < 0.001
    assert tasks.query_x[..., 0].std().item() == pytest.approx(math.hypot(1, 0.1), rel=0.03)
    again = Oscillators(**LIMITS).sample(2000, 3, 4, torch.Generator().manual_seed(0))
    assert all(torch.equal(*pair) for pair in zip(tasks, again, strict=True))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"damping": [0.5, 1.0]}, "damping below 1"),
        ({"frequency": [0.0, 1.0]}, "must be positive"),
        ({"drive": [-1.0, 1.0]}, "must not be negative"),
        ({"num_seen": 0}, "num_seen=0"),
        ({"noise": -0.1}, "noise=-0.1"),
        ({"drive_frequency": [0.9, 0.2]}, "two rising numbers"),
    ],
)
def test_oscillators_that_make_no_sense_are_refused(wrong, message):
    with pytest.raises(InputError, match=message):
        Oscillators(**LIMITS | wrong)


def test_an_autoregression_of_order_four_predicts_a_driven_oscillator_without_noise():
    """An oscillation and its drive are two pairs of roots: four numbers say all."""
    tasks = Oscillators(**LIMITS | {"noise": 0.0}).sample(20, 2, 5, torch.Generator().manual_seed(1))
    tasks = ModelTasks(*(part.double() for part in tasks))
    learner = Autoregression(order=4, num_predicted=20)
    parameters = learner.sample(tasks.support_x, tasks.support_y, torch.Generator())
    error = (learner.model(parameters, tasks.query_x) - tasks.truth).square().mean((1, 2))
    assert error.median() < 1e-6


def test_order_zero_is_the_mean_and_higher_ones_are_numpys_least_squares():
    generator = torch.Generator().manual_seed(2)
    x, y = torch.randn(3, 2, 6, generator=generator).double(), torch.randn(3, 2, 5, generator=generator).double()
    mean = Autoregression(order=0, num_predicted=5)
    found = mean.sample(x, y, generator)
    torch.testing.assert_close(found, torch.cat([x, y], 2).mean((1, 2)).unsqueeze(1))
    torch.testing.assert_close(mean.model(found, x), found.unsqueeze(1).expand(3, 2, 5))
    found = Autoregression(order=2, num_predicted=5).sample(x, y, generator)
    for task in range(3):
        rows, targets = [], []
        for sequence in torch.cat([x, y], 2)[task].tolist():
            for i in range(2, 11):
                rows.append([1.0, sequence[i - 1], sequence[i - 2]])
                targets.append(sequence[i])
        expected = np.linalg.lstsq(np.array(rows), np.array(targets), rcond=None)[0]
        np.testing.assert_allclose(found[task].numpy(), expected, atol=1e-10)
    with pytest.raises(InputError, match="order=6 needs more numbers than the 6 seen"):
        Autoregression(order=6, num_predicted=5).sample(x, y, generator)


def test_a_recurrence_runs_on_by_itself():
    """1, 1 and the next number the sum of the last two: Fibonacci; one more each, with the intercept."""
    model = Recurrence(2, 4)
    x = torch.tensor([[[7.0, 1.0, 1.0]]])
    assert model(torch.tensor([[0.0, 1.0, 1.0]]), x).tolist() == [[[2.0, 3.0, 5.0, 8.0]]]
    assert model(torch.tensor([[1.0, 1.0, 0.0]]), x).tolist() == [[[2.0, 3.0, 4.0, 5.0]]]


def test_the_recurrent_network_reads_its_own_predictions():
    torch.manual_seed(0)
    network = FreeRunning(num_hidden=4, num_predicted=3).double()
    x = torch.randn(2, 5).double()
    predictions = network(x)
    weight, bias = network.cell.weight, network.cell.bias
    for row, found in zip(x, predictions, strict=True):
        numbers, state = row.tolist(), torch.zeros(4).double()
        for i in range(7):
            state = torch.tanh(weight @ torch.cat([torch.tensor(numbers[i : i + 1]).double(), state]) + bias)
            if i >= 4:
                numbers.append((numbers[i] + network.readout(state)).item())
        torch.testing.assert_close(found, torch.tensor(numbers[5:]).double())


def test_bands_of_exchangeable_samples_hold_the_truth_as_often_as_they_say():
    generator = torch.Generator().manual_seed(3)
    samples, truth = torch.randn(19, 50, 20, 30, generator=generator), torch.randn(50, 20, 30, generator=generator)
    nothing = torch.zeros(50, 1, 1)
    tasks = ModelTasks(nothing, nothing, nothing, nothing, truth)
    coverage = Coverage(levels=[0.5, 0.9], num_samples=19)
    found = coverage(tasks, Autoregression(order=0, num_predicted=1), Sampled(torch.zeros(19, 50, 1), samples))
    assert found["within_50"].mean().item() == pytest.approx(0.5, abs=0.01)
    assert found["within_90"].mean().item() == pytest.approx(0.9, abs=0.006)
    narrow = coverage(tasks, Autoregression(order=0, num_predicted=1), Sampled(torch.zeros(19, 50, 1), 0.5 * samples))
    assert narrow["within_90"].mean() < 0.7
    with pytest.raises(InputError, match="a band of 0.5 has no whole number of 10 samples"):
        Coverage(levels=[0.5, 0.9], num_samples=10)


def test_runs_of_each_method(tmp_path, composed):
    """From configuration to result: LEO, its baselines, and what is fitted to each task alone."""
    small = ["test.num_tasks=20", "val.num_tasks=20", "tasks.num_test_queries=2"]
    shared = [f"run_dir={tmp_path / 'mean'}", "experiment=oscillators_mean", *small]
    meta_train(composed(*shared))
    mean = read_json(tmp_path / "mean" / "result.json", (), "")
    tiny = ["max_steps=4", "val.every=2", "tasks_per_batch=2", "num_query=2"]
    meta_train(composed(f"run_dir={tmp_path / 'leo'}", "experiment=oscillators", *small, *tiny))
    leo = read_json(tmp_path / "leo" / "result.json", (), "")
    assert mean["num_steps"] == 0
    assert [row["num_shot"] for row in leo["by_num_shot"]] == [1, 3, 5]
    assert all(0 <= row[name] <= 1 for row in leo["by_num_shot"] for name in ("within_50", "within_90"))
    for method in ("meta_sgd", "maml"):
        meta_train(composed(f"run_dir={tmp_path / method}", f"experiment=oscillators_{method}", *small, *tiny))
        assert read_json(tmp_path / method / "result.json", (), "")["num_steps"] == 4


def test_a_model_that_does_not_fit_the_tasks_is_refused_before_training(tmp_path, composed):
    small = [f"run_dir={tmp_path}", "experiment=oscillators"]
    with pytest.raises(InputError, match="predicts 7 numbers of each example, and its target has 20"):
        meta_train(composed(*small, "model.learner.model.make.num_predicted=7"))
    with pytest.raises(InputError, match="its learner does not fit tasks whose x has 10 numbers and whose y has 20"):
        meta_train(composed(*small, "model.learner.num_inputs=2"))
    assert not list(tmp_path.iterdir())


def test_forecasts_are_drawn_and_the_report_shows_them(tmp_path, composed):
    run = [
        f"dirs.runs={tmp_path}", "experiment=oscillators", "test.num_tasks=4", "val.num_tasks=2",
        "tasks.num_shots=[1,3]",
        "tasks.num_test_queries=2", "max_steps=2", "val.every=2", "tasks_per_batch=2", "num_query=2",
    ]  # fmt: skip
    meta_train(composed(*run, f"run_dir={tmp_path / 'trained'}"))
    checkpoint, drawn = f"checkpoint={tmp_path / 'trained' / 'best.ckpt'}", tmp_path / "drawn"
    draw(composed(*run, "stage=forecasts", checkpoint, f"run_dir={drawn}"))
    assert (drawn / "forecasts.png").read_bytes().startswith(b"\x89PNG")
    numbers = read_json(drawn / "forecasts.json", ("coverage", "spread"), "")
    assert list(numbers["coverage"]) == list(numbers["spread"]) == ["1", "3"]
    for found in numbers["coverage"].values():
        shares = list(found.values())
        assert len(shares) == 9
        assert shares == sorted(shares)
    assert [path for path, _, _ in analyses(tmp_path, {})] == [drawn / "forecasts.json"]
    with pytest.raises(InputError, match="draws sequences; choose experiment=oscillators"):
        draw(composed("stage=forecasts", "experiment=sines", f"run_dir={tmp_path / 'other'}"))
