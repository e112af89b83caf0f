"""`cornerstone data stats`: statistics of a data set, in the columns of LoTLIP's Tables 1 and 6.

One Ray task per shard counts, and the driver adds the counts. Lengths are kept as histograms (how many texts have n tokens),
so that medians and fractions are exact and the counts do not grow with the number of rows.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from cornerstone.data.images import BadImage, probe
from cornerstone.data.manifest import Manifest
from cornerstone.data.parallel import Progress, map_tasks
from cornerstone.data.records import SCHEMAS
from cornerstone.data.shards import DataSet
from cornerstone.data.storage import Location
from cornerstone.data.texts import SentenceFormat, clean, sub_captions
from cornerstone.errors import CornerstoneError

LIMITS = (77, 128, 256)
"""Token limits of CLIP, of LoTLIP's training, and of models for long texts."""
DOCUMENT = 2048
"""Tokens of a sample of documents (LCL)."""
_NO_LIMIT = 1 << 30


@dataclass
class Tally:
    """Histogram of integers: how often each value occurred."""

    counts: Counter[int] = field(default_factory=Counter)

    def add(self, values: Iterable[int]) -> None:
        """Count some values."""
        self.counts.update(values)

    def join(self, other: Tally) -> None:
        """Add the counts of another histogram."""
        self.counts.update(other.counts)

    @property
    def number(self) -> int:
        """How many values were counted."""
        return self.counts.total()

    @property
    def mean(self) -> float:
        """The mean; 0 if there are no values."""
        return sum(value * n for value, n in self.counts.items()) / max(self.number, 1)

    def quantile(self, share: float) -> int:
        """The smallest value that at least this fraction of the values does not exceed; 0 if there are no values."""
        reached, wanted = 0, share * self.number
        for value in sorted(self.counts):
            reached += self.counts[value]
            if reached >= wanted:
                return value
        return 0

    def above(self, limit: int) -> float:
        """Fraction of the values above a limit."""
        return sum(n for value, n in self.counts.items() if value > limit) / max(self.number, 1)

    def spread(self) -> dict[str, float]:
        """Mean, minimum and maximum."""
        return {"mean": self.mean, "min": min(self.counts, default=0), "max": max(self.counts, default=0)}

    def lengths(self, *limits: int) -> dict[str, float]:
        """Mean, median, 90 % quantile, maximum, and the fraction above each limit."""
        quantiles = {"mean": self.mean, "p50": self.quantile(0.5), "p90": self.quantile(0.9)}
        above = {f"above_{limit}": self.above(limit) for limit in limits}
        return {**quantiles, "max": max(self.counts, default=0), **above}


@dataclass
class TextCount:
    """Lengths of some texts.

    `tokens` are those that a text tower would get without a limit: words, [CLS] and a [SEP] after each sub-caption, but no
    corner tokens. `sub_captions` are the sentences that training draws from; `cleaned` are the sentences after the cleaning
    of long-text retrieval, which LoTLIP's Table 1 counts.
    """

    tokens: Tally = field(default_factory=Tally)
    words: Tally = field(default_factory=Tally)
    characters: Tally = field(default_factory=Tally)
    sub_captions: Tally = field(default_factory=Tally)
    cleaned: Tally = field(default_factory=Tally)

    def add(self, texts: list[str], tokenizer: SentenceFormat | None) -> list[int]:
        """Count some texts. With a tokenizer, also count their tokens and return the number of tokens of each text."""
        tokens = [len(ids) for ids in tokenizer.encode_uncut(map(sub_captions, texts))] if tokenizer is not None else []
        self.tokens.add(tokens)
        self.words.add(len(text.split()) for text in texts)
        self.characters.add(map(len, texts))
        self.sub_captions.add(len(sub_captions(text)) for text in texts)
        self.cleaned.add(len(sub_captions(clean(text))) for text in texts)
        return tokens

    def join(self, other: TextCount) -> None:
        """Add the counts of other texts."""
        for name in vars(self):
            getattr(self, name).join(getattr(other, name))

    def as_json(self) -> dict[str, Any]:
        """The statistics as JSON values; tokens are null if they were not counted."""
        return {
            "texts": self.words.number,
            "tokens": self.tokens.lengths(*LIMITS) if self.tokens.counts else None,
            "words": self.words.spread(),
            "characters": self.characters.spread(),
            "sub_captions": self.sub_captions.spread(),
            "sub_captions_cleaned": self.cleaned.spread(),
        }


