"""Decoding and the transform, against torchvision's and timm's own."""

from __future__ import annotations

import io
import math
import random
import struct
import subprocess
import sys
import zlib

import numpy as np
import pytest
from PIL import Image

import cornerstone.models  # noqa: F401 - mends torchvision, before anything imports it
from cornerstone.data.images import BadImage, Transform, decode, probe
from cornerstone.errors import CornerstoneError


def encode(image, format="PNG", **options):
    stream = io.BytesIO()
    image.save(stream, format, **options)
    return stream.getvalue()


def picture(width, height, seed=0):
    """Smooth waves and sharp edges, so that any wrong box, filter or rotation shows."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[0:height, 0:width] / 40.0
    waves = [np.sin(x * rng.uniform(0.5, 2) + y * rng.uniform(-2, 2) + rng.uniform(0, 6)) for _ in range(3)]
    pixels = (np.stack(waves, -1) * 70 + 128).astype(np.uint8)
    pixels[height // 3 : height // 2, width // 4 : width // 2] = (
        200,
        60,
        100,
    )  # no overshoot is clipped between the passes
    return Image.fromarray(pixels)


def torchvision_eval(image, size):
    from torchvision import transforms as tv

    resize = tv.Resize(size, interpolation=tv.InterpolationMode.BICUBIC)
    return np.asarray(tv.CenterCrop(size)(resize(image))).transpose(2, 0, 1).astype(int)


def assert_same(ours, theirs):
    """Equal but for the rounding of one resize against a resize and a cut."""
    difference = np.abs(ours.astype(int) - theirs.astype(int))
    assert difference.max() <= 2
    assert difference.mean() < 0.03


def mean_difference(a, b):
    return np.abs(a.astype(int) - b.astype(int)).mean()


@pytest.mark.parametrize("shape", [(300, 200), (200, 300), (97, 341), (64, 64), (33, 20), (449, 448)])
@pytest.mark.parametrize("size", [64, 224])
def test_eval_equals_torchvision(shape, size):
    image = picture(*shape)
    ours = Transform(size, train=False)(encode(image))
    assert ours.shape == (3, size, size)
    assert_same(ours, torchvision_eval(image, size))


def test_eval_equals_timm():
    from timm.data import create_transform

    image = picture(320, 250)
    timm_eval = create_transform(
        (3, 224, 224), is_training=False, interpolation="bicubic", crop_pct=1.0, mean=(0.5,) * 3, std=(0.5,) * 3
    )
    assert_same(Transform(224, train=False)(encode(image)), ((timm_eval(image) * 0.5 + 0.5) * 255).round().numpy())


def test_output_is_a_contiguous_square_of_bytes():
    pixels = Transform(48)(encode(picture(90, 70)), seed=1, epoch=2, row=3)
    assert pixels.dtype == np.uint8
    assert pixels.shape == (3, 48, 48)
    assert pixels.flags["C_CONTIGUOUS"]


@pytest.mark.parametrize("options", [{"quality": 95}, {"quality": 90, "progressive": True, "subsampling": 2}])
@pytest.mark.parametrize("factor", [4, 8, 17])
def test_reduced_jpeg_decoding_is_hardly_visible(factor, options):
    image = picture(64 * factor + 13, 64 * factor, seed=factor)
    data = encode(image, "JPEG", **options)
    full = torchvision_eval(Image.open(io.BytesIO(data)).convert("RGB"), 64)
    assert mean_difference(Transform(64, train=False)(data), full) < 0.6


def test_reduced_decoding_keeps_the_drawn_box():
    image = picture(1300, 1000)
    jpeg, png = encode(image, "JPEG", quality=98), encode(image)
    for row in range(5):
        transform = Transform(56, crop_scale=(0.3, 1.0))
        assert mean_difference(transform(jpeg, row=row), transform(png, row=row)) < 1.5
        assert (
            mean_difference(transform(jpeg, row=row), transform(png, row=row + 7)) > 4
        )  # the measure sees another box


def test_train_crop_is_the_drawn_box():
    from torchvision.transforms import InterpolationMode
    from torchvision.transforms.functional import resized_crop

    image, transform = picture(200, 160), Transform(64, crop_scale=(0.2, 0.9))
    for row in range(6):
        left, top, right, bottom = transform.box(200, 160, seed=5, epoch=1, row=row)
        theirs = resized_crop(image, top, left, bottom - top, right - left, [64, 64], InterpolationMode.BICUBIC)
        ours = transform(encode(image), seed=5, epoch=1, row=row)
        inner = np.s_[:, 2:-2, 2:-2]  # at the rim, a box of the whole picture sees the pixels outside, a cut-out cannot
        assert_same(ours[inner], np.asarray(theirs).transpose(2, 0, 1)[inner])


@pytest.mark.parametrize(
    ("shape", "scale"), [((400, 300), (0.3, 1.0)), ((256, 256), (0.9, 1.0)), ((600, 120), (0.5, 1.0))]
)
def test_draws_are_distributed_as_timms(shape, scale):
    from scipy.stats import ks_2samp
    from timm.data.transforms import RandomResizedCropAndInterpolation as Timm

    n = 3000
    random.seed(0)
    canvas = Image.new("L", shape)
    theirs = np.array([Timm.get_params(canvas, scale, (3 / 4, 4 / 3)) for _ in range(n)], dtype=float)
    boxes = np.array([Transform(64, crop_scale=scale).box(*shape, row=row) for row in range(n)], dtype=float)
    ours = np.stack([boxes[:, 1], boxes[:, 0], boxes[:, 3] - boxes[:, 1], boxes[:, 2] - boxes[:, 0]], axis=1)
    for column in range(4):
        assert ks_2samp(ours[:, column], theirs[:, column]).pvalue > 1e-3
    assert (boxes[:, :2] >= 0).all()
    assert (boxes[:, 2] <= shape[0]).all()
    assert (boxes[:, 3] <= shape[1]).all()


def test_a_picture_too_long_for_any_crop_gives_the_largest_central_one():
    assert Transform(64).box(1000, 100) == (433, 0, 566, 100)
    assert Transform(64).box(100, 1000) == (0, 433, 100, 566)


def test_draws_belong_to_seed_epoch_and_row():
    data, transform = encode(picture(120, 90)), Transform(40, crop_scale=(0.2, 0.8))
    first = transform(data, seed=1, epoch=2, row=3)
    assert np.array_equal(first, transform(data, seed=1, epoch=2, row=3))
    for other in (
        {"seed": 2, "epoch": 2, "row": 3},
        {"seed": 1, "epoch": 3, "row": 3},
        {"seed": 1, "epoch": 2, "row": 4},
    ):
        assert not np.array_equal(first, transform(data, **other))


def test_no_crop_is_the_eval_transform():
    data, still = encode(picture(120, 90)), Transform(40, crop_scale=(1.0, 1.0))
    assert still.fixed
    assert still.key() == Transform(40, train=False).key()
    assert np.array_equal(still(data, epoch=1, row=5), Transform(40, train=False)(data, epoch=7, row=9))
    assert not Transform(40).fixed
    assert len({t.key() for t in (still, Transform(40), Transform(41), Transform(40, crop_scale=(0.8, 1)))}) == 4


@pytest.mark.parametrize(
    "fields",
    [
        {"size": 0},
        {"size": 8, "crop_scale": (0.0, 1.0)},
        {"size": 8, "crop_scale": (0.9, 0.5)},
        {"size": 8, "ratio": (2, 1)},
    ],
)
def test_impossible_transforms_are_refused(fields):
    with pytest.raises(CornerstoneError, match="expected"):
        Transform(**fields)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP"])
def test_exif_rotation(orientation, format):
    from PIL import ImageOps

    stored, exif = picture(60, 40), Image.Exif()
    exif[0x0112] = orientation
    data = encode(stored, format, exif=exif, **({"quality": 95} if format == "JPEG" else {}))
    upright = ImageOps.exif_transpose(Image.open(io.BytesIO(data)))
    assert probe(data) == upright.size
    assert np.array_equal(np.asarray(decode(data)), np.asarray(upright.convert("RGB")))
    assert mean_difference(Transform(32, train=False)(data), torchvision_eval(upright.convert("RGB"), 32)) < 1


def test_modes_become_rgb():
    assert decode(encode(Image.new("P", (4, 4)))).mode == "RGB"
    assert decode(encode(Image.new("1", (4, 4), 1))).getpixel((0, 0)) == (255, 255, 255)
    assert decode(encode(Image.new("L", (4, 4), 7))).getpixel((0, 0)) == (7, 7, 7)
    red, green, blue = decode(encode(Image.new("CMYK", (8, 8), (0, 255, 255, 0)), "JPEG")).getpixel((3, 3))
    assert red > 200
    assert max(green, blue) < 60


def test_16_bit_grey_is_scaled_not_clipped():
    ramp = Image.fromarray(np.linspace(0, 65535, 64, dtype=np.uint16).reshape(8, 8))
    for format in ("PNG", "TIFF"):
        values = np.asarray(decode(encode(ramp, format)))[..., 0].ravel()
        assert np.abs(values - np.linspace(0, 255, 64)).max() < 1.01


def test_transparent_pixels_become_white():
    clear = Image.new("RGBA", (4, 4), (200, 0, 0, 0))
    clear.putpixel((1, 1), (200, 0, 0, 255))
    for format in ("PNG", "WEBP"):
        result = decode(encode(clear, format, **({"lossless": True, "exact": True} if format == "WEBP" else {})))
        assert result.getpixel((0, 0)) == (255, 255, 255)
        assert result.getpixel((1, 1)) == (200, 0, 0)
    palette = Image.new("P", (4, 4), 0)
    palette.putpalette([10, 20, 30, 40, 50, 60])
    assert decode(encode(palette, transparency=0)).getpixel((0, 0)) == (255, 255, 255)


def bomb(width, height):
    """A PNG whose header promises many pixels and whose body holds a few bytes."""

    def chunk(kind, body):
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize(("width", "height"), [(9500, 9500), (30000, 30000)])  # below and above Pillow's own limit
@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_bombs_are_refused_by_their_header(width, height):
    for action in (probe, decode, Transform(8)):
        with pytest.raises(BadImage, match="too many pixels"):
            action(bomb(width, height))
    with pytest.raises(BadImage, match="too many pixels: 40 × 30 is above 1,000"):
        decode(encode(picture(40, 30)), max_pixels=1000)


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "GIF", "TIFF", "BMP"])
@pytest.mark.parametrize("share", [0.5, 0.9])
def test_truncated_data_is_refused(format, share):
    data = encode(picture(200, 150), format)
    with pytest.raises(BadImage, match=r"truncated|not decodable|not readable"):
        decode(data[: int(len(data) * share)])
    assert decode(data).size == (200, 150)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "empty: 0 bytes"),
        (b"<html>404</html>", "not readable as an image: unknown format"),
        (b"\xff\xd8\xff\xe0", "not readable"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n", "not readable"),  # would start Ghostscript
        (encode(picture(8, 8))[:20], "not readable"),
    ],
)
def test_bad_bytes_give_a_reason(data, reason):
    for action in (probe, decode, Transform(8)):
        with pytest.raises(BadImage, match=reason):
            action(data)


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::PIL.Image.DecompressionBombWarning")
def test_random_damage_raises_nothing_but_badimage():
    rng = np.random.default_rng(0)
    for format in ("JPEG", "PNG", "WEBP", "GIF", "TIFF", "BMP"):
        original = np.frombuffer(encode(picture(24, 18), format), np.uint8)
        for _ in range(40):
            damaged = original.copy()
            damaged[rng.integers(0, len(damaged), 6)] = rng.integers(0, 256, 6)
            try:
                pixels = Transform(8)(damaged.tobytes())
            except BadImage:
                continue
            assert pixels.shape == (3, 8, 8)


def test_a_sliver_does_not_need_a_giant_canvas():
    assert Transform(224, train=False)(encode(Image.new("RGB", (1, 20000)))).shape == (3, 224, 224)
    assert math.prod(Transform(224)(encode(Image.new("RGB", (20000, 1)))).shape) == 3 * 224 * 224


def test_needs_no_torch():
    code = "import sys, cornerstone.data.images; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
