"""What a result says about itself: the command that made it, what it belongs together with, and its score."""

import hashlib
import json
from typing import Any

from hydra.core.hydra_config import HydraConfig

from runner.config import search_path


def made_by() -> dict[str, Any]:
    """The stage that was chosen, and the overrides as the command line gave them."""
    hydra = HydraConfig.get()
    return {"stage": hydra.runtime.choices["stage"], "overrides": [*search_path(), *hydra.overrides.task]}


def group(config: dict[str, Any]) -> str:
    """16 hexadecimal digits of everything in ``config`` but the seed: runs that share them are seeds of one number."""
    text = json.dumps({key: value for key, value in config.items() if key != "seed"}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def scored(name: str, value: float | None) -> dict[str, Any]:
    """The score of a result. Whatever is validated and tested here is maximised."""
    return {"score_name": name, "score_value": value, "better": "higher"}
