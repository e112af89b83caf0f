"""Decoding, cropping and resizing of images. Uses only Pillow and NumPy, because decode actors import it.

Sizes and boxes are those of the upright image, that is after its EXIF rotation.
"""

from __future__ import annotations

import io
import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image

from cornerstone.data import draws
from cornerstone.errors import CornerstoneError

MAX_PIXELS = 80_000_000
"""A larger image is refused as a decompression bomb. Pillow's own limit, which is a little higher, only gives a warning."""

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF")  # not EPS, whose reader runs an external program
_PNG = b"\x89PNG\r\n\x1a\n"
_METADATA = (b"tEXt", b"zTXt", b"iTXt", b"iCCP", b"tIME")
"""Chunks of a PNG with texts, a colour profile and a time."""
_TRIES = 10
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_ORIENTATION = 0x0112

Box = tuple[float, float, float, float]
"""left, top, right, bottom in pixels of the upright image."""


class BadImage(Exception):
    """An image that cannot be used. The message is the reason that is recorded in the quarantine."""


def probe(data: bytes, max_pixels: int = MAX_PIXELS) -> tuple[int, int]:
    """Width and height of the upright image, read from the header only. Raises BadImage if the header cannot be read."""
    image = _open(data, max_pixels)
    return _upright_size(image, _orientation(image))


