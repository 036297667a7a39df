"""Hydra's own words for a search: ranges become what Optuna draws, and a sweep of them the study of stage=search."""

import pytest
from hydra import compose
from hydra.core.plugins import Plugins
from hydra.plugins.sweeper import Sweeper
from omegaconf import OmegaConf
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import TrialState

from runner.errors import InputError
from sweeps.handover import jobs
from sweeps.search import load_study, search
from sweeps.space import distribution, space
from tests.sweeps.test_search import finish, kill_in_the_second_trial, start
from tests.test_commands import run

pytestmark = pytest.mark.filterwarnings(
    "ignore:The number of training batches:UserWarning",
    "ignore:.*does not have many workers:UserWarning",
    "ignore::optuna.exceptions.ExperimentalWarning",
)

RANGES = ["model.optimizer.lr=tag(log, interval(1e-4, 1e-2))", "tasks_per_batch=choice(3,6)"]


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("interval(1e-4,1e-2)", FloatDistribution(1e-4, 1e-2)),
        ("interval(0, 1)", FloatDistribution(0, 1)),
        ("tag(log, interval(1e-4, 1e-2))", FloatDistribution(1e-4, 1e-2, log=True)),
        ("int(interval(2, 64))", IntDistribution(2, 64)),
        ("tag(log, int(interval(2, 64)))", IntDistribution(2, 64, log=True)),
        ("range(1, 8)", IntDistribution(1, 7)),  # Hydra's range leaves its end out
        ("range(1, 8, 3)", IntDistribution(1, 7, step=3)),
        ("range(8, 1, -3)", IntDistribution(2, 8, step=3)),
        ("range(4)", IntDistribution(0, 3)),
        ("range(0.5, 2, 0.5)", FloatDistribution(0.5, 1.5, step=0.5)),
        ("choice(6, 12)", CategoricalDistribution([6, 12])),
        ("6,12", CategoricalDistribution([6, 12])),
        ("null, true, 'a b', 0.5, c", CategoricalDistribution([None, True, "a b", 0.5, "c"])),
    ],
)
def test_hydras_words_as_distributions(words, expected):
    assert distribution("key", words) == expected
    assert dict(space(OmegaConf.create({"a": {"b": words}, "c.d": words}))) == {"a.b": expected, "c.d": expected}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("0.1", "key=0.1 is no range to search; write interval"),
        ("interval(1, 0)", "interval"),
        ("tag(log, interval(0, 1))", "low > 0"),
        ("tag(log, range(1, 9, 2))", "step"),
        ("tag(log, choice(1, 2))", "has no logarithm"),
        ("tag(slow, interval(0, 1))", "tags other than log"),
        ("shuffle(choice(1, 2))", "has neither shuffle"),
        ("choice([1], [2])", "single values"),
        ("range(3, 3)", "empty"),
        ("interval(1", "interval"),
        ("glob(*)", "is no range"),
        (None, "is no range"),
    ],
)
def test_what_is_no_range_is_refused(words, message):
    with pytest.raises(InputError, match=message) as raised:
        distribution("key", words)
    assert str(raised.value).startswith(f"key={words} ")


def test_the_sweeper_is_found_by_hydra():
    assert "StudySweeper" in [plugin.__name__ for plugin in Plugins.instance().discover(Sweeper)]


def handed(arguments, *, sweep="none", n_trials=None):
    """The overrides of each worker, from a command line as Hydra composes it for a sweep."""
    from hydra.core.global_hydra import GlobalHydra

    loader = GlobalHydra.instance().config_loader()
    plain = [text for text in arguments if "," not in text]
    config = compose("train", [f"sweep={sweep}", *plain], return_hydra_config=True)
    return jobs(arguments, config.hydra.sweeper.params, n_trials, config, loader)


@pytest.mark.usefixtures("composed")
def test_ranges_of_the_command_line_are_the_space():
    (job,) = handed([*RANGES, "num_way=3"], n_trials=20)
    assert job == [
        "num_way=3", "stage=search", "search/space=none",
        "+search.space.model.optimizer.lr='tag(log, interval(1e-4, 1e-2))'",
        "+search.space.tasks_per_batch='choice(3,6)'", "search.n_trials=20",
    ]  # fmt: skip
    assert dict(space(compose("train", job).search.space)).keys() == {"model.optimizer.lr", "tasks_per_batch"}
    workers = handed([*RANGES, "search.worker=0,1"])
    assert [worker[-1] for worker in workers] == ["search.worker=0", "search.worker=1"]
    assert handed(["num_way=3"]) == [["num_way=3", "stage=search"]], "the space of conf/search/space"


