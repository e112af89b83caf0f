"""Weights by name: loaded, or refused in one line that says which are missing, left over, or of another shape."""

from __future__ import annotations

import pickle
from collections.abc import Iterable, Mapping

import safetensors.torch
from safetensors import SafetensorError
from torch import Tensor, nn

from cornerstone.data.storage import Location
from cornerstone.errors import CornerstoneError, first_line

_SHOWN = 4


def load_weights(module: nn.Module, given: Mapping[str, Tensor], refused: str) -> None:
    """Load weights by name. CornerstoneError, which begins with `refused`, unless they are exactly the module's."""
    if said := misfits(module.state_dict(), given):
        raise CornerstoneError(f"{refused}: {said}.")
    module.load_state_dict(given)


def misfits(expected: Mapping[str, Tensor], given: Mapping[str, Tensor]) -> str:
    """`missing 2: a, b; left over 1: c (3,); of another shape 1: d (3,) instead of (4,)`; "" if all fit."""
    differ = [
        f"{name} {tuple(value.shape)} instead of {tuple(expected[name].shape)}"
        for name, value in sorted(given.items())
        if name in expected and value.shape != expected[name].shape
    ]
    said = misnamed(set(expected) - set(given), {name: given[name] for name in set(given) - set(expected)})
    shapes = f"of another shape {len(differ)}: {some(differ)}" if differ else ""
    return "; ".join(part for part in (said, shapes) if part)


def misnamed(missing: Iterable[str], left: Mapping[str, Tensor]) -> str:
    """`missing 2: a, b; left over 1: c (3,)`; "" if there is none of either."""
    missing, shapes = sorted(missing), [f"{name} {tuple(left[name].shape)}" for name in sorted(left)]
    if not missing and not shapes:
        return ""
    return f"missing {len(missing)}: {some(missing)}; left over {len(shapes)}: {some(shapes)}"


def some(names: list[str]) -> str:
    """The first few names."""
    return (", ".join(names[:_SHOWN]) or "none") + (", .." if len(names) > _SHOWN else "")


def why_unreadable(error: Exception) -> str:
    """What a library says first of weights that it cannot read; of a pickle of more than tensors what that means."""
    if isinstance(error, pickle.UnpicklingError):
        return (
            "it is a pickle of more than tensors, which runs code of its own if it is opened: only tensors are unpickled. Use "
            "a .safetensors file, or save its state_dict again"
        )
    return first_line(error)


def read_safetensors(file: Location) -> dict[str, Tensor]:
    """The tensors of a file. CornerstoneError if it is none of safetensors: a pickle is not unpickled."""
    try:
        return safetensors.torch.load(file.read_bytes())
    except SafetensorError as error:
        raise CornerstoneError(
            f"{file} is damaged, or holds no safetensors ({str(error).strip() or 'unreadable'}): copy it again from where it "
            f"was written. Weights in a pickle are not read from here (`cornerstone convert` reads .pt and .bin files)."
        ) from error
