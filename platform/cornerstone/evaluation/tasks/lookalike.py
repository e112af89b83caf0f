"""Choosing the image of a text among images that look alike, which retrieval from a gallery of unlike images cannot test.

Shape legend: N images, each with one text, S images of the largest group, K images that are judged, D feature width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from cornerstone.data.manifest import LOOKALIKE
from cornerstone.data.pairs.views import View, Wanted
from cornerstone.errors import CornerstoneError
from cornerstone.evaluation.ranking import CHUNK, TIE, Measured, Similarity, cosine, normalised, percent
from cornerstone.evaluation.tasks.pair_task import Encoded, EncodeTexts, PairTask
from cornerstone.evaluation.tasks.task import Contents, EvaluationSet, Metric

TEXTS = {
    "long": Wanted("long", every=False),
    "short": Wanted("raw", every=False),
    "first_sentence": Wanted("long", every=False, sentences=1),
}
"""The three texts that are judged one after another, each with a metric of its own."""


@dataclass(frozen=True)
class Lookalike(PairTask):
    """Accuracy of choosing among the images of a group: by the long caption, the raw one, and the first sentence alone."""

    name = LOOKALIKE
    metrics = (
        Metric("long_accuracy", "long text"),
        Metric("short_accuracy", "short text"),
        Metric("first_sentence_accuracy", "first sentence"),
    )

    def views(self, contents: Contents) -> dict[str, View]:
        """One set with all three texts of each row."""
        return {"": tuple(TEXTS.values())}

    def notes(self, judged: EvaluationSet) -> tuple[str, ...]:
        """What is compared."""
        return (
            f"{judged.name}: how often a text is nearer to its own image than to the other images of its group, which look "
            f"alike; by its long text, its short one, and the first sentence of the long one alone.",
        )

    def judge(self, judged: EvaluationSet, encoded: Encoded, encode_texts: EncodeTexts) -> Measured:
        """Judge each kind of text by itself, on the rows that have it."""
        result = Measured({}, {})
        for place, kind in enumerate(TEXTS):
            chosen_T = encoded.place_T == place
            owner_N = encoded.owner_T[chosen_T]
            groups = [encoded.groups[image] for image in owner_N.tolist()]
            images, texts = encoded.image_ND[owner_N], encoded.text_TD[chosen_T]
            measured = choose_among_lookalikes(images, texts, groups, similarity=encoded.text_similarity)
            metric = f"{kind}_accuracy"
            result.metrics[metric] = measured.metrics["accuracy"]
            result.correct[metric] = measured.correct["accuracy"]
            result.chance[metric] = measured.chance["accuracy"]
            result.cluster[metric] = owner_N[measured.cluster["accuracy"]]
            result.counts.update({f"{kind}_{name}": count for name, count in measured.counts.items()})
        return result


def choose_among_lookalikes(
    image_ND: Tensor,
    text_ND: Tensor,
    groups: Sequence[str | int | None],
    *,
    chunk: int = CHUNK,
    similarity: Similarity = cosine,
) -> Measured:
    """`accuracy` in percent: how often text n is nearer to image n than to any other image of its group.

    `groups` names each image's group, None or "" for none. Images without a group, or alone in theirs, are left out. If
    all images of a group have the same text, no model can be better than chance. Ties count as wrong; similarities are
    in fp32. `cluster` gives each query the index of its group's first image.
    """
    if not len(image_ND) == len(text_ND) == len(groups):
        raise CornerstoneError(
            f"{len(image_ND)} images, {len(text_ND)} texts, {len(groups)} groups: expected the same number of each."
        )
    member_NS = _members(groups)
    size_N = (member_NS >= 0).sum(dim=1)
    judged_K = torch.nonzero(size_N > 1).flatten()
    if len(judged_K) == 0:
        raise CornerstoneError("No group has two or more images: this set has no look-alikes to choose among.")
    image_ND, text_ND = normalised(image_ND), normalised(text_ND)
    correct_K = torch.cat([_nearest(image_ND, text_ND, part, member_NS, similarity) for part in judged_K.split(chunk)])
    return Measured(
        metrics={"accuracy": percent(correct_K)},
        counts={
            "images": len(judged_K),
            "groups": len(member_NS[judged_K, 0].unique()),
            "images_left_out": len(groups) - len(judged_K),
        },
        correct={"accuracy": correct_K},
        cluster={"accuracy": member_NS[judged_K, 0]},
        chance={"accuracy": 100 * float((1 / size_N[judged_K].double()).mean())},
    )


def _nearest(image_ND: Tensor, text_ND: Tensor, query_K: Tensor, member_NS: Tensor, similarity: Similarity) -> Tensor:
    member_KS = member_NS[query_K]
    candidate_KSD = image_ND[member_KS.clamp(min=0).to(image_ND.device)]
    text_K1D = text_ND[query_K.to(text_ND.device)][:, None]
    similarity_KS = torch.vmap(similarity)(candidate_KSD, text_K1D)[..., 0].cpu()  # of each text and its own group
    own_KS = member_KS == query_K[:, None]
    own_K1 = similarity_KS[own_KS][:, None]
    before_KS = (member_KS >= 0) & ~own_KS & ~(similarity_KS < own_K1 - TIE)
    return ~before_KS.any(dim=1)


def _members(groups: Sequence[str | int | None]) -> Tensor:
    """For each image the images of its group including itself, (N, S), padded with -1; -1 alone if it has no group."""
    by_group: dict[str | int, list[int]] = {}
    for image, group in enumerate(groups):
        if group is not None and group != "":
            by_group.setdefault(group, []).append(image)
    member_NS = torch.full((len(groups), max(map(len, by_group.values()), default=0)), -1, dtype=torch.int64)
    for images in by_group.values():
        member_NS[torch.tensor(images), : len(images)] = torch.tensor(images)
    return member_NS
