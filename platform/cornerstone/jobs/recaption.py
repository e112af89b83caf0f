"""`cornerstone recaption`: write a long caption for every image of a data set, shard by shard, in Ray Data actors.

Files, row groups and the order of rows do not change, because rows are identified by their position. An interrupted run
resumes after the finished shards.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import pyarrow as pa
import torch

from cornerstone.data.images import BadImage, decode
from cornerstone.data.manifest import FILE, Manifest
from cornerstone.data.output import Done, finished, refuse_existing, writing
from cornerstone.data.parallel import OnProgress
from cornerstone.data.records import PAIRS
from cornerstone.data.shards import DataSet, Reader
from cornerstone.data.storage import Location
from cornerstone.data.texts import FILE as TOKENIZER
from cornerstone.errors import CornerstoneError
from cornerstone.hashing import digest
from cornerstone.jobs import shard_jobs
from cornerstone.jobs.captioner import Captioner, CaptionerConfig

_CAPTIONS = PAIRS.get_field_index("captions")


@dataclass(frozen=True)
class RecaptionJob:
    """A data set, the folder for the new one, and how its captions are written.

    `described` is everything that determines the captions (see `CaptionerConfig.described`). With `replaces`, existing long
    captions of the same source are removed.
    """

    data: DataSet
    out: Location
    captioner: CaptionerConfig
    source: str
    replaces: bool
    described: dict[str, Any]
    batch_size: int = 16

    @property
    def source_entry(self) -> dict[str, Any]:
        """The `source` of the new manifest, without the counts and the fingerprint that are added at the end of the run."""
        parent = self.data.manifest
        return {
            "format": "recaption",
            "src": str(self.data.location),
            "parent": parent.content_hash,
            "parent_source": parent.source,
            "caption_source": self.source,
            "replaces": self.replaces,
            "captioner": self.described,
        }

    def settings(self, parent: str) -> str:
        """Fingerprint of everything that determines the new rows; if unchanged, finished output is reused.

        `parent` is the hash of the data that the rows are derived from: of one shard or of the whole data set.
        """
        return digest([parent, self.source, self.replaces, {k: v for k, v in self.described.items() if k != "name"}])

    def finished(self, index: int) -> Done | None:
        """The record of a shard that an earlier run with the same fingerprint finished; None if there is none."""
        shard = self.data.manifest.shards[index]
        return finished(self.out, shard.file, self.settings(shard.sha256))


@dataclass(frozen=True)
class RecaptionReport:
    """The result of a run: shards computed in this run (the others were reused), and images without a new caption."""

    manifest: Manifest
    computed: int
    undecodable: int
    without_text: int


class _Actor:
    """A Ray Data actor. Holds the model; writes new shards and their records."""

    def __init__(self, job: RecaptionJob) -> None:
        torch.set_num_threads(1)
        self.job = job

    @cached_property
    def captioner(self) -> Captioner:
        """The model, loaded at the first image. Ray retries an actor whose `__init__` fails, and then hides the cause."""
        return Captioner(self.job.captioner)

    def __call__(self, block: dict[str, Any]) -> dict[str, Any]:
        """Called by Ray Data, with one shard per block."""
        job, index = self.job, int(block["shard"][0])
        shards = job.data.manifest.shards
        groups = shard_jobs.groups_of(job.data, index)
        refuse_captioned(job, groups)
        self.counted = {"undecodable": 0, "without_text": 0}
        first_row = sum(shard.rows for shard in shards[:index])
        captioned = self._captioned(Reader(job.data, keep_groups=1), groups, first_row)
        shard_jobs.write_derived_shard(
            job.out, shards[index].file, captioned, job.settings(shards[index].sha256), self.counted
        )
        return {"shard": [index]}

    def _captioned(self, reader: Reader, groups: range, first_row: int) -> Iterator[pa.Table]:
        for group in groups:
            table = reader.group(group)
            texts = self._texts(table["image"], first_row)
            listed = [
                self._kept(captions) + ([{"source": self.job.source, "role": "long", "text": text}] if text else [])
                for captions, text in zip(table["captions"].to_pylist(), texts, strict=True)
            ]
            field = PAIRS.field(_CAPTIONS)
            yield table.set_column(_CAPTIONS, field, pa.array(listed, field.type))
            first_row += table.num_rows

    def _kept(self, captions: list[dict[str, str]] | None) -> list[dict[str, str]]:
        return [c for c in captions or [] if not (self.job.replaces and _is_of(c, self.job.source))]

    def _texts(self, images: pa.ChunkedArray, first_row: int) -> list[str]:
        """A caption for each image of a row group; empty if the image cannot be decoded."""
        texts = [""] * len(images)
        size = self.job.batch_size
        for start in range(0, len(images), size):
            pictures = {}
            for place in range(start, min(start + size, len(images))):
                try:
                    pictures[place] = decode(images[place].as_py() or b"")
                except BadImage:
                    self.counted["undecodable"] += 1
            if pictures:
                captions = self.captioner(list(pictures.values()), [first_row + place for place in pictures])
                self.counted["without_text"] += captions.count("")
                for place, text in zip(pictures, captions, strict=True):
                    texts[place] = text
        return texts


def refuse_captioned(job: RecaptionJob, groups: range) -> None:
    """Raise CornerstoneError if a row already has a long caption of the same source, unless the job replaces it."""
    if job.replaces:
        return
    reader = Reader(job.data, ["captions"], keep_groups=1)
    for group in groups:
        for captions in reader.group(group)["captions"].to_pylist():
            if any(_is_of(caption, job.source) for caption in captions or []):
                raise CornerstoneError(
                    f"{job.data.location} has long captions by {job.source!r} already. Give --replace to overwrite them, "
                    f"or name the new captions differently with --source NAME."
                )


def _is_of(caption: dict[str, str], source: str) -> bool:
    return caption["source"] == source and caption["role"] == "long"


def prepare_recaption(
    folder: str, out: str, captioner: CaptionerConfig, *, source: str = "", replaces: bool = False, batch_size: int = 16
) -> RecaptionJob:
    """Open the data set and check everything that can be checked before Ray starts.

    Raises CornerstoneError if the folder is not a data set of pairs, if the captioner cannot be loaded, if the out folder
    contains another finished data set, and if there already are captions of this source (checked here in the first row group,
    and in the other row groups by the actors).
    """
    data, place = DataSet.open(folder, "pairs"), Location.of(out)
    if place.uri.rstrip("/") == data.location.uri.rstrip("/"):
        raise CornerstoneError(f"--out {place} is the data set itself: expected a new folder.")
    if batch_size < 1:
        raise CornerstoneError(f"--batch-size {batch_size}: expected 1 or more images.")
    described = captioner.described()
    job = RecaptionJob(data, place, captioner, source or captioner.base_name, replaces, described, batch_size)
    if already(job) is None:
        refuse_existing(place)
    refuse_captioned(job, range(1))
    return job


def already(job: RecaptionJob) -> Manifest | None:
    """The manifest of the out folder if it was written from the same rows with the same settings; else None."""
    if not job.out.join(FILE).exists():
        return None
    found = Manifest.read(job.out)
    return found if found.source.get("settings") == job.settings(job.data.manifest.content_hash) else None


def recaption(
    job: RecaptionJob,
    *,
    actors: int = 0,
    gpus_per_actor: float = 0.0,
    progress: OnProgress | None = None,
    say: Callable[[str], None] = print,
) -> RecaptionReport:
    """Caption every image of every unfinished shard, then write the manifest. Ray must be started.

    Each actor takes one CPU and computes on one thread, or on a GPU if the cluster has GPUs; 0 actors: one per GPU, else one
    per CPU. If the out folder already contains the result, nothing is computed, and a message says so. Raises CornerstoneError
    if the captioner fails, if the folder is being written by another process, and if finished shards were changed meanwhile.
    """
    if (manifest := already(job)) is not None:
        say(f"{job.out} holds these captions already: nothing is computed.")
        return RecaptionReport(manifest, 0, manifest.source["undecodable"], manifest.source["without_text"])
    with writing(job.out):
        return _recaption(job, actors, gpus_per_actor, progress, say)


def _recaption(
    job: RecaptionJob, actors: int, gpus_per_actor: float, progress: OnProgress | None, say: Callable[[str], None]
) -> RecaptionReport:
    shards = range(len(job.data.manifest.shards))
    waiting = [index for index in shards if job.finished(index) is None]
    if len(waiting) < len(shards):
        say(f"{len(shards) - len(waiting):,} of {len(shards):,} shards are finished already")
    shard_jobs.run_actors(
        _Actor,
        (job,),
        [{"shard": index} for index in waiting],
        actors=actors,
        gpus_per_actor=gpus_per_actor,
        failed=f"Recaptioning stopped, {job.out} is unfinished (run the same command again to resume; finished shards are "
        f"kept):",
        progress=progress,
    )
    done = [found for index in shards if (found := job.finished(index)) is not None]
    if len(done) < len(shards):
        raise CornerstoneError(
            f"{len(shards) - len(done)} shards of {job.out} were changed during the run: run the same command again."
        )
    parent = job.data.manifest
    counted = {name: sum(one.report[name] for one in done) for name in ("undecodable", "without_text")}
    source = {**job.source_entry, **counted, "settings": job.settings(parent.content_hash)}
    manifest = replace(parent, shards=tuple(shard for one in done for shard in one.shards), source=source)
    tokenizer = job.data.location.join(TOKENIZER)
    if tokenizer.exists():
        job.out.join(TOKENIZER).write_bytes(tokenizer.read_bytes())
    manifest.write(job.out)
    return RecaptionReport(manifest, len(waiting), counted["undecodable"], counted["without_text"])
