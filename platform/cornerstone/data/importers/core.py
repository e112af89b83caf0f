"""What every importer shares: options, conversion of records to rows, parallel import, quarantine, manifest.

A format splits its source into tasks in the driver (`plan`) and reads one task inside a Ray task (`read`). Each Ray task
writes its own shards, so that no image passes through the driver. The driver collects what the tasks report and writes the
manifest last.
"""

from __future__ import annotations

import functools
import itertools
import json
import pickle
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Protocol

from cornerstone.data.images import BadImage, probe
from cornerstone.data.importers.fields import find, spelled, texts, utf8
from cornerstone.data.manifest import CLASSIFICATION, RETRIEVAL, SENTENCE_SWAP, Kind, Manifest, Shard
from cornerstone.data.output import Done, finish, finished, forget, writing
from cornerstone.data.parallel import Mapped, in_order
from cornerstone.data.records import ROLES, Caption, Document, Pair, Record
from cornerstone.data.shards import ROWS_PER_SHARD, write_shard
from cornerstone.data.storage import Location, absolute
from cornerstone.errors import CornerstoneError
from cornerstone.hashing import digest

QUARANTINE = "quarantine.jsonl"
DAMAGED = ("damaged", "another schema", "scattered")
"""How the reasons begin that are about a whole file and not about a row."""
PROMPT = "a photo of a {}."  # the only prompt of an imported set with labels; other writers may give several
MAX_BYTES = 256 << 20  # of one image file: photographs are smaller, and a row group holds 64 of them in memory
OnImportProgress = Callable[[int, int, int], None]
"""Called with finished tasks, all tasks, and rows written so far."""


@dataclass(frozen=True)
class ImportOptions:
    """What an import takes from its source, and how it runs."""

    images: str | None = None
    """Folder that image names are relative to; None: the folder of the list. For a list of pairs also a data set, whose images
    are found by key or URL."""
    image: str | None = None
    """Field that names or contains the image of a row; None: the format's own."""
    raw: tuple[str, ...] = ()
    """Fields with raw captions: the texts that came with the image."""
    long: tuple[str, ...] = ()
    """Fields with long captions: detailed descriptions."""
    rewrite: tuple[str, ...] = ()
    """Fields with raw captions in other words, by a language model that has not seen the image."""
    foil: tuple[str, ...] = ()
    """Fields with false captions: each the text of the image with one sentence made false (task sentence-swap)."""
    where: tuple[str, ...] = ()
    """`FIELD=VALUE` conditions; a row is taken if it meets all of them."""
    label: str | None = None
    """Field with the class name."""
    class_names: str | None = None
    """A file that maps the values of the label field to class names: a JSON object, or lines `n01440764 tench`."""
    first: int | None = None
    """Take only the first entries of the list, before they are shuffled; None: all."""
    limit_rows: int | None = None
    """Take this many rows of the shuffled source, bad rows included; None: all."""
    seed: int = 0
    """Seed of the order in which rows are written."""
    name: str | None = None
    """Name of the data set; None: the name of the out folder."""
    rows_per_shard: int = ROWS_PER_SHARD
    follow_links: bool = False
    """Read images through links that lead out of their folder."""
    trust_keys: bool = False
    """Join a list with a data set by keys although the texts of the two disagree."""
    workers: int | None = None
    """Largest number of tasks at a time; None: the number of Ray's CPUs. Does not change what is written."""

    def __post_init__(self) -> None:
        for listed in (*ROLES, "where"):
            given = getattr(self, listed)
            object.__setattr__(self, listed, (given,) if isinstance(given, str) else tuple(given))
        for place in ("images", "class_names"):
            if (given := getattr(self, place)) is not None:
                object.__setattr__(self, place, absolute(given))
        for counted in ("first", "limit_rows", "rows_per_shard", "workers"):
            given = getattr(self, counted)
            if given is not None and given < 1:
                raise CornerstoneError(f"--{counted.replace('_', '-')} {given}: expected 1 or more.")

    @property
    def texts(self) -> tuple[str, ...]:
        """The fields of all captions."""
        return *self.raw, *self.long, *self.rewrite, *self.foil


@dataclass(frozen=True)
class Sample:
    """One record of a source: its image as stored, and all other fields by name."""

    key: str
    image: bytes
    fields: dict[str, Any]
    label: int | None = None  # the number of its class, if the source has numbers, not a label field


@dataclass(frozen=True)
class Quarantined:
    """A record that is quarantined. The part of `reason` before the first colon is its kind; reasons are counted by kind."""

    key: str
    reason: str


@dataclass(frozen=True)
class ImportPlan:
    """The tasks of an import in their final order, the class names, and how rows were shuffled.

    `source` describes as JSON values what all tasks were planned from (file names, `stamps` of a list), `sources` what each
    task reads. Both belong to a task's fingerprint: if either has changed, a finished task is not reused.
    """

    tasks: list[Any]
    order: dict[str, Any]
    source: Any
    classes: tuple[str, ...] = ()
    quarantined: tuple[Quarantined, ...] = ()
    sources: Sequence[Any] = ()
    prompts: tuple[str, ...] = ()
    """Of the classes, with `{}` in place of the name; empty for the usual one."""


