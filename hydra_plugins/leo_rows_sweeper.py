"""Hydra's sweeper ``rows``: several products of choices one after another, such as the rows of a table."""

from collections.abc import Sequence

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import ConfigCompositionException

from hydra_plugins.leo_runs_sweeper import RunsSweeper

SELECTING = ("experiment", "ablation", "seed")


class RowsSweeper(RunsSweeper):
    """Runs the jobs of each row: all combinations of its choices.

    On the command line, an experiment, ablation or seed selects the jobs that have it. Any other key replaces that of
    the rows, or is added.

    Args:
        rows: from each key to its choices, as the command line has them; each row names the three keys above.
        max_batch_size: as of Hydra's own sweeper.
    """

    def __init__(self, rows: Sequence[dict[str, str]], max_batch_size: int | None = None) -> None:
        super().__init__(max_batch_size)
        self.rows = rows

    def split_arguments(  # type: ignore[override]  # Hydra's is static, and called on the instance
        self, overrides: list[Override], max_batch_size: int | None
    ) -> list[list[list[str]]]:
        """The jobs in batches; ``overrides`` are those of the command line."""
        assert self.hydra_context is not None
        parser = OverridesParser.create(config_loader=self.hydra_context.config_loader)
        selecting = [override for override in overrides if override.get_key_element() in SELECTING]
        others = [override for override in overrides if override not in selecting]
        jobs = []
        for row in self.rows:
            of_row = parser.parse_overrides([f"{key}={choices}" for key, choices in row.items()])
            jobs += products([*of_row, *others])
        for override in selecting:
            chosen = {text for (text,) in products([override])}
            jobs = [job for job in jobs if chosen & set(job)]
        if not jobs:
            wanted = ", ".join(str(override.input_line) for override in selecting)
            raise ConfigCompositionException(f"no row of this sweep has {wanted}; choose what one has, or leave it out")
        return [list(batch) for batch in BasicSweeper.split_overrides_to_chunks(jobs, max_batch_size)]


def products(overrides: list[Override]) -> list[list[str]]:
    """All combinations of the choices of ``overrides``; of a key that is there twice, the last ones."""
    (jobs,) = BasicSweeper.split_arguments(overrides, None)
    return jobs
