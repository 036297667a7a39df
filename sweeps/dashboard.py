"""The W&B workspace in which the ablations of an experiment are compared, as code. Needs the extra `dashboard`."""

import logging
from typing import Any

from omegaconf import DictConfig
from wandb_workspaces import workspaces
from wandb_workspaces.reports.v2 import interface as panels

log = logging.getLogger(__name__)

TERMS = ("query_loss", "kl", "encoder_penalty", "l2", "orthogonality")


def workspace(entity: str, project: str, experiment: str) -> workspaces.Workspace:
    """Curves and test accuracies of ``experiment``: mean and standard deviation over the seeds of each ablation."""
    over_seeds: dict[str, Any] = {
        "groupby": panels.Config("names.ablation"),
        "groupby_aggfunc": "mean",
        "groupby_rangefunc": "stddev",
    }

    def curve(metric: str) -> panels.LinePlot:
        return panels.LinePlot(title=metric, x="trainer/global_step", y=[metric], **over_seeds)

    return workspaces.Workspace(
        entity=entity,
        project=project,
        name=f"Ablations of {experiment}",
        sections=[
            workspaces.Section(
                name="Accuracy",
                panels=[
                    panels.BarPlot(title="test/accuracy", metrics=["test/accuracy"], **over_seeds),
                    curve("val/accuracy"),
                    curve("train/accuracy"),
                ],
                is_open=True,
            ),
            workspaces.Section(name="Terms of the objective", panels=[curve(f"train/{term}") for term in TERMS]),
            workspaces.Section(name="Settings that differ", panels=[panels.RunComparer(diff_only="split")]),
        ],
        runset_settings=workspaces.RunsetSettings(
            filters=workspaces.And(workspaces.Metric("Group") == experiment),
            groupby=[workspaces.Config("names.ablation")],
        ),
    )


def publish(cfg: DictConfig) -> None:
    """Save the workspace of ``cfg.names.experiment`` at W&B, for an account that is logged in."""
    saved = workspace(cfg.stage.entity, cfg.stage.project, cfg.names.experiment).save()
    log.info("saved %s", saved.url)
