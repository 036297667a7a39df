"""The model card of a package: what is in it, what it was trained on, how well it does."""

from typing import Any

from torch import Tensor

from fewshot.model import Model
from leo.methods import METHODS

TEXT = """# {method} on {data}

Adapts to new classes of images from a few examples of each, without training. Made by the `leo` framework.

```python
from fewshot import FewShotClassifier

classifier = FewShotClassifier.load("THIS FOLDER").fit(image_paths, labels)
classifier.predict_proba(other_paths)
```

or `python train.py stage=predict "checkpoint='THIS FOLDER'" support=DIR query=DIR`.

## Accuracy

{accuracy}

That is on classes like those of training, in tasks of the shape of training. Images of another kind will be classified
less well: judge that by leave-one-out on your own (`support` and `query` the same folder).

## Data

- Extractor: {extractor}, {trained}; features of layer {layer}.
- Learner: {method}, {learner}.
- Preprocessing, the same for every class: {size}x{size} pixels in {colours} ({framing}), {crop}; mean
  {mean} and standard deviation {std} of the channels. Features are means over {views} view(s).

## Files

| file | content |
| --- | --- |
| `config.json` | the settings of learner, extractor and preprocessing; the result above |
| {weights} |
| `{program}` | a `torch.export` program, described below |
| `manifest.json` | SHA-256 of every file, checked on load |

`FewShotClassifier.load` reads JSON and safetensors only, and runs nothing from this folder. The hashes tell damage, not
who made it.

`torch.export.load("{program}").module()(support, query)` gives probabilities [{num_query}, {num_way}] of uint8 images
[{num_query}, {pixels}], adapted to uint8 images [{num_way}, {num_shot}, {pixels}] of the classes in order.
Opening it may unpickle: use it only where you trust its origin.
"""


def card(model: Model, result: dict[str, Any] | None, program: str, num_query: int, *, by_name: bool) -> str:
    """The card in Markdown. ``result`` is that of the run's test, where it is known.

    ``by_name``: the extractor's weights are not in the package.
    """
    config, extractor = model.config, model.needed_extractor()
    origin, crop, size = config["features_origin"], extractor.settings["crop"], extractor.image_size
    about = config.get("backbone", {}).get("pretrained") if "extractor_start" not in config else None
    num_way, num_shot = config["num_way"], config["num_shot"]
    framing = extractor.framing
    return TEXT.format(
        method=METHODS[config["learner"]["_target_"]],
        data=origin["data"] or origin["extractor"],
        extractor=origin["extractor"],
        layer=origin["layer"],
        accuracy=accuracy(result),
        trained=f"trained by others ({about['weights']}, SHA-256 {origin['checkpoint']})"
        if about
        else extractor_training(config, origin["data"]),
        learner=f"meta-trained on tasks of {num_way} classes with {num_shot} image(s) each"
        + ("" if result is None else f", of the splits {' and '.join(result['train_splits'])}")
        if next(model.learner.parameters(), None) is not None
        else "which needs no training",
        framing="both sides resized at once"
        if framing is None
        else f"the centred square of {framing.crop_fraction:.4g} of the shorter side, {framing.filter}",
        weights="`learner.safetensors` | weights; those of the extractor are known by name and hash (`config.json`)"
        if by_name
        else "`learner.safetensors`, `extractor.safetensors` | weights",
        num_way=num_way,
        num_shot=num_shot,
        num_query=num_query,
        size=size,
        colours="grey" if extractor.mode == "L" else "RGB",
        crop="all of it" if crop is None else f"{100 * crop['area']:.0f} % of it as {crop['size']}x{crop['size']}",
        mean=numbers(extractor.mean),
        std=numbers(extractor.std),
        views=len(extractor.views),
        pixels=f"{size}, {size}, {len(extractor.mean)}",
        program=program,
    )


def extractor_training(config: dict[str, Any], data: str) -> str:
    """How the extractor was trained here; ``extractor_start`` says where it was trained with the learner."""
    alone, start = f"trained to tell the training classes of *{data}* apart", config.get("extractor_start")
    if start is None:
        return alone
    jointly = f"trained together with the learner, on tasks of *{data}*"
    return jointly if start == "random" else f"{alone}, then {jointly}"


def accuracy(result: dict[str, Any] | None) -> str:
    """What the test found."""
    if result is None:
        return "Not tested here: no result of a test was found."
    return (
        f"{100 * result['accuracy']:.2f} +- {100 * result['interval95']:.2f} % (95 % interval over "
        f"{result['num_tasks']:,} tasks), {result['num_way']}-way {result['num_shot']}-shot, on test classes of "
        f"{result['data']} that training never saw (experiment {result['experiment']}, ablation {result['ablation']}, "
        f"seed {result['seed']})."
    )


def numbers(values: Tensor) -> str:
    """Three digits of each."""
    return ", ".join(f"{value:.3g}" for value in values.tolist())
