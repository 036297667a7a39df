"""The search: exactly the trials that are missing, whatever dies; pruning, failures, workers, the best as a file."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import optuna
import pytest
from hydra import compose
from hydra.core.hydra_config import HydraConfig
from hydra.utils import instantiate
from omegaconf import OmegaConf
from optuna.storages import RetryHeartbeatStaleTrialCallback
from optuna.trial import TrialState

from leo.features import NORMALIZATIONS
from leo.run import meta_train
from runner.errors import InputError
from sweeps.search import load_study, open_study, search, train_best, values_of, write_best
from sweeps.searches import searches
from sweeps.space import space
from sweeps.study import PlacedSampler, is_surplus, open_storage, place, progress
from tests.conftest import ROOT
from tests.test_commands import command

pytestmark = pytest.mark.filterwarnings(
    "ignore:The number of training batches:UserWarning",
    "ignore:.*does not have many workers:UserWarning",
    "ignore::optuna.exceptions.ExperimentalWarning",
)

RATE = "'interval(1e-4, 1e-2)'"
ONE_VALUE = [  # a search of the rate alone, three validations a trial
    "stage=search",
    "max_steps=30",
    "val.every=10",
    "search/space=none",
    f"+search.space.model.optimizer.lr={RATE}",
]


@pytest.fixture
def overrides(toy_overrides, tmp_path):
    """Overrides for a search of 0.1 s a trial."""
    return [*toy_overrides, *ONE_VALUE, f"search.best={tmp_path}/conf/hparams/search/toy.yaml", "search.name=study"]


def draws(study):
    """What each finished trial's folder was given."""
    done = study.get_trials(states=(TrialState.COMPLETE, TrialState.PRUNED))
    return {Path(trial.user_attrs["folder"]).name: trial.params["model.optimizer.lr"] for trial in done}


def straight_draws(num_trials):
    """What a search that nothing interrupts draws, by trial folder."""
    study = optuna.create_study(sampler=PlacedSampler(optuna.samplers.RandomSampler, 0, []))
    return {f"trial-{i:03d}": study.ask().suggest_float("model.optimizer.lr", 1e-4, 1e-2) for i in range(num_trials)}


@pytest.mark.parametrize("source", ["paper", "released"])
@pytest.mark.parametrize("experiment", ["mini_1shot", "mini_5shot", "tiered_1shot", "tiered_5shot"])
def test_the_ranges_hold_the_published_values(composed, experiment, source):
    values = values_of(composed("stage=search", f"experiment={experiment}", "data.source=null"), source)
    published = OmegaConf.to_container(composed(f"experiment={experiment}", f"hparams={source}/{experiment}").model)
    assert values["model.optimizer.lr"] == published["optimizer"]["lr"]
    keys = ("kl_weight", "encoder_penalty_weight", "l2_weight", "orthogonality_weight", "dropout")
    assert {key: values[f"model.learner.{key}"] for key in keys} == {key: published["learner"][key] for key in keys}
    assert (values["features.normalize"], values["model.learner.latent_lr"]) == ("l2", 1.0)
    assert len(values) == 8


@pytest.mark.parametrize("experiment", ["glyphs_1shot", "mini_small_1shot"])
def test_a_search_may_start_from_the_file_of_another_experiment(composed, experiment):
    cfg = composed("stage=search", f"experiment={experiment}", "data.source=null")
    assert values_of(cfg, "released/mini_1shot")["model.optimizer.lr"] == 2.739071e-4
    values = values_of(cfg, "manual/glyphs_1shot")
    assert (values["features.normalize"], values["model.learner.latent_lr"]) == ("standardize", 0.03)


@pytest.mark.parametrize("experiment", ["glyphs_1shot", "glyphs_5shot"])
@pytest.mark.parametrize("method", ["", "_meta_sgd", "_prototypes"])
def test_the_ranges_hold_the_values_set_by_hand(composed, experiment, method):
    cfg = composed("stage=search", f"experiment={experiment}{method}", "data.source=null")
    assert values_of(cfg, "manual").keys() == dict(space(cfg.search.space)).keys()


@pytest.mark.parametrize("experiment", ["glyphs_1shot", "glyphs_1shot_meta_sgd", "glyphs_1shot_prototypes",
                                        "glyphs_1shot_centroid_mid_level"])  # fmt: skip
