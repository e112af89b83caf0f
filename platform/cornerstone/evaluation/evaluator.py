"""Zero-shot evaluation of a model: encode the batches of a stream, then let each set's task judge all of its rows."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor

from cornerstone.data.batch import Batch, pad_lists
from cornerstone.data.pairs.batch import EvaluationBatch
from cornerstone.data.texts import TextFormat
from cornerstone.errors import CornerstoneError
from cornerstone.evaluation.judged import Judged
from cornerstone.evaluation.tasks import Encoded, EvaluationSet

ROWS_AT_ONCE = 256
"""Images, or texts, of one forward pass: a batch may hold as many rows as a training step."""
Gather = Callable[[Any], list[Any]]


class Encoder(Protocol):
    """What evaluation needs of a model. Corner tokens are not computed."""

    def encode_image(self, image: Tensor) -> Tensor:
        """(B, D) from images or stored features."""
        ...

    def encode_text(self, ids: Tensor, lengths: Tensor) -> Tensor:
        """(B, D) of the CLS token from token ids (B, T) and lengths (B,)."""
        ...


@dataclass
class _Seen:
    """Features of the rows of one set that this worker has seen, in that order; on the CPU, in fp32."""

    rows: list[Tensor] = field(default_factory=list)
    images: list[Tensor] = field(default_factory=list)
    labels: list[Tensor] = field(default_factory=list)
    groups: list[str] = field(default_factory=list)
    texts: list[Tensor] = field(default_factory=list)
    text_rows: list[Tensor] = field(default_factory=list)
    text_places: list[Tensor] = field(default_factory=list)
    text_keys: list[Tensor] = field(default_factory=list)
    left_out: int = 0
    """Rows whose image could not be used."""


@torch.no_grad()
def evaluate(
    model: Encoder,
    batches: Iterable[tuple[int, Batch]],
    sets: Sequence[EvaluationSet],
    texts: TextFormat,
    device: torch.device,
    gather: Gather = lambda value: [value],
) -> tuple[Judged, ...]:
    """The result of every set, in their order.

    `batches` come with the place of their set; `texts` is the model's text format, for class prompts. `gather` collects the
    workers' values on every worker (all-gather); every worker returns the same results.
    """
    seen = [_Seen() for _ in sets]
    for place, batch in batches:
        if not isinstance(batch, EvaluationBatch):
            raise TypeError(f"a {type(batch).__name__} is no batch of an evaluation set")
        _encode(model, batch, seen[place], device)

    def encode(prompts: Sequence[str]) -> Tensor:
        return encode_texts(model, *pad_lists(texts.encode_texts(prompts)), device)

    results = []
    for judged, parts in zip(sets, zip(*gather(seen), strict=True), strict=True):
        measured = judged.task.judge(judged, _merged(judged, parts), encode)
        results.append(Judged(judged.name, judged.task.name, measured, sum(part.left_out for part in parts)))
    return tuple(results)


def _encode(model: Encoder, batch: EvaluationBatch, seen: _Seen, device: torch.device) -> None:
    seen.left_out += len(batch.bad)
    if len(batch.row) == 0:
        return
    seen.rows.append(batch.row)
    for part in batch.image.split(ROWS_AT_ONCE):
        seen.images.append(model.encode_image(part.to(device)).float().cpu())
    seen.labels.append(batch.label)
    seen.groups += batch.group
    kept = batch.text_length > 0
    if kept.any():
        ids, lengths = batch.text_ids[kept], batch.text_length[kept]
        seen.texts.append(encode_texts(model, ids, lengths, device))
        seen.text_rows.append(batch.text_row[kept])
        seen.text_places.append(batch.text_place[kept])
        seen.text_keys.append(batch.text_key[kept])


def encode_texts(model: Encoder, ids: Tensor, lengths: Tensor, device: torch.device) -> Tensor:
    """CLS features (N, D), fp32 on the CPU. Texts are sorted by length, so that each pass has little padding."""
    order = torch.argsort(lengths)
    out: list[Tensor] = []
    for chosen in order.split(ROWS_AT_ONCE):
        longest = int(lengths[chosen].max())
        out.append(model.encode_text(ids[chosen, :longest].to(device), lengths[chosen].to(device)).float().cpu())
    return torch.cat(out)[torch.argsort(order)]


def _merged(judged: EvaluationSet, parts: Sequence[_Seen]) -> Encoded:
    """The features of all workers, ordered by row, so that the result does not depend on the number of workers."""
    if not any(part.rows for part in parts):
        raise CornerstoneError(f"Evaluation set {judged.name!r} has no usable row: {judged.rows} were refused.")
    rows = torch.cat([r for p in parts for r in p.rows])
    order = torch.argsort(rows)
    images = torch.cat([x for p in parts for x in p.images])[order]
    labels = torch.cat([x for p in parts for x in p.labels])[order]
    groups = [g for p in parts for g in p.groups]
    groups = [groups[i] for i in order.tolist()]
    texts = [t for p in parts for t in p.texts]
    if not texts:
        if judged.view:
            raise CornerstoneError(f"Evaluation set {judged.name!r} has no usable text to judge.")
        none = torch.zeros(0, dtype=torch.int64)
        return Encoded(images, labels, tuple(groups), images[:0], none, none, none)
    text_rows = torch.cat([t for p in parts for t in p.text_rows])
    places = torch.cat([t for p in parts for t in p.text_places])
    keys = torch.cat([t for p in parts for t in p.text_keys])
    by_row = torch.argsort(text_rows * (int(places.max()) + 1) + places)
    owner = torch.searchsorted(rows[order], text_rows[by_row])
    return Encoded(images, labels, tuple(groups), torch.cat(texts)[by_row], owner, places[by_row], keys[by_row])
