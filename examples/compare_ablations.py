"""Compare two ablations of an experiment from their result files: over seeds, and over the same tasks.

    python train.py -m sweep=five_seeds
    python train.py -m sweep=five_seeds ablation=no_finetuning
    python examples/compare_ablations.py first=none second=no_finetuning    # writes runs/compare_ablations/

A notebook, too: each `# %%` begins a cell. Any setting of the first cell can be given as name=value.
"""

# %%
import json
import statistics
import sys
from pathlib import Path

import matplotlib
from matplotlib import pyplot as plt
from omegaconf import OmegaConf

from leo.analysis.methods import Sizes, load_method
from leo.evaluate import evaluate, fixed_tasks, interval95
from leo.features import load_splits
from leo.run import TEST_SEED
from sweeps.collect import collect, read_results

settings = OmegaConf.create(
    {
        "runs": "runs",
        "select": "*",  # of the run folders, as in stage=report
        "experiment": "glyphs_1shot",
        "first": "none",
        "second": "no_finetuning",
        "out": "runs/compare_ablations",
    }
)
OmegaConf.set_struct(settings, True)  # a misspelt name is an error
settings.merge_with_dotlist([argument for argument in sys.argv[1:] if "=" in argument])
out = Path(settings.out)
out.mkdir(parents=True, exist_ok=True)
if not hasattr(sys, "ps1"):
    matplotlib.use("Agg")  # no window, unless someone looks

# %% [markdown]
# ## The result files
# Runs of one ablation may differ in nothing but the seed: `collect` checks that.

# %%
rows = {}
for ablation in (settings.first, settings.second):
    found = [
        row
        for row in collect(read_results(Path(settings.runs), settings.select), [])
        if (row.experiment, row.ablation) == (settings.experiment, ablation)
    ]
    if len(found) != 1:
        variants = "; ".join(", ".join(row.changes) or "no overrides" for row in found) or "none"
        sys.exit(
            f"one group of runs of experiment={settings.experiment} ablation={ablation} is needed in {settings.runs}, "
            f"found: {variants}; train with `python train.py -m sweep=five_seeds experiment=... ablation=...`, or "
            f"choose one of several with select=..."
        )
    rows[ablation] = {result["seed"]: result for result in found[0].results}
first, second = rows.values()
seeds = sorted(first.keys() & second.keys())
if not seeds:
    sys.exit(f"{settings.first} has seeds {sorted(first)}, {settings.second} has {sorted(second)}: none in common")

# %% [markdown]
# ## Over seeds
# The standard deviation over seeds is the paper's +-: how much a result moves when everything is trained again.


# %%
def spread(values):
    """Mean and standard deviation; the latter 0 for one value."""
    return statistics.mean(values), statistics.stdev(values) if len(values) > 1 else 0.0


print("seed" + "".join(f"{name:>22}" for name in rows) + f"{'difference':>22}")
accuracies = [[100 * row[seed]["accuracy"] for seed in seeds] for row in rows.values()]
differences = [b - a for a, b in zip(*accuracies, strict=True)]
for seed, a, b, difference in zip(seeds, *accuracies, differences, strict=True):
    print(f"{seed:4}{a:22.2f}{b:22.2f}{difference:+22.2f}")
over_seeds = [spread(values) for values in (*accuracies, differences)]
print("mean" + "".join(f"{mean:22.2f}" for mean, _ in over_seeds))
print("s.d." + "".join(f"{deviation:22.2f}" for _, deviation in over_seeds))

# %% [markdown]
# ## Over tasks
# Every run is tested on the same tasks. The difference of two runs, task by task, has a smaller interval than if each
# had its own tasks, as hard tasks are hard for both. A result file keeps the means alone, so this needs the checkpoints
# and the features.