def test_each_methods_scaling_is_searched(composed, experiment):
    drawn = dict(space(composed("stage=search", f"experiment={experiment}").search.space))
    assert set(drawn["features.normalize"].choices) == set(NORMALIZATIONS)


def cut_in_mid_line(content):
    """What a disk that is full leaves of the last line of a journal."""
    return content[:-7]


def cut_in_half(content):
    """What a copy that was broken off holds."""
    return content[: len(content) // 2]


def zeros(content):
    """What a file system may hold after a power cut."""
    return bytes(len(content))


@pytest.mark.parametrize("damage", [cut_in_half, zeros, lambda content: content.replace(b"\n", b"") + b"\n", None])
@pytest.mark.parametrize(("kind", "file"), [("sqlite", "study.db"), ("journal", "study.journal")])
def test_a_damaged_study_is_named_and_made_anew_from_its_trials(composed, overrides, tmp_path, kind, file, damage):
    if kind == "journal" and damage is cut_in_half:
        damage = None  # it ends with whole lines: see below
    cfg = composed(*overrides, f"search/storage={kind}", "search.n_trials=2", f"dirs.runs={tmp_path / 'runs'}")
    best = search(cfg)
    path = tmp_path / "runs" / "study" / file
    if damage is not None:
        path.write_bytes(damage(path.read_bytes()))
        for run in (search, load_study):
            with pytest.raises(
                InputError, match=rf"{path} is damaged \(.+\); put a copy in its place, or delete"
            ) as it:
                run(cfg)
            assert "\n" not in str(it.value)
    path.unlink()
    before = (tmp_path / "runs" / "study" / "trial-001" / "trained.json").read_bytes()
    assert search(cfg) == best
    assert draws(load_study(cfg)) == straight_draws(2)
    assert (tmp_path / "runs" / "study" / "trial-001" / "trained.json").read_bytes() == before  # not trained again


@pytest.mark.parametrize("damage", [cut_in_half, cut_in_mid_line])
def test_a_journal_whose_last_line_was_not_finished_goes_on(composed, overrides, tmp_path, damage):
    cfg = composed(*overrides, "search/storage=journal", "search.n_trials=2", f"dirs.runs={tmp_path / 'runs'}")
    search(cfg)
    path = tmp_path / "runs" / "study" / "study.journal"
    content = path.read_bytes()
    path.write_bytes(damage(content))
    done = load_study(cfg).get_trials(states=(TrialState.COMPLETE,))
    assert len(done) < 2
    assert content.startswith(path.read_bytes())
    assert path.read_bytes().endswith(b"\n")


def test_values_outside_the_ranges_are_not_queued(composed):
    cfg = composed("stage=search", "experiment=mini_1shot", "search.space.model.learner.kl_weight='interval(0, 0.1)'")
    with pytest.raises(
        ValueError, match=r"kl_weight=0.124171967 of hparams/paper/mini_1shot.yaml is outside 0.0 to 0.1"
    ):
        values_of(cfg, "paper")


@pytest.mark.parametrize(
    "experiment",
    [
        "glyphs_1shot", "glyphs_1shot_meta_sgd", "glyphs_1shot_prototypes",
        "sines_and_lines", "sines_and_lines_meta_sgd", "sines_and_lines_maml",
    ],
)  # fmt: skip
def test_each_method_has_its_own_space_of_its_own_keys(composed, experiment):
    cfg = composed("stage=search", f"experiment={experiment}")
    names = dict(space(cfg.search.space))
    assert "model.optimizer.lr" in names
    assert all(OmegaConf.select(cfg, name) is not None for name in names)


def test_more_trials_continue_a_search_with_the_same_draws(composed, overrides, tmp_path):
    search(composed(*overrides, "search.n_trials=1"))
    first = (tmp_path / "runs/study/trial-000/last.ckpt").stat().st_mtime_ns
    best = search(composed(*overrides, "search.n_trials=4"))
    study = load_study(composed(*overrides))
    assert (tmp_path / "runs/study/trial-000/last.ckpt").stat().st_mtime_ns == first
    assert best == max(trial.value for trial in study.trials)
    assert study.trials[3].intermediate_values.keys() == {10, 20, 30}
    assert study.trials[3].value == max(study.trials[3].intermediate_values.values())
    assert draws(study) == straight_draws(4)
    assert len(set(draws(study).values())) == 4
    assert {path.name for path in (tmp_path / "runs/study").glob("trial-*")} == set(draws(study))
    for name in ("history.png", "importance.png", "parallel.png"):
        assert (tmp_path / "runs/study" / name).read_bytes().startswith(b"\x89PNG")
    with pytest.raises(ValueError, match=r"started with other settings \(num_query: 4 -> 5\); .*search.name="):
        search(composed(*overrides, "num_query=5"))


@pytest.mark.usefixtures("composed")
def test_what_only_places_or_ends_a_search_does_not_make_another():
    def folder(*overrides):
        cfg = compose("train", ["stage=search", *overrides], return_hydra_config=True)
        HydraConfig.instance().set_config(cfg)
        return cfg.search.folder

    assert folder() == "runs/search-glyphs_1shot-none-seed0"
    assert (
        folder("search.n_trials=7", "search.worker=3", "search/storage=journal", "search.enqueue=[manual]") == folder()
    )
    assert folder("num_way=3") == "runs/search-glyphs_1shot-none-seed0-num_way=3"
    assert folder("ablation=random_prior", "seed=1") == "runs/search-glyphs_1shot-random_prior-seed1"


def test_a_trial_does_not_test(composed, overrides, tmp_path):
    search(composed(*overrides, "search.n_trials=1"))
    assert (tmp_path / "runs/study/trial-000/trained.json").exists()
    assert not (tmp_path / "runs/study/trial-000/result.json").exists()


def test_another_sampler_repeats_no_draw_either(composed, overrides):
    tpe = ["search.sampler._target_=optuna.samplers.TPESampler", "+search.sampler.n_startup_trials=2"]
    for _ in range(3):  # processes that start one after another
        study = open_study(composed(*overrides, *tpe), [])
        study.optimize(lambda trial: trial.suggest_float("x", 0, 1), n_trials=2)
    assert len({trial.params["x"] for trial in study.trials}) == len(study.trials) == 6


def test_pruned_trials_are_recorded_with_their_curve(composed, overrides):
    kind = "search.pruner._target_=optuna.pruners.ThresholdPruner"
    pruner = [kind, "+search.pruner={lower: 1.1, n_warmup_steps: 15}"]
    with pytest.raises(ValueError, match="no trial of study was completed"):
        search(composed(*overrides, "search.n_trials=2", *pruner))
    pruned = load_study(composed(*overrides)).trials
    assert [trial.state for trial in pruned] == [TrialState.PRUNED] * 2
    assert all(trial.intermediate_values.keys() == {10, 20} for trial in pruned)
    search(composed(*overrides, "search.n_trials=2", "search.pruner=null", "search.name=unpruned"))
    unpruned = load_study(composed(*overrides, "search.name=unpruned")).trials
    assert [trial.state for trial in unpruned] == [TrialState.COMPLETE] * 2


def test_one_failing_configuration_does_not_end_the_search_but_too_many_do(composed, overrides):
    some = [*overrides, "+search.space.model.learner.latent_lr='choice(0.03, 1e30)'", "search.n_trials=5"]
    search(composed(*some))
    state = progress(load_study(composed(*some)), 5)
    assert state.num_finished == 5
    assert 0 < len(state.failed) < 5, "the seed draws both choices"
    message = (
        r"(?s)search.max_failures=0; narrow search.space.* \d x \d+ of the \d+ tasks of the last \d+ updates diverged"
    )
    with pytest.raises(ValueError, match=message):
        search(composed(*some, "search.max_failures=0"))


def test_a_misspelt_name_in_the_space_ends_the_search_before_any_trial(composed, overrides, tmp_path):
    misspelt = "+search.space.model.optimizer.lrr='interval(0, 1)'"
    message = r"search.space: no configuration has the key model.optimizer.lrr; did you mean model.optimizer.lr\?"
    with pytest.raises(InputError, match=message):
        search(composed(*overrides, misspelt))
    assert not list((tmp_path / "runs/study").glob("trial-*"))


def test_the_best_trial_becomes_a_file_that_trains_the_same_run(composed, overrides, tmp_path):
    cfg = composed(*overrides, "search.n_trials=3")
    search(cfg)
    write_best(cfg)
    best = load_study(cfg).best_trial
    text = (tmp_path / "conf/hparams/search/toy.yaml").read_text()
    assert "study study,\n" in text
    assert f"{Path(best.user_attrs['folder']).name}, validation score {best.value:.4f}." in text
    train_best(cfg)
    plain = [o for o in overrides if "search" not in o]
    chosen = composed(*plain, "hparams=search/toy", f"hydra.searchpath=[file://{tmp_path / 'conf'}]")
    assert chosen.model.optimizer.lr == best.params["model.optimizer.lr"]
    assert chosen.model.learner.kl_weight == 0.01  # the file that the search started from
    stamp = (tmp_path / "run/result.json").stat().st_mtime_ns
    meta_train(chosen)
    assert (tmp_path / "run/result.json").stat().st_mtime_ns == stamp, "the run counts as finished"


@pytest.mark.slow
def test_the_best_trial_lands_where_configurations_are_read(composed, overrides, tmp_path, monkeypatch):
    """Whatever the current folder is; a clone's own ``conf``, so that the test changes nothing of the project."""
    monkeypatch.chdir(tmp_path)
    best = composed("stage=search_best", "experiment=glyphs_5shot", "ablation=random_prior").search.best
    assert Path(best) == ROOT / "conf/hparams/search/glyphs_5shot-random_prior.yaml"
    for part in ("conf", "runner"):
        shutil.copytree(ROOT / part, tmp_path / "clone" / part)
    shutil.copy(ROOT / "train.py", tmp_path / "clone")
    script = [sys.executable, tmp_path / "clone/train.py"]
    words = [text for text in overrides if not text.startswith(("stage=", "search.best="))]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}

    def call(stage):
        (tmp_path / "elsewhere").mkdir(exist_ok=True)
        words_of_stage = [*script, f"stage={stage}", "experiment=glyphs_1shot", *words, "search.n_trials=1"]
        done = subprocess.run(
            words_of_stage, cwd=tmp_path / "elsewhere", env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    call("search")
    assert "hparams=search/glyphs_1shot-none" in call("search_best")
    assert "study study," in (tmp_path / "clone/conf/hparams/search/glyphs_1shot-none.yaml").read_text()
    assert not (tmp_path / "elsewhere/conf").exists()


def test_a_file_of_the_best_trial_that_cannot_be_written_or_chosen_is_said(composed, overrides, tmp_path, caplog):
    cfg = composed(*overrides, "search.n_trials=1")
    search(cfg)
    with caplog.at_level("INFO"):
        write_best(cfg)
    assert "toy.yaml: no configuration is looked for there; to choose it" in caplog.text
    (tmp_path / "file").touch()
    with pytest.raises(
        InputError, match=r"file/toy.yaml cannot be written \(.*\); choose another file with search.best="
    ):
        write_best(composed(*overrides, f"search.best={tmp_path}/file/toy.yaml"))


def test_no_study_is_a_clear_error(composed, overrides):
    with pytest.raises(FileNotFoundError, match="study is missing; stage=search makes it"):
        write_best(composed(*overrides))


def test_a_retry_has_the_place_and_the_values_of_its_original():
    retry = RetryHeartbeatStaleTrialCallback(max_retry=1)
    study = optuna.create_study(sampler=PlacedSampler(optuna.samplers.RandomSampler, 0, [{"x": 0.25}]))
    drawn = [study.ask().suggest_float("x", 0, 1) for _ in range(2)]
    study.tell(1, state=TrialState.FAIL)
    retry(study, study.trials[1])
    drawn += [study.ask().suggest_float("x", 0, 1) for _ in range(2)]  # the retry, then a new one
    assert [place(trial, study.trials) for trial in study.trials] == [0, 1, 1, 2]
    assert drawn[0] == 0.25
    assert drawn[2] == drawn[1] != drawn[3]
    straight = optuna.create_study(sampler=PlacedSampler(optuna.samplers.RandomSampler, 0, [{"x": 0.25}]))
    assert [straight.ask().suggest_float("x", 0, 1) for _ in range(3)] == [drawn[0], drawn[1], drawn[3]]
    assert [is_surplus(trial, study.trials, 2) for trial in study.trials] == [False, False, False, True]


STORAGES = ["search/storage=sqlite", pytest.param("search/storage=journal", marks=pytest.mark.slow)]
WORKER = ["search.storage.heartbeat_interval=1", "search.storage.grace_period=2", "search.n_trials=4", "max_steps=60"]


def start(folder, *overrides):
    with (folder / "output.txt").open("a") as output:
        return subprocess.Popen(command(*overrides), cwd=folder, stdout=output, stderr=output)


def finish(folder, *processes):
    """Wait for workers; they must succeed."""
    codes = [process.wait(300) for process in processes]
    assert codes == [0] * len(codes), (folder / "output.txt").read_text()[-3000:]


def kill_in_the_second_trial(folder, seconds, *settings):
    """Start the command and kill it once the second trial has a checkpoint, which takes at most ``seconds``."""
    process = start(folder, *settings)
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline and not (folder / "runs/study/trial-001/last.ckpt").exists():
        assert process.poll() is None, (folder / "output.txt").read_text()[-3000:]
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait(10)


@pytest.mark.slow
@pytest.mark.parametrize("storage", STORAGES)
def test_a_killed_search_starts_again_where_it_was(composed, overrides, tmp_path, storage):
    settings = [*overrides, *WORKER, storage, f"dirs.runs={tmp_path / 'runs'}"]
    kill_in_the_second_trial(tmp_path, 60, *settings)
    kept = (tmp_path / "runs/study/trial-000/last.ckpt").stat().st_mtime_ns
    finish(tmp_path, start(tmp_path, *settings))
    study = load_study(composed(*settings))
    states = [trial.state.name for trial in study.trials]
    assert states.count("FAIL") == 1
    assert states[1] == "FAIL"
    assert states.count("COMPLETE") + states.count("PRUNED") == 4
    assert (tmp_path / "runs/study/trial-000/last.ckpt").stat().st_mtime_ns == kept
    assert sorted(draws(study)) == [f"trial-00{i}" for i in range(4)]
    assert sorted(path.name for path in (tmp_path / "runs/study").glob("trial-*")) == sorted(draws(study))
    assert draws(study) == straight_draws(4)
    curves = [trial.intermediate_values.keys() for trial in study.trials if trial.state == TrialState.COMPLETE]
    assert all(curve == set(range(10, 61, 10)) for curve in curves), "no validation is missing or doubled"


@pytest.mark.slow
def test_a_worker_that_was_stopped_for_long_and_goes_on_loses_nothing(composed, overrides, tmp_path):
    """SIGSTOP past the grace period: another worker takes the trial, waits for its folder, and both end well."""
    settings = [*overrides, *WORKER, f"dirs.runs={tmp_path / 'runs'}"]
    stopped, output = start(tmp_path, *settings), tmp_path / "output.txt"
    wait_until((tmp_path / "runs/study/trial-001/last.ckpt").exists, stopped, output)
    stopped.send_signal(signal.SIGSTOP)
    other = start(tmp_path, *settings, "search.worker=1")
    wait_until(lambda: "trial-001 is in use by another process" in output.read_text(), other, output)
    stopped.send_signal(signal.SIGCONT)
    finish(tmp_path, stopped, other)
    study = load_study(composed(*settings))
    states = [trial.state.name for trial in study.trials]
    assert states.count("FAIL") == 1
    assert states[1] == "FAIL"
    assert states.count("COMPLETE") + states.count("PRUNED") == 4
    assert draws(study) == straight_draws(4)
    assert "was stopped for so long that trial 1 went to another one" in output.read_text()


def wait_until(is_true, process, output):
    """Wait for something that ``process`` does."""
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and not is_true():
        assert process.poll() is None, output.read_text()[-3000:]
        time.sleep(0.01)
    assert is_true(), output.read_text()[-3000:]


def two_workers(composed, settings, folder):
    """Two processes that start on nothing at the same moment and leave each trial done once; their storage."""
    workers = [start(folder, *settings, f"search.worker={worker}") for worker in range(2)]
    finish(folder, *workers)
    storage = open_storage(composed(*settings).search.storage)
    study = optuna.load_study(study_name="study", storage=storage)
    done = study.get_trials(states=(TrialState.COMPLETE, TrialState.PRUNED))
    assert sorted(draws(study)) == [f"trial-00{i}" for i in range(4)]
    assert len(done) == 4
    return storage


@pytest.mark.slow
@pytest.mark.parametrize("storage", STORAGES)
def test_two_workers_share_the_trials(composed, overrides, tmp_path, storage):
    two_workers(composed, [*overrides, *WORKER, storage, f"dirs.runs={tmp_path / 'runs'}"], tmp_path)


@pytest.fixture
def postgresql(tmp_path_factory):
    """The URL of an empty database of a server on loopback."""
    programs = sorted(Path("/usr/lib/postgresql").glob("*/bin"))
    if not programs:
        pytest.skip("no PostgreSQL server; `apt-get install postgresql` brings it")
    pytest.importorskip("psycopg")
    folder = Path("/tmp") / f"postgresql-{os.getpid()}"
    folder.mkdir(mode=0o777)
    user = "postgres" if os.getuid() == 0 else None  # the server refuses to run as root
    if user:
        shutil.chown(folder, user)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]

    def call(program, *arguments):
        words = [programs[-1] / program, *arguments]
        subprocess.run(words, cwd=folder, user=user, check=True, stdout=subprocess.DEVNULL)

    try:
        call("initdb", "--pgdata", "data", "--username", "leo", "--auth", "trust", "--no-sync")
        options = f"-c listen_addresses=127.0.0.1 -c port={port} -c unix_socket_directories={folder} -c fsync=off"
        call("pg_ctl", "--pgdata", "data", "--wait", "--log", "log", "--options", options, "start")
        try:
            yield f"postgresql+psycopg://leo@127.0.0.1:{port}/postgres"
        finally:
            call("pg_ctl", "--pgdata", "data", "--mode", "immediate", "stop")
    finally:
        shutil.rmtree(folder)


