"""Zero-shot retrieval, from image to text and from text to image.

Shape legend: N images, T texts, K the largest number of texts of an image, D feature width, C queries of a chunk.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from cornerstone.data.manifest import RETRIEVAL
from cornerstone.data.pairs.views import View, Wanted
from cornerstone.errors import CornerstoneError
from cornerstone.evaluation.ranking import CHUNK, Measured, Similarity, cosine, normalised, percent, ranks
from cornerstone.evaluation.tasks.pair_task import Encoded, EncodeTexts, PairTask
from cornerstone.evaluation.tasks.task import Contents, EvaluationSet, Metric

AT = (1, 5)
LONG: View = (Wanted("long"),)
CLEANED: View = (Wanted("long", cleaned=True),)
"""Long texts of the paper's sets, as its authors clean them."""
RAW: View = (Wanted("raw"),)


@dataclass(frozen=True)
class Retrieval(PairTask):
    """Recall at 1 and 5 between the images of a set and their captions."""

    name = RETRIEVAL
    metrics = (
        Metric("i2t_r1", "i→t R@1"),
        Metric("t2i_r1", "t→i R@1"),
        Metric("i2t_r5", "i→t R@5", shown=False),
        Metric("t2i_r5", "t→i R@5", shown=False),
    )

    def applies(self, contents: Contents) -> bool:
        """Rows with captions are judged by retrieval."""
        return bool(contents.roles)

    def views(self, contents: Contents) -> dict[str, View]:
        """A folder with both long and raw captions gives two sets: NAME reads the long ones, NAME-short the raw ones."""
        long = CLEANED if contents.cleaned else LONG
        if {"long", "raw"} <= contents.roles:
            return {"": long, "-short": RAW}
        return {"": long if "long" in contents.roles else RAW}

    def judge(self, judged: EvaluationSet, encoded: Encoded, encode_texts: EncodeTexts) -> Measured:
        """Compare all images with all texts, or those of each pool if the manifest names a pool size."""
        return retrieve(
            encoded.image_ND,
            encoded.text_TD,
            encoded.owner_T,
            text_keys=encoded.key_T,
            pool=judged.pool,
            similarity=encoded.similarity,
            text_similarity=encoded.text_similarity,
        )

    def notes(self, judged: EvaluationSet) -> tuple[str, ...]:
        """Recall over a pool is higher than over a whole set: the pool's size must be known."""
        return (f"Retrieval in pools of {judged.pool:,} images.",) if judged.pool else ()


def is_long(view: View) -> bool:
    """Whether a set is searched with long texts."""
    return bool(view) and all(wanted.role == "long" for wanted in view)