class Format(Protocol):
    """A layout on disk. One instance per import, made from (src, options) and sent to every task."""

    options: ImportOptions
    kind: Kind
    """What its records are converted to: pairs or documents."""

    def plan(self) -> ImportPlan:
        """Scan the source in the driver and split it into tasks. Raises CornerstoneError if it does not fit the options."""

    def read(self, task: Any) -> Iterator[Sample | Record | Quarantined]:
        """The records of one task, in order. A Sample is converted to a pair by `as_pair` as the options say."""


@dataclass(frozen=True)
class ImportReport:
    """The result of an import.

    `reasons` counts quarantined rows by kind, `captions` counts captions by role (for documents: segments by kind). `kept`
    is the number of tasks that an interrupted import had finished. `repaired_texts` counts texts in which invalid UTF-8 was
    replaced by �.
    """

    folder: str
    manifest: Manifest
    quarantined: int
    reasons: dict[str, int]
    captions: dict[str, int]
    seconds: float
    kept: int = 0
    repaired_texts: int = 0
    damaged: tuple[str, ...] = ()
    """Files that could not be read, or not to their end, each with the reason."""

    @property
    def rows(self) -> int:
        """Rows written."""
        return self.manifest.rows


@dataclass
class _Outcome:
    """The result of one task; `kept` if an interrupted import had finished it."""

    shards: list[Shard] = field(default_factory=list)
    quarantined: list[Quarantined] = field(default_factory=list)
    captions: Counter[str] = field(default_factory=Counter)
    repaired_texts: int = 0
    kept: bool = False

    def done(self) -> Done:
        quarantined = [[one.key, one.reason] for one in self.quarantined]
        return Done(
            tuple(self.shards),
            {"quarantined": quarantined, "captions": self.captions, "repaired_texts": self.repaired_texts},
        )

    @staticmethod
    def of(done: Done) -> _Outcome:
        quarantined = [Quarantined(key, reason) for key, reason in done.report["quarantined"]]
        return _Outcome(
            list(done.shards), quarantined, Counter(done.report["captions"]), done.report["repaired_texts"], kept=True
        )


@dataclass
class _Total:
    """The results of all tasks. Shards are ordered by (number within the task, task)."""

    shards: list[tuple[int, int, Shard]] = field(default_factory=list)
    reasons: Counter[str] = field(default_factory=Counter)
    captions: Counter[str] = field(default_factory=Counter)
    rows: int = 0
    repaired_texts: int = 0
    kept: int = 0
    damaged: list[str] = field(default_factory=list)
    example: str = ""

    def add(self, task: int, outcome: _Outcome) -> None:
        if outcome.quarantined and not self.example:
            self.example = f"{outcome.quarantined[0].key}: {outcome.quarantined[0].reason}"
        self.shards += [(number, task, shard) for number, shard in enumerate(outcome.shards)]
        self.reasons.update(quarantined.reason.partition(":")[0] for quarantined in outcome.quarantined)
        self.damaged += [f"{one.key}: {one.reason}" for one in outcome.quarantined if one.reason.startswith(DAMAGED)]
        self.captions += outcome.captions
        self.rows += sum(shard.rows for shard in outcome.shards)
        self.repaired_texts += outcome.repaired_texts
        self.kept += outcome.kept

    def ordered(self) -> tuple[Shard, ...]:
        return tuple(shard for _, _, shard in sorted(self.shards, key=lambda one: one[:2]))


def as_pair(sample: Sample, options: ImportOptions, classes: tuple[str, ...] = ()) -> Pair:
    """Convert a record to a row. Raises BadImage if the image header cannot be read, ValueError if there is no text."""
    width, height = probe(sample.image)
    captions: list[Caption] = []
    for role in ROLES:
        for name in getattr(options, role):
            value = find(sample.fields, name)
            for i, text in enumerate(texts(value)):
                captions.append(Caption(f"{name}.{i}" if isinstance(value, list) else name, role, text))
    label = sample.label
    if label is None and options.label is not None and (value := find(sample.fields, options.label)) is not None:
        label = classes.index(spelled(value))
    if not captions and label is None:
        raise ValueError(f"no text: nothing in {', '.join(options.texts)}")
    used = {name.partition(".")[0] for name in options.texts} | set(options.texts)
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


