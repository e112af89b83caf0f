"""From rows to samples: read, decode or take the stored feature, draw the texts, tokenize. No torch here.

A decode actor holds one `Samples`; a bare loop, a test and an evaluation without Ray use the same one. Everything drawn
belongs to (seed, epoch, row). A row that cannot be used becomes an invalid sample with its reason: it keeps its place, so
that units keep their size, and is counted by the worker.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from cornerstone.data import draws
from cornerstone.data.images import BadImage, Transform
from cornerstone.data.mixture import MixtureReader
from cornerstone.data.pairs.views import View
from cornerstone.data.plan import MASKED
from cornerstone.data.shards import DataSet
from cornerstone.data.texts import TextTokenizer, sub_captions

Ints = npt.NDArray[np.int64]
SEPARATOR = ". "


@dataclass(frozen=True)
class Texts:
    """How texts become token ids: the tokenizer (the text of a `tokenizer.json`), the token limit, corners counted."""

    tokenizer: str
    token_limit: int
    corners: int

    def build(self) -> TextTokenizer:
        """The tokenizer, ready to encode."""
        return TextTokenizer(self.tokenizer, limit=self.token_limit, corners=self.corners)


@dataclass(frozen=True)
class Pictures:
    """How an image becomes numbers: by the transform (evaluation: its central crop), or as a vector of the feature stores
    at `features`, one for each data set.
    """

    transform: Transform
    features: tuple[str, ...] = ()
    width: int = 0
    """Length of a stored feature."""


@dataclass(frozen=True)
class Draws:
    """What is drawn from a training row, and by which seed."""

    seed: int
    sub_captions: int
    captioners: tuple[str, ...] = ()


def schema(pictures: Pictures) -> pa.Schema:
    """Columns of a block, the same for training and evaluation: one execution of Ray Data streams both."""
    if pictures.features:
        picture = pa.field("feature", pa.list_(pa.float32(), pictures.width))
    else:
        picture = pa.field("image", pa.list_(pa.uint8(), 3 * pictures.transform.size**2))
    return pa.schema(
        [
            pa.field("step", pa.int64()),  # -1: filler at the end of a unit
            pa.field("set", pa.int32()),  # -1: training; otherwise the place of the evaluation set
            pa.field("row", pa.int64()),
            pa.field("epoch", pa.int64()),
            pa.field("valid", pa.bool_()),
            pa.field("reason", pa.string()),  # why an invalid row is invalid; empty for a masked place
            pa.field("label", pa.int32()),
            pa.field("group", pa.string()),
            picture,
            pa.field("texts", pa.list_(pa.list_(pa.int32()))),  # training: [raw, long], either may be empty
            pa.field("keys", pa.list_(pa.int64())),  # evaluation: which texts are identical, before the token limit
        ]
    )


class Samples:
    """Reads samples of one data set, or of several whose rows are counted one after another."""

    def __init__(self, data: tuple[str, ...], pictures: Pictures, texts: Texts) -> None:
        self.pictures, self.tokenizer = pictures, texts.build()
        self.schema = schema(pictures)
        stored = bool(pictures.features)
        columns = ["captions", "label", "group"] + ([] if stored else ["image"])
        self.rows = MixtureReader([DataSet.open(folder, "pairs") for folder in data], columns)
        self.vectors = MixtureReader([DataSet.open(store, "features") for store in pictures.features])

    def training(self, step: Ints, rows: Ints, epochs: Ints, drawn: Draws) -> pa.Table:
        """Samples of the plan's places, each with its drawn raw text and k sub-captions of a drawn long caption."""
        table, places = self._read(rows)
        texts: list[list[str]] = [["", ""]] * len(rows)
        captions = table["captions"].to_pylist()
        chosen = _Choices(drawn, epochs[places], rows[places])
        for i, place in enumerate(places.tolist()):
            texts[place] = [chosen.raw(i, captions[i] or []), chosen.long(i, captions[i] or [])]
        return self._samples(table, places, rows, epochs, texts, step=step, evaluation=-1, seed=drawn.seed)

    def evaluation(self, step: int, index: int, rows: Ints, view: View) -> pa.Table:
        """Samples of an evaluation set, with every text that is judged and the fixed crop."""
        table, places = self._read(rows)
        texts: list[list[str]] = [[]] * len(rows)
        for i, place in enumerate(places.tolist()):
            texts[place] = _viewed(table["captions"][i].as_py() or [], view)
        steps = np.full(len(rows), step, dtype=np.int64)
        zeros = np.zeros(len(rows), dtype=np.int64)
        return self._samples(table, places, rows, zeros, texts, step=steps, evaluation=index, seed=None)

    def _read(self, rows: Ints) -> tuple[pa.Table, Ints]:
        places = np.flatnonzero(rows != MASKED)
        return self.rows.take(rows[places]), places

    def _samples(
        self,
        table: pa.Table,
        places: Ints,
        rows: Ints,
        epochs: Ints,
        texts: list[list[str]],
        *,
        step: Ints,
        evaluation: int,
        seed: int | None,
    ) -> pa.Table:
        n = len(rows)
        valid, reasons = np.zeros(n, dtype=bool), [""] * n
        valid[places] = True
        picture = self._pictures(table, places, rows, epochs, valid, reasons, seed)
        tokens = _encode_nested(self.tokenizer, texts)
        if evaluation < 0:
            for place in places.tolist():
                if valid[place] and not any(tokens[place]):
                    valid[place], reasons[place] = False, "no text"
        labels, groups = np.full(n, -1, dtype=np.int32), np.full(n, "", dtype=object)
        labels[places] = table["label"].fill_null(-1).to_numpy()
        groups[places] = table["group"].fill_null("").to_numpy()
        columns = [
            pa.array(step),
            pa.array(np.full(n, evaluation, dtype=np.int32)),
            pa.array(rows),
            pa.array(epochs),
            pa.array(valid),
            pa.array(reasons, pa.string()),
            pa.array(labels),
            pa.array(groups, pa.string()),
            pa.FixedSizeListArray.from_arrays(pa.array(picture.reshape(-1)), picture.shape[1]),
            pa.array(tokens, pa.list_(pa.list_(pa.int32()))),
            pa.array([[_key(t) for t in row] if evaluation >= 0 else [] for row in texts], pa.list_(pa.int64())),
        ]
        return pa.Table.from_arrays(columns, schema=self.schema)

    def _pictures(
        self,
        table: pa.Table,
        places: Ints,
        rows: Ints,
        epochs: Ints,
        valid: npt.NDArray[np.bool_],
        reasons: list[str],
        seed: int | None,
    ) -> npt.NDArray[Any]:
        """Images (n, 3·S·S) uint8 or features (n, W) float32; zeros where there is none, and then the row is invalid."""
        if self.pictures.features:
            vectors = self.vectors.take(rows[places])
            out = np.zeros((len(rows), self.pictures.width), dtype=np.float32)
            out[places] = _vectors(vectors["feature"], self.pictures.width)
            for i, reason in zip(places.tolist(), vectors["reason"].to_pylist(), strict=True):
                if reason:
                    valid[i], reasons[i] = False, reason
            return out
        transform = self.pictures.transform if seed is not None else replace(self.pictures.transform, train=False)
        out = np.zeros((len(rows), 3, transform.size, transform.size), dtype=np.uint8)
        numbers = transform.numbers(seed or 0, epochs[places], rows[places])
        for i, (place, image) in enumerate(zip(places.tolist(), table["image"], strict=True)):
            try:
                transform.write(out[place], image.as_py() or b"", numbers[i])
            except BadImage as error:
                valid[place], reasons[place] = False, str(error)
        return out.reshape(len(rows), -1)


