"""Assigns parts of documents to sequences: a pure function of the segments' lengths.

The lengths do not depend on later random draws: an image and its matched sentence stay together in a piece, whichever of
them comes first. So one index serves all epochs, and the positions at which documents are cut are known in advance.
"""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from cornerstone.data import draws
from cornerstone.data.documents.config import PackingConfig

BOS = EOS = 1
LOW = "similarity below the minimum"
UNMATCHED = "no matched similarity"
TOO_MANY = "more images than the maximum"
NO_TOKENS = "no token"
NO_IMAGE = "no usable image"
NO_PAIR = "not one image and one text"
LONG = "longer than the budget"
SURPLUS = "beyond the budget"
WITH_DOCUMENT = "with its document"


class Piece(NamedTuple):
    """The part of a document in one sequence: the half-open range from (first, first_token) to (stop, stop_token).

    A position is a segment and, within a text that is cut, a token. A piece that starts at (0, 0) begins with <bos>. A
    piece with `end` ends with <eos>, which is missing if the document is cut or the sequence is full. `tokens` includes
    <bos> and <eos>.
    """

    row: int
    first: int
    first_token: int
    stop: int
    stop_token: int
    end: bool
    tokens: int
    images: int


@dataclass(frozen=True)
class Lengths:
    """The lengths of a document's segments: whether each is an image, its tokens (0 if left out), and why it is left out."""

    row: int
    is_image: tuple[bool, ...]
    tokens: tuple[int, ...]
    left_out: dict[int, str]

    def __len__(self) -> int:
        return len(self.tokens)

    @property
    def images(self) -> int:
        """Number of images that are kept."""
        return sum(image and tokens > 0 for image, tokens in zip(self.is_image, self.tokens, strict=True))


@dataclass
class Counted:
    """Counts of documents, images, texts and text tokens, and how many of each were left out, by reason."""

    found: Counter[str] = field(default_factory=Counter)
    left_out: Counter[tuple[str, str]] = field(default_factory=Counter)

    def join(self, other: Counted) -> None:
        """Add another one's counts."""
        self.found.update(other.found)
        self.left_out.update(other.left_out)

    def packed(self, what: str) -> int:
        """How many of them are in a sequence."""
        return self.found[what] - sum(count for (kind, _), count in self.left_out.items() if kind == what)


def left_out_images(
    config: PackingConfig, row: int, is_image: Sequence[bool], extras: Sequence[str | None]
) -> dict[int, str]:
    """The reason for each image that is not used, by segment. The index and its reader get the same result."""
    out: dict[int, str] = {}
    images = [segment for segment, image in enumerate(is_image) if image]
    if config.rule == "mmc4":
        for segment in images:
            similarity = _similarity(extras[segment])
            if similarity is None:
                out[segment] = UNMATCHED
            elif similarity < config.min_similarity:
                out[segment] = LOW
    kept = [segment for segment in images if segment not in out]
    if len(kept) > config.max_images and config.rule != "laion":
        order = np.argsort(draws.hashed(config.seed, "images", row, np.asarray(kept)), kind="stable")
        out |= {kept[place]: TOO_MANY for place in order[config.max_images :].tolist()}
    return out


def _similarity(extra: str | None) -> float | None:
    """`matched_sim` of an image, which the importers keep in `extra`."""
    value = json.loads(extra).get("matched_sim") if extra else None
    return float(value) if isinstance(value, (int, float)) else None


def measured(
    config: PackingConfig, row: int, is_image: Sequence[bool], extras: Sequence[str | None], text_tokens: Sequence[int]
) -> Lengths:
    """The lengths of a document. `text_tokens` has a number for each segment, which is ignored for images."""
    left_out = left_out_images(config, row, is_image, extras)
    tokens = [config.tokens_per_image if image else n for image, n in zip(is_image, text_tokens, strict=True)]
    left_out |= {segment: NO_TOKENS for segment, n in enumerate(tokens) if n == 0}
    kept = tuple(0 if segment in left_out else n for segment, n in enumerate(tokens))
    return Lengths(row, tuple(is_image), kept, left_out)


def pack(documents: Sequence[Lengths], config: PackingConfig) -> tuple[list[list[Piece]], Counted]:
    """Pack documents into sequences; also returns the counts of everything found and left out."""
    counted, usable = Counted(), []
    cut: list[Piece] = []
    for document in documents:
        refused, left = _refused(document, config), dict(document.left_out)
        if not refused and config.rule == "mmc4":
            pieces, surplus = cut_between_sentences(document, config)
            cut += pieces
            left = surplus | left  # an image that was not wanted is not what the budget cost
            refused = "" if pieces else LONG
        elif not refused and config.rule == "laion":
            cut.append(Piece(document.row, 0, 0, len(document), 0, False, BOS + sum(document.tokens), 1))
        if refused:
            left = {segment: left.get(segment, WITH_DOCUMENT) for segment in range(len(document))}
        else:
            usable.append(document)
        _count(counted, document, refused, left)
    if config.rule == "obelics":
        return cut_anywhere(usable, config), counted
    if config.one_document:
        return [[piece] for piece in cut], counted
    sizes = [piece.tokens for piece in cut]
    return sorted(sorted(cut[i] for i in group) for group in best_fit(sizes, config.token_budget)), counted


