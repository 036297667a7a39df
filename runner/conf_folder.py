"""Where the configuration is: in a checkout, or in the installed package."""

from pathlib import Path

_CHECKOUT = Path(__file__).parents[1] / "conf"
IS_INSTALLED = not (_CHECKOUT / "train.yaml").is_file()  # as a wheel, which holds the configuration
CONF = str(Path(__file__).with_name("conf") if IS_INSTALLED else _CHECKOUT)
OWN_CONF = "conf"  # of the current folder: where searches write, where the package is installed


def own_conf(conf: str) -> str:
    """The folder that searches write to, of a configuration read from ``conf``: not the installed package's."""
    return OWN_CONF if IS_INSTALLED and Path(conf) == Path(CONF) else conf
