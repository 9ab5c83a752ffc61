"""What hatchling runs when it builds a wheel or installs the source tree: compile the kernels.

An editable installation also needs the links in src/dragoman; a copy of the source tree may have lost them.

Without a C++ compiler the wheel has none of them, says so, and ONNX Runtime's own operators do the work. With
`DRAGOMAN_KERNELS=require` in the environment the build fails instead.
"""

import os
import sys
import sysconfig
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

sys.path.insert(0, str(Path(__file__).parent / "kernels"))

from build import LIBRARY, KernelsNotBuilt, build_kernels


class LinksLost(Exception):
    """The folder src/dragoman has not the links that a clone has."""


class KernelsBuildHook(BuildHookInterface):
    """Adds the library to a wheel, which is then for one platform, and for any Python 3 on it."""

    PLUGIN_NAME = "custom"

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Build it before the wheel's files are collected.

        Raises:
            LinksLost: the installation is editable and a link in src/dragoman does not lead to its folder.
        """
        if self.target_name != "wheel":
            return
        if version == "editable":
            _check_links(Path(self.root), self.build_config.sources)
        try:
            build_kernels(Path(self.root))
        except KernelsNotBuilt as error:
            if os.environ.get("DRAGOMAN_KERNELS") == "require":
                raise
            self.app.display_warning(f"built without kernels: {error}")
            return
        tag = sysconfig.get_platform().replace("-", "_").replace(".", "_")
        build_data["tag"] = f"py3-none-{tag}"
        build_data["pure_python"] = False
        build_data["artifacts"].append(f"/{LIBRARY.as_posix()}")


def _check_links(root: Path, sources: dict[str, str]) -> None:
    """Check that each folder of the package is found under its own name in `src`."""
    for folder, name in sources.items():
        link = root / "src" / name
        if link.resolve() != (root / folder).resolve():
            raise LinksLost(
                f"{link} is not a link to {root / folder}: an editable installation needs a clone with symbolic links "
                "(git clone -c core.symlinks=true); an ordinary installation does not (pip install .)"
            )
