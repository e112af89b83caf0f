"""The same documents as packed sequences and as pairs."""

from __future__ import annotations

import pytest

from cornerstone.errors import CornerstoneError
from cornerstone.recipes import DocumentData, SceneDocuments
from cornerstone.recipes.options import RunOptions, parse


def test_the_pairs_of_documents_have_what_their_data_say():
    documents = DocumentData(
        tokenizer="t", crop_scale=(0.5, 1.0), bad_row_limit=0.2, scenes=SceneDocuments(documents=7)
    )
    pairs = documents.as_pairs()
    assert (pairs.kind, pairs.train, pairs.tokenizer, pairs.crop_scale) == ("pairs", "", "t", (0.5, 1.0))
    assert (pairs.bad_row_limit, pairs.sub_captions, pairs.documents) == (0.2, 0, SceneDocuments(documents=7))
    assert pairs.limit_rows is None
    assert DocumentData(train="packed", pairs="pairs").as_pairs().train == "pairs"
    assert DocumentData(limit_rows=100, images_per_sequence=2.5).as_pairs().limit_rows == 250
    with pytest.raises(CornerstoneError, match=r"packed are not there as pairs: .* --recipe.data.pairs DIR"):
        DocumentData(train="packed").as_pairs()
    with pytest.raises(CornerstoneError, match=r"0 images per sequence.*--recipe.data.images-per-sequence"):
        DocumentData(images_per_sequence=0)


def test_the_documents_behind_the_pairs_are_options():
    given = ["--preset", "scenes-coca", "--recipe.data.documents.redundancy", "0", "--recipe.method.text.layers", "1"]
    recipe, _ = parse(RunOptions, given, "x", "").resolved()
    assert recipe.data.documents.redundancy == 0
    assert recipe.method.text.layers == 1
