"""Renders scenes: shapes are rasterised once per size and composited over a patterned background.

Images are (H, W, 3) bytes. Compositing is integer arithmetic, so the same scene always gives the same bytes.
"""

from __future__ import annotations

import io
from functools import lru_cache

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw

from cornerstone.data.scenes.world import BACKGROUND_NAMES, BACKGROUNDS, COLOURS, SHAPES, Scene, colour_of, shape_of

Bytes = npt.NDArray[np.uint8]
Polygon = list[tuple[float, float]]

LARGE, SMALL = 0.94, 0.60  # diameters as fractions of a cell's free width
QUALITY = (
    92  # JPEG without chroma subsampling: small objects keep their colour, and encoding takes a quarter of PNG's time
)
_OVERSAMPLING = 8
_INK = np.array(list(COLOURS.values()), dtype=np.int32)


def paint(scene: Scene, size: int) -> Bytes:
    """The image of a scene, (size, size, 3)."""
    picture = background(scene.background, size).astype(np.int32)
    for i, thing in enumerate(scene.things):
        x, y, diameter = place(scene, i, size)
        mask = stencil(SHAPES[shape_of(thing.species)], diameter)
        under = picture[y : y + diameter, x : x + diameter]
        under += (_INK[colour_of(thing.species)] - under) * mask // 255
    return picture.astype(np.uint8)


def place(scene: Scene, number: int, size: int) -> tuple[int, int, int]:
    """Left, top and side of the square in which an object is drawn, in pixels; number 0 is the salient one."""
    thing, step, cell = scene.things[number], max(1, round(size / 64)), size / scene.cells
    diameter = max(4, round((cell - 2 * step) * (LARGE if number == 0 else SMALL)))
    row, column = divmod(thing.cell, scene.cells)
    x = _start((column + 0.5) * cell + thing.dx * step, diameter, size)
    return x, _start((row + 0.5) * cell + thing.dy * step, diameter, size), diameter


def encode(picture: Bytes) -> bytes:
    """The image as JPEG."""
    file = io.BytesIO()
    Image.fromarray(picture).save(file, "JPEG", quality=QUALITY, subsampling=0)
    return file.getvalue()


def _start(middle: float, diameter: int, size: int) -> int:
    return min(max(round(middle - diameter / 2), 0), size - diameter)


@lru_cache(maxsize=64)
def background(index: int, size: int) -> Bytes:
    """A background: its colour with a faint pattern, (size, size, 3)."""
    y, x = np.mgrid[:size, :size] * 64 // size
    patterns = {
        "sandy": (x * 5 + y * 7) % 11 == 0,
        "stony": (x // 8 + y // 8) % 2 == 0,
        "grassy": x % 4 == 0,
        "watery": (y + (x // 4) % 2) % 6 == 0,
        "rosy": (x % 8 < 2) & (y % 8 < 2),
        "woody": (x + y) % 8 < 2,
    }
    name = BACKGROUND_NAMES[index]
    pixels: npt.NDArray[np.uint8] = (np.array(BACKGROUNDS[name]) - 14 * patterns[name][..., None]).astype(np.uint8)
    return pixels


@lru_cache(maxsize=256)
def stencil(shape: str, diameter: int) -> npt.NDArray[np.int32]:
    """Coverage of each pixel by a shape, 0 to 255, (diameter, diameter, 1)."""
    side = diameter * _OVERSAMPLING
    image = Image.new("L", (side, side))
    pen = ImageDraw.Draw(image)
    for fill, polygon in _outline(shape):
        pen.polygon([((1 + x) / 2 * (side - 1), (1 + y) / 2 * (side - 1)) for x, y in polygon], fill=fill)
    return np.asarray(image.reduce(_OVERSAMPLING), dtype=np.int32)[..., None]


def _outline(shape: str) -> list[tuple[int, Polygon]]:
    """Polygons in [-1, 1]² (y points down), drawn in order: fill 255 adds to the shape, 0 cuts out."""
    t = 0.36  # half the stroke width of plus, bar and pillar
    d = 0.46  # the same for the cross, measured along the edge of the square
    plain: dict[str, Polygon] = {
        "circle": _disc(1.0),
        "square": _box(0.92, 0.92),
        "triangle": [(0, -1), (1, 0.9), (-1, 0.9)],
        "diamond": [(0, -1), (1, 0), (0, 1), (-1, 0)],
        "cross": [
            *((-1, -1 + d), (-1, -1), (-1 + d, -1), (0, -d), (1 - d, -1), (1, -1), (1, -1 + d), (d, 0)),
            *((1, 1 - d), (1, 1), (1 - d, 1), (0, d), (-1 + d, 1), (-1, 1), (-1, 1 - d), (-d, 0)),
        ],
        "bar": _box(1.0, t),
        "pillar": _box(t, 1.0),
        "hourglass": [(-1, -1), (1, -1), (0.12, 0), (1, 1), (-1, 1), (-0.12, 0)],
    }
    if shape in plain:
        return [(255, plain[shape])]
    return {
        "plus": [(255, _box(1.0, t)), (255, _box(t, 1.0))],
        "ring": [(255, _disc(1.0)), (0, _disc(0.5))],
        "frame": [(255, _box(0.95, 0.95)), (0, _box(0.5, 0.5))],
        "crescent": [(255, _disc(1.0)), (0, _disc(0.85, 0.5))],
    }[shape]


def _box(x: float, y: float) -> Polygon:
    return [(-x, -y), (x, -y), (x, y), (-x, y)]


def _disc(radius: float, x: float = 0.0) -> Polygon:
    turn = np.linspace(0, 2 * np.pi, 64, endpoint=False)
    return [(x + radius * float(np.cos(a)), radius * float(np.sin(a))) for a in turn]
