"""Where the configuration is: in a checkout, or in the installed package."""

from pathlib import Path

_CHECKOUT = Path(__file__).parents[1] / "conf"
IS_INSTALLED = not (_CHECKOUT / "train.yaml").is_file()  # as a wheel, which holds the configuration
CONF = str(Path(__file__).with_name("conf") if IS_INSTALLED else _CHECKOUT)
OWN_CONF = "conf" if IS_INSTALLED else CONF  # where searches write; installed, a folder of the current one
