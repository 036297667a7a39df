"""Predictions as one HTML page with thumbnails in it: opens from disk, needs no network and no script."""

import base64
from html import escape
from io import BytesIO
from pathlib import Path

from PIL import Image

from fewshot.outcome import Outcome, Prediction
from pretrain.fingerprint import shown
from pretrain.sources.images import to_mode, upright

SIDE = 96  # of a thumbnail, in pixels
EXAMPLES = 8  # shown of each class

STYLE = """
:root { color-scheme: light dark; --line: #8884; --wrong: #c62828; --quiet: #666; }
@media (prefers-color-scheme: dark) { :root { --wrong: #ff8a80; --quiet: #aaa; } }
body { font: 16px/1.4 system-ui, sans-serif; max-width: 75rem; margin: 0 auto; padding: 1rem; }
body { overflow-wrap: anywhere; }
.grid { display: grid; grid-template-columns: repeat(auto-fill, minmax(8rem, 1fr)); gap: .75rem; }
figure { margin: 0; padding: .5rem; border: 1px solid var(--line); border-radius: .5rem; font-size: .875rem; }
figure img { display: block; width: 96px; height: 96px; object-fit: contain; margin: 0 auto .25rem; }
.row { display: flex; flex-wrap: wrap; gap: .25rem; } .row img { width: 48px; height: 48px; object-fit: contain; }
.path { color: var(--quiet); font-size: .75rem; }
.wrong { border-color: var(--wrong); } .wrong b { color: var(--wrong); }
meter { width: 100%; }
"""


def shown_paths(outcome: Outcome, num_shown: int) -> list[Path]:
    """The images that the page of the first ``num_shown`` predictions has."""
    of_classes = [path for paths in outcome.support.values() for path in paths[:EXAMPLES]]
    return list(dict.fromkeys(of_classes + [one.path for one in outcome.predictions[:num_shown]]))


def page(outcome: Outcome, method: str, num_shown: int, thumbnails: dict[Path, str]) -> str:
    """The page of the first ``num_shown`` predictions, the images that they rest on, and the files skipped."""
    predictions, accuracy = outcome.predictions, outcome.accuracy()
    shown = predictions[:num_shown]
    rest = f"<p>The first {len(shown):,} of {len(predictions):,}; all are in predictions.csv.</p>"
    skipped = "".join(f"<li>{escape(one.reason)}</li>" for one in outcome.unreadable)
    return f"""<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Predictions</title>
<style>{STYLE}</style>
<h1>{len(predictions):,} predictions</h1>
{"" if accuracy is None else f"<p><b>{escape(accuracy)}</b>. Each image was classified by all others.</p>"}
<p>Method: {escape(method)}</p>
<h2>Predictions</h2>
{rest if len(shown) < len(predictions) else ""}
<div class="grid">{"".join(figure(one, thumbnails[one.path]) for one in shown)}</div>
<h2>Learned from</h2>
{"".join(examples(name, paths, thumbnails) for name, paths in outcome.support.items())}
{f"<h2>{len(outcome.unreadable):,} files skipped</h2><ul>{skipped}</ul>" if skipped else ""}
</html>
"""


def examples(name: str, paths: list[Path], thumbnails: dict[Path, str]) -> str:
    """A class and the first of its images."""
    more = f" The first {EXAMPLES} of {len(paths):,}." if len(paths) > EXAMPLES else ""
    pictures = "".join(f'<img src="{thumbnails[path]}" alt="">' for path in paths[:EXAMPLES])
    return f'<p><b>{escape(name)}</b>{more}</p><div class="row">{pictures}</div>'


def figure(one: Prediction, picture: str) -> str:
    """An image with its class, how probable that is, and its own class where that is another one."""
    is_wrong = one.truth is not None and one.truth != one.label
    truth = f"<div>is {escape(one.truth or '')}</div>" if is_wrong else ""
    return (
        f'<figure{" class=wrong" if is_wrong else ""}><img src="{picture}" alt=""><b>{escape(one.label)}</b> '
        f'{100 * one.probability:.0f}&nbsp;%<meter value="{one.probability:.4f}" aria-hidden="true"></meter>{truth}'
        f'<div class="path">{escape(shown(one.path.name))}</div></figure>'
    )


def thumbnail(path: Path) -> str:
    """The image in small, as a data URI."""
    with Image.open(path) as image:
        image.draft("RGB", (2 * SIDE, 2 * SIDE))  # photographs are decoded no larger than needed
        small = to_mode(upright(image), "RGB")
    small.thumbnail((SIDE, SIDE))
    buffer = BytesIO()
    small.save(buffer, format="JPEG", quality=80)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()
