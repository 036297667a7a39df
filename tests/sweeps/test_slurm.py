"""A real SLURM of this one machine, started for these tests: seeds, workers of a search, a job that is killed."""

import json
import os
import shutil
import signal
import socket
import subprocess
import time
from pathlib import Path

import optuna
import pytest
from optuna.trial import TrialState

from leo.run import meta_train
from sweeps.study import open_storage
from tests.conftest import ROOT
from tests.sweeps.test_launchers import needs
from tests.sweeps.test_search import ONE_VALUE, WORKER, draws, postgresql, straight_draws  # noqa: F401  (a fixture)
from tests.test_commands import command

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings(
        "ignore::optuna.exceptions.ExperimentalWarning",
        "ignore:The number of training batches:UserWarning",
        "ignore:.*does not have many workers:UserWarning",
    ),
]
PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "squeue", "scancel")
SUBMIT = ["-m", "hydra/launcher=slurm", "hydra.launcher.partition=here", "hydra.launcher.mem_gb=1"]


def free_ports(count):
    """Ports of loopback that nobody uses."""
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [opened.getsockname()[1] for opened in sockets]
    for opened in sockets:
        opened.close()
    return ports


def wait_for(condition, seconds, what):
    """Poll until ``condition`` holds."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, what()
        time.sleep(0.2)


@pytest.fixture(scope="module")
def slurm():
    """The environment in which SLURM's programs talk to a cluster of this machine alone."""
    missing = [program for program in PROGRAMS if shutil.which(program) is None]
    if missing:
        pytest.skip(f"no SLURM ({missing[0]} is missing); `apt-get install slurm-wlm munge` brings it")
    if os.getuid():
        pytest.skip("slurmd is started by root only")
    needs("submitit_local")
    folder, host = Path(f"/tmp/slurm-{os.getpid()}"), socket.gethostname().partition(".")[0]
    (folder / "state").mkdir(parents=True)
    (folder / "spool").mkdir()
    (folder / "key").write_bytes(os.urandom(128))
    (folder / "key").chmod(0o400)
    controller, node = free_ports(2)
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2**20
    settings = {
        "ClusterName": "test", "SlurmctldHost": f"{host}(127.0.0.1)", "SlurmctldPort": controller, "SlurmdPort": node,
        "AuthType": "auth/munge", "AuthInfo": f"socket={folder}/munge.socket,cred_expire=5", "CredType": "cred/munge",
        "SlurmUser": "root", "StateSaveLocation": f"{folder}/state", "SlurmdSpoolDir": f"{folder}/spool",
        "SlurmctldPidFile": f"{folder}/slurmctld.pid", "SlurmdPidFile": f"{folder}/slurmd.pid",
        "SlurmctldLogFile": f"{folder}/slurmctld.log", "SlurmdLogFile": f"{folder}/slurmd.log",
        "ProctrackType": "proctrack/linuxproc", "TaskPlugin": "task/none", "SelectType": "select/cons_tres",
        "SelectTypeParameters": "CR_Core", "MpiDefault": "none", "ReturnToService": 2, "KillWait": 2,
        "SchedulerParameters": "sched_interval=2,bf_interval=2",
    }  # fmt: skip
    lines = [f"{key}={value}" for key, value in settings.items()]
    lines.append(f"NodeName={host} NodeAddr=127.0.0.1 CPUs={os.cpu_count()} RealMemory={memory - 500} State=UNKNOWN")
    lines.append("PartitionName=here Nodes=ALL Default=YES MaxTime=INFINITE State=UP")
    (folder / "slurm.conf").write_text("\n".join(lines) + "\n")
    environment = os.environ | {
        "SLURM_CONF": str(folder / "slurm.conf"),
        "PYTHONPATH": str(ROOT),  # a job does not start next to train.py
        "OMP_NUM_THREADS": "1",
    }
    munged = [
        "munged", "--foreground", f"--key-file={folder}/key", f"--socket={folder}/munge.socket",
        f"--pid-file={folder}/munged.pid", f"--log-file={folder}/munged.log", f"--seed-file={folder}/munged.seed",
    ]  # fmt: skip
    daemons = []

    def logs():
        return "\n".join(path.read_text(errors="replace")[-2000:] for path in folder.glob("*.log"))

    def answers(*words):
        done = subprocess.run(words, env=environment, capture_output=True, text=True, check=False)
        return done.stdout if done.returncode == 0 else ""

    def end():
        """Cancel what runs; whether nothing runs any more."""
        answers("scancel", "--signal=KILL", "--full", "--user=root")
        answers("scancel", "--user=root")
        return not answers("squeue", "--noheader")

    try:
        for words, is_up in (
            (munged, (folder / "munge.socket").exists),
            (["slurmctld", "-D"], lambda: answers("scontrol", "ping")),
            (["slurmd", "-D"], lambda: "idle" in answers("sinfo", "--noheader", "--format=%t")),
        ):
            with (folder / f"{words[0]}-output.log").open("w") as output:
                bound = ["setpriv", "--pdeathsig", "TERM", *words]  # should this process be killed
                daemons.append(subprocess.Popen(bound, env=environment, stdout=output, stderr=output))
            wait_for(lambda daemon=daemons[-1], is_up=is_up: daemon.poll() is not None or is_up(), 60, logs)
            assert daemons[-1].poll() is None, logs()
        yield environment
        wait_for(end, 60, logs)
    finally:
        if len(daemons) == 3:
            end()
        for daemon in reversed(daemons):
            daemon.terminate()
            try:
                daemon.wait(20)
            except subprocess.TimeoutExpired:
                daemon.kill()
                daemon.wait()
        shutil.rmtree(folder)


