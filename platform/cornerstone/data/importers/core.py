"""What every importer shares: its options, rows from records, the parallel run, the quarantine, the manifest.

A format says in the driver what work there is (`plan`) and reads one piece of it in a Ray task (`read`). Each task
writes its shards itself, so that no image passes through the driver; the driver gathers what the tasks say and writes
the manifest last.
"""

from __future__ import annotations

import functools
import itertools
import json
import pickle
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Protocol

from cornerstone.data.images import BadImage, probe
from cornerstone.data.importers.fields import find, holds, spelled, texts, utf8
from cornerstone.data.manifest import CLASSIFICATION, RETRIEVAL, Kind, Manifest, Shard
from cornerstone.data.output import Done, finish, finished, forget, writing
from cornerstone.data.parallel import in_order
from cornerstone.data.records import Caption, Document, Pair, Record, Role
from cornerstone.data.shards import ROWS_PER_SHARD, write_shard
from cornerstone.data.storage import Location, absolute
from cornerstone.errors import CornerstoneError
from cornerstone.hashing import digest

QUARANTINE = "quarantine.jsonl"
REPLACED = "\N{REPLACEMENT CHARACTER}"
PROMPT = "a photo of a {}."  # one plain prompt for an imported set with labels; a manifest may hold others
MAX_BYTES = 256 << 20  # of one image file: more is no photograph, and 64 of them must fit a row group
ImportProgress = Callable[[int, int, int], None]
"""Called with pieces of work done, pieces in all, rows written so far."""


@dataclass(frozen=True)
class ImportOptions:
    """What an import takes from its source, and how."""

    images: str | None = None
    """Folder that image names are relative to; None: the list's own folder. Of a list of pairs also a data set, whose images
    are found by key or address."""
    image: str | None = None
    """Field that names a row's image, or holds it; None: the one that the format has."""
    raw: tuple[str, ...] = ()
    """Fields with the texts that came with the image."""
    long: tuple[str, ...] = ()
    """Fields with detailed descriptions."""
    where: tuple[str, ...] = ()
    """`FIELD=VALUE` conditions that a row must meet, all of them."""
    label: str | None = None
    """Field with the class name."""
    class_names: str | None = None
    """A file with the names of classes that the label field gives by another one: a JSON object, or lines `n01440764 tench`."""
    first: int | None = None
    """Take the first entries of the list alone, before they are put in random order; None: all."""
    limit_rows: int | None = None
    """Take so many rows of the source's random order, bad ones counted; None: all."""
    seed: int = 0
    """Decides the order in which rows are written."""
    name: str | None = None
    """The data set's name; None: the out folder's."""
    rows_per_shard: int = ROWS_PER_SHARD
    workers: int | None = None
    """Most tasks at a time; None: as many as Ray has CPUs. Never changes what is written."""

    def __post_init__(self) -> None:
        for listed in ("raw", "long", "where"):
            given = getattr(self, listed)
            object.__setattr__(self, listed, (given,) if isinstance(given, str) else tuple(given))
        for place in ("images", "class_names"):
            if (given := getattr(self, place)) is not None:
                object.__setattr__(self, place, absolute(given))
        for counted in ("first", "limit_rows", "rows_per_shard", "workers"):
            given = getattr(self, counted)
            if given is not None and given < 1:
                raise CornerstoneError(f"--{counted.replace('_', '-')} {given}: expected 1 or more.")


@dataclass(frozen=True)
class Sample:
    """One record of a source: its image as stored, and everything else by name."""

    key: str
    image: bytes
    fields: dict[str, Any]


@dataclass(frozen=True)
class Refused:
    """A record that becomes no row. The reason's part before a colon is its kind, by which reasons are counted."""

    key: str
    reason: str


@dataclass(frozen=True)
class ImportPlan:
    """What a format found: pieces of work in their final order, class names, and how rows came into that order.

    `source` is what the pieces were planned from, as JSON has it (listed names, `stamps` of a list), `sources` what each
    piece alone is read from: a piece that was finished when either was another is made anew.
    """

    tasks: list[Any]
    order: dict[str, Any]
    source: Any
    classes: tuple[str, ...] = ()
    refused: tuple[Refused, ...] = ()
    sources: Sequence[Any] = ()


class Format(Protocol):
    """A layout on disk; one instance per import, made of (src, options), sent to every task."""

    options: ImportOptions
    kind: Kind
    """What its records become: pairs or documents."""

    def plan(self) -> ImportPlan:
        """Look over the source, in the driver; CornerstoneError where it does not fit the options."""

    def read(self, task: Any) -> Iterator[Sample | Record | Refused]:
        """The records of one piece of work, in order; a Sample becomes a pair by the options (`as_pair`)."""