@pytest.mark.slow
def test_two_workers_on_an_empty_postgresql_database(composed, overrides, tmp_path, postgresql, monkeypatch):
    monkeypatch.setenv("SEARCH_STORAGE", postgresql)
    storage = ["search/storage=postgresql"]
    two_workers(composed, [*overrides, *WORKER, *storage, f"dirs.runs={tmp_path / 'runs'}"], tmp_path).engine.dispose()


def test_a_server_that_is_not_there_is_a_clear_error(composed, overrides, monkeypatch):
    monkeypatch.setattr("sweeps.study.ATTEMPTS", 1)
    monkeypatch.setenv("SEARCH_STORAGE", "postgresql+psycopg://leo:secret@127.0.0.1:1/none")
    storage = composed(*overrides, "search/storage=postgresql").search.storage
    message = r"the storage postgresql\+psycopg://leo:\*\*\*@127.0.0.1:1/none cannot be opened: .*[Cc]onnection"
    with pytest.raises(ValueError, match=message):
        open_storage(storage)


def test_a_study_lies_in_the_folder_that_its_overrides_name(tmp_path):
    folder = tmp_path / "search-kl_weight={low:0.1}"
    folder.mkdir()
    storage = open_storage(
        OmegaConf.create({"_target_": "optuna.storages.RDBStorage", "url": f"sqlite:///{folder}/study.db"})
    )
    optuna.create_study(study_name="found", storage=storage)
    storage.engine.dispose()
    assert (folder / "study.db").exists()
    assert [search.name for search in searches(tmp_path, {})] == ["found"]


