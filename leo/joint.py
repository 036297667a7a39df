"""Meta-training into the extractor: tasks of images, whose features are made anew at every update.

The same tasks, learners, objective and update as on frozen features. The support and the queries then need a gradient,
which goes on into the extractor. Nothing here knows which network that is: ``Parts`` is all that is asked of it, and
``conf/extractor/joint.yaml`` names what answers (``pretrain.joint``).
"""

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int, UInt8
from omegaconf import DictConfig
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from leo.episodes import ClassStream, Tasks
from leo.evaluate import Scorer
from leo.features import FeatureTable, Normalizer, joined_classes, take_rows
from leo.learner import Learner, MetaLearner
from leo.module import MetaLearning, TaskData
from leo.noise import Noise
from leo.run import Classification, check_sizes, fitted, make_module, stream_settings
from runner.errors import InputError


@runtime_checkable
class Extractor(Protocol):
    """What is asked of an extractor, an ``nn.Module`` besides: float32 [n, D] of uint8 images [n, H, W, C].

    The features of an image must not depend on the others: batch norm uses fixed statistics. ``settings`` are plain
    data, from which it can be built again.
    """

    settings: dict[str, Any]

    def of_view(self, images: Tensor) -> Tensor:
        """The features of images as the augmentation leaves them, differentiable."""

    def in_parts(self, images: Tensor) -> Tensor:
        """The features of whole images, as the frozen run's are made, some at a time; values alone."""


@runtime_checkable
class Images(Protocol):
    """The images of a split, grouped by class: uint8 [n, H, W, C]; class c owns ``offsets[c]:offsets[c + 1]``."""

    @property
    def images(self) -> Tensor:
        """In memory, or mapped from a file."""

    @property
    def offsets(self) -> Tensor:
        """int64 [C + 1]."""

    @property
    def class_names(self) -> list[str]:
        """Of each class."""


@runtime_checkable
class Parts(Protocol):
    """What joint training starts from.

    ``stores`` are keyed by split; ``augment`` makes random variants of uint8 images, drawing from torch's default
    generator (None: nothing is changed); ``origin`` is what ``FeatureTable.origin`` is, of the first features.
    """

    extractor: Extractor
    stores: Mapping[str, Images]
    augment: nn.Module | None
    origin: dict[str, Any]

    def first_features(self, splits: Sequence[str]) -> list[Tensor]:
        """Features of images of ``splits`` by the extractor as it starts, which the normaliser is fitted to."""


class ImageTable(NamedTuple):
    """The images of one or more splits, grouped by class; they stay where they are, in memory or in their files."""

    parts: list[UInt8[Tensor, "_ H W C"]]
    offsets: Int[Tensor, " C_plus_1"]
    class_names: list[str]

    @property
    def class_sizes(self) -> Int[Tensor, " C"]:
        """Number of images of each class."""
        return self.offsets.diff()

    @property
    def device(self) -> torch.device:
        """Where tasks are made."""
        return self.offsets.device

    def take(self, rows: Int[Tensor, " m"]) -> UInt8[Tensor, "m H W C"]:
        """Some images, on ``device``."""
        return take_rows(self.parts, rows.cpu()).to(self.device)


def image_table(stores: Sequence[Images], device: torch.device | str = "cpu") -> ImageTable:
    """The classes of ``stores``, one split after another."""
    tables = [ImageTable([store.images], store.offsets, store.class_names) for store in stores]
    offsets, names = joined_classes(tables)
    return ImageTable([store.images for store in stores], offsets.to(device), names)


class SeededTasks(NamedTuple):
    """``TaskIndices``, and a number for each task by which its batch may be augmented."""

    classes: Int[Tensor, "B N"]
    images: Int[Tensor, "B N m"]
    seeds: Int[Tensor, " B"]


class ImageTasks(NamedTuple):
    """A batch of tasks of images. The label of an image is its position along the class axis."""

    support: UInt8[Tensor, "B N K H W C"]
    query: UInt8[Tensor, "B N Q H W C"]


