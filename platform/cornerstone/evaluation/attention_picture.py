"""The picture of attention maps: a row for each image and text, a column for each model, one scale and colour bar for all.

G patches a side, H and W pixels of an image.
"""

from __future__ import annotations

import os
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from torch import Tensor

from cornerstone.data.pairs.views import Box
from cornerstone.evaluation.attention import area, covered, energy_inside

Scale = Literal["common", "each"]
_PANEL = 2.6
"""Side of a panel in inches."""
_TEXT_WIDTH = 0.95
"""Width of the column with the images and texts, in panels."""
_CAPTION_LETTERS, _CAPTION_LINES = 46, 14
_SEEN, _DARKEST = 0.72, 0.35
"""Weight of the colours over the image, and the brightness of its black, so that colours stay those of the bar."""


@dataclass(frozen=True)
class Shown:
    """A row of the picture."""

    image_HW3: npt.NDArray[np.uint8]
    """As the models see it: the square crop."""
    text: str
    maps: tuple[Tensor, ...]
    """(G, G) of each model; G may differ."""
    boxes: tuple[Box, ...] = ()
    """Where the objects are that the text mentions, if that is known."""


def draw_attention(
    rows: Sequence[Shown], models: Sequence[str], path: str | os.PathLike[str], *, scale: Scale = "common"
) -> Path:
    """Write the picture as PNG. `common` gives equal cosines equal colours everywhere; `each` stretches every map to its own
    lowest and highest cosine, which shows where a model looks if models differ in how large their cosines are.
    """
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    size = (_PANEL * (_TEXT_WIDTH + len(models)) + 0.9, (_PANEL + 0.25) * len(rows) + 0.5)
    figure, axes = plt.subplots(
        len(rows),
        1 + len(models),
        figsize=size,
        squeeze=False,
        layout="constrained",
        width_ratios=[_TEXT_WIDTH] + [1.0] * len(models),
    )
    every = np.concatenate([_numbers(one).ravel() for row in rows for one in row.maps])
    limits = (float(every.min()), float(every.max()))
    drawn: Any = None
    for number, (line, row) in enumerate(zip(axes, rows, strict=True)):
        _image_and_text(line[0], row)
        for place, (panel, one) in enumerate(zip(line[1:], row.maps, strict=True)):
            drawn = _map(panel, row, one, limits if scale == "common" else None)
            if number == 0:
                panel.set_title(textwrap.shorten(models[place], 34), fontsize=9, fontweight="bold")
    bar = figure.colorbar(drawn, ax=axes[:, 1:].ravel().tolist(), shrink=min(1.0, 2.2 / len(rows)), pad=0.01, aspect=24)
    if bar.solids is not None:
        bar.solids.set_alpha(1.0)
    if scale == "common":
        bar.set_label("cosine of patch and text", fontsize=8)
    else:
        bar.set_ticks([0.0, 1.0], labels=["lowest", "highest"])
        bar.set_label("cosine of patch and text, each map by itself", fontsize=8)
    bar.ax.tick_params(labelsize=7)
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(target, dpi=130)
    plt.close(figure)
    return target


def _image_and_text(panel: Any, row: Shown) -> None:
    """The image in the upper part of the panel, and the wrapped text below it: a row stays as high as its maps."""
    panel.axis("off")
    picture = panel.inset_axes((0.0, 0.46, 0.54 / _TEXT_WIDTH, 0.54))
    _frameless(picture)
    picture.imshow(row.image_HW3, extent=(0, 1, 1, 0))
    lines = textwrap.wrap(row.text, _CAPTION_LETTERS)
    if len(lines) > _CAPTION_LINES:
        lines = [*lines[: _CAPTION_LINES - 1], lines[_CAPTION_LINES - 1][: _CAPTION_LETTERS - 2] + " …"]
    panel.text(
        0.0, 0.43, "\n".join(lines), fontsize=6.5, va="top", ha="left", transform=panel.transAxes, linespacing=1.25
    )


def _map(panel: Any, row: Shown, map_GG: Tensor, limits: tuple[float, float] | None) -> Any:
    """The map over the image in grey; of built-in scenes the boxes and the energy in them."""
    _frameless(panel)
    numbers = _numbers(map_GG)
    if limits is None:
        low, high = float(numbers.min()), float(numbers.max())
        numbers, limits = (numbers - low) / max(high - low, 1e-9), (0.0, 1.0)
    grey_HW = _DARKEST + (1 - _DARKEST) * row.image_HW3.astype(np.float64).mean(axis=2) / 255
    frame = (0, 1, 1, 0)
    panel.imshow(grey_HW, cmap="gray", vmin=0, vmax=1, extent=frame)
    drawn = panel.imshow(
        numbers, cmap="inferno", vmin=limits[0], vmax=limits[1], alpha=_SEEN, extent=frame, interpolation="bicubic"
    )
    panel.set_xlim(0, 1)
    panel.set_ylim(1, 0)
    if row.boxes:
        from matplotlib.patches import Rectangle

        for box in row.boxes:
            corner, width, height = (box.left, box.top), box.right - box.left, box.bottom - box.top
            panel.add_patch(Rectangle(corner, width, height, fill=False, edgecolor="white", linewidth=0.8))
        inside_GG = covered(row.boxes, len(map_GG))
        said = f"in the boxes {energy_inside(map_GG, inside_GG):.0f} % (area {area(inside_GG):.0f} %)"
        panel.set_xlabel(said, fontsize=7, labelpad=2)
    return drawn


def _numbers(map_GG: Tensor) -> npt.NDArray[np.float64]:
    numbers: npt.NDArray[np.float64] = map_GG.double().numpy()
    return numbers


def _frameless(panel: Any) -> None:
    panel.set_xticks([])
    panel.set_yticks([])
    for side in panel.spines.values():
        side.set_visible(False)