@dataclass(frozen=True)
class ImportReport:
    """What an import did.

    `reasons` counts the quarantined rows by kind, `captions` the texts by role (of documents: the segments by kind); `kept`
    of its pieces of work had been finished before, by an import that was interrupted; `mended` texts hold � where their
    bytes were no UTF-8.
    """

    folder: str
    manifest: Manifest
    quarantined: int
    reasons: dict[str, int]
    captions: dict[str, int]
    seconds: float
    kept: int = 0
    mended: int = 0

    @property
    def rows(self) -> int:
        """Rows written."""
        return self.manifest.rows


@dataclass
class _Outcome:
    """What a piece of work gave; `kept`: an interrupted import had finished it."""

    shards: list[Shard] = field(default_factory=list)
    refused: list[Refused] = field(default_factory=list)
    captions: Counter[str] = field(default_factory=Counter)
    mended: int = 0
    kept: bool = False

    def done(self) -> Done:
        refused = [[one.key, one.reason] for one in self.refused]
        return Done(tuple(self.shards), {"refused": refused, "captions": self.captions, "mended": self.mended})

    @staticmethod
    def of(done: Done) -> _Outcome:
        refused = [Refused(key, reason) for key, reason in done.told["refused"]]
        return _Outcome(list(done.shards), refused, Counter(done.told["captions"]), done.told["mended"], kept=True)


@dataclass
class _Total:
    """What all pieces gave together; the shards with (part, task), which is their order."""

    shards: list[tuple[int, int, Shard]] = field(default_factory=list)
    reasons: Counter[str] = field(default_factory=Counter)
    captions: Counter[str] = field(default_factory=Counter)
    rows: int = 0
    mended: int = 0
    kept: int = 0

    def take(self, task: int, outcome: _Outcome) -> None:
        self.shards += [(part, task, shard) for part, shard in enumerate(outcome.shards)]
        self.reasons.update(refused.reason.partition(":")[0] for refused in outcome.refused)
        self.captions += outcome.captions
        self.rows += sum(shard.rows for shard in outcome.shards)
        self.mended += outcome.mended
        self.kept += outcome.kept

    def ordered(self) -> tuple[Shard, ...]:
        return tuple(shard for _, _, shard in sorted(self.shards, key=lambda one: one[:2]))


def as_pair(sample: Sample, options: ImportOptions, classes: tuple[str, ...] = ()) -> Pair:
    """The row of a record. BadImage: its image's header cannot be read; ValueError: no text is left."""
    width, height = probe(sample.image)
    roles: list[tuple[Role, tuple[str, ...]]] = [("raw", options.raw), ("long", options.long)]
    captions: list[Caption] = []
    for role, wanted in roles:
        for name in wanted:
            value = find(sample.fields, name)
            for i, text in enumerate(texts(value)):
                captions.append(Caption(f"{name}.{i}" if isinstance(value, list) else name, role, text))
    label = None
    if options.label is not None and (value := find(sample.fields, options.label)) is not None:
        label = classes.index(spelled(value))
    if not captions and label is None:
        raise ValueError(f"no text: nothing in {', '.join((*options.raw, *options.long))}")
    used = {name.partition(".")[0] for name in (*options.raw, *options.long)} | set(options.raw) | set(options.long)
    extra = {name: value for name, value in sample.fields.items() if name not in used}
    return Pair(
        key=utf8(sample.key),
        image=sample.image,
        width=width,
        height=height,
        captions=tuple(captions),
        label=label,
        extra=json.dumps(extra, default=str) if extra else None,
    )


def meets(fields: dict[str, Any], where: Iterable[tuple[str, str]]) -> bool:
    """Whether a record meets all conditions."""
    return all(holds(fields, name, value) for name, value in where)


def run_import(
    format_name: str, source: Format, src: Location, out: Location, progress: ImportProgress | None
) -> ImportReport:
    """Carry out an import into a folder without a manifest; pieces that an interrupted one finished are kept.

    Raises CornerstoneError where no row is left, and where another process writes to the folder.
    """
    started = time.monotonic()
    plan, options = source.plan(), source.options
    with writing(out):
        total = _gather(plan, _in_parallel(format_name, source, src, plan, out), out.join(QUARANTINE), progress)
        if not total.shards:
            forget(out)  # what was missing may be there the next time
            raise CornerstoneError(_why_empty(src, out, total.reasons))
        manifest = Manifest(
            kind=source.kind,
            name=options.name or out.name,
            shards=total.ordered(),
            classes=plan.classes,
            prompts=(PROMPT,) if plan.classes else (),
            tasks=(RETRIEVAL,) * (source.kind == "pairs" and bool(total.captions))
            + (CLASSIFICATION,) * bool(plan.classes),
            source={
                "format": format_name,
                "src": str(src),
                **_recorded(options),
                "order": plan.order,
                "quarantined": total.reasons.total(),
                "reasons": dict(total.reasons),
                "mended": total.mended,
            },
        )
        manifest.write(out)
    return ImportReport(
        str(out),
        manifest,
        quarantined=total.reasons.total(),
        reasons=dict(total.reasons),
        captions=dict(total.captions),
        seconds=time.monotonic() - started,
        kept=total.kept,
        mended=total.mended,
    )


