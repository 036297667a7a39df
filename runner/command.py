"""The one command, `python train.py` or `leo`: composes a configuration and runs the tasks of its stage."""

import logging
from contextlib import suppress
from pathlib import Path

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from hydra.utils import get_method
from omegaconf import DictConfig

from runner import names
from runner.conf_folder import CONF
from runner.config import check_arguments, check_keys, check_overrides, names_are_text
from runner.errors import InputError, end_with_message, hydra_raises, users_environment, users_message
from runner.process import ignore_surroundings, show_all_letters

log = logging.getLogger(__name__)
names.register()


@hydra.main(version_base="1.3", config_path=CONF, config_name="train")
def main(cfg: DictConfig) -> float | None:
    """The outcome of the stage's last task: what a sweep compares."""
    ignore_surroundings()
    show_all_letters()
    try:
        with users_environment():
            names_are_text(cfg)
            check_keys(cfg)
            check_overrides(cfg)
            check_arguments(cfg)
            outcome = None
            for task in cfg.stage.tasks:
                outcome = get_method(task)(cfg)
            return outcome
    except Exception as error:
        if HydraConfig.get().mode != RunMode.MULTIRUN:
            with suppress(OSError):  # it is not empty
                Path(HydraConfig.get().runtime.output_dir).rmdir()
            end_with_message(error)
        said = users_message(error)
        if said is None:
            log.exception("this run failed")  # the process that started it gets the error without its traceback
            raise
        log.error("%s failed: %s", HydraConfig.get().runtime.output_dir, said)
        raise InputError(said) from None  # the other runs go on


def command() -> None:
    """What users type: an error that they can cause is one line."""
    show_all_letters()
    try:
        with hydra_raises():
            main()
    except Exception as error:
        end_with_message(error)
