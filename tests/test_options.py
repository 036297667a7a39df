"""What is typed: nothing is ignored in silence, no two inputs share a folder, surroundings change nothing, messages."""

import errno
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import InstantiationException, OverrideParseException
from hydra.utils import instantiate
from omegaconf import OmegaConf

import train
from leo.run import accelerator, meta_train
from runner.config import check_arguments, check_overrides, key_paths, names_are_text
from runner.errors import InputError, users_message
from runner.folder import taking_turns
from runner.machine import device_of
from runner.names import cut, variant
from tests.conftest import ROOT

pytestmark = pytest.mark.filterwarnings(
    "ignore:The number of training batches:UserWarning", "ignore:.*does not have many workers:UserWarning"
)

STAGES = sorted(path.stem for path in (ROOT / "conf" / "stage").glob("*.yaml"))
FEATURES = ["data.source=null", "features.folder=given"]


@pytest.fixture
def command(tmp_path, monkeypatch):
    """``python train.py`` with overrides, in this process and in ``tmp_path``; what it says when it fails."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LEO_HYDRA_RAISES", "")  # so that both are put back as they were
    monkeypatch.setenv("HYDRA_FULL_ERROR", "")
    monkeypatch.delenv("LEO_HYDRA_RAISES")
    monkeypatch.delenv("HYDRA_FULL_ERROR")

    def run(*overrides):
        monkeypatch.setattr(sys, "argv", ["train.py", f"--config-path={ROOT / 'conf'}", *map(str, overrides)])
        try:
            train.command()
        except SystemExit as end:
            return str(end.code)
        return ""

    return run


@pytest.mark.parametrize(
    ("overrides", "refused"),
    [
        (["trainer=bf16"], "trainer=bf16: no effect in stage=meta; .*stage=pretrain"),
        (["trainer=ddp"], "trainer=ddp: no effect in stage=meta; .*stage=pretrain"),
        (["trainer.accumulate_grad_batches=4"], "trainer.accumulate_grad_batches=4: no effect in stage=meta"),
        (["trainer.devices=2", "trainer.precision=bf16-mixed"], "trainer.devices=2, trainer.precision=bf16-mixed: no"),
        (["+trainer.max_epochs=3"], "trainer.max_epochs=3: no effect"),
        ([*FEATURES, "data.pretrain.max_steps=5"], "data.pretrain.max_steps=5: no effect .* with data.source null"),
        ([*FEATURES, "backbone.width=4"], "backbone.width=4: no effect"),
        ([*FEATURES, "compile=true", "centroid_tasks=5"], "compile=true, centroid_tasks=5: no effect"),
        (["features=leo_embeddings", "data=mini_imagenet", "views=multiview"], "views=multiview: no effect"),
        (["experiment=glyphs_1shot_centroid_pixels", "max_steps=50"], "max_steps=50: no effect .*model.optimizer null"),
        (["+support=a"], r"\+support=a: no effect in stage=meta; .*stage=predict"),
        (["stage=search", "checkpoint=a"], "checkpoint=a: no effect in stage=search"),
        (["stage=search", "trainer=bf16"], "trainer=bf16: no effect in stage=search"),
        (["stage=pretrain", "checkpoint=a", "max_steps=7"], "checkpoint=a, max_steps=7: no effect in stage=pretrain"),
        (["stage=pretrain", "num_way=7"], "num_way=7: no effect in stage=pretrain with centroid_tasks null"),
        (["stage=pretrain", "test.num_tasks=7"], "test.num_tasks=7: no effect"),
        (["stage=prepare", "max_steps=3"], "max_steps=3: no effect in stage=prepare"),
        (["stage=test", "checkpoint=a", "logger=wandb"], "logger=wandb: no effect in stage=test"),
        (["stage=test", "+query=a"], r"\+query=a: no effect in stage=test"),
        (["stage=analyze", "test.num_tasks=9"], "test.num_tasks=9: no effect in stage=analyze"),
        (["stage=predict", "num_way=7"], "num_way=7: no effect in stage=predict"),
        (["stage=label", "folder=a", "seed=7", "num_way=7"], "seed=7, num_way=7: no effect in stage=label"),
        (["stage=predict", "checkpoint=a", "experiment=glyphs_5shot"], "experiment=glyphs_5shot: no effect"),
        (["stage=package", "trainer.accelerator=cpu"], "trainer.accelerator=cpu: no effect"),
        (["stage=report", "experiment=glyphs_5shot"], "experiment=glyphs_5shot: no effect in stage=report"),
        (["stage=dashboard", "num_shot=5"], "num_shot=5: no effect in stage=dashboard"),
        (["stage=figure3", "experiment=sines_and_lines", "logger=wandb"], "logger=wandb: no effect in stage=figure3"),
        (["stage=pretrain", "extractor=joint"], "extractor=joint: no effect in stage=pretrain; .*stage=meta"),
        (["stage=predict", "checkpoint=a", "extractor=joint"], "extractor=joint: no effect in stage=predict"),
        (
            ["experiment=glyphs_1shot_centroid_pixels", "extractor=joint"],
            "extractor=joint: no effect .*model.optimizer",
        ),
    ],
    ids=str,
)
def test_what_a_stage_does_not_use_is_refused_by_name(composed, overrides, refused):
    with pytest.raises(InputError, match=refused):
        check_overrides(composed(*overrides))


def test_values_that_stand_already_may_be_chosen_by_another_name(composed, tmp_path):
    """A search may find the values that were set by hand."""
    (tmp_path / "hparams").mkdir()
    (tmp_path / "hparams/found.yaml").write_text("# @package _global_\ndefaults: [/hparams/manual/glyphs_1shot]\n")
    check_overrides(composed(f"hydra.searchpath=[file://{tmp_path}]", "hparams=found"))


@pytest.mark.parametrize(
    "overrides",
    [
        ["experiment=mini_1shot", "ablation=no_finetuning", "seed=3", "num_way=10", "model.learner.num_latents=32"],
        ["hparams=released/mini_1shot", "features=penultimate", "backbone.mid_level=8", "logger=wandb", "threads=1"],
        ["backbone.width=4", "data.pretrain.max_steps=8", "views=multiview", "data=mini_imagenet", "patience=3"],
        ["trainer=auto", "trainer.accelerator=cpu", "+trainer.deterministic=true", "checkpoint=a"],
        [*FEATURES, "experiment=mini_1shot", "data=mini_imagenet", "features.normalize=l2", "train_splits=[train,val]"],
        ["experiment=sines_and_lines", "tasks.num_samples=3", "val.num_tasks=20", "max_steps=2000"],
        ["experiment=glyphs_1shot_centroid_pixels", "test.num_tasks=50", "trainer.accelerator=cpu", "seed=1"],
        ["stage=pretrain", "trainer=ddp", "data=cifar_fs", "compile=true", "trainer.accumulate_grad_batches=2"],
        ["stage=pretrain", "centroid_tasks=100", "num_way=5", "experiment=glyphs_5shot", "features=penultimate"],
        ["stage=prepare", "data=mini_imagenet", "data.source.path=a", "data.name=b"],
        ["stage=prepare", "experiment=mini_1shot", "features=leo_embeddings", "features.source.path=a"],
        ["stage=test", "checkpoint=a", "experiment=glyphs_5shot", "max_steps=500", "trainer.accelerator=cpu"],
        ["stage=analyze", "checkpoint=a", "experiment=mini_1shot", "stage.compare=[b]", "max_steps=500"],
        ["stage=predict", "support=a", "query=b", "experiment=glyphs_5shot", "seed=2", "stage.num_samples=20"],
        ["stage=predict", "support=a", "query=b", "checkpoint=c", "stage.extractor=d"],
        ["stage=label", "folder=a"],
        ["stage=label", "folder=a", "stage.port=0", "stage.host=0.0.0.0", "checkpoint=c", "stage.extractor=d"],
        ["stage=label", "folder=a", "backbone=torchvision", "backbone.network=resnet18"],
        ["stage=package", "experiment=glyphs_5shot", "ablation=no_finetuning", "stage.output=a"],
        ["stage=figure3", "experiment=sines_and_lines", "hparams=search/sines_and_lines-none"],
        ["stage=report", "stage.select=a*", "dirs.runs=b"],
        ["stage=search", "search.n_trials=4", "search/storage=journal", "ablation=random_prior", "max_steps=500"],
        ["stage=search_pretrain", "data=glyphs", "search.n_trials=20", "data.pretrain.max_steps=50"],
        ["stage=paper", "experiment=mini_5shot", "seed=3", "test.num_tasks=100"],
        ["stage=dashboard", "stage.entity=a", "experiment=glyphs_5shot"],
        ["extractor=joint", "extractor.start=random", "extractor.lr=1e-3", "backbone.width=1", "tasks_per_batch=4"],
        ["stage=test", "checkpoint=a", "extractor=joint", "model=prototypes", "hparams=manual/glyphs_1shot_prototypes"],
        ["stage=search", "extractor=joint", "+search.space.extractor.lr='tag(log, interval(1e-5, 1e-3))'"],
        ["experiment=none", "model=centroid", "data=none", "features.folder=a", "max_steps=0"],  # which is mandatory
    ],
    ids=str,
)
def test_what_a_stage_uses_may_be_set(composed, overrides):
    check_overrides(composed(*overrides))


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_says_what_it_uses_by_keys_that_there_are(composed, stage):
    cfg = composed(f"stage={stage}")
    known = [*map(str, cfg), *key_paths(cfg), *key_paths(composed("stage=pretrain", "trainer=ddp")), "experiment"]
    known += key_paths(composed("backbone=efficientnet_lite0"))
    lightning = re.compile(r"trainer\.\w+")
    for part in cfg.stage.uses.values():
        for key in (*part["keys"], *part.get("where", []), *part.get("unless", [])):
            assert lightning.fullmatch(key) or any(f"{path}.".startswith(f"{key}.") for path in known), key


def test_an_optimizer_for_nothing_to_train_is_refused(composed, toy_overrides):
    kept = [override for override in toy_overrides if not override.startswith("model.")]
    adam = "model.optimizer={_target_: torch.optim.Adam, _partial_: true, lr: 0.1}"
    with pytest.raises(InputError, match="model.optimizer is set, but leo.prototypes.NearestCentroid has nothing to"):
        meta_train(composed("experiment=glyphs_1shot_centroid_mid_level", *kept, adam))


def test_names_of_folders_that_were_not_cut_are_as_they_were():
    assert variant("") == ""
    assert variant("num_way=10,hparams=search/glyphs_1shot-none") == "-num_way=10,hparams=search_glyphs_1shot-none"
    assert variant("a" * 150) == "-" + "a" * 150


def test_no_two_overrides_have_one_name_and_none_is_too_long_for_a_file_system():
    long = ["x" * 151, "x" * 152, "x" * 150 + "y", "ж" * 300, "ж" * 301, "key=" + "字" * 90]
    alike = ["features.folder=a/b", "features.folder=a_b", "query=a/b_c", "query=a_b/c"]
    names = [variant(text) for text in (*long, *alike)]
    assert len(set(names)) == len(names)
    for name in (*names, cut("ж" * 200), cut("字" * 86 + "a")):
        assert len(name.encode()) <= 255
        assert "\ufffd" not in name
    assert cut("字" * 85) == "字" * 85  # 255 bytes
    assert cut("字" * 86) != cut("字" * 87)


def test_the_folder_of_every_stage_fits_a_file_system(composed):
    for stage in STAGES:
        given = [
            f"stage={stage}",
            *(f"{key}.name='{'ж' * 120}'" for key in ("data", "backbone")),
            f"+num='{'字' * 90}'",
        ]
        cfg = composed(*given, "run_dir='${dirs.runs}/${cut:${stage.folder}}'")
        assert len(Path(cfg.run_dir).name.encode()) <= 255


def test_two_checkpoints_are_tested_in_two_folders_and_named_by_their_content(command, toy_overrides, tmp_path):
    for seed in (0, 1):
        assert command(*toy_overrides, f"seed={seed}", "max_steps=20", f"run_dir=run{seed}") == ""
    for path in ("run0/best.ckpt", "run1/best.ckpt", "run1"):
        assert command("stage=test", *toy_overrides, f"checkpoint={path}") == ""
    results = [json.loads(path.read_text()) for path in tmp_path.glob("runs/test-*/result.json")]
    assert sorted(result["checkpoint"] for result in results) == ["run0/best.ckpt", "run1/best.ckpt"]
    hashes = {result["checkpoint_sha256"] for result in results}
    assert len(hashes) == 2
    held = {OmegaConf.load(path).checkpoint.sha256 for path in tmp_path.glob("runs/test-*/config.yaml")}
    assert held == hashes
    (tmp_path / "run0" / "best.ckpt").write_bytes((tmp_path / "run1" / "best.ckpt").read_bytes())
    assert command("stage=test", *toy_overrides, "checkpoint=run0/best.ckpt") == ""
    assert len(list(tmp_path.glob("runs/test-*/result.json"))) == 3
    said = command("stage=test", *toy_overrides, "checkpoint=run0/best.ckpt", "run_dir=kept")
    assert said == ""
    said = command("stage=test", *toy_overrides, "checkpoint=run1/best.ckpt", "run_dir=kept")
    assert "kept holds a run with other settings (checkpoint.path: run0/best.ckpt -> run1/best.ckpt)" in said


def test_training_starts_from_the_checkpoint_that_is_given(composed, toy_overrides, tmp_path):
    meta_train(composed(*toy_overrides, f"run_dir={tmp_path / 'first'}"))
    start = f"checkpoint={tmp_path / 'first'}"
    still = [*toy_overrides, "max_steps=20", "model.optimizer.lr=1e-12", "seed=5"]
    assert re.search(r"seed5-.*-from-[0-9a-f]{12}$", composed(*still, start).stage.folder)
    assert "-from-" not in composed(*still).stage.folder
    meta_train(composed(*still, start))
    first, second = (torch.load(tmp_path / name / "best.ckpt", weights_only=True) for name in ("first", "run"))
    for key, value in first["state_dict"].items():
        torch.testing.assert_close(second["state_dict"][key], value, msg=key)
    recorded = OmegaConf.load(tmp_path / "run" / "config.yaml").start
    assert recorded.path == str(tmp_path / "first" / "best.ckpt")
    assert json.loads((tmp_path / "run" / "result.json").read_text())["config"]["start"]["sha256"] == recorded.sha256
    with pytest.raises(InputError, match="other settings .*start: .* -> None"):
        meta_train(composed(*still))


def test_the_surroundings_change_nothing(toy_overrides, composed, tmp_path):
    """Ranks of SLURM and torchrun, a shell in an allocation, srun on the PATH, a terminal of few letters."""
    meta_train(composed(*toy_overrides, "max_steps=20"))
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "srun").write_text("#!/bin/sh\nexit 1\n")
    (tmp_path / "bin" / "srun").chmod(0o755)
    around = {
        "SLURM_PROCID": "1", "SLURM_NTASKS": "4", "SLURM_JOB_NAME": "zsh", "SLURM_JOB_ID": "7", "SLURM_LOCALID": "1",
        "RANK": "3", "LOCAL_RANK": "3", "WORLD_SIZE": "4", "MASTER_ADDR": "nowhere", "MASTER_PORT": "1",
        "PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}", "PYTHONIOENCODING": "cp1252",
    }  # fmt: skip
    words = [sys.executable, str(ROOT / "train.py"), *toy_overrides, "max_steps=20", "run_dir='ж'"]
    done = subprocess.run(words, cwd=tmp_path, env=os.environ | around, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr.decode(errors="replace")
    assert b"srun" not in done.stdout + done.stderr
    assert b"?: test accuracy" in done.stdout
    files = {path.name for path in (tmp_path / "ж").iterdir()}
    assert files >= {".lock", "config.yaml", "metrics.csv", "last.ckpt", "best.ckpt", "result.json"}
    alone, within = (
        torch.load(tmp_path / name / "last.ckpt", weights_only=True)["state_dict"] for name in ("run", "ж")
    )
    assert all(torch.equal(alone[key], within[key]) for key in alone)
    rows = [(tmp_path / name / "metrics.csv").read_text() for name in ("run", "ж")]
    assert rows[0] == rows[1]


def test_a_name_that_is_a_number_is_text(composed):
    cfg = composed("data.name=2024", "stage=predict", "support=7", "checkpoint=1e3", "dirs.runs=5", "seed=3")
    names_are_text(cfg)
    assert (cfg.data.name, cfg.support, cfg.checkpoint, cfg.dirs.runs) == ("2024", "7", "1000.0", "5")
    assert cfg.seed == 3


def test_a_device_that_is_not_there_is_refused_in_a_line():
    assert device_of("stage.device", "cpu").type == "cpu"
    for name in ("cuda:99", "tpu", "meta"):
        with pytest.raises(
            InputError, match=f"stage.device={name} cannot be used on this machine .* use stage.device=cpu"
        ):
            device_of("stage.device", name)


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_a_trainer_that_this_machine_cannot_make_is_refused_in_a_line(composed, toy_overrides):
    with pytest.raises(
        InputError, match="the keys of trainer make no trainer: No supported gpu backend found!; trainer=auto"
    ):
        meta_train(composed(*toy_overrides, "trainer.accelerator=gpu"))


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_a_captured_graph_without_a_gpu_is_refused_in_a_line(command, toy_overrides):
    assert "captured=true needs a GPU of NVIDIA, and this machine has none" in command(*toy_overrides, "captured=true")


def test_meta_training_runs_on_the_processor_unless_a_gpu_is_asked_for(composed, monkeypatch):
    assert accelerator(composed()) == "cpu"
    assert accelerator(composed("trainer.accelerator=gpu")) == "gpu"
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    assert accelerator(composed()) == "cpu"
    assert accelerator(composed("captured=true")) == "gpu"
    with pytest.raises(InputError, match="captured=true needs a GPU, and trainer.accelerator=cpu is none"):
        accelerator(composed("captured=true", "trainer.accelerator=cpu"))


def test_complete_features_are_not_written_to(command, toy_overrides, tmp_path):
    """They may lie where nothing can be written."""
    from pretrain.run import ensure_features  # noqa: F401  (what the command runs first)

    before = sorted((tmp_path / "toy").rglob("*"))
    assert command(*toy_overrides, "max_steps=20", "run_dir=run", "dirs.features=none", "dirs.images=none") == ""
    assert sorted((tmp_path / "toy").rglob("*")) == before
    assert not (tmp_path / "none").exists()


def test_who_waits_says_for_what(tmp_path):
    program = (
        "import logging, sys; from pathlib import Path; from runner.folder import taking_turns\n"
        "logging.basicConfig(level='INFO', stream=sys.stdout)\n"
        "with taking_turns(Path(sys.argv[1]), 'the cake'): print('done')"
    )
    with taking_turns(tmp_path / "lock", "the cake"):
        other = subprocess.Popen([sys.executable, "-c", program, tmp_path / "lock"], cwd=ROOT, stdout=subprocess.PIPE)
        assert b"waiting for another process that makes the cake" in other.stdout.readline()
    assert b"done" in other.communicate(timeout=30)[0]


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["num_wya=5"], r"num_wya is no key of this configuration; did you mean num_way\?"),
        (["model.learner={droput: 0.5}"], r"model.learner.droput is no key .* mean model.learner.dropout\?"),
        (["search.n_trials=5"], "search.n_trials is no key .* belongs to .*stage=search"),
        (["support=a"], "support is no key .* belongs to stage=predict"),
        (["experiment=glyph_1shot"], r"experiment=glyph_1shot does not exist; did you mean glyphs_1shot\? The ch"),
        (["stage=tset"], r"stage=tset does not exist; did you mean test\?"),
        (
            ["stage=predict", "extractor=runs/pretrain-glyphs"],
            r"extractor=runs/pretrain-glyphs does not exist; where an extractor's file lies is said by "
            r"stage.extractor=runs/pretrain-glyphs. The choices are frozen, joint",
        ),
        (["stage=package", "extractor=/a/best.ckpt"], r"said by stage.extractor=/a/best.ckpt. The choices are frozen"),
        (
            ["hparams=search/glyphs_1sho-none"],
            r"hparams=search/glyphs_1sho-none does not exist; did you mean search/glyphs_1shot-none\? .*paper/mini",
        ),
        (["stage=test", "checkpoint=runs/a=b/best.ckpt"], "'checkpoint=runs/a=b/best.ckpt' cannot be .*quote"),
        (["data.name=a b(c)"], """understood; .* give "data.name='a b\\(c\\)'": quote a value with other characters"""),
        (["seed"], "'seed' cannot be understood: give key=value"),
        (["seed=0,1"], r"'seed=0,1' is several values: for a run each, add -m; for a list, seed=\[0,1\]"),
        (["hparams=none", "data.source=null", "features.folder=x"], "feature file x/train.safetensors is missing"),
        (["trainer=bf16"], "trainer=bf16: no effect in stage=meta"),
        (["+model.learner.droput=0.5"], r"model.learner.droput is no argument of leo.leo.LEO; did you mean dropout\?"),
        (["+model.optimizer.betta=0.5"], "model.optimizer.betta is no argument of torch.optim.Adam"),
    ],
    ids=str,
)  # fmt: skip
def test_a_mistake_is_a_line_that_says_what_to_do_and_leaves_nothing(command, tmp_path, overrides, message):
    said = command(*overrides)
    assert not list(tmp_path.glob("runs/*"))
    first, *rest = said.splitlines()
    assert re.match(f"error: .*{message}", first)
    assert rest == ["(HYDRA_FULL_ERROR=1 shows where)"]


@pytest.mark.parametrize("value", ["runs/a=1,b/best.ckpt", "it's (new)", r"a\b (c)", "$HOME (`x`)", 'say "a, b" (c)'])
def test_the_quotes_that_a_message_gives_are_right_for_the_shell_and_for_hydra(value):
    parser = OverridesParser.create()
    with pytest.raises(OverrideParseException) as refused:
        parser.parse_overrides([f"data.name={value}"])
    said = users_message(refused.value).partition("give ")[2].rpartition(": quote a value")[0]
    typed = subprocess.run(["sh", "-c", f"printf %s {said}"], capture_output=True, text=True, check=True).stdout
    assert parser.parse_override(typed).value() == value


def test_an_argument_of_a_constructor_that_takes_anything_is_not_judged(composed):
    check_arguments(composed("+model.learner={_target_: types.SimpleNamespace, anything: 1}"))


LEARNER = """
import torch
from leo.prototypes import LinearPrototypes
class Broken(LinearPrototypes):
    def __init__(self, *, fault, **settings):
        super().__init__(**settings)
        if fault == "constructor":
            torch.zeros(2).view(3)
        if fault == "call":
            len(1, 2)
    def objective(self, tasks, noise):
        raise ValueError("a mistake of mine")