def _gather(
    plan: ImportPlan, outcomes: Iterator[_Outcome], quarantine: Location, progress: ImportProgress | None
) -> _Total:
    """All pieces' outcomes together, and every refused record in the quarantine; no such file where there is none."""
    total = _Total()
    with quarantine.replacing() as file:
        for done, outcome in enumerate(itertools.chain([_Outcome(refused=list(plan.refused))], outcomes)):
            total.take(done - 1, outcome)
            file.writelines((json.dumps(asdict(refused)) + "\n").encode() for refused in outcome.refused)
            if progress is not None:
                progress(done, len(plan.tasks), total.rows)
    if not total.reasons:
        quarantine.remove()
    return total


def _recorded(options: ImportOptions) -> dict[str, Any]:
    """The options that decide the content, as JSON gives them back."""
    given = {k: v for k, v in asdict(options).items() if v not in (None, ()) and k not in ("name", "workers")}
    return {k: list(v) if isinstance(v, tuple) else v for k, v in given.items()}


def _why_empty(src: Location, out: Location, reasons: Counter[str]) -> str:
    counts = "; ".join(f"{count} × {kind}" for kind, count in reasons.most_common(3))
    found = f"all {reasons.total()} were refused ({counts}; see {out.join(QUARANTINE)})" if reasons else "it has none"
    return f"No usable row in {src}: {found}. Check --images and the fields, or name another source."


def _in_parallel(
    format_name: str, source: Format, src: Location, plan: ImportPlan, out: Location
) -> Iterator[_Outcome]:
    """Each task's outcome, in the plan's order."""
    if not plan.tasks:
        return
    import ray.data

    # With these a piece of work is what it was: they decide its records, its place and the names of its shards.
    shared = [format_name, str(src), _recorded(source.options), plan.order, plan.classes, plan.source]
    settings = [digest([*shared, own]) for own in plan.sources or [()] * len(plan.tasks)]
    items = [
        {"number": i, "task": pickle.dumps(task), "settings": of_task}
        for i, (task, of_task) in enumerate(zip(plan.tasks, settings, strict=True))
    ]
    work = functools.partial(_work, source=source, out=out, tasks=len(items), classes=plan.classes)
    dataset = ray.data.from_items(items, override_num_blocks=len(items)).map(work, concurrency=source.options.workers)
    failed = f"The import stopped, {out} is unfinished (mend it, and the same command goes on after what is finished):"
    for row in in_order(dataset, failed):
        yield pickle.loads(row["outcome"])


def _work(row: dict[str, Any], source: Format, out: Location, tasks: int, classes: tuple[str, ...]) -> dict[str, bytes]:
    """Write the shards of one piece of work. Part p of task t is shard p × tasks + t: unique, whatever the parts."""
    number, settings = int(row["number"]), str(row["settings"])
    name = f"task-{number:05d}"
    if (done := finished(out, name, settings)) is not None:
        return {"outcome": pickle.dumps(_Outcome.of(done))}
    outcome = _Outcome()
    records = _records(source.read(pickle.loads(row["task"])), source.options, classes, outcome)
    while shard := write_shard(out, number, itertools.islice(records, source.options.rows_per_shard), source.kind):
        outcome.shards.append(shard)
        number += tasks
    finish(out, name, settings, outcome.done())
    return {"outcome": pickle.dumps(outcome)}


def _records(
    found: Iterator[Sample | Record | Refused], options: ImportOptions, classes: tuple[str, ...], outcome: _Outcome
) -> Iterator[Record]:
    for record in found:
        if isinstance(record, Sample):
            try:
                record = as_pair(record, options, classes)
            except (BadImage, ValueError) as reason:
                record = Refused(utf8(record.key), str(reason))
        if isinstance(record, Refused):
            outcome.refused.append(record)
            continue
        if isinstance(record, Document):
            outcome.captions.update("text" if segment.image is None else "image" for segment in record.segments)
            texts_of = [segment.text or "" for segment in record.segments]
        else:
            outcome.captions.update(caption.role for caption in record.captions)
            texts_of = [caption.text for caption in record.captions]
        outcome.mended += sum(REPLACED in text for text in texts_of)
        yield record
