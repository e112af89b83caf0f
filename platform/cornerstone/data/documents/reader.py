"""Packed sequences as token ids and pixels. No torch here: decode actors import this module.

What is drawn, on which side of its sentence an image stands and its crop, belongs to (seed, epoch, the document's row, the
image): it is the same however the document was packed. Shapes: N sequences of T tokens.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from cornerstone.data import draws
from cornerstone.data.documents.config import PackingConfig, PackingKeys, SpecialIds
from cornerstone.data.documents.index import check_packing
from cornerstone.data.documents.pieces import Piece, bundles, left_out_images
from cornerstone.data.images import BadImage, Transform
from cornerstone.data.mixture import MixtureReader
from cornerstone.data.shards import DataSet
from cornerstone.data.source import BAD, MASKED, ROW_FIELDS, Ints
from cornerstone.data.texts import plain_tokenizer
from cornerstone.errors import CornerstoneError

Segment = dict[str, Any]
PADDING = -1
"""The document id of padding."""


def packed_schema(config: PackingConfig, transform: Transform | None) -> pa.Schema:
    """Columns of `PackedSequences.take`; those of images are lists of equal length."""
    tokens = config.token_budget
    pixels = pa.list_(pa.uint8(), 3 * transform.size**2) if transform is not None else pa.binary()
    return pa.schema(
        [
            *ROW_FIELDS,  # a masked place is all padding; a bad image leaves its sequence valid
            pa.field("token_ids", pa.list_(pa.int32(), tokens)),
            pa.field("document", pa.list_(pa.int32(), tokens)),  # attention stays inside; PADDING at the end
            pa.field("target", pa.list_(pa.bool_(), tokens)),  # whether the token is predicted, from the one before it
            pa.field("images", pa.list_(pixels)),
            pa.field("image_at", pa.list_(pa.int32())),  # the place of its <BoI>
            pa.field("text_before", pa.list_(pa.bool_())),  # whether its document has a text token before it here
            pa.field("image_valid", pa.list_(pa.bool_())),  # False: there is no picture, its pixels are black
        ]
    )


def targets(
    token_ids: npt.NDArray[np.integer[Any]], document: npt.NDArray[np.integer[Any]], ids: SpecialIds
) -> npt.NDArray[np.bool_]:
    """Which tokens (N, T) the language model is to predict: words, <BoI> and <eos> that follow a token of their document."""
    follows: npt.NDArray[np.bool_] = np.zeros(token_ids.shape, dtype=bool)
    follows[:, 1:] = (document[:, 1:] == document[:, :-1]) & (document[:, 1:] != PADDING)
    follows &= (token_ids != ids.image) & (token_ids != ids.eoi)
    return follows


@dataclass
class _Laid:
    """One sequence while it is being laid out."""

    token_ids: list[int] = field(default_factory=list)
    document: list[int] = field(default_factory=list)
    images: list[Any] = field(default_factory=list)
    image_at: list[int] = field(default_factory=list)
    text_before: list[bool] = field(default_factory=list)
    image_valid: list[bool] = field(default_factory=list)
    bad: list[dict[str, str]] = field(default_factory=list)


class PackedSequences:
    """Reads the sequences of one index, or of several whose rows are counted one after another.

    `data` are the folders of documents, `indexes` their packings, one for each, made with this tokenizer (the text of a
    `tokenizer.json`) and config, one for all or one each; anything else is refused, saying what differs. Images come
    through the transform, or as stored bytes if there is none. Draws belong to `seed`. Budget and tokens of an image are
    the same for all.
    """

    def __init__(
        self,
        data: Sequence[str],
        indexes: Sequence[str],
        tokenizer: str,
        config: PackingConfig | Sequence[PackingConfig],
        transform: Transform | None = None,
        seed: int = 0,
        ids: SpecialIds | None = None,
    ) -> None:
        self.configs = [config] * len(indexes) if isinstance(config, PackingConfig) else list(config)
        if len(sizes := {(one.token_budget, one.image_tokens) for one in self.configs}) > 1:
            named = " and ".join(f"{budget:,} tokens with {image} an image" for budget, image in sorted(sizes))
            raise CornerstoneError(f"Sequences of {named} cannot be read together: pack all with the same numbers.")
        self.config, self.transform, self.seed = self.configs[0], transform, seed
        self.ids = ids or SpecialIds.of(tokenizer)
        self.schema = packed_schema(self.config, transform)
        sets = [DataSet.open(folder, "documents") for folder in data]
        opened = [
            check_packing(index, PackingKeys.of(documents.manifest.content_hash, tokenizer, own))
            for documents, index, own in zip(sets, indexes, self.configs, strict=True)
        ]
        self._tokenizer = plain_tokenizer(tokenizer)
        self._index, self._documents = MixtureReader(opened, ["pieces"]), MixtureReader(sets, ["segments"])
        self._ends = np.cumsum([len(index) for index in opened])
        self._offsets = np.cumsum([0, *map(len, sets)])

    def take(self, rows: Ints, epochs: Ints) -> pa.Table:
        """The sequences at some places of the plan, by the schema; MASKED places hold padding alone.

        Raises CornerstoneError if a document has other tokens than when it was packed.
        """
        laid = [_Laid() for _ in rows]
        places = np.flatnonzero(rows != MASKED)
        pieces = [[Piece(**piece) for piece in found] for found in self._index.take(rows[places])["pieces"].to_pylist()]
        sets = np.searchsorted(self._ends, rows[places], side="right").tolist()
        for place, number_of_set, of_sequence in zip(places.tolist(), sets, pieces, strict=True):
            offset, config = int(self._offsets[number_of_set]), self.configs[number_of_set]
            whole = self._documents.take(np.asarray([offset + piece.row for piece in of_sequence]))["segments"]
            for number, piece in enumerate(of_sequence):
                document = whole[number].as_py()
                self._lay(laid[place], number, piece, document, config, offset + piece.row, int(epochs[place]))
        return self._table(laid, rows, epochs)

    def _lay(
        self,
        laid: _Laid,
        number: int,
        piece: Piece,
        segments: list[Segment],
        config: PackingConfig,
        row: int,
        epoch: int,
    ) -> None:
        """Append a piece as document `number` of its sequence; `row` is the document's, over all sets."""
        ids, begin = self.ids, len(laid.token_ids)
        order = _order(config, piece, segments, row, epoch, self.seed)
        texts = [segment for segment in order if segments[segment]["kind"] == "text"]
        words = dict(zip(texts, self._words(piece, segments, texts), strict=True))
        opens, closes = (piece.first, piece.first_token) == (0, 0), piece.end
        if config.rule == "laion":  # <BoI>image<EoI>text<eos> or <bos>text<BoI>image<EoI>
            opens, closes = order[0] in words, order[0] not in words
        laid.token_ids += [ids.bos] * opens
        spoken = 0
        for segment in order:
            if segment in words:
                laid.token_ids += words[segment]
                spoken += len(words[segment])
                continue
            laid.image_at.append(len(laid.token_ids))
            laid.text_before.append(spoken > 0)
            self._image(laid, segments[segment]["image"], epoch, row, segment)
            laid.token_ids += [ids.boi, *[ids.image] * self.config.image_tokens, ids.eoi]
        laid.token_ids += [ids.eos] * closes
        laid.document += [number] * (len(laid.token_ids) - begin)
        if len(laid.token_ids) - begin != piece.tokens:
            raise CornerstoneError(
                f"Document {piece.row} has {len(laid.token_ids) - begin} tokens here and had {piece.tokens} when it was "
                f"packed: pack the documents again with `cornerstone data pack`."
            )

    def _words(self, piece: Piece, segments: list[Segment], texts: list[int]) -> Iterator[list[int]]:
        """Token ids of the texts, those at the ends of the piece cut as it says."""
        encoded = self._tokenizer.encode_batch_fast(
            [segments[segment]["text"] or "" for segment in texts], add_special_tokens=False
        )
        for segment, words in zip(texts, encoded, strict=True):
            start = piece.first_token if segment == piece.first else 0
            yield words.ids[start : piece.stop_token if segment == piece.stop else None]

    def _image(self, laid: _Laid, image: bytes | None, epoch: int, row: int, segment: int) -> None:
        reason = ""
        if self.transform is None:
            pixels: Any = image or b""
        else:
            crop = int(draws.hashed(self.seed, "image of document", row, segment).view(np.int64)[0])
            try:
                pixels = self.transform(image or b"", seed=self.seed, epoch=epoch, row=crop).reshape(-1)
            except BadImage as error:
                pixels, reason = np.zeros(3 * self.transform.size**2, dtype=np.uint8), str(error)
        if reason:
            laid.bad.append({"what": f"image {len(laid.images)}", "reason": reason})
        laid.images.append(pixels)
        laid.image_valid.append(not reason)

    def _table(self, laid: list[_Laid], rows: Ints, epochs: Ints) -> pa.Table:
        shape = len(laid), self.config.token_budget
        token_ids = np.full(shape, self.ids.pad, dtype=np.int32)
        document = np.full(shape, PADDING, dtype=np.int32)
        for place, one in enumerate(laid):
            token_ids[place, : len(one.token_ids)] = one.token_ids
            document[place, : len(one.document)] = one.document
        flat = (token_ids, document, targets(token_ids, document, self.ids))
        columns: list[Any] = [
            pa.array(rows),
            pa.array(epochs),
            pa.array(rows != MASKED),
            pa.array([one.bad for one in laid], BAD),
        ]
        columns += [pa.FixedSizeListArray.from_arrays(pa.array(each.reshape(-1)), shape[1]) for each in flat]
        for name in ("images", "image_at", "text_before", "image_valid"):
            columns.append(_nested([getattr(one, name) for one in laid], self.schema.field(name).type.value_type))
        return pa.Table.from_arrays(columns, schema=self.schema)