@dataclass
class Count:
    """Counts of some shards. Captions of pairs are counted by (role, source), texts of documents under ("text", "")."""

    rows: int = 0
    width: Tally = field(default_factory=Tally)
    height: Tally = field(default_factory=Tally)
    unreadable: int = 0
    texts: defaultdict[tuple[str, str], TextCount] = field(default_factory=lambda: defaultdict(TextCount))
    images_each: Tally = field(default_factory=Tally)
    texts_each: Tally = field(default_factory=Tally)
    tokens_each: Tally = field(default_factory=Tally)

    def join(self, other: Count) -> None:
        """Add the counts of other shards."""
        self.rows += other.rows
        self.unreadable += other.unreadable
        for name in ("width", "height", "images_each", "texts_each", "tokens_each"):
            getattr(self, name).join(getattr(other, name))
        for key, texts in other.texts.items():
            self.texts[key].join(texts)


@dataclass(frozen=True)
class Statistics:
    """The counts of a data set, and the name of the tokenizer (None: tokens were not counted)."""

    folder: str
    manifest: Manifest
    tokenizer: str | None
    count: Count

    @property
    def texts(self) -> list[tuple[str, str, TextCount]]:
        """(role, source, lengths), sorted by role and source. A role with several sources also has a total (source "")."""
        listed = []
        for role in sorted({role for role, _ in self.count.texts}):
            of_role = sorted((source, texts) for (its, source), texts in self.count.texts.items() if its == role)
            listed += [(role, source, texts) for source, texts in of_role]
            if len(of_role) > 1:
                total = TextCount()
                for _, texts in of_role:
                    total.join(texts)
                listed.append((role, "", total))
        return listed

    def as_json(self) -> dict[str, Any]:
        """Everything, for a JSON file."""
        count, kind = self.count, self.manifest.kind
        return {
            "folder": self.folder,
            "name": self.manifest.name,
            "kind": kind,
            "content": self.manifest.content_hash,
            "tokenizer": self.tokenizer,
            "rows": count.rows,
            "images": {
                "number": count.width.number,
                "unreadable": count.unreadable,
                "width": count.width.spread(),
                "height": count.height.spread(),
            },
            "texts": [{"role": role, "source": source, **texts.as_json()} for role, source, texts in self.texts],
            "each_document": self.each_document,
        }

    @property
    def each_document(self) -> dict[str, dict[str, float]]:
        """Images, texts and (with a tokenizer) tokens per document; empty for pairs."""
        count = self.count
        each = {"images": count.images_each.lengths(), "texts": count.texts_each.lengths()}
        tokens = {"tokens": count.tokens_each.lengths(DOCUMENT)} if count.tokens_each.counts else {}
        return {**each, **tokens} if self.manifest.kind == "documents" else {}

    def text_table(self) -> tuple[list[str], list[list[str]]]:
        """Header and rows of the printed table: lengths by role and source, in tokens, or in words without a tokenizer."""
        if self.tokenizer is None:
            header = ["words", "most words", "characters", "most characters"]
        else:
            header = ["tokens", "median", "90 %", "most", *(f"> {limit}" for limit in LIMITS)]
        rows = []
        for role, source, texts in self.texts:
            if self.tokenizer is None:
                spreads = texts.words.spread(), texts.characters.spread()
                cells = [cell for spread in spreads for cell in (f"{spread['mean']:.2f}", f"{spread['max']:,}")]
            else:
                tokens = texts.tokens
                lengths = tokens.quantile(0.5), tokens.quantile(0.9), max(tokens.counts, default=0)
                shares = [f"{tokens.above(limit):.1%}" for limit in LIMITS]
                cells = [f"{tokens.mean:.2f}", *(f"{length:,}" for length in lengths), *shares]
            sentences = f"{texts.sub_captions.mean:.2f}", f"{texts.cleaned.mean:.2f}"
            rows.append([role, source or "all", f"{texts.words.number:,}", *cells, *sentences])
        return ["role", "source", "texts", *header, "sub-captions", "cleaned"], rows


