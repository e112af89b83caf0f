"""What all tests share: a home of their own, the real sample data where it is at hand, and one small Ray."""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[1]
PLATFORM = str(REPOSITORY / "platform")

# Before cornerstone or Ray is imported: both read these when they load, and Ray's workers inherit them.
_home = tempfile.TemporaryDirectory(prefix="cornerstone-tests-", ignore_cleanup_errors=True)
os.environ["CORNERSTONE_HOME"] = _home.name
os.environ["RAY_AUTH_MODE"] = "disabled"
os.environ["RAY_TRAIN_HEALTH_CHECK_INTERVAL_S"] = "0.2"
os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [PLATFORM, os.environ.get("PYTHONPATH")]))
for _elsewhere in ("RAY_ADDRESS", "MLFLOW_TRACKING_URI"):
    os.environ.pop(_elsewhere, None)  # tests never touch a cluster or a server that the user works with
if PLATFORM not in sys.path:
    sys.path.insert(0, PLATFORM)


@pytest.fixture(scope="session")
def test_data() -> Path:
    """The folder with the small real data sets; tests on them are skipped where it is missing."""
    folder = Path(os.environ.get("CORNERSTONE_TEST_DATA") or REPOSITORY.parent / "shared" / "data")
    if not folder.is_dir():
        pytest.skip(f"no real sample data at {folder} (set CORNERSTONE_TEST_DATA)")
    return folder


@pytest.fixture(scope="session")
def ray_cluster():
    """One local Ray with two CPUs for the whole session."""
    import ray

    ray.init(num_cpus=2, include_dashboard=False, address="local", log_to_driver=False)
    yield ray
    ray.shutdown()