def run_import(
    format_name: str,
    source: Format,
    src: Location,
    out: Location,
    progress: OnImportProgress | None,
    *,
    mapped: Mapped | None = None,
) -> ImportReport:
    """Run an import into a folder without a manifest, reusing the tasks that an interrupted import finished.

    `mapped=map_here` (`data/parallel.py`) runs the tasks in this process, without Ray.
    Raises CornerstoneError if no row is left, and if another process writes to the folder.
    """
    started = time.monotonic()
    plan, options = source.plan(), source.options
    with writing(out):
        outcomes = _in_parallel(format_name, source, src, plan, out, mapped)
        total = _gather(plan, outcomes, out.join(QUARANTINE), progress)
        if not total.shards:
            forget(out)  # a finished but empty task must be read again: missing images may be there next time
            raise CornerstoneError(_why_empty(src, out, total))
        manifest = Manifest(
            kind=source.kind,
            name=options.name or out.name,
            shards=total.ordered(),
            classes=plan.classes,
            prompts=(plan.prompts or (PROMPT,)) if plan.classes else (),
            tasks=(RETRIEVAL,) * (source.kind == "pairs" and bool(total.captions))
            + (SENTENCE_SWAP,) * bool(total.captions["foil"])
            + (CLASSIFICATION,) * bool(plan.classes),
            source={
                "format": format_name,
                "src": str(src),
                **_recorded(options),
                "order": plan.order,
                "quarantined": total.reasons.total(),
                "reasons": dict(total.reasons),
                "repaired_texts": total.repaired_texts,
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
        repaired_texts=total.repaired_texts,
        damaged=tuple(total.damaged),
    )


def _gather(
    plan: ImportPlan, outcomes: Iterator[_Outcome], quarantine: Location, progress: OnImportProgress | None
) -> _Total:
    """Add up the results of all tasks and write the quarantine file, which is removed if it is empty."""
    total = _Total()
    with quarantine.replacing() as file:
        for done, outcome in enumerate(itertools.chain([_Outcome(quarantined=list(plan.quarantined))], outcomes)):
            total.add(done - 1, outcome)
            file.writelines((json.dumps(asdict(quarantined)) + "\n").encode() for quarantined in outcome.quarantined)
            if progress is not None:
                progress(done, len(plan.tasks), total.rows)
    if not total.reasons:
        quarantine.remove()
    return total


def _recorded(options: ImportOptions) -> dict[str, Any]:
    """The options that determine the content, as values that JSON preserves."""
    given = {k: v for k, v in asdict(options).items() if v not in (None, (), False) and k not in ("name", "workers")}
    return {k: list(v) if isinstance(v, tuple) else v for k, v in given.items()}


def _why_empty(src: Location, out: Location, total: _Total) -> str:
    reasons = total.reasons
    counts = "; ".join(f"{count} × {kind}" for kind, count in reasons.most_common(3))
    found = "it is empty"
    if reasons:
        found = f"all {reasons.total()} are quarantined ({counts}; see {out.join(QUARANTINE)}). The first is {total.example}"
    return f"No usable row in {src}: {found}. Check --images and the fields, or name another source."


def _in_parallel(
    format_name: str, source: Format, src: Location, plan: ImportPlan, out: Location, mapped: Mapped | None
) -> Iterator[_Outcome]:
    """The results of all tasks, in the order of the plan."""
    if not plan.tasks:
        return
    # Fingerprint of everything that determines a task's output (records, their order, names of shards): if it is unchanged,
    # the finished task is reused.
    shared = [format_name, str(src), _recorded(source.options), plan.order, plan.classes, plan.source]
    settings = [digest([*shared, own]) for own in plan.sources or [()] * len(plan.tasks)]
    items = [
        {"number": i, "task": pickle.dumps(task), "settings": of_task}
        for i, (task, of_task) in enumerate(zip(plan.tasks, settings, strict=True))
    ]
    work = functools.partial(_work, source=source, out=out, tasks=len(items), classes=plan.classes)
    failed = f"The import stopped, {out} is unfinished (fix the cause and run the same command again to resume):"
    if mapped is None:
        import ray.data

        tasks = ray.data.from_items(items, override_num_blocks=len(items))
        rows = in_order(tasks.map(work, concurrency=source.options.workers), failed)
    else:
        rows = mapped(work, items, failed=failed)
    for row in rows:
        yield pickle.loads(row["outcome"])


def _work(row: dict[str, Any], source: Format, out: Location, tasks: int, classes: tuple[str, ...]) -> dict[str, bytes]:
    """Write the shards of one task. Shard p of task t gets the number p × tasks + t, which no other task uses."""
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
    found: Iterator[Sample | Record | Quarantined], options: ImportOptions, classes: tuple[str, ...], outcome: _Outcome
) -> Iterator[Record]:
    for record in found:
        if isinstance(record, Sample):
            try:
                record = as_pair(record, options, classes)
            except (BadImage, ValueError) as reason:
                record = Quarantined(utf8(record.key), str(reason))
        if isinstance(record, Quarantined):
            outcome.quarantined.append(record)
            continue
        if isinstance(record, Document):
            outcome.captions.update("text" if segment.image is None else "image" for segment in record.segments)
            texts_of = [segment.text or "" for segment in record.segments]
        else:
            outcome.captions.update(caption.role for caption in record.captions)
            texts_of = [caption.text for caption in record.captions]
        outcome.repaired_texts += sum("\N{REPLACEMENT CHARACTER}" in text for text in texts_of)
        yield record
