"""Generated captions against references: BLEU, ROUGE-L and CIDEr, as COCO's evaluation computes them.

N images.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from cornerstone.errors import CornerstoneError
from cornerstone.evaluation.ptb import Tokenize, tokenizer

FEWEST = 1_000
"""Images below which a CIDEr is not to be compared: it weighs words by how rare they are among the test set's references."""


@dataclass(frozen=True)
class CaptionScores:
    """Scores of a set, × 100 as papers print them, and of each image in the order of the candidates.

    BLEU of a set is no mean of its images': n-grams and lengths are added up over the set first.
    """

    bleu: tuple[float, float, float, float]
    """BLEU@1 to BLEU@4."""
    rouge_l: float
    cider: float
    rouge_l_N: npt.NDArray[np.float64] = field(repr=False)
    cider_N: npt.NDArray[np.float64] = field(repr=False)
    notes: tuple[str, ...] = ()

    @property
    def metrics(self) -> dict[str, float]:
        """By the names that results and tables use."""
        named = {f"bleu{n}": value for n, value in enumerate(self.bleu, 1)}
        return {**named, "rouge_l": self.rouge_l, "cider": self.cider}


def score_captions(
    candidates: Mapping[str, str],
    references: Mapping[str, Sequence[str]],
    tokenize: Tokenize | None = None,
    say: Callable[[str], None] = print,
) -> CaptionScores:
    """Scores of one caption for each image, by the image's key.

    `tokenize` is by default Stanford's, or without Java the rules of `evaluation.ptb`, which is said. Raises CornerstoneError
    for images without a candidate or without references: leaving images out would change the score.
    """
    _check(candidates, references)
    from pycocoevalcap.bleu.bleu import Bleu
    from pycocoevalcap.cider.cider import Cider
    from pycocoevalcap.rouge.rouge import Rouge

    keys = list(candidates)
    found = iter((tokenize or tokenizer(say))([text for key in keys for text in (candidates[key], *references[key])]))
    tokens = {key: [next(found) for _ in range(1 + len(references[key]))] for key in keys}
    ours = {key: [texts[0]] for key, texts in tokens.items()}
    theirs = {key: texts[1:] for key, texts in tokens.items()}
    bleu, _ = Bleu(4).compute_score(theirs, ours, verbose=0)
    rouge_l, rouge_l_N = Rouge().compute_score(theirs, ours)
    cider, cider_N = Cider().compute_score(theirs, ours)
    one, two, three, four = (100 * float(value) for value in bleu)
    return CaptionScores(
        bleu=(one, two, three, four),
        rouge_l=100 * float(rouge_l),
        cider=100 * float(cider),
        rouge_l_N=100 * np.asarray(rouge_l_N, dtype=np.float64),
        cider_N=100 * np.asarray(cider_N, dtype=np.float64),
        notes=_notes(len(keys)),
    )


def _check(candidates: Mapping[str, str], references: Mapping[str, Sequence[str]]) -> None:
    if not candidates:
        raise CornerstoneError("No candidate captions were given: expected one for each image.")
    lacking = [key for key in candidates if not references.get(key)]
    unnamed = [key for key in references if key not in candidates]
    if lacking:
        raise CornerstoneError(
            f"{len(lacking)} images have a candidate but no reference caption, {lacking[0]!r} among them: expected one or more "
            f"references for each image."
        )
    if unnamed:
        raise CornerstoneError(
            f"{len(unnamed)} of {len(references)} images with references have no candidate, {unnamed[0]!r} among them: a score "
            f"over the others is not comparable. Give a caption for each image, an empty one if there is none."
        )


def _notes(images: int) -> tuple[str, ...]:
    if images >= FEWEST:
        return ()
    return (
        f"CIDEr weighs words by how rare they are among the references of these {images:,} images: it is comparable only "
        f"between models on the same images, not with published values.",
    )
