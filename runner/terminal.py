"""Where the output of this process goes."""

import multiprocessing


def shares_terminal() -> bool:
    """Whether this process is one of several that a launcher started here."""
    return multiprocessing.parent_process() is not None