class NamedTokenizer(NamedTuple):
    """The text of a `tokenizer.json`, and its name."""

    name: str
    text: str


def statistics(
    folder: Location | str, tokenizer: NamedTokenizer | None = None, progress: Progress | None = None
) -> Statistics:
    """Count the rows, images and texts of a data set in parallel. Ray must be started.

    Without a tokenizer, tokens are not counted. Raises CornerstoneError as `DataSet.open` does, and if the data set is of a
    kind without texts.
    """
    data = DataSet.open(folder)
    if data.manifest.kind not in SCHEMAS:
        raise CornerstoneError(f"{data.location} holds {data.manifest.kind}: expected pairs or documents.")
    text = tokenizer.text if tokenizer is not None else None
    look = partial(_look, location=data.location, kind=data.manifest.kind, tokenizer=text)
    files = [shard.file for shard in data.manifest.shards]
    total = Count()
    for count in map_tasks(look, files, failed=f"Cannot read {data.location}:", progress=progress):
        total.join(count)
    return Statistics(str(data.location), data.manifest, tokenizer.name if tokenizer is not None else None, total)


def _look(file: str, location: Location, kind: str, tokenizer: str | None) -> Count:
    """The counts of one shard. Holds one row group in memory at a time."""
    count = Count()
    made = SentenceFormat(tokenizer, _NO_LIMIT) if tokenizer is not None else None
    add = _add_pairs if kind == "pairs" else _add_documents
    columns = ["width", "height", "captions"] if kind == "pairs" else ["segments"]
    place = location.join(file)
    try:
        with place.open_input() as stream:
            shard = pq.ParquetFile(stream)
            for group in range(shard.num_row_groups):
                add(count, shard.read_row_group(group, columns=columns), made)
    except (OSError, pa.ArrowException) as error:
        raise CornerstoneError(
            f"{place} is not readable ({error}). Check it with `cornerstone data verify`."
        ) from error
    return count


def _add_pairs(count: Count, rows: pa.Table, tokenizer: SentenceFormat | None) -> None:
    count.rows += rows.num_rows
    count.width.add(size for size in rows["width"].to_pylist() if size is not None)
    count.height.add(size for size in rows["height"].to_pylist() if size is not None)
    texts: dict[tuple[str, str], list[str]] = defaultdict(list)
    for captions in rows["captions"].to_pylist():
        for caption in captions or []:
            texts[caption["role"], caption["source"]].append(caption["text"] or "")
    for key, listed in texts.items():
        count.texts[key].add(listed, tokenizer)


def _add_documents(count: Count, rows: pa.Table, tokenizer: SentenceFormat | None) -> None:
    count.rows += rows.num_rows
    for number in range(rows.num_rows):  # converts one document at a time, because its images may be large
        segments = rows["segments"][number].as_py() or []
        texts = [segment["text"] or "" for segment in segments if segment["kind"] == "text"]
        sizes = list(_sizes(segment["image"] for segment in segments if segment["kind"] == "image"))
        tokens = count.texts["text", ""].add(texts, tokenizer)
        count.texts_each.add([len(texts)])
        count.images_each.add([len(sizes)])
        if tokenizer is not None:
            count.tokens_each.add([sum(tokens)])
        count.width.add(size[0] for size in sizes if size is not None)
        count.height.add(size[1] for size in sizes if size is not None)
        count.unreadable += sizes.count(None)


def _sizes(images: Iterable[bytes]) -> Iterator[tuple[int, int] | None]:
    for image in images:
        try:
            yield probe(image or b"")
        except BadImage:
            yield None
