"""Telling a text from the same text with one sentence made false: which sentences of a long text does a model read at all?

LoTLIP, Figure 1, as a number: salient tokens overshadow the others, and where they stand in the text does not matter. So each
sentence is judged by its place and by whether it is about what is salient, and once more with the sentences shuffled.

Shape legend: T texts, F foils, D feature width.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from cornerstone.data.manifest import SENTENCE_SWAP
from cornerstone.data.pairs.views import About, View, Wanted
from cornerstone.errors import CornerstoneError
from cornerstone.evaluation.ranking import CHUNK, TIE, Measured, Similarity, normalised, percent
from cornerstone.evaluation.tasks.pair_task import Encoded, EncodeTexts, PairTask
from cornerstone.evaluation.tasks.task import Contents, EvaluationSet, Metric

SALIENT = "salient"
"""How the source of a foil begins that makes a sentence about the salient object false."""
PLACES = {"1": range(1), "2–3": range(1, 3), "4–6": range(3, 6), "7 and later": range(6, 1 << 30)}
"""Sentences that are counted together, by their places in the text, from 0."""
CHANCE = 50.0


class Swapped(NamedTuple):
    """Foils with what is known of them; of texts as they are, or with shuffled sentences."""

    foil: list[int]
    """Index of each foil among the texts."""
    true: list[int]
    """That of the true text."""
    place: list[int]
    """Which sentence is false; -1 if it is not exactly one."""
    salient: list[bool]


@dataclass(frozen=True)
class SentenceSwap(PairTask):
    """How often an image is nearer to its text than to the same text with one false sentence; ties count as wrong.

    A row has a long caption (the first one is taken; in a set without any the first raw one) and foils: captions of the role
    `foil`, each the same text with one other sentence. A foil whose source begins with `salient` is about the salient object.
    Metrics for which a set has no foils are left out.
    """

    name = SENTENCE_SWAP
    metrics = (
        Metric("swap", "one false sentence"),
        Metric("swap_salient", "salient sentence"),
        Metric("swap_other", "other sentences"),
        *(Metric(f"swap_place_{place[0]}", f"sentence {place}") for place in PLACES),
        Metric("shuffled", "shuffled"),
        Metric("shuffled_salient", "shuffled, salient"),
        Metric("shuffled_other", "shuffled, others"),
        *(Metric(f"shuffled_place_{place[0]}", f"shuffled, sentence {place}", shown=False) for place in PLACES),
    )

    def applies(self, contents: Contents) -> bool:
        """Rows with foils are judged by it."""
        return "foil" in contents.roles

    def views(self, contents: Contents) -> dict[str, View]:
        """One set: the text and its foils, and the same with their sentences shuffled."""
        role = "long" if "long" in contents.roles else "raw"
        return {
            "": (
                *(Wanted(role, every=False), Wanted("foil")),
                *(Wanted(role, every=False, shuffled=True), Wanted("foil", shuffled=True)),
            )
        }

    def notes(self, judged: EvaluationSet) -> tuple[str, ...]:
        """What is compared."""
        return (
            f"{judged.name}: how often an image is nearer to its text than to the same text with one sentence made false, by "
            f"that sentence's place and salience; 'shuffled': both with their sentences in another order. A sentence that the "
            f"token limit cuts off makes a tie, which is wrong, so its share can be below the {CHANCE:.0f} % of chance.",
        )

    def judge(self, judged: EvaluationSet, encoded: Encoded, encode_texts: EncodeTexts) -> Measured:
        """Judge each foil, as it is and shuffled."""
        owner_T, about = encoded.owner_T.tolist(), encoded.about
        found = {"swap": swapped(owner_T, about, 0, 1), "shuffled": swapped(owner_T, about, 2, 3, least=2)}
        if not found["swap"].foil:
            raise CornerstoneError(
                f"No row of {judged.name!r} has both a text and a foil: import captions of the role foil (`cornerstone data "
                f"import FORMAT SRC --long FIELD --foil FIELD`), or judge it by another task."
            )
        result = _Result(encoded)
        for name, foils in found.items():
            result.add(name, foils)
        return result.measured()


@dataclass
class _Result:
    encoded: Encoded
    correct: dict[str, Tensor] = field(default_factory=dict)
    cluster: dict[str, Tensor] = field(default_factory=dict)
    counts: Counter[str] = field(default_factory=Counter)

    def add(self, name: str, foils: Swapped) -> None:
        """Judge foils, and share them out by salience and by place."""
        true_F, foil_F = torch.tensor(foils.true).long(), torch.tensor(foils.foil).long()
        owner_F = self.encoded.owner_T[foil_F]
        gap_F = nearer(self.encoded, owner_F, true_F, foil_F)
        salient_F, place_F = torch.tensor(foils.salient).bool(), torch.tensor(foils.place)
        shares = {"": torch.ones_like(salient_F)}
        if salient_F.any():
            shares |= {"_salient": salient_F, "_other": ~salient_F}
        for place, numbers in PLACES.items():
            shares[f"_place_{place[0]}"] = (place_F >= numbers.start) & (place_F < numbers.stop)
        for share, chosen_F in shares.items():
            if chosen_F.any():
                self.correct[name + share] = gap_F[chosen_F] > TIE  # NaN is wrong too
                self.cluster[name + share] = owner_F[chosen_F]
        prefix = "" if name == "swap" else f"{name}_"
        self.counts[f"{prefix}foils"] = len(gap_F)
        self.counts[f"{prefix}ties"] = int((gap_F.abs() <= TIE).sum())
        self.counts[f"{prefix}foils_of_unknown_place"] = int((place_F < 0).sum())

    def measured(self) -> Measured:
        """The result of all that was added."""
        return Measured(
            metrics={name: percent(correct) for name, correct in self.correct.items()},
            counts={"images": len(self.cluster["swap"].unique()), **self.counts},
            correct=self.correct,
            cluster=self.cluster,
            chance=dict.fromkeys(self.correct, CHANCE),
        )


def swapped(
    owner_T: Sequence[int], about: Sequence[About], true_part: int, foil_part: int, *, least: int = 1
) -> Swapped:
    """The foils of each image that has a text of `least` sentences or more; the parts are places in the view."""
    texts: dict[int, int] = {}
    for text, (owner, one) in enumerate(zip(owner_T, about, strict=True)):
        if one.part == true_part and len(one.sentences) >= least:
            texts[owner] = text
    result = Swapped([], [], [], [])
    for text, (owner, one) in enumerate(zip(owner_T, about, strict=True)):
        if one.part == foil_part and owner in texts:
            result.foil.append(text)
            result.true.append(texts[owner])
            result.place.append(only_difference(about[texts[owner]].sentences, one.sentences))
            result.salient.append(one.source.startswith(SALIENT))
    return result


def only_difference(one: Sequence[int], other: Sequence[int]) -> int:
    """The place of the only sentence in which two texts differ; -1 if there is none or several, or another number."""
    if len(one) != len(other):
        return -1
    places = [place for place, (a, b) in enumerate(zip(one, other, strict=True)) if a != b]
    return places[0] if len(places) == 1 else -1


def nearer(encoded: Encoded, owner_F: Tensor, true_F: Tensor, foil_F: Tensor) -> Tensor:
    """(F,) fp32: by how much image `owner` is nearer to text `true` than to text `foil`."""
    image_ND, text_TD = normalised(encoded.image_ND), normalised(encoded.text_TD)
    parts: Iterator[tuple[Tensor, ...]] = zip(*(x.split(CHUNK) for x in (owner_F, true_F, foil_F)), strict=True)
    gaps = [
        _each(encoded.similarity, image_ND[owner], text_TD[true])
        - _each(encoded.similarity, image_ND[owner], text_TD[foil])
        for owner, true, foil in parts
    ]
    return torch.cat(gaps).cpu() if gaps else torch.zeros(0)


def _each(similarity: Similarity, image_FD: Tensor, text_FD: Tensor) -> Tensor:
    """(F,): the similarity of each image with the text beside it."""
    return torch.vmap(similarity)(image_FD[:, None], text_FD[:, None])[:, 0, 0]
