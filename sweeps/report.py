"""The results of finished runs: one table of all, the paper's tables with ours beside, and a page of everything."""

import logging
from pathlib import Path

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf
from rich.console import Console

from runner.files import write_text
from runner.folder import run_folder
from sweeps import page, paper_tables, table_pictures
from sweeps.collect import collect, read_results, tables

log = logging.getLogger(__name__)


def report(cfg: DictConfig) -> None:
    """Show the runs of ``cfg.stage.select``, and write the paper's tables that they belong to, and the page."""
    runs, select, folder, needed = Path(cfg.dirs.runs), cfg.stage.select, Path(cfg.run_dir), cfg.stage.num_seeds
    with run_folder(folder, {"runs": str(runs), "select": select, "num_seeds": needed}):
        write(runs, select, folder, needed)


def write(runs: Path, select: str, folder: Path, needed: int) -> None:
    """Show and write them in ``folder``; ``needed`` seeds make a number of the paper's tables complete."""
    found = read_results(runs, select)
    excluded = OmegaConf.to_container(HydraConfig.get().job.config.override_dirname.exclude_keys, resolve=False)
    assert isinstance(excluded, list)
    of_all = [str(key) for key in excluded if not str(key).startswith("${")]  # what is made of this command is not
    rows = collect(found, of_all)
    cells = list(paper_tables.cells(rows, paper_tables.published()))
    console = Console()
    for shown in tables(rows):
        console.print(shown)
    if not rows:
        log.warning("no finished run matches %s/%s/result.json; train one first", runs, select)
    for shown in paper_tables.terminal(cells, needed):
        console.print(shown)
    if cells:
        write_text(folder / "tables.md", paper_tables.markdown(cells, needed))
        write_text(folder / "tables.csv", paper_tables.as_csv(cells, needed))
        pictures = table_pictures.draw(cells, folder)
        log.info("wrote tables.md, tables.csv and %s in %s", ", ".join(path.name for path in pictures), folder)
    write_text(folder / "index.html", page.render(runs, select, folder, found, rows, cells, needed))
    log.info("wrote %s: open it in a browser", folder / "index.html")