def retrieve(
    image_ND: Tensor,
    text_TD: Tensor,
    owner_T: Tensor,
    *,
    text_keys: Tensor | None = None,
    pool: int | None = None,
    chunk: int = CHUNK,
    similarity: Similarity = cosine,
    text_similarity: Similarity | None = None,
) -> Measured:
    """R@1 and R@5 from image to text (`i2t_r1`, `i2t_r5`) and from text to image (`t2i_r1`, `t2i_r5`), in percent.

    `owner_T` gives each text's image; an image may have any number of texts. An image finds any of its texts among all
    texts of the pool; a text finds its image among all images. Features are normalised here, in fp32, and compared by
    `similarity`, those that a text looks for by `text_similarity` (None: by the same); ties count as wrong (`ranking.ranks`).

    `text_keys` (T,) are equal for identical texts, which then count as one text: for an image that has it every copy is
    correct, and for the text every image that has it. Without keys, copies that belong to other images are wrong items;
    they tie with the right one and therefore rank before it.

    With a `pool`, consecutive pools of that many images are judged separately and their recalls are averaged. A smaller
    last pool is left out (`images_left_out`) unless it is the only one.
    """
    n, size = len(image_ND), pool or max(1, len(image_ND))
    _check(n, text_TD, owner_T, text_keys, pool)
    image_ND, text_TD = normalised(image_ND), normalised(text_TD)
    key_T = torch.arange(len(text_TD)) if text_keys is None else text_keys.unique(return_inverse=True)[1]
    id_T = key_T.to(text_TD.device)
    owner_T = owner_T.to(text_TD.device)
    pools = max(1, n // size)
    hits: dict[str, list[Tensor]] = {f"{way}_r{k}": [] for way in ("i2t", "t2i") for k in AT}
    clusters: dict[str, list[Tensor]] = {"i2t": [], "t2i": []}
    chances: dict[str, list[Callable[[int], float]]] = {"i2t": [], "t2i": []}
    for start in range(0, pools * size, size):
        images = torch.arange(start, min(start + size, n), device=text_TD.device)
        members = torch.nonzero((owner_T >= start) & (owner_T < start + size)).flatten()
        owners = owner_T[members] - start
        found = _judge(
            image_ND[images],
            text_TD[members],
            owners,
            id_T[members],
            chunk,
            (similarity, text_similarity or similarity),
        )
        texts_of_each = torch.bincount(owners).tolist()
        chances["i2t"].append(_chance([count for count in texts_of_each if count], len(members)))
        chances["t2i"].append(_chance([1], len(images)))
        for way, (rank, query) in found.items():
            clusters[way].append(query + start)
            for k in AT:
                hits[f"{way}_r{k}"].append(rank < k)
    judged = min(n, pools * size)
    return Measured(
        metrics={name: round(sum(map(percent, parts)) / pools, 10) for name, parts in hits.items()},
        counts={
            "images": judged,
            "texts": sum(len(part) for part in clusters["t2i"]),
            "pools": pools,
            "images_left_out": n - judged,
            "images_without_text": judged - sum(len(part) for part in clusters["i2t"]),
        },
        correct={name: torch.cat(parts).cpu() for name, parts in hits.items()},
        cluster={name: torch.cat(clusters[name[:3]]).cpu() for name in hits},
        chance={f"{way}_r{k}": sum(lucky(k) for lucky in chances[way]) / pools for way in chances for k in AT},
    )


def _chance(right: Sequence[int], gallery: int) -> Callable[[int], float]:
    """Recall at k, in percent, of a random order of the gallery, for queries with so many right items."""

    def lucky(k: int) -> float:
        k = min(k, gallery)
        missed = [math.comb(gallery - r, k) / math.comb(gallery, k) for r in right]
        return 100 * (1 - sum(missed) / max(len(missed), 1))

    return lucky


def _judge(
    image_ND: Tensor,
    text_TD: Tensor,
    owner_T: Tensor,
    id_T: Tensor,
    chunk: int,
    similarities: tuple[Similarity, Similarity],
) -> dict[str, tuple[Tensor, Tensor]]:
    """For each direction the ranks of its queries and the image of each query.

    An image without a text is no query, but it is in the gallery.
    """
    id_NK = _texts_of_images(owner_T, id_T, len(image_ND))
    asking = torch.nonzero((id_NK >= 0).any(dim=1)).flatten()

    def right_texts(part: slice) -> Tensor:
        return _any_equal(id_NK[asking[part]], id_T)

    def right_images(part: slice) -> Tensor:
        return _any_equal(id_NK, id_T[part]).T

    of_images, of_texts = similarities

    def turned(text_CD: Tensor, image_ND: Tensor) -> Tensor:
        return of_texts(image_ND, text_CD).T

    return {
        "i2t": (ranks(image_ND[asking], text_TD, right_texts, chunk, of_images), asking),
        "t2i": (ranks(text_TD, image_ND, right_images, chunk, turned), owner_T),
    }


def _any_equal(id_NK: Tensor, id_T: Tensor) -> Tensor:
    """Bool (N, T): whether text t belongs to image n. Computed column by column, so that no (N, T, K) tensor is held."""
    right_NT = torch.zeros(len(id_NK), len(id_T), dtype=torch.bool, device=id_T.device)
    for id_N in id_NK.unbind(dim=1):
        right_NT |= id_N[:, None] == id_T[None, :]
    return right_NT


def _texts_of_images(owner_T: Tensor, id_T: Tensor, n: int) -> Tensor:
    """The ids of each image's texts, (N, K), padded with -1."""
    order = torch.argsort(owner_T, stable=True)
    sorted_owner = owner_T[order]
    count_N = torch.bincount(owner_T, minlength=n)
    first_N = count_N.cumsum(0) - count_N
    place_T = torch.arange(len(owner_T), device=owner_T.device) - first_N[sorted_owner]
    id_NK = torch.full((n, int(count_N.max()) if n else 0), -1, dtype=torch.int64, device=owner_T.device)
    id_NK[sorted_owner, place_T] = id_T[order]
    return id_NK


def _check(n: int, text_TD: Tensor, owner_T: Tensor, text_keys: Tensor | None, pool: int | None) -> None:
    if n == 0 or len(text_TD) == 0:
        raise CornerstoneError(f"Retrieval over {n} images and {len(text_TD)} texts: expected at least one of each.")
    for name, given in (("owners", owner_T), ("keys", text_keys)):
        if given is not None and len(given) != len(text_TD):
            raise CornerstoneError(f"{len(text_TD)} text features with {len(given)} {name}: expected one per text.")
    if int(owner_T.min()) < 0 or int(owner_T.max()) >= n:
        raise CornerstoneError(f"Owners from {int(owner_T.min())} to {int(owner_T.max())}: expected 0 to {n - 1}.")
    if pool is not None and pool < 1:
        raise CornerstoneError(f"Pools of {pool} images: expected 1 or more, or no pool to search the whole set.")
