"""`cornerstone data verify` and `data stats`: check a folder of shards, and count its content."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import tyro
from rich.markup import escape
from rich.table import Table

from cornerstone.commands.terminal import bar, console, say
from cornerstone.errors import CornerstoneError

if TYPE_CHECKING:
    from cornerstone.data.statistics import Statistics
    from cornerstone.data.verify import Verdict

_LISTED = 20  # problems printed one by one; the JSON file has all


@dataclass(frozen=True)
class VerifyCommand:
    """Check shards against their manifest: files, hashes, schema, every image's header, captions and labels."""

    data: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="DIR")]
    """Folder or URI of shards: pairs, documents, packed sequences or stored features."""
    json: str = ""
    """Write all problems to this file."""

    def run(self) -> None:
        """Check everything and report it; raises CornerstoneError if there is a problem."""
        from cornerstone.data.shards import DataSet
        from cornerstone.data.verify import verify
        from cornerstone.runtime.cluster import connect

        DataSet.open(self.data)  # report wrong arguments before Ray starts
        with connect(say):
            verdict = verify(self.data, bar("verifying"))
        _write(self.json, verdict.as_json())
        _show_verdict(verdict)
        if verdict.problems:
            raise CornerstoneError(
                f"{len(verdict.problems):,} problems in {verdict.folder}. Write the data set again, or copy the shards again."
            )


@dataclass(frozen=True)
class StatsCommand:
    """Count rows, images, texts, and the tokens and sub-captions of texts."""

    data: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="DIR")]
    """Folder or URI of shards: pairs or documents."""
    tokenizer: str = ""
    """Name or folder; default: the one in the folder of the shards, otherwise bert-base-uncased."""
    json: str = ""
    """Write the numbers to this file."""
    html: str = ""
    """Write the numbers and some rows as an HTML page to this file."""
    samples: int = 24
    """Number of rows on the page."""
    seed: int = 0
    """Seed that draws these rows."""

    def run(self) -> None:
        """Count, and print the numbers."""
        from cornerstone.data.shards import DataSet
        from cornerstone.data.statistics import statistics
        from cornerstone.data.statistics_page import render
        from cornerstone.data.storage import Location
        from cornerstone.runtime.cluster import connect
        from cornerstone.runtime.tokenizer import tokenizer_for

        if self.samples < 0:
            raise CornerstoneError(f"--samples {self.samples}: expected 0 or more.")
        data = DataSet.open(self.data)
        with connect(say):
            counted = statistics(self.data, tokenizer_for(self.data, self.tokenizer, say), bar("counting"))
        _write(self.json, counted.as_json())
        _show_statistics(counted)
        if self.html:
            Location.of(self.html).write_text(render(counted, data, self.samples, self.seed))
            say(f"page: {self.html}")


def _write(path: str, content: dict[str, Any]) -> None:
    from cornerstone.data.storage import Location

    if path:
        Location.of(path).write_text(json.dumps(content, indent=1) + "\n")


def _show_verdict(verdict: Verdict) -> None:
    counted = f"{verdict.shards:,} shards, {verdict.rows:,} rows, {verdict.images:,} images, {verdict.captions:,} texts"
    say(f"{verdict.folder}: {verdict.kind}, {counted}")
    if verdict.problems:
        table = Table(box=None)
        for name in ("problem", "times", "first"):
            table.add_column(name, justify="right" if name == "times" else "left")
        for kind, times in verdict.kinds.items():
            first = next(problem for problem in verdict.problems if problem.kind == kind)
            place = first.shard if first.row is None else f"{first.shard} row {first.row}"
            table.add_row(kind, f"{times:,}", escape(place))
        console.print(table)
        for problem in verdict.problems[:_LISTED]:
            say(f"- {problem}")
        if (left := len(verdict.problems) - _LISTED) > 0:
            say(f"- and {left:,} more: --json PATH writes all of them")
    if verdict.repeated_keys:
        say(f"{verdict.repeated_keys:,} rows have the same key as an earlier row: {verdict.repeats[0]}")
    if verdict.unnamed:
        say(f"{len(verdict.unnamed):,} files are not named by the manifest: {', '.join(verdict.unnamed[:_LISTED])}")
    if not verdict.problems:
        say("No problem found.")


def _show_statistics(counted: Statistics) -> None:
    count, images = counted.count, counted.count.width.number
    say(f"{counted.manifest.name}: {count.rows:,} {counted.manifest.kind}, {images:,} images ({counted.folder})")
    if count.unreadable:
        say(f"{count.unreadable:,} images have no readable header")
    for name, sizes in (("width", count.width), ("height", count.height)):
        spread = sizes.spread()
        say(f"{name} in pixels: {spread['mean']:.0f} on average, {spread['min']:,} to {spread['max']:,}")
    for name, each in counted.each_document.items():
        quantiles = f"median {each['p50']:,}, 90 % up to {each['p90']:,}, at most {each['max']:,}"
        say(f"{name} a document: {each['mean']:.2f} on average, {quantiles}")
    if counted.tokenizer is not None:
        say(f"tokens by {counted.tokenizer}: words, [CLS], a [SEP] after each sub-caption")
    header, rows = counted.text_table()
    table = Table(box=None)
    for place, name in enumerate(header):
        table.add_column(name, justify="left" if place < 2 else "right")
    for row in rows:
        table.add_row(*map(escape, row))
    console.print(table)