class ImageStream(ClassStream):
    """The stream of tasks of images: the same tasks, by the same generator, as ``TaskStream`` has of features.

    A batch is augmented by a number that was drawn with its tasks, so a resumed stream draws the same variants. It
    comes from a copy of the generator: whether images are augmented does not change which ones are drawn.
    """

    def __init__(self, table: ImageTable, augment: nn.Module | None, **settings: Any) -> None:
        super().__init__(table, **settings)
        self.table, self.augment = table, augment

    def draw(self, num_tasks: int) -> SeededTasks:
        """Classes and images of ``num_tasks`` tasks, and their numbers."""
        classes, images = super().draw(num_tasks)
        generator = self.generator.clone_state()
        return SeededTasks(
            classes, images, torch.randint(2**62, (num_tasks,), device=classes.device, generator=generator)
        )

    def gather(self, batch: SeededTasks) -> ImageTasks:
        """The images of ``batch``, augmented."""
        images = self.table.take(batch.images.flatten())
        if self.augment is not None:
            with torch.random.fork_rng([] if images.device.type == "cpu" else [images.device]):
                torch.manual_seed(int(batch.seeds[0]))
                images = self.augment(images)
        images = images.unflatten(0, batch.images.shape)
        return ImageTasks(images[:, :, : self.num_shot], images[:, :, self.num_shot :])


class JointLearner(MetaLearner):
    """An extractor, the normaliser of its features and a learner as one: what a joint update improves.

    Args:
        learner, normalizer, extractor: the parts; the normaliser's statistics are fixed.
        chunk: images whose intermediate values are held at a time; those of the others are computed again for the
            gradient, which is the same. None: all of a batch, and nothing is computed twice.
    """

    def __init__(self, learner: MetaLearner, normalizer: Normalizer, extractor: Any, chunk: int | None) -> None:
        super().__init__()
        self.learner, self.normalizer, self.extractor, self.chunk = learner, normalizer, extractor, chunk

    def draw_noise(self, tasks: ImageTasks, generator: torch.Generator) -> Noise:
        """The learner's, which asks tasks for their shapes alone."""
        mean = self.normalizer.mean
        shapes = Tasks(*(mean.expand(*part.shape[:3], len(mean)) for part in tasks))
        return self.learner.draw_noise(shapes, generator)

    def objective(self, tasks: ImageTasks, noise: Noise) -> dict[str, Tensor]:
        """The learner's, of the features of now."""
        return self.learner.objective(self.features(tasks), noise)

    def penalized(self) -> list[Tensor]:
        """The learner's; the extractor has a weight decay."""
        return self.learner.penalized()

    def features(self, tasks: ImageTasks) -> Tasks:
        """The features that the learner sees, differentiable."""
        parts = [part.flatten(0, 2) for part in tasks]
        features = self.normalizer(self.extracted(torch.cat(parts))).split([len(part) for part in parts])
        return Tasks(*(of.unflatten(0, part.shape[:3]) for of, part in zip(features, tasks, strict=True)))

    def extracted(self, images: UInt8[Tensor, "n H W C"]) -> Float[Tensor, "n D"]:
        """The features of the extractor, ``chunk`` images at a time."""
        if self.chunk is None or not torch.is_grad_enabled():
            features: Tensor = self.extractor.of_view(images)
            return features
        # Nothing in an extractor is random, so there is no state of generators to keep.
        return torch.cat(
            [
                checkpoint(self.extractor.of_view, part, use_reentrant=False, preserve_rng_state=False)
                for part in images.split(self.chunk)
            ]
        )


