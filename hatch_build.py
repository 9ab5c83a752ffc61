"""What hatchling runs when it builds a wheel or installs the source tree: compile the kernels.

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


class KernelsBuildHook(BuildHookInterface):
    """Adds the library to a wheel, which is then for one platform, and for any Python 3 on it."""

    PLUGIN_NAME = "custom"

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:  # noqa: ARG002
        """Build it before the wheel's files are collected."""
        if self.target_name != "wheel":
            return
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