"""


@pytest.mark.parametrize(
    ("fault", "error", "message"),
    [
        ("constructor", InstantiationException, "shape '.3.' is invalid"),
        ("call", InstantiationException, "takes exactly one argument"),
        ("loss", ValueError, "a mistake of mine"),
    ],
)
def test_an_error_of_the_code_keeps_its_traceback(command, toy_overrides, tmp_path, monkeypatch, fault, error, message):
    (tmp_path / f"broken_{fault}.py").write_text(LEARNER)
    monkeypatch.syspath_prepend(tmp_path)
    kept = [override for override in toy_overrides if not override.startswith("model.")]
    learner = f"+model.learner={{_target_: broken_{fault}.Broken, fault: {fault}}}"
    with pytest.raises(error, match=message) as raised:
        command("experiment=glyphs_1shot_prototypes", *kept, learner, "run_dir=run")
    frames = [str(entry.path) for entry in raised.traceback]
    cause = raised.value.__cause__
    assert any("broken" in frame for frame in frames) or "broken" in str(cause.__traceback__.tb_next.tb_frame.f_code)


def test_a_missing_argument_is_the_configurations_mistake():
    with pytest.raises(InstantiationException) as raised:
        instantiate({"_target_": "torch.nn.Linear", "in_features": 1})
    assert "missing" in users_message(raised.value)


def test_what_a_file_system_refuses_is_a_line_with_the_path():
    for number, said in ((errno.EACCES, "permissions"), (errno.ENOSPC, "disk is full"), (errno.EROFS, "only be read")):
        assert re.match(f"/a/b .*{said}", users_message(OSError(number, os.strerror(number), "/a/b")))
    for error in (FileNotFoundError(errno.ENOENT, "gone", "/a"), ValueError("numpy"), KeyError("a"), RuntimeError("b")):
        assert users_message(error) is None


def test_a_folder_of_images_has_one_folder_of_labels_whatever_the_method(composed, tmp_path):
    def folder(*overrides):
        return composed("stage=label", *overrides).stage.folder

    (tmp_path / "photos").mkdir()
    one = folder(f"folder={tmp_path / 'photos'}")
    assert one.startswith("label-photos-")
    assert folder(f"folder={tmp_path}/other/../photos/", "checkpoint=a", "stage.port=0") == one
    assert folder(f"folder={tmp_path / 'other' / 'photos'}") != one


def test_help_begins_with_a_screen_whose_commands_and_choices_exist():
    done = subprocess.run([sys.executable, "train.py", "--help"], cwd=ROOT, capture_output=True, text=True, check=True)
    screen, _, rest = done.stdout.partition("== All groups ==")
    assert len(screen.splitlines()) < 40
    assert max(map(len, screen.splitlines())) < 130
    choices = {
        group: set(listed.split(", "))
        for group, _, listed in (line.partition(": ") for line in rest.splitlines() if ": " in line)
    }
    for group, choice in re.findall(r"\b(stage|sweep)=(\w+)", screen):
        assert choice in choices[group], (group, choice)
    lines = screen.partition("Groups (group=choice)")[2].partition("Any key")[0].strip().splitlines()
    for group, listed in (line.split(maxsplit=1) for line in lines):
        known = set(choices[group])
        known |= {f"{name.partition('/')[2]}/..." for name in choices if name.startswith(f"{group}/")}
        named = listed.rpartition(": ")[2] if group != "backbone" else listed.partition(": ")[2].replace(";", ",")
        for choice in re.sub(r"\([^)]*\)|trained by others:", "", named).split(","):
            assert choice.strip() in known | {"..."}, (group, choice)
