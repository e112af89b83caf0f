"""The built-in documents, and what is derived from them for the comparison of pre-training data. No Ray."""

from __future__ import annotations

from dataclasses import replace

import pytest

from cornerstone.data.documents import PackingKeys
from cornerstone.data.mixture import Mixture
from cornerstone.data.shards import DataSet
from cornerstone.data.texts import FILE as TOKENIZER
from cornerstone.jobs.built_in_scenes import prepare_documents
from cornerstone.recipes.documents import SceneDocuments

SCENES = SceneDocuments(documents=60, validation=8, probe_images=16)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Every form of the documents, packed: the training folder and the evaluation sets."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CORNERSTONE_HOME", str(tmp_path_factory.mktemp("home")))
        forms = ("mmc4", "obelics", "laion-random", "laion-random + mmc4")
        yield {form: prepare_documents(replace(SCENES, form=form), 32, lambda text: None) for form in forms}


def test_the_forms_are_packed_from_the_same_images_by_their_own_rules(folders):
    rules = {form: [rule_of(data) for data in opened(made).sets] for form, made in folders.items()}
    assert rules == {
        "mmc4": ["mmc4"],
        "obelics": ["obelics"],
        "laion-random": ["laion"],
        "laion-random + mmc4": ["laion", "mmc4"],
    }
    (mmc4,), (random,) = (opened(folders[form]).sets for form in ("mmc4", "laion-random"))
    images = [data.manifest.source["packed"]["found"]["images"] for data in (mmc4, random)]
    assert images[0] == images[1] > 60
    mixed = opened(folders["laion-random + mmc4"])
    assert len(mixed) == len(mmc4) + len(random)
    assert len({made.sets for made in folders.values()}) == 1  # all are judged alike
    texts = {data.location.join(TOKENIZER).read_text() for made in folders.values() for data in opened(made).sets}
    assert len(texts) == 1


def opened(made) -> Mixture:
    return Mixture.open(made.train, "packing")


def rule_of(data: DataSet) -> str:
    return PackingKeys.read(data.manifest.keys).config.rule
