from __future__ import annotations

import json
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from cornerstone.data.manifest import Manifest
from cornerstone.data.mixture import Mixture, MixtureReader, write_mixture
from cornerstone.data.shards import DataSet, ShardWriter
from cornerstone.errors import CornerstoneError


@pytest.fixture(scope="module")
def folders(tmp_path_factory, small_data) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("members")
    sizes = {"a": range(10), "b": range(100, 125), "c": range(200, 205)}
    return {name: small_data.write(folder / name, map(small_data.pair, ids)) for name, ids in sizes.items()}


def test_a_mixture_names_its_members_and_copies_nothing(folders, tmp_path):
    manifest = write_mixture(tmp_path / "mix", [(folders["a"], "2"), (folders["b"], "0.5")])
    assert (manifest.name, manifest.kind, manifest.rows) == ("mix", "mixture", 35)
    assert [path.name for path in (tmp_path / "mix").iterdir()] == ["manifest.json"]
    mixture = Mixture.open(str(tmp_path / "mix"))
    assert (mixture.folders, mixture.weights) == ((folders["a"], folders["b"]), (Fraction(2), Fraction(1, 2)))
    assert [sum(map(sum, part.shards)) for part in mixture.parts] == [10, 25]
    assert Manifest.read(str(tmp_path / "mix")) == manifest


def test_the_content_of_a_mixture_is_its_members_and_weights(folders, tmp_path):
    def content(name, *members):
        return write_mixture(tmp_path / name, list(members)).content_hash

    a, b = folders["a"], folders["b"]
    first = content("one", (a, "1"), (b, "0.5"))
    assert content("other name", (a, "1.0"), (b, "1/2")) == first
    assert len({first, content("weights", (a, "1"), (b, "1")), content("order", (b, "0.5"), (a, "1"))}) == 3


def test_a_data_set_is_a_mixture_of_one(folders):
    mixture, data = Mixture.open(folders["a"]), DataSet.open(folders["a"])
    assert (mixture.folders, mixture.weights, len(mixture)) == ((folders["a"],), (Fraction(1),), 10)
    assert mixture.manifest.content_hash == data.manifest.content_hash


def test_mixtures_are_mixed_with_their_weights_multiplied(folders, tmp_path):
    write_mixture(tmp_path / "inner", [(folders["a"], "2"), (folders["b"], "3")])
    write_mixture(tmp_path / "outer", [(str(tmp_path / "inner"), "0.5"), (folders["c"], "1")])
    mixture = Mixture.open(str(tmp_path / "outer"))
    assert mixture.folders == (folders["a"], folders["b"], folders["c"])
    assert mixture.weights == (Fraction(1), Fraction(3, 2), Fraction(1))


def test_rows_are_read_by_their_place_in_the_mixture(folders):
    reader = MixtureReader([DataSet.open(folders[name]) for name in "abc"], ["key"])

    def keys(*rows):
        return [int(key) for key in reader.take(np.array(rows, np.int64))["key"].to_pylist()]

    assert keys(39, 0, 12, 34, 9, 12) == [204, 0, 102, 124, 9, 102]
    assert keys(11, 13) == [101, 103]
    assert keys() == []


def test_what_cannot_be_mixed_is_said(folders, tmp_path, small_data):
    def refused(*members):
        with pytest.raises(CornerstoneError) as error:
            write_mixture(tmp_path / "refused", list(members))
        assert not (tmp_path / "refused").exists()
        return str(error.value)

    a, b = folders["a"], folders["b"]
    for weight in ("0", "-1", "x", "", "1/0"):
        assert f"{a}={weight}: expected a weight above 0" in refused((a, weight))
    assert f"{a} is given twice" in refused((a, "1"), (b, "1"), (a, "2"))
    assert "does not exist" in refused((str(tmp_path / "nothing"), "1"))
    (tmp_path / "features").mkdir()
    (tmp_path / "features" / "manifest.json").write_text(
        json.dumps({**json.loads((Path(a) / "manifest.json").read_text()), "kind": "features"})
    )
    assert "Cannot mix features and pairs" in refused((a, "1"), (str(tmp_path / "features"), "1"))
    write_mixture(tmp_path / "there", [(a, "1")])
    with pytest.raises(CornerstoneError, match="already holds a finished data set"):
        write_mixture(tmp_path / "there", [(a, "1")])


def test_a_member_that_has_changed_is_refused(tmp_path, small_data):
    member = small_data.write(tmp_path / "a", map(small_data.pair, range(6)))
    write_mixture(tmp_path / "mix", [(member, "1")])
    (tmp_path / "a" / "manifest.json").unlink()
    with ShardWriter(member, name="a") as writer:
        writer.add(small_data.pair(3))
    with pytest.raises(CornerstoneError, match=r"has changed since .* was mixed"):
        Mixture.open(str(tmp_path / "mix"))


def test_where_one_kind_is_needed_a_mixture_of_it_will_do_and_another_will_not(folders, tmp_path):
    write_mixture(tmp_path / "mix", [(folders["a"], "1")])
    with pytest.raises(CornerstoneError, match="holds pairs, but documents are needed here"):
        Mixture.open(str(tmp_path / "mix"), "documents")
    with pytest.raises(CornerstoneError, match="holds a mixture, but pairs are needed here"):
        DataSet.open(str(tmp_path / "mix"), "pairs")
