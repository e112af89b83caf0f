"""The one place that mends torchvision beside a CPU-only torch.

PyPI's torchvision is built for CUDA. Beside the CPU build of torch its operator library does not load, and `import
torchvision` (so timm, and transformers' models) fails at `torchvision::nms`. Declaring the two schemas is enough for the
import: no operator of torchvision's C++ is used here (images are decoded by Pillow).
"""

from __future__ import annotations

import torch

_OPERATORS = {
    "nms": "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms": "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
}
_declared: list[torch.library.Library] = []  # a library's declarations live as long as the object


def declare_missing_operators() -> None:
    """Make `import torchvision` work; does nothing where its own operators load."""
    if _declared or torch.cuda.is_available():
        return
    try:
        import torchvision  # noqa: F401
    except RuntimeError as error:
        if "torchvision::nms" not in str(error):
            raise
        library = torch.library.Library("torchvision", "DEF")
        for name, schema in _OPERATORS.items():
            if not hasattr(torch.ops.torchvision, name):
                library.define(schema)
        _declared.append(library)