@pytest.mark.usefixtures("composed")
def test_the_papers_space_is_replaced_added_to_and_taken_out_of():
    paper = "sweep=paper_space_leo"
    assert handed([paper], sweep="paper_space_leo") == [[paper]], "the very search of stage=search"
    (job,) = handed([paper, *RANGES, "model.learner.dropout=0.1"], sweep="paper_space_leo")
    assert job == [
        paper, "model.learner.dropout=0.1", "~search.space.model.learner.dropout",
        "+search.space.tasks_per_batch='choice(3,6)'",
    ], "the range of the rate is the paper's"  # fmt: skip
    found = dict(space(compose("train", job).search.space))
    assert len(found) == 8
    assert found["tasks_per_batch"] == CategoricalDistribution([3, 6])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["experiment=glyphs_1shot,glyphs_5shot"], "experiment is a group; start one search for each choice"),
        (["seed=0,1"], "a search does not draw seed"),
        (["search.n_trials=1,1"], "a search does not draw search.n_trials"),
        (["num_way=interval(1,0)"], "num_way=interval.1,0. cannot be searched"),
        (["stage=test", *RANGES], "starts a search; choose stage=search"),
    ],
)
@pytest.mark.usefixtures("composed")
def test_what_a_search_does_not_draw_is_refused(arguments, message):
    with pytest.raises(InputError, match=message):
        handed(arguments)


def test_a_value_that_the_search_would_overwrite_is_refused(composed, toy_overrides):
    with pytest.raises(InputError, match=r"dropout=0.2 has no effect.*~search.space.model.learner.dropout"):
        search(composed(*toy_overrides, "stage=search", "search.name=study"))
    with pytest.raises(InputError, match=r"search.space is empty"):
        search(composed(*toy_overrides, "stage=search", "search/space=none", "search.name=study"))


@pytest.mark.slow
def test_a_killed_sweep_is_completed_by_the_same_command(composed, toy_overrides, tmp_path):
    """SIGKILL in the second of four trials; the same draws as in a search that nothing interrupts; then a message."""
    split = [text.partition("=") for text in RANGES]
    plain = [text for text in toy_overrides if not text.startswith(("tasks_per_batch=", "max_steps=", "val.every="))]
    storage = ["search.storage.heartbeat_interval=1", "search.storage.grace_period=2", "search.name=study"]
    words = [*plain, "max_steps=60", "val.every=10", f"dirs.runs={tmp_path / 'runs'}", "stage=search", *storage]
    settings = ["-m", "hydra/sweeper=optuna", *RANGES, *words, "hydra.sweeper.n_trials=4"]
    kill_in_the_second_trial(tmp_path, 180, *settings)
    kept = (tmp_path / "runs/study/trial-000/last.ckpt").stat().st_mtime_ns
    finish(tmp_path, start(tmp_path, *settings))
    in_space = ["search/space=none", *(f"+search.space.{key}='{text}'" for key, _, text in split)]
    cfg = composed(*words, *in_space)
    study = load_study(cfg)
    done = study.get_trials(states=(TrialState.COMPLETE, TrialState.PRUNED))
    assert (tmp_path / "runs/study/trial-000/last.ckpt").stat().st_mtime_ns == kept
    assert len(done) == 4
    assert sorted(trial.state.name for trial in study.trials).count("FAIL") == 1
    straight = composed(*words, *in_space, "search.name=straight", "search.n_trials=4")
    search(straight)
    expected = [trial.params for trial in load_study(straight).trials]
    assert sorted(map(str, (trial.params for trial in done))) == sorted(map(str, expected))
    refused = run(tmp_path, *settings, "hydra.sweeper.storage=sqlite:///x.db")
    assert refused.returncode == 1
    assert "hydra.sweeper.storage is not known here; use search/storage=" in refused.stderr
    assert "Traceback" not in refused.stderr
