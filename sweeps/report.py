"""The results of finished runs: one table of all, and the paper's tables with ours beside."""

import logging
from pathlib import Path

from omegaconf import DictConfig
from rich.console import Console

from runner.files import write_text
from sweeps import paper_tables, table_pictures
from sweeps.collect import collect, table

log = logging.getLogger(__name__)


def report(cfg: DictConfig) -> None:
    """Show the runs of ``cfg.stage.select``, and write the paper's tables that they belong to."""
    rows = collect(Path(cfg.dirs.runs), cfg.stage.select)
    if not rows:
        raise FileNotFoundError(
            f"no finished run matches {cfg.dirs.runs}/{cfg.stage.select}/result.json; train one first"
        )
    console = Console()
    console.print(table(rows))
    cells, needed = list(paper_tables.cells(rows, paper_tables.published())), cfg.stage.num_seeds
    if not cells:
        return
    for shown in paper_tables.terminal(cells, needed):
        console.print(shown)
    write_text(Path(cfg.run_dir, "tables.md"), paper_tables.markdown(cells, needed))
    write_text(Path(cfg.run_dir, "tables.csv"), paper_tables.as_csv(cells, needed))
    pictures = table_pictures.draw(cells, Path(cfg.run_dir))
    log.info("wrote tables.md, tables.csv and %s in %s", ", ".join(path.name for path in pictures), cfg.run_dir)