def _order(config: PackingConfig, piece: Piece, segments: list[Segment], row: int, epoch: int, seed: int) -> list[int]:
    """The segments of a piece as a reader meets them: under `mmc4` and `laion` with each image's side drawn."""
    is_image = [segment["kind"] == "image" for segment in segments]
    out = left_out_images(config, piece.row, is_image, [segment["extra"] for segment in segments])
    stop = piece.stop + (piece.stop_token > 0)
    here = [segment for segment in range(piece.first, stop) if segment not in out]
    if config.rule == "obelics":
        return here
    before = draws.uniform(seed, "image first", epoch, row, np.arange(len(segments))) < 0.5
    if config.rule == "laion":
        image = next(segment for segment in here if is_image[segment])
        return sorted(here, key=lambda segment: is_image[segment] != before[image])
    ordered: list[int] = []
    for start, end in bundles(is_image[piece.first : stop]):
        together = [s for s in here if start <= s - piece.first < end]
        text = [s for s in together if not is_image[s]]
        first = [s for s in together if is_image[s] and (before[s] or not text)]
        ordered += [*first, *text, *(s for s in together if is_image[s] and s not in first)]
    return ordered


def _nested(lists: list[list[Any]], kind: pa.DataType) -> pa.ListArray:
    """Lists of values; of pictures without turning a pixel into a Python number."""
    ends = np.cumsum([0, *map(len, lists)]).astype(np.int32)
    values = [value for one in lists for value in one]
    if pa.types.is_fixed_size_list(kind):
        pixels = np.concatenate([np.zeros(0, np.uint8), *values])
        inner = pa.FixedSizeListArray.from_arrays(pa.array(pixels), kind.list_size)
    else:
        inner = pa.array(values, kind)
    return pa.ListArray.from_arrays(pa.array(ends), inner)
