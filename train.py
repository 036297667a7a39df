"""The one entry: composes a configuration and runs the tasks of its stage (conf/stage)."""

import os
import sys

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import InstantiationException
from hydra.types import RunMode
from hydra.utils import get_method
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from runner.config import check_keys
from runner.errors import InputError

# What the command line changes becomes part of the run folder's name.
OmegaConf.register_new_resolver("variant", lambda overrides: overrides and "-" + overrides.replace("/", "_")[:150])

# The runs of experiments of your own data have its name anyway.
OmegaConf.register_new_resolver("named_by", lambda experiment: "data.name" if experiment.startswith("own_") else "")


@hydra.main(version_base="1.3", config_path="conf", config_name="train")
def main(cfg: DictConfig) -> float | None:
    """The outcome of the stage's last task: what a sweep compares."""
    try:
        check_keys(cfg)
        outcome = None
        for task in cfg.stage.tasks:
            outcome = get_method(task)(cfg)
        return outcome
    except (InputError, OmegaConfBaseException, InstantiationException) as error:
        said = error.__cause__ if isinstance(error, InstantiationException) else error
        is_users = isinstance(said, (InputError, OmegaConfBaseException, ImportError))
        if not is_users or "HYDRA_FULL_ERROR" in os.environ:
            raise
        if HydraConfig.get().mode == RunMode.MULTIRUN:
            raise RuntimeError(str(said)) from None  # the other runs go on
        sys.exit(f"error: {said}\n(HYDRA_FULL_ERROR=1 shows where)")


if __name__ == "__main__":
    main()
