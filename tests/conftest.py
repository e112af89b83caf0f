"""Fixtures of all tests: a home of their own, the real sample data if available, one small Ray; sets two of the markers."""

from __future__ import annotations

import io
import os
import signal
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

REPOSITORY = Path(__file__).resolve().parents[1]
PLATFORM = str(REPOSITORY / "platform")
SUPPORT = str(REPOSITORY / "tests" / "support")  # modules of the tests that Ray's workers import by name
START_RAY = (
    "test_autoscaling.py",
    "test_submit.py",
    "test_jobs.py",
    "test_scrape.py",
    "test_kills.py",
    "test_import_kills.py",
)
"""Files whose tests start Ray in processes of their own, instead of using the fixture `ray_cluster`."""

SLOW = (
    *("test_engines.py", "test_zero_shares.py", "test_shares.py", "test_distributed.py"),  # several workers each
    *("commands/test_ui.py", "transfer/test_dialogue.py", "transfer/test_towers.py", "released/test_families.py"),
    *("test_released_clip.py", "test_export.py"),
)
"""Files of slow tests, by the end of their path."""

# Set before cornerstone or Ray is imported: both read these on import, and Ray's workers inherit them.
_home = tempfile.TemporaryDirectory(prefix="cornerstone-tests-", ignore_cleanup_errors=True)
os.environ["CORNERSTONE_HOME"] = _home.name
_ray = tempfile.TemporaryDirectory(prefix="ray-", ignore_cleanup_errors=True)
os.environ["RAY_TMPDIR"] = _ray.name  # for its sessions, and the file that names the Ray that was started last
os.environ["RAY_AUTH_MODE"] = "disabled"
os.environ["RAY_TRAIN_HEALTH_CHECK_INTERVAL_S"] = "0.2"
os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [PLATFORM, SUPPORT, os.environ.get("PYTHONPATH")]))
for _elsewhere in ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS", "MLFLOW_TRACKING_URI"):
    os.environ.pop(_elsewhere, None)  # tests never touch a cluster or a server that the user works with
sys.path[:0] = [folder for folder in (PLATFORM, SUPPORT) if folder not in sys.path]
# A shell that runs the tests in the background ignores Ctrl-C, and nohup SIGHUP. A process that a test starts inherits what is
# ignored, but no handler.
for _number, _handler in ((signal.SIGINT, signal.default_int_handler), (signal.SIGHUP, lambda *_: None)):
    if signal.getsignal(_number) is signal.SIG_IGN:
        signal.signal(_number, _handler)


