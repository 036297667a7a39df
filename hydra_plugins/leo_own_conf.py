"""Where the package is installed, `conf/` in the current folder is searched too, for what searches have found."""

from pathlib import Path

from hydra.core.config_search_path import ConfigSearchPath
from hydra.plugins.search_path_plugin import SearchPathPlugin

from runner.conf_folder import IS_INSTALLED, OWN_CONF


class OwnConf(SearchPathPlugin):
    """Adds the folder."""

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        """Append it, where there is one."""
        if IS_INSTALLED and Path(OWN_CONF).is_dir():
            search_path.append("leo", f"file://{Path(OWN_CONF).absolute()}")
