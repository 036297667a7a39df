"""What the documentation's pages hold: files to copy, and commands."""

import re
import shlex

from tests.conftest import ROOT

PAGES = [*sorted((ROOT / "docs").glob("*.md")), ROOT / "README.md"]


def write_files(page, folder):
    """Write each file that ``page`` shows, a name and then its content, below ``folder``; their names."""
    text = (ROOT / "docs" / page).read_text(encoding="utf-8")
    files = dict(re.findall(r"`([\w/.]+)`:\n\n```\w+\n(.*?)```", text, flags=re.DOTALL))
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(content, encoding="utf-8")
    return sorted(files)


def commands(path):
    """The arguments of each `python train.py` in the page's blocks, less those that hold shell variables."""
    blocks = re.findall(r"```bash\n(.*?)```", path.read_text(encoding="utf-8"), flags=re.DOTALL)
    lines = "\n".join(blocks).replace("\\\n", " ").splitlines()
    calls = [line.partition("train.py ")[2] for line in lines if "python train.py " in line and "$" not in line]
    return [shlex.split(call, comments=True) for call in calls]