@pytest.hookimpl(tryfirst=True)  # before pytest deselects by `-m`
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark every test that needs a Ray cluster with `ray`, and every one of a slow file with `slow`."""
    for item in items:
        if "ray_cluster" in getattr(item, "fixturenames", ()) or item.path.name in START_RAY:
            item.add_marker(pytest.mark.ray)
        if item.path.as_posix().endswith(SLOW):
            item.add_marker(pytest.mark.slow)
    # Those that start a Ray of their own come last: two cores are too few for two, so they end the one that others share.
    items.sort(key=lambda item: item.path.name in START_RAY)


@pytest.fixture(autouse=True)
def _ray_is_asked_for(request: pytest.FixtureRequest) -> Iterator[None]:
    """Fail a test that starts Ray without the fixture `ray_cluster`: it would be slow, and belong to no tier."""
    before = _ray_is_up()
    yield
    if not before and _ray_is_up() and request.node.get_closest_marker("ray") is None:
        sys.modules["ray"].shutdown()
        pytest.fail("this test started Ray: use the fixture `ray_cluster`")


def _ray_is_up() -> bool:
    return "ray" in sys.modules and sys.modules["ray"].is_initialized()


@pytest.fixture(scope="session")
def test_data() -> Path:
    """The folder with the small real data sets; tests on them are skipped if it is missing."""
    folder = Path(os.environ.get("CORNERSTONE_TEST_DATA") or REPOSITORY.parent / "shared" / "data")
    if not folder.is_dir():
        pytest.skip(f"no real sample data at {folder} (set CORNERSTONE_TEST_DATA)")
    return folder


@pytest.fixture(scope="session")
def wordpiece(tmp_path_factory) -> Path:
    """A small tokenizer.json that can encode any text."""
    from cornerstone.data.scenes.tokenizer import train_wordpiece

    path = tmp_path_factory.mktemp("wordpiece") / "tokenizer.json"
    path.write_text(train_wordpiece(["raw picture by one two three four five"] * 5, vocab_size=256))
    return path


@pytest.fixture(scope="session")
def small_data() -> SimpleNamespace:
    """Makers of small data: `picture(i)`, `pair(i, **changes)` and `write(folder, pairs, **options of ShardWriter)`.

    Pair i has the raw caption "raw i" and, by captioners a, b and c, long captions: "a i one. a i two. .. a i five."
    """
    import numpy as np
    from PIL import Image

    from cornerstone.data.records import Caption, Pair
    from cornerstone.data.shards import ShardWriter

    def picture(i):
        stream = io.BytesIO()
        pixels = np.random.default_rng(i).integers(0, 255, (20, 24, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(stream, "PNG")
        return stream.getvalue()

    def pair(i, **changes):
        words = ("one", "two", "three", "four", "five")
        long = (Caption(by, "long", ". ".join(f"{by} {i} {word}" for word in words) + ".") for by in "abc")
        fields = {"key": f"{i:05d}", "image": picture(i), "width": 24, "height": 20, "label": i % 4}
        return Pair(**({**fields, "captions": (Caption("web", "raw", f"raw {i}"), *long)} | changes))

    def write(folder, pairs, **options):
        options = {"name": Path(folder).name, "rows_per_shard": 16, "rows_per_group": 4, **options}
        with ShardWriter(str(folder), **options) as writer:
            for one in pairs:
                writer.add(one)
        return str(folder)

    return SimpleNamespace(picture=picture, pair=pair, write=write)


@pytest.fixture(scope="session")
def pairs_folder(tmp_path_factory, small_data, wordpiece) -> str:
    """50 small pairs of four classes in 4 shards and 13 row groups, with a tokenizer beside them."""
    folder = small_data.write(
        tmp_path_factory.mktemp("data") / "pairs",
        map(small_data.pair, range(50)),
        classes=("cat", "dog", "bus", "sky"),
        prompts=("a photo of a {}.", "the {}"),
    )
    (Path(folder) / "tokenizer.json").write_text(wordpiece.read_text())
    return folder


@pytest.fixture(scope="session")
def tiny_tower(tmp_path_factory) -> str:
    """A folder in timm's layout: a vision transformer for 32 pixels, its weights drawn once."""
    import cornerstone.models  # noqa: F401, I001 - repairs torchvision before timm is imported
    import timm
    import torch
    from timm.models import save_for_hf

    folder = tmp_path_factory.mktemp("tower")
    sizes = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 2}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        tower = timm.create_model("vit_tiny_patch16_224", num_classes=0, **sizes)
        for (
            parameter
        ) in tower.parameters():  # large weights, so that attention is not uniform and pictures get different features
            if parameter.ndim > 1:
                torch.nn.init.normal_(parameter, std=0.3)
    seen = {"input_size": (3, 32, 32), "mean": (0.5,) * 3, "std": (0.5,) * 3}
    save_for_hf(tower, str(folder), model_config={"model_args": sizes, "pretrained_cfg": seen}, safe_serialization=True)
    return str(folder)


@pytest.fixture(scope="session")
def ray_cluster():
    """One local Ray with two CPUs for the whole session."""
    import ray

    ray.init(num_cpus=2, include_dashboard=True, dashboard_host="127.0.0.1", address="local", log_to_driver=False)
    yield ray
    ray.shutdown()
