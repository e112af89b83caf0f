"""Kill -9 of an import at a random moment: the same command goes on, and what it writes is what it would have written."""

from __future__ import annotations

import contextlib
import io
import os
import random
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import numpy as np
import psutil
import pytest
from PIL import Image

from cornerstone.data.manifest import Manifest

pytestmark = [pytest.mark.faults, pytest.mark.timeout(300)]
TARS = 16


@pytest.fixture(scope="module")
def tars(tmp_path_factory) -> Path:
    """Tars of 150 pictures each, which take a while to read."""
    folder = tmp_path_factory.mktemp("tars")
    for t in range(TARS):
        with tarfile.open(folder / f"{t:05d}.tar", "w") as tar:
            for n in range(150):
                stream = io.BytesIO()
                pixels = np.random.default_rng(1000 * t + n).integers(0, 255, (150, 150, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(stream, "PNG", compress_level=0)
                for ending, content in (("png", stream.getvalue()), ("txt", f"picture {n} of {t}".encode())):
                    info = tarfile.TarInfo(f"{n:06d}.{ending}")
                    info.size = len(content)
                    tar.addfile(info, io.BytesIO(content))
    return folder


def start(tars: Path, out: Path) -> subprocess.Popen[bytes]:
    """The command, with a Ray of its own."""
    command = [sys.executable, "-m", "cornerstone.cli", "data", "import", "webdataset", str(tars), "--out", str(out)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True)


def reach(process: subprocess.Popen[bytes], out: Path, records: int) -> None:
    """Wait until so many pieces are finished."""
    while len(list(out.glob("*.done.json"))) < records:
        assert process.poll() is None, process.stdout and process.stdout.read().decode()
        time.sleep(0.005)
    time.sleep(random.random() * 0.2)


def the_command(process: subprocess.Popen[bytes]) -> None:
    """All of it, as when the machine goes."""
    orphans = psutil.Process(process.pid).children(recursive=True)
    for one in [psutil.Process(process.pid), *orphans]:
        with contextlib.suppress(psutil.NoSuchProcess):
            one.kill()
    psutil.wait_procs(orphans, timeout=20)
    process.wait()


def a_task(process: subprocess.Popen[bytes]) -> None:
    """One process at work, whose task Ray gives to another."""
    at_work = [p for p in psutil.Process(process.pid).children(recursive=True) if "ray::Map" in " ".join(p.cmdline())]
    if at_work:
        random.choice(at_work).kill()


def finish(process: subprocess.Popen[bytes]) -> str:
    told, _ = process.communicate(timeout=200)
    assert process.returncode == 0, told.decode()
    return told.decode()


@pytest.fixture(scope="module")
def undisturbed(tars, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("whole") / "out"
    assert "were reused" not in finish(start(tars, out))
    return out


def test_a_killed_import_goes_on(tars, undisturbed, tmp_path):
    """Killed twice, at random moments."""
    out, last = tmp_path / "out", 0
    for _ in range(2):
        process = start(tars, out)
        reach(process, out, random.SystemRandom().randint(last + 1, last + TARS // 3))
        the_command(process)
        last = len(list(out.glob("*.done.json")))
    told = finish(start(tars, out))
    assert f"{last} tasks had been finished by an interrupted import and were reused" in told
    same(out, undisturbed)


def test_an_import_survives_its_tasks(tars, undisturbed, tmp_path):
    out = tmp_path / "out"
    process = start(tars, out)
    for records in (1, TARS // 2):
        reach(process, out, records)
        a_task(process)
    finish(process)
    same(out, undisturbed)


def same(out: Path, undisturbed: Path) -> None:
    """The same shards, byte for byte, and nothing else beside them."""
    assert sorted(os.listdir(out)) == sorted(os.listdir(undisturbed))
    shards = Manifest.read(str(out)).shards
    assert shards == Manifest.read(str(undisturbed)).shards
    assert all((out / one.file).read_bytes() == (undisturbed / one.file).read_bytes() for one in shards)
