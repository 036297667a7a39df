"""Adapt a trained LEO to five glyph classes that it has never seen, and look at what happens.

    python train.py                       # once: images, extractor, features and a trained LEO
    python examples/adapt_to_glyphs.py    # writes the pictures to runs/adapt_to_glyphs/

A notebook, too: each `# %%` begins a cell. Any setting of the first cell can be given as name=value.
"""

# %%
import sys
import time
from pathlib import Path

import matplotlib
import torch
from matplotlib import pyplot as plt
from omegaconf import OmegaConf

from leo import softmax
from leo.analysis.methods import Sizes, load_method
from leo.analysis.trajectory import trajectory
from leo.checkpoint import read_checkpoint
from leo.episodes import gather, sample_tasks
from leo.features import load_splits
from leo.leo import LEO, Noise
from leo.prototypes import NearestCentroid
from pretrain.store import SPLITS, images_fingerprint, read_split

settings = OmegaConf.create(
    {
        "checkpoint": "runs/glyphs_1shot-none-seed0/best.ckpt",
        "features": "features/glyphs-wrn_10_2-layer9",
        "images": "images/glyphs",
        "seed": 0,  # of the choice of classes and of their support images
        "out": "runs/adapt_to_glyphs",
    }
)
OmegaConf.set_struct(settings, True)  # a misspelt name is an error
settings.merge_with_dotlist([argument for argument in sys.argv[1:] if "=" in argument])
checkpoint, out = Path(settings.checkpoint), Path(settings.out)
for needed in (checkpoint, Path(settings.features, "test.safetensors"), Path(settings.images, "test.safetensors")):
    if not needed.exists():
        sys.exit(f"{needed} is missing; `python train.py` makes it: images, extractor, features and a trained LEO")
out.mkdir(parents=True, exist_ok=True)
if not hasattr(sys, "ps1"):
    matplotlib.use("Agg")  # no window, unless someone looks

# %% [markdown]
# ## The learner and the images
# The checkpoint says how many classes and support images it was trained for. Image k of the store has the features of
# row k.

# %%
config = read_checkpoint(checkpoint)["config"]
num_way, num_shot = config["num_way"], config["num_shot"]
tables, store = load_splits(Path(settings.features)), read_split(Path(settings.images), "test")
expected, found = (
    tables["test"].origin["images"],
    images_fingerprint(read_split(Path(settings.images), split) for split in SPLITS),
)
if expected and found and expected != found:
    sys.exit(f"{settings.features} was made of other images ({expected[:12]}) than {settings.images} ({found[:12]})")
num_query = int(tables["test"].class_sizes.min()) - num_shot  # all that are left
method = load_method(checkpoint, tables, Sizes(num_way, num_shot, num_query))
learner = method.learner
if not isinstance(learner, LEO):
    sys.exit(f"{checkpoint} holds a {method.name}, which has no latent codes; choose a checkpoint of LEO")
generator = torch.Generator().manual_seed(settings.seed)
task = sample_tasks(method.test, 1, num_way, num_shot + num_query, generator)
support, query = gather(method.test, task, num_shot)
images = store.images[task.images[0]].squeeze(-1).numpy()  # [N, K + Q, height, width]
names = [store.class_names[label] for label in task.classes[0].tolist()]

# %% [markdown]
# ## Adapt and predict

# %%
start = time.perf_counter()
with torch.no_grad():
    adaptation = learner.adaptation(support, Noise())  # no noise: codes and weights are their means
    probabilities = softmax.logits(adaptation.weights, learner.embed(query))[0].softmax(-1)  # [N, Q, N]
milliseconds = 1000 * (time.perf_counter() - start)
confidence, predicted = probabilities.max(-1)
is_right = predicted == torch.arange(num_way).unsqueeze(1)
print(f"classes {' '.join(names)}: {num_shot} support image(s) each, adapted and {is_right.numel()} queries classified")
print(f"in {milliseconds:.0f} ms; accuracy {100 * is_right.double().mean():.1f} %")
for name, right in zip(names, is_right, strict=True):
    print(f"  {name}: {int(right.sum())} of {num_query} right")

# %% [markdown]
# ## The support images: all that the learner sees of these classes

# %%
RIGHT, WRONG = "tab:blue", "tab:red"
COLOURS = [plt.colormaps["tab10"](i) for i in range(10)]


def show(axis, image, colour=None):
    """An image in a frame of ``colour``, without ticks."""
    axis.imshow(image, cmap="gray", vmin=0, vmax=255)
    axis.set(xticks=[], yticks=[])
    for side in axis.spines.values():
        side.set(visible=colour is not None, color=colour, linewidth=3)


figure, axes = plt.subplots(
    num_shot, num_way, figsize=(1.5 * num_way, 1.5 * num_shot + 0.5), squeeze=False, layout="constrained"
)
for i, name in enumerate(names):
    axes[0, i].set_title(name, color=COLOURS[i], fontsize=20)
    for k in range(num_shot):
        show(axes[k, i], images[i, k])
figure.savefig(out / "support.png", dpi=110)

# %% [markdown]
# ## Predictions: a row for each class. Below a wrong one stands what it was taken for.

# %%
num_shown = min(12, num_query)
figure, axes = plt.subplots(
    num_way, num_shown, figsize=(0.95 * num_shown, 1.16 * num_way + 0.4), squeeze=False, layout="constrained"
)
for i, name in enumerate(names):
    axes[i, 0].set_ylabel(name, color=COLOURS[i], fontsize=18, rotation=0, labelpad=16, va="center")
    for j in range(num_shown):
        show(axes[i, j], images[i, num_shot + j], RIGHT if is_right[i, j] else WRONG)
        guess = "" if is_right[i, j] else f"{names[predicted[i, j]]} "
        axes[i, j].set_xlabel(f"{guess}{100 * confidence[i, j]:.0f} %", fontsize=9, color="k" if not guess else WRONG)
