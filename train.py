"""The one entry: composes a configuration and runs the tasks of its stage (conf/stage)."""

import hydra
from hydra.utils import get_method
from omegaconf import DictConfig, OmegaConf

OmegaConf.register_new_resolver("variant", lambda overrides: overrides and "-" + overrides.replace("/", "_"))


@hydra.main(version_base="1.3", config_path="conf", config_name="train")
def main(cfg: DictConfig) -> float | None:
    """The outcome of the stage's last task: what a sweep compares."""
    outcome = None
    for task in cfg.stage.tasks:
        outcome = get_method(task)(cfg)
    return outcome


if __name__ == "__main__":
    main()