def submit(slurm, folder, *overrides):
    """The process of a command that submits jobs and waits for them; its output is in ``output.txt``."""
    with (folder / "output.txt").open("a") as output:
        words = command(*SUBMIT, *overrides)
        return subprocess.Popen(words, cwd=folder, env=slurm | extra_environment(), stdout=output, stderr=output)


def extra_environment():
    """What a test has set."""
    return {key: os.environ[key] for key in ("SEARCH_STORAGE",) if key in os.environ}


def said(folder):
    """The end of all that the command and its jobs have printed."""
    logs = [folder / "output.txt", *folder.glob("runs/.submitit/*/*.err"), *folder.glob("runs/.submitit/*/*.out")]
    return "\n".join(path.read_text(errors="replace")[-2000:] for path in logs)


def test_five_seeds_are_five_jobs(slurm, composed, toy_overrides, tmp_path):
    settings = [
        *toy_overrides,
        "model.learner.dropout=0.0",
        *(f"dirs.{name}={tmp_path / name}" for name in ("images", "features", "runs")),
    ]
    assert submit(slurm, tmp_path, "sweep=five_seeds", *settings).wait(500) == 0, said(tmp_path)
    results = [json.loads(path.read_text()) for path in (tmp_path / "runs").glob("*/result.json")]
    assert sorted(result["seed"] for result in results) == [0, 1, 2, 3, 4]
    meta_train(composed(*settings, "seed=3", f"run_dir={tmp_path / 'here'}"))
    (there,) = (result for result in results if result["seed"] == 3)
    here = json.loads((tmp_path / "here" / "result.json").read_text())
    for key in ("accuracy", "val_accuracy", "num_steps", "config"):
        assert there[key] == here[key], key


@pytest.fixture
def on_postgresql(request, monkeypatch):
    """An empty database, to be named where a search is configured."""
    monkeypatch.setenv("SEARCH_STORAGE", request.getfixturevalue("postgresql"))


def search_settings(toy_overrides, folder):
    """A search of four short trials on PostgreSQL by two jobs."""
    return [
        *toy_overrides, *ONE_VALUE, *WORKER, "search.name=study", "search/storage=postgresql",
        *(f"dirs.{name}={folder / name}" for name in ("images", "features", "runs")),
    ]  # fmt: skip


def check_complete(composed, settings, num_trials):
    """Each trial is done once, with the values that one process would have drawn."""
    storage = open_storage(composed(*settings).search.storage)
    study = optuna.load_study(study_name="study", storage=storage)
    assert draws(study) == straight_draws(num_trials)
    assert len(study.get_trials(states=(TrialState.COMPLETE, TrialState.PRUNED))) == num_trials
    storage.engine.dispose()


def begun(slurm, folder, *settings):
    """The process that has submitted workers, once the second trial has a checkpoint."""
    process = submit(slurm, folder, *settings)
    checkpoint = folder / "runs" / "study" / "trial-001" / "last.ckpt"
    wait_for(lambda: checkpoint.exists() or process.poll() is not None, 300, lambda: said(folder))
    assert process.poll() is None, said(folder)
    return process


@pytest.mark.usefixtures("on_postgresql")
def test_two_jobs_that_reach_their_time_limit_share_a_search(slurm, composed, toy_overrides, tmp_path):
    settings = search_settings(toy_overrides, tmp_path)
    limit = "hydra.launcher.timeout_min=10"  # of so little, submitit calls each SIGUSR2 the time limit
    command = begun(slurm, tmp_path, "search.worker=0,1", limit, *settings)
    subprocess.run(["scancel", "--signal=USR2", "--user=root"], env=slurm, check=True)  # as SLURM: see signal_delay_s
    assert command.wait(300) == 0, said(tmp_path)
    check_complete(composed, settings, 4)


@pytest.mark.usefixtures("on_postgresql")
def test_a_search_whose_job_is_killed_goes_on_by_the_same_command(slurm, composed, toy_overrides, tmp_path):
    settings = search_settings(toy_overrides, tmp_path)
    first = begun(slurm, tmp_path, *settings)
    subprocess.run(["scancel", "--signal=KILL", "--full", "--user=root"], env=slurm, check=True)
    first.send_signal(signal.SIGKILL)  # without accounting it cannot know that its job is gone
    first.wait()
    assert submit(slurm, tmp_path, *settings).wait(500) == 0, said(tmp_path)
    check_complete(composed, settings, 4)
