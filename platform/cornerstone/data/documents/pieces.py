"""Packing: which part of which document is in which sequence, as a pure function of the lengths of the segments.

Lengths do not depend on what each epoch draws: an image and its matched sentence stay together, so that either can come
first. So one index is valid for all epochs, and the positions at which documents are cut are known in advance.
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
    """The part of a document in one sequence: from position (first, first_token) to before (stop, stop_token).

    A position is a segment and, within a text that is cut, a token. A piece that starts at (0, 0) begins with <bos>. A piece
    with `end` ends with <eos>; without it, the document continues in another piece, or <eos> did not fit. `tokens` includes
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
    """A document's row, and for each segment whether it is an image, its number of tokens (0 if left out) and, if it is left
    out, why.
    """

    row: int
    is_image: tuple[bool, ...]
    tokens: tuple[int, ...]
    left_out: dict[int, str]

    def __len__(self) -> int:
        return len(self.tokens)

    @property
    def images(self) -> int:
        """Number of images that are used."""
        return sum(image and tokens > 0 for image, tokens in zip(self.is_image, self.tokens, strict=True))


@dataclass
class Counted:
    """How many documents, images, texts and text tokens were found, and how many were left out, by reason."""

    found: Counter[str] = field(default_factory=Counter)
    left_out: Counter[tuple[str, str]] = field(default_factory=Counter)

    def join(self, other: Counted) -> None:
        """Add other counts."""
        self.found.update(other.found)
        self.left_out.update(other.left_out)

    def packed(self, what: str) -> int:
        """How many of them are in a sequence."""
        return self.found[what] - sum(count for (kind, _), count in self.left_out.items() if kind == what)


def left_out_images(
    config: PackingConfig, row: int, is_image: Sequence[bool], extras: Sequence[str | None]
) -> dict[int, str]:
    """The images that are not used, by segment, with the reason. The index and its reader both call this."""
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
    """`matched_sim` of an image from its `extra`, as the importers store it."""
    value = json.loads(extra).get("matched_sim") if extra else None
    return float(value) if isinstance(value, (int, float)) else None


def measured(
    config: PackingConfig, row: int, is_image: Sequence[bool], extras: Sequence[str | None], text_tokens: Sequence[int]
) -> Lengths:
    """The lengths of a document. `text_tokens` has a value for each segment; those of images are ignored."""
    left_out = left_out_images(config, row, is_image, extras)
    tokens = [config.tokens_per_image if image else n for image, n in zip(is_image, text_tokens, strict=True)]
    left_out |= {segment: NO_TOKENS for segment, n in enumerate(tokens) if n == 0}
    kept = tuple(0 if segment in left_out else n for segment, n in enumerate(tokens))
    return Lengths(row, tuple(is_image), kept, left_out)


def pack(documents: Sequence[Lengths], config: PackingConfig) -> tuple[list[list[Piece]], Counted]:
    """Pack some documents into sequences. Returns the sequences, and the counts of what was found and what was left out."""
    counted, usable = Counted(), []
    cut: list[Piece] = []
    for document in documents:
        refused, left = _refused(document, config), dict(document.left_out)
        if not refused and config.rule == "mmc4":
            pieces, surplus = cut_between_sentences(document, config)
            cut += pieces
            left = surplus | left  # an image that was left out for another reason does not count as beyond the budget
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
    """Why the whole document is left out; empty if it is used."""
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
    """(first, end) segments of each bundle: a sentence with the images before it. Trailing images are the last bundle."""
    first = 0
    for segment, image in enumerate(is_image):
        if not image:
            yield first, segment + 1
            first = segment + 1
    if first < len(is_image):
        yield first, len(is_image)


def cut_between_sentences(document: Lengths, config: PackingConfig) -> tuple[list[Piece], dict[int, str]]:
    """The pieces of a document, which is cut only between bundles (see `bundles`), and the segments that are in no piece.

    Without `keep_surplus` there is at most one piece: the part that fits. With it, a bundle that is longer than a sequence is
    left out, and the document continues after it in a new piece.
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
    """Sequences cut from the concatenated documents. An image that would be cut moves to the next sequence.

    <bos> stays with the token after it, if need be in the next sequence. An <eos> that does not fit is left out.
    """
    budget = config.token_budget
    sequences: list[list[Piece]] = []
    used = budget  # tokens of the last sequence; full, because there is no sequence yet
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
    """Best-fit-decreasing bin packing: groups of indices into `sizes`, each group with a total of at most `room`.

    The largest comes first, and each goes to the group that it leaves with the least free room. Sizes are 1 to `room`. Bit r
    of the integer `open_rooms` is set if a group has r left, so that finding the best group needs no search.
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