def decode(data: bytes, *, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """The upright image in RGB.

    Transparent pixels become white; 16-bit grey is reduced to 8 bits; of an animation the first frame is taken.
    Raises BadImage for empty, unknown, truncated or broken data, and before decoding if there are too many pixels.
    """
    image = _open(data, max_pixels)
    return _load(image, _orientation(image), data)


@dataclass(frozen=True)
class Transform:
    """Decodes an image, crops it and resizes the crop to uint8 (3, size, size), bicubic.

    `train` draws a random crop as timm's RandomResizedCrop does, without a flip: an area of `crop_scale` times the image's,
    a log-uniform aspect ratio in `ratio`, at most ten tries, then the largest centre crop of an allowed aspect ratio. If not
    `train`, or if `crop_scale` is (1, 1): shortest side to `size`, then a centre crop (crop_pct 1).

    A JPEG whose crop is four times `size` or more is decoded at 1/2, 1/4 or 1/8 of its size, but at twice `size` or more, so
    that the remaining reduction is still bicubic. Sizes and boxes do not change; pixels change by about half a grey level.
    """

    size: int
    crop_scale: tuple[float, float] = (0.9, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    train: bool = True

    def __post_init__(self) -> None:
        low, high = self.crop_scale
        if self.size < 1:
            raise CornerstoneError(f"Image size {self.size}: expected 1 pixel or more.")
        if not 0 < low <= high <= 1:
            raise CornerstoneError(
                f"Crop scale {self.crop_scale}: expected two fractions of the area, 0 < low <= high <= 1."
            )
        if not 0 < self.ratio[0] <= self.ratio[1]:
            raise CornerstoneError(
                f"Crop ratio {self.ratio}: expected two aspect ratios (width / height), 0 < low <= high."
            )

    @property
    def fixed(self) -> bool:
        """Whether the pixels are the same in every epoch, so that features can be stored."""
        return not self.train or tuple(self.crop_scale) == (1.0, 1.0)

    def key(self) -> str:
        """Everything that determines the pixels, as a string for cache keys: equal if the pixels are equal."""
        if self.fixed:
            return f"centre-{self.size}-bicubic"
        (low, high), (narrow, wide) = self.crop_scale, self.ratio
        return f"crop-{self.size}-{low:.6g}-{high:.6g}-{narrow:.6g}-{wide:.6g}-bicubic"

    def __call__(self, data: bytes, *, seed: int = 0, epoch: int = 0, row: int = 0) -> npt.NDArray[np.uint8]:
        """The pixels of a row in an epoch, C-contiguous. A fixed transform ignores seed, epoch and row. Raises BadImage."""
        out = np.empty((3, self.size, self.size), dtype=np.uint8)
        self.write(out, data, self.numbers(seed, np.array([epoch]), np.array([row]))[0])
        return out

    def numbers(self, seed: int, epochs: npt.ArrayLike, rows: npt.ArrayLike) -> npt.NDArray[np.float64]:
        """The random numbers for n rows, (n, tries, 4). Drawn for a whole block: a single row would take as long."""
        epochs, rows = np.asarray(epochs), np.asarray(rows)
        if self.fixed:
            return np.zeros((len(rows), 0, 4))
        drawn = draws.uniform(seed, "crop", epochs[:, None], rows[:, None], np.arange(4 * _TRIES))
        return drawn.reshape(len(rows), _TRIES, 4)

    def write(self, out: npt.NDArray[np.uint8], data: bytes, numbers: npt.NDArray[np.float64]) -> None:
        """Fill `out` (3, size, size), given the row's random numbers (tries, 4). Raises BadImage, and then leaves `out`."""
        image = _open(data, MAX_PIXELS)
        orientation = _orientation(image)
        width, height = _upright_size(image, orientation)
        box = self._centre(width, height) if self.fixed else self._random(width, height, numbers)
        room = min(box[2] - box[0], box[3] - box[1]) / (2 * self.size)
        shrink = _shrink(image, room)
        picture = _load(image, orientation, data)
        right, bottom = picture.size  # rounding must not put the edge of the box outside the reduced image
        scaled = (box[0] / shrink, box[1] / shrink, min(box[2] / shrink, right), min(box[3] / shrink, bottom))
        square = picture.resize((self.size, self.size), Image.Resampling.BICUBIC, box=scaled)
        for plane, band in zip(
            out, "RGB", strict=True
        ):  # twice as fast as transposing the whole image to channels first
            plane[:] = np.frombuffer(square.tobytes("raw", band), np.uint8).reshape(plane.shape)

    def box(self, width: int, height: int, *, seed: int = 0, epoch: int = 0, row: int = 0) -> Box:
        """The crop box of a `width` × `height` image."""
        if self.fixed:
            return self._centre(width, height)
        return self._random(width, height, self.numbers(seed, np.array([epoch]), np.array([row]))[0])

    def _centre(self, width: int, height: int) -> Box:
        """Resize to whole pixels, then crop at whole pixels, expressed as one box in the original image."""
        short = min(width, height)
        new_width, new_height = int(self.size * width / short), int(self.size * height / short)
        left, top = round((new_width - self.size) / 2), round((new_height - self.size) / 2)
        x, y = width / new_width, height / new_height
        return left * x, top * y, (left + self.size) * x, (top + self.size) * y

    def _random(self, width: int, height: int, numbers: npt.NDArray[np.float64]) -> Box:
        low, high = self.crop_scale
        narrow, wide = math.log(self.ratio[0]), math.log(self.ratio[1])
        for area_draw, aspect_draw, x_draw, y_draw in numbers.tolist():
            area = width * height * (low + (high - low) * area_draw)
            aspect = math.exp(narrow + (wide - narrow) * aspect_draw)
            w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
            if 0 < w <= width and 0 < h <= height:
                left, top = int(x_draw * (width - w + 1)), int(y_draw * (height - h + 1))
                return left, top, left + w, top + h
        w = min(width, max(1, round(height * self.ratio[1])))
        h = min(height, max(1, round(width / self.ratio[0])))
        left, top = (width - w) // 2, (height - h) // 2
        return left, top, left + w, top + h


def _open(data: bytes, max_pixels: int) -> Image.Image:
    if not data:
        raise BadImage("empty: 0 bytes")
    try:
        image = _opened(data)
    except Image.DecompressionBombError as error:
        raise BadImage(f"too many pixels: {error}") from error
    except Exception as error:  # malformed bytes make Pillow raise anything: struct.error, KeyError, SyntaxError
        raise BadImage(f"not readable as an image: {_why(error)}") from error
    pixels = image.width * image.height
    if pixels > max_pixels:
        raise BadImage(f"too many pixels: {image.width} × {image.height} is above {max_pixels:,}")
    if pixels == 0:
        raise BadImage(f"no pixels: {image.width} × {image.height}")
    return image


def _opened(data: bytes) -> Image.Image:
    """The opened image. A PNG whose texts or profile are beyond Pillow's limits is opened without them."""
    try:
        return Image.open(io.BytesIO(data), formats=FORMATS)
    except Image.DecompressionBombError:
        raise
    except Exception:
        bare = _without_metadata(data)
        if bare is None:
            raise
        return Image.open(io.BytesIO(bare), formats=FORMATS)


def _without_metadata(data: bytes) -> bytes | None:
    """A PNG without its texts, profile and times, which no pixel needs; None for other formats, or if there are none."""
    if not data.startswith(_PNG):
        return None
    kept, place, dropped = [_PNG], len(_PNG), False
    while place + 12 <= len(data):
        size, kind = int.from_bytes(data[place : place + 4], "big"), data[place + 4 : place + 8]
        if kind in _METADATA:
            dropped = True
        else:
            kept.append(data[place : place + 12 + size])
        place += 12 + size
    return b"".join(kept) if dropped else None


def _orientation(image: Image.Image) -> int:
    if image.format == "PNG" and "exif" not in image.info:
        return 1  # Pillow would decode the whole image to look for an EXIF chunk behind the pixels
    try:
        return int(image.getexif().get(_ORIENTATION, 1))
    except Exception:  # an image with a broken EXIF block is still usable
        return 1


def _upright_size(image: Image.Image, orientation: int) -> tuple[int, int]:
    return (image.height, image.width) if orientation in (5, 6, 7, 8) else (image.width, image.height)


def _shrink(image: Image.Image, room: float) -> int:
    """Make Pillow decode a JPEG at 1/8, 1/4 or 1/2 if the factor is at most `room`. Returns the factor."""
    factor = next((f for f in (8, 4, 2) if f <= room), 1)
    if factor == 1 or image.format not in ("JPEG", "MPO"):
        return 1
    width = image.width
    image.draft(image.mode, (image.width // factor, image.height // factor))
    return max(1, round(width / image.width))


def _load(image: Image.Image, orientation: int, data: bytes) -> Image.Image:
    try:
        try:
            image.load()
        except ValueError:  # a PNG's texts may stand behind its pixels
            bare = _without_metadata(data)
            if bare is None:
                raise
            image = Image.open(io.BytesIO(bare), formats=FORMATS)
            image.load()
        picture = _rgb(image)
    except Exception as error:  # as in _open: Pillow raises different exceptions for each format
        kind = "truncated" if "truncated" in str(error).lower() else "not decodable"
        raise BadImage(f"{kind}: {_why(error)}") from error
    return picture.transpose(_UPRIGHT[orientation]) if orientation in _UPRIGHT else picture


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode == "RGB" and "transparency" not in image.info:
        return image
    if image.mode.startswith("I"):  # 16-bit grey: Pillow's own conversion would clip it at 255
        grey = np.asarray(image).astype(np.int64)
        wide = image.mode != "I" or grey.max() > 255
        return Image.fromarray(np.clip(grey >> 8 if wide else grey, 0, 255).astype(np.uint8)).convert("RGB")
    if image.has_transparency_data:
        coloured = image.convert("RGBA")
        page = Image.new("RGBA", coloured.size, "white")
        return Image.alpha_composite(page, coloured).convert("RGB")
    return image.convert("RGB")


def _why(error: Exception) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return text if "BytesIO" not in text else "unknown format or broken header"
