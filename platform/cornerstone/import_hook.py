"""Lets `import timm` work in every process of an environment with a CPU build of torch (see `models/torchvision_mend.py`).

`python -m cornerstone.import_hook` installs it: a line in the environment's site-packages imports this module whenever Python
starts. It costs nothing until torchvision is imported.
"""

from __future__ import annotations

import sys
import sysconfig
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType

FILE = "cornerstone_torchvision.pth"
LINE = "import sys; exec('try:\\n import cornerstone.import_hook\\nexcept Exception: pass')\n"


class _BeforeTorchvision(MetaPathFinder):
    """Repairs torchvision when somebody imports it, and then steps aside."""

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Finds nothing itself: the usual finders do, after the repair."""
        if name == "torchvision":
            sys.meta_path.remove(self)
            import cornerstone.models  # noqa: F401 - repairs it
        return None


def install() -> Path:
    """Write the line; returns the file."""
    place = Path(sysconfig.get_path("purelib")) / FILE
    place.write_text(LINE)
    return place


if __name__ == "__main__":
    install()
elif not any(isinstance(finder, _BeforeTorchvision) for finder in sys.meta_path) and "torchvision" not in sys.modules:
    sys.meta_path.insert(0, _BeforeTorchvision())
