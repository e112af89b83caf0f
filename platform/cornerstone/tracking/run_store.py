"""A run's store: all that a run leaves besides its checkpoints and `model/`.

    <home>/runs/<run>/
        recipe.json                             the recipe, as it was trained
        journal.jsonl, journal.sent.json        every metric, and how much of it the tracking server has
        evaluations/step-000000220.parquet      per-query results, one file per evaluation
        quarantine-<rank>.jsonl                 rows and images that a worker could not use

Files are written to a local disk first. If the home is a local path, that is the run's folder itself. If the home is a storage
URI, it is a folder on the worker's own disk: files that changed are uploaded with each checkpoint and at the end, and a store
that is opened again downloads them if another machine wrote them last.
"""

from __future__ import annotations

import json
import logging
import shutil
import threading
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from cornerstone.data.batch import ROW
from cornerstone.data.storage import PART, Location
from cornerstone.errors import CornerstoneError
from cornerstone.tracking.journal import Journal, Line, Sender, acknowledged_path

JOURNAL, RECIPE, EVALUATIONS = "journal.jsonl", "recipe.json", "evaluations"
_QUARANTINE = "quarantine-"
_LIVES = ".lives-"
_STEP = "step-"
logger = logging.getLogger(__name__)


def run_folder(home: Location | str, run: str) -> Location:
    """What a run leaves under the home, complete once its store was closed."""
    return Location.of(home).join("runs", run)