def test_the_sampler_and_the_pruner_are_those_of_the_paper_unless_asked(composed):
    cfg = composed("stage=search")
    assert instantiate(cfg.search.sampler)().__class__ is optuna.samplers.RandomSampler
    assert open_study(cfg, []).pruner.__class__ is optuna.pruners.MedianPruner
    without = composed("stage=search", "search.pruner=null", "search.name=other")
    assert open_study(without, []).pruner.__class__ is optuna.pruners.NopPruner


def test_the_settings_of_stage_1_are_searched_alike(composed, tmp_path):
    """Tiny glyphs, a narrow extractor: trials in folders of their own, no features, the best as a file."""
    small = [
        "stage=search_pretrain",
        "data.source.images_per_class=6",
        "backbone.width=1",
        "data.pretrain.max_steps=4",
        "data.pretrain.val_every=2",
        "data.pretrain.schedule.num_warmup=1",
        "trainer.accelerator=cpu",
        "search.n_trials=2",
        "search.name=study",
        f"search.best={tmp_path}/conf/hparams/search/pretrain.yaml",
    ]
    cfg = composed(*small)
    best = search(cfg)
    study = load_study(cfg)
    assert best == study.best_value
    assert [trial.intermediate_values.keys() for trial in study.trials] == [{2, 4}] * 2
    found = OmegaConf.load(tmp_path / "runs/study/trial-001/config.yaml").data.pretrain.optimizer.lr
    assert found == study.trials[1].params["data.pretrain.optimizer.lr"]
    assert not (tmp_path / "features").exists()
    write_best(cfg)
    chosen = composed("hparams=search/pretrain", f"hydra.searchpath=[file://{tmp_path / 'conf'}]")
    assert chosen.backbone.dropout == study.best_params["backbone.dropout"]
    assert chosen.max_steps == 3000, "the hyperparameters of meta-training are those that were chosen"
