"""What a token limit costs and loses: the operations of a text, and the share of evaluation texts that it cuts."""

from __future__ import annotations

import math
from functools import cache

from cornerstone.data.texts import TextInput
from cornerstone.evaluation.offline import text_lengths
from cornerstone.evaluation.sets import EvaluationSet
from cornerstone.evaluation.tasks.retrieval import Retrieval
from cornerstone.recipes.method import imported
from cornerstone.sweeps.table import Aside
from cornerstone.training.prepared import Prepared

UNLIMITED = 2**31 - 1
"""Tokens."""


def text_cost(prepared: Prepared, token_limit: int = 0) -> list[Aside]:
    """GFLOPs of the text encoder for a text that fills the limit, and for each retrieval set the share of texts cut at it.

    `token_limit` 0 is the recipe's. The operations are those of one text's feature as retrieval reads it, by the formula of
    the tower's module (`TextTower.flops`; of a BERT `models.bert.bert_flops`), and are left out if it has none.
    """
    text, texts = prepared.recipe.method.text_tower, prepared.evaluation_texts
    if text is None or texts is None:
        return []
    limit = token_limit or text.token_limit
    operations = imported(text.implementation).flops(text, limit, prepared.image_width) / 1e9
    asides = [] if math.isnan(operations) else [Aside("text encoder", "GFLOPs a text", operations, drawn=True)]
    chooses = prepared.recipe.evaluation.best.removeprefix("eval/").rpartition("/")[0]
    for judged in prepared.sets:
        if isinstance(judged.task, Retrieval) and not judged.max_tokens and judged.name != chooses:
            lengths = _lengths(judged, texts.with_limit(UNLIMITED))
            share = sum(length > limit - text.reserved_tokens for length in lengths) / max(len(lengths), 1)
            asides.append(Aside(f"{judged.name} cut", "% of texts", 100 * share))
    return asides


@cache
def _lengths(judged: EvaluationSet, texts: TextInput) -> list[int]:
    """Of each text of the set: the rows of a sweep share sets and tokenizer."""
    return text_lengths(judged, texts.open())