# %%
def task_accuracies(result):
    """The accuracy on each of the run's test tasks."""
    sizes = Sizes(result["num_way"], result["num_shot"], num_query=1)
    tables = load_splits(Path(result["config"]["features"]["folder"]))
    method = load_method(Path(result["checkpoint"]), tables, sizes)
    tasks = fixed_tasks(method.test, result["num_tasks"], sizes.num_way, sizes.num_shot, TEST_SEED)
    accuracy = evaluate(method.learner, method.test, tasks, sizes.num_shot).accuracy
    assert abs(accuracy.mean().item() - result["accuracy"]) < 1e-3, "not the run that the result file is of"
    return 100 * accuracy


def can_be_tested(result):
    """Whether the run's checkpoint and features are there, and it was tested on as many tasks as the first."""
    features = Path(result["config"]["features"]["folder"], "test.safetensors")
    return Path(result["checkpoint"]).exists() and features.exists()


paired = []
for seed in seeds:
    pair = first[seed], second[seed]
    if not all(map(can_be_tested, pair)) or pair[0]["num_tasks"] != pair[1]["num_tasks"]:
        print(f"seed {seed}: no difference by task, as a checkpoint, the features or a number of tasks does not fit")
        continue
    a, b = map(task_accuracies, pair)
    paired.append(
        {
            "seed": seed,
            "difference": (b - a).mean().item(),
            "interval95": interval95(b - a),
            "interval95_if_unpaired": (interval95(a) ** 2 + interval95(b) ** 2) ** 0.5,
            "better": (b > a).double().mean().item(),
            "worse": (b < a).double().mean().item(),
        }
    )
    print(
        "seed {seed}: difference {difference:+.2f} +- {interval95:.2f} over the same tasks (unpaired: +- "
        "{interval95_if_unpaired:.2f}); better in {better:.0%} of them, worse in {worse:.0%}".format(**paired[-1])
    )

# %% [markdown]
# ## The picture
# Left: each line is a seed. Right: the difference by seed with its interval over tasks, and the band of the mean over
# seeds plus and minus its standard error.

# %%
figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
for a, b in zip(*accuracies, strict=True):
    left.plot([0, 1], [a, b], "o-", color="tab:gray", alpha=0.6, linewidth=1, markersize=4)
for x, (mean, deviation) in enumerate(over_seeds[:2]):
    left.errorbar(x, mean, yerr=deviation, fmt="D", color="tab:blue", capsize=6, markersize=7, zorder=3)
left.set_xticks([0, 1], [name.replace("_", " ") for name in rows])
left.set_xlim(-0.4, 1.4)
left.set(xlabel="ablation", ylabel="test accuracy, %")
left.set_title("lines: seeds; bars: s.d. over seeds", fontsize=10)
left.grid(axis="y", alpha=0.3)
mean, deviation = over_seeds[2]
error = deviation / len(seeds) ** 0.5
right.axhspan(mean - error, mean + error, color="tab:blue", alpha=0.15)
right.axhline(mean, color="tab:blue", label=f"mean over seeds: {mean:+.2f} (standard error {error:.2f})")
right.axhline(0, color="black", linewidth=1)
if paired:
    right.errorbar(
        [pair["seed"] for pair in paired],
        [pair["difference"] for pair in paired],
        yerr=[pair["interval95"] for pair in paired],
        fmt="o", color="tab:orange", capsize=4, label="one seed, 95 % interval over its tasks",
    )  # fmt: skip
else:
    right.plot(seeds, differences, "o", color="tab:orange", label="one seed")
right.set_xticks(seeds)
right.set(xlabel="seed", ylabel="difference, points")
right.set_title(f"{settings.second.replace('_', ' ')} minus {settings.first.replace('_', ' ')}", fontsize=10)
right.margins(y=0.3)
right.legend(fontsize=8)
right.grid(axis="y", alpha=0.3)
figure.suptitle(settings.experiment)
figure.savefig(out / "comparison.png", dpi=110)
content = {
    "experiment": settings.experiment,
    "seeds": seeds,
    **{name: {"mean": m, "deviation": d} for name, (m, d) in zip((*rows, "difference"), over_seeds, strict=True)},
    "by_task": paired,
}
(out / "comparison.json").write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
print(f"wrote comparison.png and comparison.json in {out}")