figure.suptitle("the first queries of each class, with the probability of the answer; red: wrong", fontsize=10)
figure.savefig(out / "predictions.png", dpi=110)

# %% [markdown]
# ## Accuracy after each inner step, and what is confused with what
# The first point is the classifier that the encoder and decoder make of the support, before any step.

# %%
way = trajectory(learner, support)
accuracies = [100 * softmax.accuracy(softmax.logits(weights, query)).item() for weights in way.weights]
centroid = NearestCentroid(num_features=support.shape[-1])
centroid_logits = softmax.logits(centroid.adapt(support), centroid.embed(query))
figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4), width_ratios=(3, 2), layout="constrained")
num_latent_steps = way.loops.count("latent")
left.plot(accuracies, "o-", color="tab:blue", label="LEO")
left.axhline(100 * softmax.accuracy(centroid_logits).item(), color="gray", linestyle="--", label="nearest centroid")
if 0 < num_latent_steps < len(way.loops):
    left.axvspan(num_latent_steps, len(way.loops), color="tab:orange", alpha=0.12, label="steps in weight space")
left.set(xlabel="inner steps", ylabel="accuracy on the queries, %", xticks=range(len(accuracies)))
left.grid(alpha=0.3)
left.legend()
confusion = torch.stack([row.bincount(minlength=num_way) for row in predicted])
right.imshow(confusion, cmap="Blues", vmin=0, vmax=num_query)
for i in range(num_way):
    for j in range(num_way):
        colour = "white" if confusion[i, j] > num_query / 2 else "black"
        right.text(j, i, int(confusion[i, j]), ha="center", va="center", color=colour)
right.set(xlabel="answer", ylabel="class", title="number of queries")
right.set_xticks(range(num_way), names, fontsize=14)
right.set_yticks(range(num_way), names, fontsize=14)
figure.savefig(out / "accuracy.png", dpi=110)

# %% [markdown]
# ## The path of the codes
# The codes of all classes and steps in the plane of their two main directions; a step leads from dot to dot, the
# triangle is the last.

# %%
codes = torch.stack([step[0].mean(1) for step in adaptation.latents])  # [steps, N, Z]
flat = codes.flatten(0, 1)
centred = flat - flat.mean(0)
_, lengths, directions = torch.linalg.svd(centred, full_matrices=False)
plane = (centred @ directions[:2].T).unflatten(0, codes.shape[:2])
share = lengths[:2].square().sum() / lengths.square().sum()
figure, axis = plt.subplots(figsize=(6, 5), layout="constrained")
for i, name in enumerate(names):
    axis.plot(*plane[:, i].T, "o-", color=COLOURS[i], markersize=4)
    axis.plot(*plane[-1, i], "^", color=COLOURS[i], markersize=11)
    axis.annotate(name, plane[-1, i].tolist(), xytext=(8, 6), textcoords="offset points", fontsize=18, color=COLOURS[i])
axis.set(xlabel="first direction", ylabel="second direction", aspect="equal")
axis.set_title(f"codes by latent step; this plane holds {100 * share:.0f} % of their variance", fontsize=10)
axis.margins(0.15)
axis.grid(alpha=0.3)
figure.savefig(out / "codes.png", dpi=110)

# %% [markdown]
# ## All of it in one picture: what LEO does

# %%
figure = plt.figure(figsize=(14, 4.2), layout="constrained")
first, second, third, fourth = figure.subfigures(1, 4, width_ratios=(1.0, 3.2, 3.2, 3.0))
first.suptitle("new classes", fontsize=11)
for i, axis in enumerate(first.subplots(num_way, 1)):
    show(axis, images[i, 0], COLOURS[i])
second.suptitle("their codes move by gradient steps in latent space", fontsize=11)
axis = second.subplots()
for i, name in enumerate(names):
    axis.plot(*plane[:, i].T, "o-", color=COLOURS[i], markersize=4)
    axis.plot(*plane[-1, i], "^", color=COLOURS[i], markersize=11)
    axis.annotate(name, plane[-1, i].tolist(), xytext=(8, 6), textcoords="offset points", fontsize=18, color=COLOURS[i])
axis.set(xticks=[], yticks=[], xlabel="first direction", ylabel="second direction")
axis.margins(0.2)
third.suptitle("accuracy of the classifier that they decode to", fontsize=11)
axis = third.subplots()
axis.plot(accuracies, "o-", color="tab:blue")
if 0 < num_latent_steps < len(way.loops):
    axis.axvspan(num_latent_steps, len(way.loops), color="tab:orange", alpha=0.12, label="steps in weight space")
    axis.legend(loc="lower right")
axis.set(xlabel="inner steps", ylabel="% of the queries", xticks=range(len(accuracies)))
axis.grid(alpha=0.3)
fourth.suptitle("a row for each answer; frames: the true class", fontsize=11)
shuffled = torch.randperm(predicted.numel(), generator=generator)
for i, row in enumerate(fourth.subplots(num_way, 5)):
    said = shuffled[predicted.flatten()[shuffled] == i]
    for axis in row:
        axis.set_axis_off()
    for axis, place in zip(row, said.tolist(), strict=False):
        label, j = divmod(place, num_query)
        axis.set_axis_on()
        show(axis, images[label, num_shot + j], COLOURS[label])
figure.savefig(out / "leo.png", dpi=110)
print(f"wrote support.png, predictions.png, accuracy.png, codes.png and leo.png in {out}")
