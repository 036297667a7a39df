"""Labelling a folder as a Hydra task: features once, then a page until it is stopped."""

import logging
from importlib.util import find_spec
from pathlib import Path

from omegaconf import DictConfig

from fewshot.labelling import features, pictures
from fewshot.labelling.board import Board
from fewshot.labelling.journal import Journal
from fewshot.loading import chosen, load
from fewshot.model import Model
from pretrain.fingerprint import shown
from runner.config import check_whole_numbers
from runner.errors import FolderInUseError, InputError
from runner.folder import run_folder
from runner.machine import device_of
from runner.names import digest
from runner.process import keep_freed_memory

log = logging.getLogger(__name__)

JOURNAL, SECRET = "labels.jsonl", "secret"


def label(cfg: DictConfig) -> None:
    """Serve the page for ``cfg.folder`` until the process is interrupted."""
    if cfg.folder is None:
        raise InputError("stage=label needs folder=DIR, with the images to label")
    if find_spec("starlette") is None or find_spec("uvicorn") is None:
        raise InputError("the page needs an extra: pip install -e '.[app]', or pip install starlette uvicorn")
    from fewshot.labelling import server

    check_whole_numbers(cfg, {"stage.port": 0})
    folder, output = Path(cfg.folder), Path(cfg.run_dir)
    check_apart(folder, output)
    device = device_of("stage.device", cfg.stage.device)
    opened = server.listening(str(cfg.stage.host), cfg.stage.port)
    with opened:
        model = model_of(cfg)
        model.needed_extractor().to(device)
        try:
            with run_folder(output, {"folder": str(folder.resolve())}):
                board = prepare(folder, output, model)
                try:
                    host, port = str(cfg.stage.host), opened.getsockname()[1]
                    secret = server.secret_at(output / SECRET)
                    name = f"[{host}]" if ":" in host else host
                    log.info("label %s at  http://%s:%d/%s/", shown(folder), name, port, secret)
                    log.info("every click is kept in %s; stop with Ctrl+C, the same command goes on", output / JOURNAL)
                    server.serve(board, output, opened, host, secret)
                except KeyboardInterrupt:
                    log.info("stopped; the same command goes on")
                finally:
                    board.close()
        except FolderInUseError as error:
            raise InputError(
                f"folder={shown(folder)} is being labelled by another process already ({output} is in use); open the "
                f"address that its terminal shows: several windows may share it"
            ) from error


def model_of(cfg: DictConfig) -> Model:
    """The model at ``cfg.checkpoint``, or else nearest centroid on the backbone, which others have trained."""
    if cfg.checkpoint is None:
        return chosen(cfg)
    target = cfg.backbone.get("_target_")  # the stage's own, or one of the user's that may be called
    return load(
        Path(cfg.checkpoint), cfg.stage.extractor and Path(cfg.stage.extractor), [] if target is None else [target]
    )


def prepare(folder: Path, output: Path, model: Model) -> Board:
    """The board of ``folder``: its images, their features, and the journal in ``output``."""
    keep_freed_memory()
    found, unreadable = pictures.find(folder, output / "files.csv")
    extractor = model.needed_extractor()
    store = output / "features" / digest(f"{model.config['features_origin']} {extractor.settings}")
    readable, rows, more = features.compute(folder, found, extractor, store)
    unreadable += more
    if unreadable:
        some = "; ".join(one.reason for one in unreadable[:3]) + ("; ..." if len(unreadable) > 3 else "")
        log.warning("%d files are left out: %s", len(unreadable), some)
    if not readable:
        reason = unreadable[-1].reason if unreadable else "it has no files"
        raise InputError(f"folder={shown(folder)} has no image that can be read; {reason}")
    copies = sum(len(one.names) - 1 for one in readable)
    log.info("%d images%s; %s", len(readable), f" and {copies} copies of some" if copies else "", model.method)
    return Board(folder, readable, rows, Journal(output / JOURNAL), model)


def check_apart(folder: Path, output: Path) -> None:
    """Raise where what is written would be among the images."""
    if output.resolve().is_relative_to(folder.resolve()):
        raise InputError(
            f"run_dir={output} is inside folder={shown(folder)}, where nothing may be written; give another one with "
            f"run_dir=DIR or dirs.runs=DIR"
        )