class _Choices:
    """The captions drawn for each row of a block, from one vectorised set of random numbers."""

    def __init__(self, drawn: Draws, epochs: Ints, rows: Ints) -> None:
        self.drawn = drawn
        self.raw_u = draws.uniform(drawn.seed, "raw", epochs, rows)
        self.captioner_u = draws.uniform(drawn.seed, "captioner", epochs, rows)
        self.first_u = draws.uniform(drawn.seed, "first sub-caption", epochs, rows)

    def raw(self, i: int, captions: list[dict[str, str]]) -> str:
        texts = [c["text"] for c in captions if c["role"] == "raw"]
        return texts[int(self.raw_u[i] * len(texts))] if texts else ""

    def long(self, i: int, captions: list[dict[str, str]]) -> str:
        """k consecutive sub-captions of one captioner's text, joined as they were (LoTLIP, section 4.2)."""
        wanted, k = self.drawn.captioners, self.drawn.sub_captions
        if k == 0:
            return ""
        texts = [c["text"] for c in captions if c["role"] == "long" and (not wanted or c["source"] in wanted)]
        if not texts:
            return ""
        sentences = sub_captions(texts[int(self.captioner_u[i] * len(texts))])
        first = int(self.first_u[i] * max(len(sentences) - k + 1, 1))
        return SEPARATOR.join(sentences[first : first + k])


def _viewed(captions: list[dict[str, str]], view: View) -> list[str]:
    """The texts of a row that an evaluation task reads, in the order of its view."""
    texts: list[str] = []
    for wanted in view:
        of_role = [caption["text"] for caption in captions if caption["role"] == wanted.role]
        if not wanted.every:
            of_role = of_role[:1] or [""]
        if wanted.sentences:
            of_role = [SEPARATOR.join(sub_captions(text)[: wanted.sentences]) for text in of_role]
        texts += of_role
    return texts


def _key(text: str) -> int:
    """The same number for the same text, in every process."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little", signed=True)


def _encode_nested(tokenizer: TextTokenizer, texts: list[list[str]]) -> list[list[list[int]]]:
    """Token ids of nested texts, encoded in one call."""
    flat = iter(tokenizer.encode([text for row in texts for text in row]))
    return [[next(flat) for _ in row] for row in texts]


def _vectors(column: pa.ChunkedArray, width: int) -> npt.NDArray[np.float32]:
    flat = column.combine_chunks().flatten().to_numpy(zero_copy_only=False)
    return flat.astype(np.float32, copy=False).reshape(-1, width)