class JointMetaLearning(MetaLearning):
    """``MetaLearning`` whose extractor is trained too. The checkpoint has its weights, and its settings.

    Args:
        extractor: what is trained with the learner.
        extractor_lr, weight_decay: of the extractor, in the learner's optimiser; the schedule scales both rates alike.
        chunk: see ``JointLearner``.

    Gradients are clipped parameter by parameter, so what the extractor's are changes nothing for the learner.
    """

    normalizer: Normalizer

    def __init__(
        self, *args: Any, extractor: Any, extractor_lr: float, weight_decay: float, chunk: int | None, **settings: Any
    ) -> None:
        super().__init__(*args, **settings)
        self.extractor = extractor
        self.extractor_lr, self.weight_decay, self.chunk = extractor_lr, weight_decay, chunk

    def trained(self) -> MetaLearner:
        """Learner and extractor as one."""
        return JointLearner(self.learner, self.normalizer, self.extractor, self.chunk)

    def parameter_groups(self) -> list[dict[str, Any]]:
        """The learner's, with the rate of ``conf/model``; the extractor's, with its own."""
        of_extractor = {"lr": self.extractor_lr, "weight_decay": self.weight_decay}
        return [
            {"params": list(self.learner.parameters())},
            {"params": list(self.extractor.parameters()), **of_extractor},
        ]

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add what the extractor can be built from again."""
        super().on_save_checkpoint(checkpoint)
        checkpoint["extractor"] = self.extractor.settings


class JointClassification(Classification):
    """N-way K-shot classification of images whose extractor is trained with the learner (``extractor=joint``).

    Validation and test see the features of all images of their split by the extractor of now, made once, without
    augmentation.
    """

    def __init__(self, cfg: DictConfig, *, parts: Callable[[DictConfig], Any]) -> None:
        self.cfg = cfg
        check_settings(cfg)
        self.parts: Parts = parts(cfg)
        self.images = {split: image_table([store]) for split, store in self.parts.stores.items()}
        check_sizes(cfg, self.images)
        self.origin = {"features_origin": {key: value for key, value in self.parts.origin.items() if key != "config"}}

    def build(self) -> JointMetaLearning:
        """The learner, the extractor as it starts, and the normaliser, fitted to the features of the latter."""
        cfg = self.cfg
        normalizer = fitted(cfg, self.parts.first_features(cfg.train_splits))

        def kind(*args: Any, **settings: Any) -> JointMetaLearning:
            return JointMetaLearning(
                *args,
                extractor=copy.deepcopy(self.parts.extractor),  # each module trains its own
                extractor_lr=float(cfg.extractor.lr),
                weight_decay=float(cfg.extractor.weight_decay),
                chunk=cfg.extractor.chunk,
                **settings,
            )

        module = make_module(cfg, normalizer, kind, num_features=len(normalizer.mean))
        assert isinstance(module, JointMetaLearning)
        return module

    def data(self, module: MetaLearning, device: torch.device) -> TaskData:
        """Tasks of augmented images; validation tasks of the features of now."""
        cfg, augment = self.cfg, self.parts.augment
        stream = ImageStream(
            image_table([self.parts.stores[split] for split in cfg.train_splits], device),
            None if augment is None else augment.to(device),
            num_way=cfg.num_way,
            **stream_settings(cfg, device),
        )

        def scorer(learner: Learner) -> Scorer:
            return Scorer(learner, self.scaled(module, ["val"], device), cfg.num_shot)

        val = image_table([self.parts.stores["val"]], device)
        return TaskData(stream, self.val_tasks(val), scorer)

    def scaled(self, module: MetaLearning, splits: Sequence[str], device: torch.device) -> FeatureTable:
        """The classes of ``splits``, with the features that the learner sees, by the extractor of now."""
        assert isinstance(module, JointMetaLearning)
        table = image_table([self.parts.stores[split] for split in splits], device)
        features = torch.cat([module.extractor.in_parts(part) for part in table.parts])
        scaled = module.normalizer.scale_(features).to(device)
        return FeatureTable(scaled, table.offsets, table.class_names, self.parts.origin)


def check_settings(cfg: DictConfig) -> None:
    """Raise where the configuration names something that joint training does not have."""
    settings, given = cfg.extractor, "extractor=joint"
    if cfg.tasks._target_ != "leo.run.Classification":
        raise InputError(f"{given} learns from images of classes, and tasks has {cfg.tasks._target_}; leave it out")
    if cfg.model.optimizer is None:
        raise InputError(
            f"{given} goes on with the learner's training, and {cfg.model.learner._target_} has none; leave it out, or "
            f"choose model=leo, meta_sgd or prototypes"
        )
    if cfg.model.learner.get("inner_loops") == "closed_form":
        raise InputError(
            f"model.learner.inner_loops=closed_form is for frozen features, and with {given} the support needs a "
            f"gradient; choose auto or autograd"
        )
    if cfg.captured:
        raise InputError("captured=true has no joint training, as images are gathered on the processor; leave out one")
    for key in ("lr", "weight_decay"):
        if not isinstance(settings[key], int | float) or settings[key] < 0:
            raise InputError(f"extractor.{key}={settings[key]} must be a number of at least 0")
    if settings.chunk is not None and (not isinstance(settings.chunk, int) or settings.chunk < 1):
        raise InputError(f"extractor.chunk={settings.chunk} must be a whole number of at least 1, or null")
