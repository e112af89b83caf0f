"""Zero-shot evaluation of a model in a stream: encode batches as they come, judge each set when all have been seen."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor

from cornerstone.data.batch import pad_lists
from cornerstone.data.pairs.batch import EvaluationBatch
from cornerstone.data.texts import TextFormat
from cornerstone.errors import CornerstoneError
from cornerstone.evaluation.classification import classify
from cornerstone.evaluation.lookalike import choose_among_lookalikes
from cornerstone.evaluation.retrieval import retrieve
from cornerstone.evaluation.sets import EvaluationSet

TEXTS_AT_ONCE = 256
Gather = Callable[[Any], list[Any]]
LEFT_OUT = "rows_left_out"
LOOKALIKE_VIEWS = ("long", "short", "first_sentence")


class Encoder(Protocol):
    """The part of a method that evaluation needs; retrieval reads CLS alone."""

    def encode_image(self, image: Tensor) -> Tensor:
        """(B, D) from images or stored features."""
        ...

    def encode_text(self, ids: Tensor, lengths: Tensor) -> Tensor:
        """(B, D) of CLS from token ids (B, T) and lengths (B,)."""
        ...


@dataclass
class _Seen:
    """Features of one set, in the order in which this worker saw them; on the CPU, in fp32."""

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
    batches: Iterable[tuple[int, EvaluationBatch]],
    sets: tuple[EvaluationSet, ...],
    tokenizer: TextFormat,
    device: torch.device,
    gather: Gather = lambda value: [value],
) -> dict[str, float]:
    """`eval/<set>/<metric>` for every set, in percent, and the count `eval/<set>/rows_left_out` where rows were unusable.

    `gather` brings together what the workers saw; all of them get the result.
    """
    seen = [_Seen() for _ in sets]
    for place, batch in batches:
        _encode(model, batch, seen[place], device)
    metrics: dict[str, float] = {}
    for judged, parts in zip(sets, zip(*gather(seen), strict=True), strict=True):
        if not any(part.rows for part in parts):
            raise CornerstoneError(f"Evaluation set {judged.name!r} has no usable row: {judged.rows} were refused.")
        for name, value in _judge(model, judged, _merged(parts), tokenizer, device).items():
            metrics[f"eval/{judged.name}/{name}"] = value
        if left_out := sum(part.left_out for part in parts):
            metrics[f"eval/{judged.name}/{LEFT_OUT}"] = float(left_out)
    return metrics


def _encode(model: Encoder, batch: EvaluationBatch, seen: _Seen, device: torch.device) -> None:
    seen.left_out += len(batch.bad)
    if len(batch.row) == 0:
        return
    seen.rows.append(batch.row)
    seen.images.append(model.encode_image(batch.image.to(device)).float().cpu())
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
    """CLS features (N, D) fp32 on the CPU; texts of like length are encoded together, and none beyond its length."""
    order = torch.argsort(lengths)
    out: list[Tensor] = []
    for chosen in order.split(TEXTS_AT_ONCE):
        longest = int(lengths[chosen].max())
        out.append(model.encode_text(ids[chosen, :longest].to(device), lengths[chosen].to(device)).float().cpu())
    return torch.cat(out)[torch.argsort(order)]


def _merged(parts: tuple[_Seen, ...]) -> _Seen:
    """What all workers saw, in the order of the rows, so that the result does not depend on their number."""
    rows = torch.cat([r for p in parts for r in p.rows])
    order = torch.argsort(rows)
    merged = _Seen(rows=[rows[order]])
    merged.images = [torch.cat([x for p in parts for x in p.images])[order]]
    merged.labels = [torch.cat([x for p in parts for x in p.labels])[order]]
    groups = [g for p in parts for g in p.groups]
    merged.groups = [groups[i] for i in order.tolist()]
    texts = [t for p in parts for t in p.texts]
    if texts:
        text_rows = torch.cat([t for p in parts for t in p.text_rows])
        places = torch.cat([t for p in parts for t in p.text_places])
        by_row = torch.argsort(text_rows * (int(places.max()) + 1) + places)
        merged.texts, merged.text_rows = [torch.cat(texts)[by_row]], [text_rows[by_row]]
        merged.text_places = [places[by_row]]
        merged.text_keys = [torch.cat([t for p in parts for t in p.text_keys])[by_row]]
    return merged


def _judge(
    model: Encoder, judged: EvaluationSet, seen: _Seen, tokenizer: TextFormat, device: torch.device
) -> dict[str, float]:
    images = seen.images[0]
    if judged.task == "classification":
        prompts = [p.replace("{}", c) for c in judged.classes for p in judged.prompts or ("{}",)]
        features = encode_texts(model, *pad_lists(tokenizer.encode_texts(prompts)), device)
        return classify(images, features.view(len(judged.classes), -1, features.shape[-1]), seen.labels[0]).metrics
    if not seen.texts:
        raise CornerstoneError(f"Evaluation set {judged.name!r} has no usable text to judge.")
    texts, owner = seen.texts[0], torch.searchsorted(seen.rows[0], seen.text_rows[0])
    if judged.task == "retrieval":
        return retrieve(images, texts, owner, text_keys=seen.text_keys[0], pool=judged.pool).metrics
    metrics = {}
    for place, view in enumerate(LOOKALIKE_VIEWS):
        chosen = seen.text_places[0] == place
        groups = [seen.groups[i] for i in owner[chosen].tolist()]
        measured = choose_among_lookalikes(images[owner[chosen]], texts[chosen], groups)
        metrics[f"{view}_accuracy"] = measured.metrics["accuracy"]
    return metrics
