"""Reading a model from wherever it lies: a package, a checkpoint of meta-training, a run folder."""

from pathlib import Path

from fewshot.model import Model
from fewshot.package import MANIFEST, read_package
from leo.run import read_checkpoint
from leo.trained import rebuild
from pretrain.extractor import read_extractor
from runner.errors import InputError
from runner.files import sha256


def load(path: Path, extractor: Path | None) -> Model:
    """The model at ``path``. ``extractor`` is that of a checkpoint, where it is not beside its run folder."""
    if (path / MANIFEST).is_file():
        if extractor is not None:
            raise InputError(f"{path} is a package, which has its extractor; leave out extractor={extractor}")
        return read_package(path)
    return from_checkpoint(path / "best.ckpt" if path.is_dir() else path, extractor)


def from_checkpoint(path: Path, extractor: Path | None) -> Model:
    """The learner of a run's checkpoint, with its extractor: the given one, or that of the same folder of runs."""
    checkpoint = read_checkpoint(path)
    config = checkpoint["config"]
    trained = rebuild(config["model"]["learner"], config["features"]["normalize"], checkpoint["state_dict"], path)
    origin = config["features_origin"]
    beside = path.absolute().parent.parent / config["data"]["pretrain"]["run"] / "best.ckpt"
    is_known = "_target_" not in config["backbone"]
    if extractor is None and is_known and beside.is_file() and sha256(beside) == origin["checkpoint"]:
        extractor = beside
    known = {
        "learner": config["model"]["learner"],
        "normalize": config["features"]["normalize"],
        "num_way": config["num_way"],
        "num_shot": config["num_shot"],
        "features_origin": origin,
    }
    of_images = None if extractor is None else read_extractor(extractor, origin)
    return Model(*trained, of_images, known, str(path))