class RunStore:
    """One rank's part of a run's store. Every rank opens its own and writes only its own files.

    Rank 0 writes the journal, the recipe and the evaluations; every rank writes its quarantine. `say` is called once if an
    upload failed; `problem` is the reason while the home does not have everything, or while the journal cannot be sent.
    `restarts` is how often this rank has opened it before.

    Raises CornerstoneError if the home is a storage URI that cannot be read.
    """

    def __init__(self, run: str, home: str, rank: int, say: Callable[[str], None] = logger.warning) -> None:
        self.remote, self.rank = run_folder(home, run), rank
        self._is_local, self._say = self.remote.is_local, say
        self.folder = Path(self.remote.uri) if self._is_local else Path.home() / ".cornerstone" / "runs" / run
        self._journal: Journal | None = None
        self._uploaded: dict[str, tuple[int, int]] = {}  # size and time of change of each file, as it was uploaded
        self._upload_problem, self._lock = "", threading.Lock()
        self.restarts = self._begin_life()

    @property
    def quarantine(self) -> Path:
        """This rank's file of rows and images that could not be used."""
        return self.folder / f"{_QUARANTINE}{self.rank}.jsonl"

    @property
    def problem(self) -> str:
        """Why the tracking server or the home does not have everything; empty if both do."""
        return (self._journal.problem if self._journal else "") or self._upload_problem

    def journal(self, make_sender: Callable[[], Sender] | None = None, destination: str = "") -> Journal:
        """Open the journal, which `close` closes; see `Journal`. Rank 0 calls it, once.

        If the home is a storage URI, lines are uploaded before they are sent: a run that goes on on another machine knows
        all that the tracking server has, and repeats none of it.
        """
        if make_sender is not None and not self._is_local:
            make_sender = self._after_upload(make_sender)
        self._journal = Journal(self.folder / JOURNAL, make_sender, destination=destination)
        return self._journal

    def quarantined(self) -> set[tuple[int, str]]:
        """What all ranks have quarantined in the run's earlier lives: rows, and what of them (see `Bad`)."""
        places = [Location(str(self.folder))]
        if not self._is_local:
            places.append(self.remote)
        files = (place.join(name) for place in places for name in place.list() if name.startswith(_QUARANTINE))
        return {(entry["row"], entry["what"]) for file in files for entry in read_quarantine(file)}

    def write_recipe(self, recipe: Mapping[str, Any]) -> None:
        """Write the recipe."""
        self._local(RECIPE).write_text(json.dumps(recipe, indent=1) + "\n")

    def write_evaluation(self, step: int, table: pa.Table) -> None:
        """Write the per-query results of the evaluation after `step` steps; a repeated one replaces the first."""
        with self._local(EVALUATIONS, f"{_STEP}{step:09d}.parquet").replacing() as file:
            pq.write_table(table, file)

    def upload(self) -> bool:
        """Copy the files that changed to the home; returns whether the home has everything. Never raises.

        Called with each checkpoint. An upload that fails is reported once and tried again at the next call.
        """
        return self._is_local or self._upload(self._own_files())

    def close(self, patience: float = 15.0) -> int:
        """Send and upload what is left; returns the number of the journal's lines that the tracking server does not have."""
        unsent = self._journal.close(patience) if self._journal else 0
        self.upload()
        return unsent

    def _local(self, *names: str) -> Location:
        return Location(str(self.folder)).join(*names)

    def _own_files(self) -> list[str]:
        """Names of this rank's files, in the order of uploading.

        The list of lives comes first, since it says whose files the others are. What the server acknowledged comes before
        the journal: it may be less than the journal's size, but not more.
        """
        names = [f"{_LIVES}{self.rank}", self.quarantine.name]
        if self.rank == 0:
            evaluations = sorted(self.folder.joinpath(EVALUATIONS).glob("*.parquet"))
            names += [acknowledged_path(Path(JOURNAL)).name, JOURNAL, RECIPE]
            names += [f"{EVALUATIONS}/{path.name}" for path in evaluations]
        return [name for name in names if self.folder.joinpath(name).exists()]

    def _upload(self, names: Iterable[str]) -> bool:
        try:
            with self._lock:
                for name in names:
                    path = self.folder / name
                    state = _state(path)
                    if self._uploaded.get(name) != state:
                        self.remote.join(*name.split("/")).write_bytes(path.read_bytes())
                        self._uploaded[name] = state
        except Exception as error:  # whatever a storage or its client raises must not stop training
            if not self._upload_problem:
                self._say(
                    f"Cannot upload the run's records to {self.remote} ({type(error).__name__}: {error}). They are kept in "
                    f"{self.folder} and uploaded with the next checkpoint."
                )
            self._upload_problem = f"{type(error).__name__}: {error}"
            return False
        self._upload_problem = ""
        return True

    def _after_upload(self, make_sender: Callable[[], Sender]) -> Callable[[], Sender]:
        def make() -> Sender:
            send = make_sender()

            def upload_and_send(lines: Sequence[Line]) -> None:
                self._upload([JOURNAL])
                send(lines)

            return upload_and_send

        return make

    def _begin_life(self) -> int:
        """Record that the store was opened; returns how often it was before. Each opening ("life") has a UUID, in one file."""
        name = f"{_LIVES}{self.rank}"
        try:
            lives = (self.folder / name).read_text().split() if (self.folder / name).exists() else []
            if not self._is_local:
                lives = self._newer(name, lives)
        except OSError as error:
            raise CornerstoneError(f"Cannot read the records of an earlier start in {self.remote}: {error}") from error
        self._local(name).write_text("\n".join([*lives, uuid.uuid4().hex]) + "\n")
        if not self._is_local:
            self._upload([name])
        return len(lives)

    def _newer(self, name: str, ours: list[str]) -> list[str]:
        """The lives so far; this rank's files are downloaded from the home, unless the local ones are newer.

        Local files are the newer ones if their list contains the last life in the home's list: no other machine has written
        since, and they may contain what was not uploaded.
        """
        marker = self.remote.join(name)
        theirs = marker.read_text().split() if marker.exists() else []
        if not theirs or theirs[-1] in ours:
            return ours
        self._download()
        return theirs

    def _download(self) -> None:
        names = [self.quarantine.name]
        if self.rank == 0:
            names += [acknowledged_path(Path(JOURNAL)).name, JOURNAL, RECIPE]
            shutil.rmtree(self.folder / EVALUATIONS, ignore_errors=True)
        there = set(self.remote.list())
        for name in names:
            self.folder.joinpath(name).unlink(missing_ok=True)
            if name in there:
                self._local(name).write_bytes(self.remote.join(name).read_bytes())
                self._uploaded[name] = _state(self.folder / name)


def _state(path: Path) -> tuple[int, int]:
    found = path.stat()
    return found.st_size, found.st_mtime_ns


def read_quarantine(file: Location | Path) -> Iterator[dict[str, Any]]:
    """Entries of a quarantine, one for each row or image: row, what, step, reason. A line cut short is left out."""
    for text in Location.of(file).read_text().splitlines():
        try:
            entry = json.loads(text)
        except ValueError:
            continue
        if isinstance(entry, dict) and "row" in entry:
            yield {"what": ROW, **entry}


def evaluations(folder: Location) -> dict[int, Location]:
    """The files of a run's evaluations, by the number of steps done."""
    place = folder.join(EVALUATIONS)
    names = sorted(name for name in place.list() if name.startswith(_STEP) and PART not in name)
    return {int(name.removeprefix(_STEP).removesuffix(".parquet")): place.join(name) for name in names}


def read_evaluation(folder: Location, step: int | None = None) -> pa.Table:
    """Per-query results of a run's evaluation after `step` steps, by default of the last one.

    Raises CornerstoneError if there is none.
    """
    found = evaluations(folder)
    if not found or (step is not None and step not in found):
        kept = ", ".join(map(str, found)) or "none"
        raise CornerstoneError(f"No evaluation after step {step} in {folder}. Kept are those after step: {kept}.")
    with found[max(found) if step is None else step].open_input() as file:
        return pq.read_table(file)
