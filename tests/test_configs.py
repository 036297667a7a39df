"""Every experiment with every ablation composes, sets known keys only, and builds the learner it names."""

from pathlib import Path

import pytest
from hydra.utils import instantiate
from omegaconf import OmegaConf

from runner.config import check_keys
from runner.folder import differences
from tests.conftest import ROOT


def names(group: str) -> list[str]:
    return sorted(path.stem for path in Path(ROOT, "conf", group).glob("*.yaml") if path.stem != "none")


EXPERIMENTS, ABLATIONS = names("experiment"), names("ablation")
LEO_EXPERIMENTS = [name for name in EXPERIMENTS if name.endswith("shot") and "pixels" not in name]
SOURCES = [
    (f"{source}/{name}", name)
    for source in ("paper", "released")
    for name in ("mini_1shot", "mini_5shot", "tiered_1shot", "tiered_5shot")
]


def resolved(cfg):
    return OmegaConf.to_container(cfg, resolve=True, throw_on_missing=True)


def build(cfg):
    sizes = {"num_features": 8} if cfg.tasks._target_ == "leo.run.Classification" else {}
    return instantiate(cfg.model.learner, **sizes)


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_experiment_builds(composed, experiment):
    cfg = composed(f"experiment={experiment}")
    check_keys(cfg)
    resolved(cfg)
    learner = build(cfg)
    if any(True for _ in learner.parameters()):
        instantiate(cfg.model.optimizer)(learner.parameters())
        assert cfg.max_steps % cfg.val.every == 0


@pytest.mark.parametrize("ablation", ABLATIONS)
@pytest.mark.parametrize("experiment", LEO_EXPERIMENTS)
def test_ablation_changes_one_thing_of_every_leo_experiment(composed, experiment, ablation):
    full, ablated = (resolved(composed(f"experiment={experiment}", f"ablation={name}")) for name in ("none", ablation))
    changed = differences(full | {"names": 0}, ablated | {"names": 0})
    expected = {
        "deterministic": ["stochastic: True -> False"],
        "generator_finetuning": ["num_latent_steps: 5 -> 0"],
        "generator_only": ["num_latent_steps: 5 -> 0", "num_finetune_steps: 5 -> 0"],
        "no_finetuning": ["num_finetune_steps: 5 -> 0"],
        "random_prior": ["initial_code: encoder -> prior"],
    }[ablation]
    folders = [line for line in changed if line.startswith("stage.folder")]
    assert [line for line in changed if line not in folders] == [f"model.learner.{line}" for line in expected]
    build(composed(f"experiment={experiment}", f"ablation={ablation}"))


@pytest.mark.parametrize(("hparams", "experiment"), SOURCES)
def test_published_values_are_those_of_their_source(composed, hparams, experiment):
    """eta, gamma, beta, lambda_1, lambda_2, dropout of Table 6 (dropout = 1 - p_keep) and of the released README."""
    published = {
        "paper/mini_1shot": (0.00043653954, 1.33365371e-9, 0.124171967, 0.000108982953, 303.216647, 1 - 0.711524088),
        "paper/mini_5shot": (0.00117573555, 5.39245830e-6, 0.0440372182, 3.75922509e-6, 0.00844225971, 1 - 0.755402644),
        "paper/tiered_1shot": (0.00040645397, 1.24305386e-8, 7.10800960e-6, 3.10725285e-8, 5180.09554, 1 - 0.644395979),
        "paper/tiered_5shot": (
            0.00073469522,
            3.05077069e-6,
            0.0018864498,
            4.90658551e-8,
            0.0081711619,
            1 - 0.628325359,
        ),
        "released/mini_1shot": (2.739071e-4, 5.756821e-6, 0.756143, 3.623413e-10, 0.188103, 0.307651),
        "released/mini_5shot": (4.102361e-4, 2.661608e-7, 0.466387, 8.540338e-9, 1.523998e-3, 0.300299),
        "released/tiered_1shot": (8.659053e-4, 8.302962e-5, 2.034189e-3, 4.148858e-10, 5.451078e-3, 0.475126),
        "released/tiered_5shot": (6.110314e-4, 2.672450e-5, 1.622811, 1.690399e-10, 2.481216e-2, 0.415158),
    }[hparams]
    model = composed(f"experiment={experiment}", f"hparams={hparams}").model
    learner = model.learner
    values = (model.optimizer.lr, learner.encoder_penalty_weight, learner.kl_weight, learner.l2_weight,
              learner.orthogonality_weight, learner.dropout)  # fmt: skip
    assert values == pytest.approx(published, rel=1e-9)
    assert learner.latents == ("example" if hparams.startswith("released") else "class")


def test_a_misspelt_key_is_named_with_the_key_that_was_meant(composed, tmp_path):
    path = tmp_path / "conf" / "experiment" / "misspelt.yaml"
    path.parent.mkdir(parents=True)
    path.write_text("# @package _global_\ndefaults: [override /hparams: manual/glyphs_1shot]\nnum_shots: 5\n")
    cfg = composed("experiment=misspelt", f"hydra.searchpath=[file://{tmp_path / 'conf'}]")
    message = (
        r"experiment/misspelt.yaml.*: num_shots is set, but no configuration has that key; did you mean num_shot\?"
    )
    with pytest.raises(ValueError, match=message):
        check_keys(cfg)


def test_a_misspelt_key_below_a_section_is_found_too(composed, tmp_path):
    path = tmp_path / "conf" / "ablation" / "typo.yaml"
    path.parent.mkdir(parents=True)
    path.write_text("# @package _global_\nmodel: {learner: {num_finetune_step: 0}}\n")
    cfg = composed("ablation=typo", f"hydra.searchpath=[file://{tmp_path / 'conf'}]")
    with pytest.raises(ValueError, match="model.learner.num_finetune_step is set.* did you mean .*num_finetune_steps"):
        check_keys(cfg)


def test_where_outside_files_lie_is_not_part_of_a_run_folders_name(composed):
    for group, choice in (("data", "mini_imagenet"), ("features", "leo_embeddings")):
        plain = ["experiment=mini_1shot", f"{group}={choice}"]
        assert composed(*plain, f"{group}.source.path=/somewhere").run_dir == composed(*plain).run_dir


def test_data_sets_choose_their_backbone_and_the_command_line_may_differ(composed):
    assert composed("experiment=mini_1shot").backbone.depth == 28
    assert composed("experiment=mini_1shot").features.layer == 21
    assert composed("experiment=mini_1shot", "backbone=wrn_10_2").backbone.depth == 10