def _refused(document: Lengths, config: PackingConfig) -> str:
    """The reason why a document is left out entirely; empty if it is used."""
    if config.rule == "laion":
        texts = sum(not image and tokens > 0 for image, tokens in zip(document.is_image, document.tokens, strict=True))
        if (document.images, texts) != (1, 1):
            return NO_PAIR
        return LONG if BOS + sum(document.tokens) > config.token_budget else ""
    return "" if document.images else NO_IMAGE


def _count(counted: Counted, document: Lengths, refused: str, left: dict[int, str]) -> None:
    counted.found["documents"] += 1
    if refused:
        counted.left_out["documents", refused] += 1
    for segment, (image, tokens) in enumerate(zip(document.is_image, document.tokens, strict=True)):
        amounts = {"images": 1} if image else {"texts": 1, "text tokens": tokens}
        for what, amount in amounts.items():
            counted.found[what] += amount
            if segment in left and amount:
                counted.left_out[what, left[segment]] += amount


def bundles(is_image: Sequence[bool]) -> Iterator[tuple[int, int]]:
    """The range of segments of every sentence with the images before it. Trailing images form the last range."""
    first = 0
    for segment, image in enumerate(is_image):
        if not image:
            yield first, segment + 1
            first = segment + 1
    if first < len(is_image):
        yield first, len(is_image)


def cut_between_sentences(document: Lengths, config: PackingConfig) -> tuple[list[Piece], dict[int, str]]:
    """The pieces of a document that is cut only before a sentence and its images, and the reason for each unused segment.

    Without `keep_surplus` there is one piece: the part that fits. A sentence that exceeds a sequence with its images is left
    out; with `keep_surplus` the document continues after it in a new piece.
    """
    pieces: list[Piece] = []
    left: dict[int, str] = {}
    first, size, images = 0, 0, 0
    for start, stop in bundles(document.is_image):
        tokens = sum(document.tokens[start:stop])
        if not tokens:
            continue
        begin = BOS if first == 0 else 0
        if begin + size + tokens > config.token_budget:
            if size:
                pieces.append(Piece(document.row, first, 0, start, 0, False, begin + size, images))
            too_long = BOS + tokens > config.token_budget
            if not config.keep_surplus:
                left = dict.fromkeys(range(start, len(document)), SURPLUS)
            if too_long:
                left |= dict.fromkeys(range(start, stop), LONG)
            if not config.keep_surplus:
                return pieces, left
            first, size, images = (stop if too_long else start), 0, 0
            if too_long:
                continue
        size += tokens
        images += sum(document.is_image[i] and document.tokens[i] > 0 for i in range(start, stop))
    if size:
        size += BOS if first == 0 else 0
        end = size + EOS <= config.token_budget
        pieces.append(Piece(document.row, first, 0, len(document), 0, end, size + end, images))
    return pieces, left


def cut_anywhere(documents: Sequence[Lengths], config: PackingConfig) -> list[list[Piece]]:
    """Sequences cut from the concatenated documents at any token; an image that would be cut starts the next sequence.

    <bos> and the token after it stay together; an <eos> that does not fit is left out.
    """
    budget = config.token_budget
    sequences: list[list[Piece]] = []
    used = budget  # of the last sequence; there is none yet
    for document in documents:
        items = [segment for segment, tokens in enumerate(document.tokens) if tokens]
        needed = BOS + (document.tokens[items[0]] if document.is_image[items[0]] else 1)
        if config.one_document or used + needed > budget:
            sequences.append([])
            used = 0
        place, size, images = (0, 0), BOS, 0
        for segment in items:
            left, whole = document.tokens[segment], document.is_image[segment]
            while left:
                room = budget - used - size
                fits = min(left, room) if not whole or left <= room else 0
                size, left = size + fits, left - fits
                images += whole and not left
                if left:
                    cut = (segment, document.tokens[segment] - left)
                    sequences[-1].append(Piece(document.row, *place, *cut, False, size, images))
                    sequences.append([])
                    used, place, size, images = 0, cut, 0, 0
        end = used + size + EOS <= budget
        sequences[-1].append(Piece(document.row, *place, len(document), 0, end, size + end, images))
        used += size + end
    return sequences


def best_fit(sizes: Sequence[int], room: int) -> list[list[int]]:
    """Best-fit-decreasing bin packing: groups of indices whose sizes, each 1 to `room`, sum to at most `room`.

    The largest sizes come first, each into the fullest group that has room for it. Bit r of `open_rooms` is set if a group
    has r left, so that finding one needs no search.
    """
    groups: list[list[int]] = []
    with_room: defaultdict[int, list[int]] = defaultdict(list)
    open_rooms = 0
    for place in sorted(range(len(sizes)), key=lambda place: (-sizes[place], place)):
        size = sizes[place]
        if fitting := open_rooms >> size:
            left = size + (fitting & -fitting).bit_length() - 1
            group = with_room[left].pop()
            if not with_room[left]:
                open_rooms &= ~(1 << left)
        else:
            left, group = room, len(groups)
            groups.append([])
        groups[group].append(place)
        with_room[left - size].append(group)
        open_rooms |= 1 << (left - size)
    return groups
