"""The device of a command, or of a Ray actor, outside Ray Train."""

from __future__ import annotations

import torch

from cornerstone.errors import CornerstoneError


def device_named(name: str = "auto") -> torch.device:
    """`auto` is a GPU if PyTorch sees one, otherwise the CPU; other names are PyTorch's (cpu, cuda, cuda:1).

    Raises CornerstoneError for a name that is none, and for a GPU that is not there.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise CornerstoneError(f"No device {name!r}: expected auto, cpu, cuda or cuda:N (--device).") from None
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise CornerstoneError(
            f"No GPU for --device {name}: PyTorch sees {torch.cuda.device_count()}. Use --device cpu, or install the CUDA "
            f"build of PyTorch."
        )
    return device


def actor_device() -> torch.device:
    """The GPU that Ray gave this actor; the CPU if it gave none, although CUDA may be visible (Ray hides no GPUs)."""
    import ray

    return torch.device("cuda" if ray.is_initialized() and ray.get_gpu_ids() and torch.cuda.is_available() else "cpu")
