from __future__ import annotations

import json
import re
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from cornerstone import cli
from cornerstone.data import statistics as module
from cornerstone.data.manifest import Manifest
from cornerstone.data.records import Caption, Document, Segment
from cornerstone.data.shards import DataSet, ShardWriter
from cornerstone.data.statistics import Tally, statistics
from cornerstone.data.statistics_page import render, sample_rows
from cornerstone.data.storage import Location
from cornerstone.data.texts import SentenceFormat, sub_captions
from cornerstone.errors import CornerstoneError
from cornerstone.runtime import tokenizer as tokenizer_module


@pytest.fixture
def here(monkeypatch):
    """The tasks run in this process: what they count does not depend on where."""
    monkeypatch.setattr(module, "map_tasks", lambda work, items, *, failed, progress=None: map(work, items))


def counted_of(folder, tokenizer="", say=print):
    """The statistics as the command makes them."""
    return statistics(folder, tokenizer_module.tokenizer_for(folder, tokenizer, say))


def of(counted, role, source=""):
    (one,) = (entry for entry in counted.as_json()["texts"] if (entry["role"], entry["source"]) == (role, source))
    return one


def test_a_tally_is_what_numpy_says():
    values = np.random.default_rng(0).geometric(0.02, 1001)
    tally = Tally()
    tally.add(values[:400].tolist())
    rest = Tally(Counter(values[400:].tolist()))
    tally.join(rest)
    assert tally.number == 1001
    assert tally.mean == pytest.approx(values.mean())
    for share in (0, 0.1, 0.5, 0.9, 1):
        assert tally.quantile(share) == np.quantile(values, share, method="inverted_cdf")
    assert tally.above(77) == pytest.approx((values > 77).mean())
    assert tally.spread() == {"mean": pytest.approx(values.mean()), "min": values.min(), "max": values.max()}
    assert (Tally().mean, Tally().quantile(0.5), Tally().above(3)) == (0, 0, 0)


def test_counts_of_pairs(here, pairs_folder, wordpiece):
    counted = counted_of(pairs_folder)
    numbers = counted.as_json()
    assert numbers["tokenizer"] == f"{pairs_folder}/tokenizer.json"  # kept beside the shards
    assert numbers["rows"] == 50
    assert numbers["images"] == {
        "number": 50,
        "unreadable": 0,
        "width": {"mean": 24, "min": 24, "max": 24},
        "height": {"mean": 20, "min": 20, "max": 20},
    }
    listed = [(e["role"], e["source"], e["texts"]) for e in numbers["texts"]]
    assert listed == [("long", "a", 50), ("long", "b", 50), ("long", "c", 50), ("long", "", 150), ("raw", "web", 50)]
    tokenizer = SentenceFormat(wordpiece.read_text(), 1000)
    texts = [". ".join(f"a {i} {word}" for word in ("one", "two", "three", "four", "five")) + "." for i in range(50)]
    lengths = np.array([len(ids) for ids in tokenizer.encode_uncut(map(sub_captions, texts))])
    tokens = of(counted, "long", "a")["tokens"]
    assert tokens["mean"] == pytest.approx(lengths.mean())
    assert (tokens["p50"], tokens["max"]) == (np.quantile(lengths, 0.5, method="inverted_cdf"), lengths.max())
    assert of(counted, "long")["sub_captions"]["mean"] == 5
    assert of(counted, "raw", "web")["sub_captions"]["mean"] == 1
    assert of(counted, "raw", "web")["words"] == {"mean": 2, "min": 2, "max": 2}


def test_shares_above_the_limits(here, small_data, wordpiece, tmp_path):
    def pair(i, words):
        return small_data.pair(i, captions=(Caption("x", "long", " ".join(["one"] * words)),))

    path = small_data.write(tmp_path / "pairs", [pair(i, n) for i, n in enumerate((75, 76, 126, 127, 254, 255))])
    tokens = of(counted_of(path, str(wordpiece)), "long", "x")["tokens"]  # and [CLS] and [SEP]
    assert (tokens["above_77"], tokens["above_128"], tokens["above_256"]) == pytest.approx((5 / 6, 3 / 6, 1 / 6))


def test_sentences_of_training_and_of_cleaned_texts(here, small_data, tmp_path):
    text = "A dog.\nIt runs in 3.5 s. Far away"
    path = small_data.write(tmp_path / "pairs", [small_data.pair(0, captions=(Caption("x", "long", text),))])
    one = of(counted_of(path, say=lambda line: None), "long", "x")
    assert (one["sub_captions"]["mean"], one["sub_captions_cleaned"]["mean"]) == (2, 4)


@pytest.fixture
def documents(tmp_path, small_data) -> str:
    """Three documents: 1, 2 and 3 images, two texts each; an image of the last is none."""
    folder = str(tmp_path / "documents")
    with ShardWriter(folder, name="docs", kind="documents", rows_per_group=2) as writer:
        for i in range(3):
            images = [Segment(image=small_data.picture(10 * i + k)) for k in range(i)]
            last = Segment(image=b"none" if i == 2 else small_data.picture(i))
            writer.add(
                Document(f"<b>{i}", (Segment(text=f"one <i>{i}</i>. two"), *images, Segment(text="three"), last))
            )
    return folder


def test_counts_of_documents(here, documents, wordpiece):
    counted = counted_of(documents, str(wordpiece))
    numbers = counted.as_json()
    assert numbers["images"] == {
        "number": 5,
        "unreadable": 1,
        "width": {"mean": 24, "min": 24, "max": 24},
        "height": {"mean": 20, "min": 20, "max": 20},
    }
    each = numbers["each_document"]
    assert each["images"] == {"mean": 2, "p50": 2, "p90": 3, "max": 3}
    assert each["texts"]["mean"] == 2
    tokenizer = SentenceFormat(wordpiece.read_text(), 1000)
    wanted = [
        sum(map(len, tokenizer.encode_uncut(map(sub_captions, [f"one <i>{i}</i>. two", "three"])))) for i in range(3)
    ]
    assert each["tokens"] == {
        "mean": pytest.approx(np.mean(wanted)),
        "p50": np.quantile(wanted, 0.5, method="inverted_cdf"),
        "p90": max(wanted),
        "max": max(wanted),
        "above_2048": 0,
    }
    assert of(counted, "text")["sub_captions"]["mean"] == 1.5


def test_without_any_tokenizer(here, monkeypatch, small_data, tmp_path):
    def none(name):
        raise CornerstoneError(f"Cannot load the tokenizer {name!r}.")

    monkeypatch.setattr(tokenizer_module, "load_tokenizer", none)
    path = small_data.write(tmp_path / "pairs", map(small_data.pair, range(3)))
    said = []
    counted = counted_of(path, say=said.append)
    assert said == ["Tokens are not counted, words and characters are. Cannot load the tokenizer 'bert-base-uncased'."]
    assert counted.as_json()["tokenizer"] is None
    assert of(counted, "raw", "web")["tokens"] is None
    header, rows = counted.text_table()
    assert header[3:5] == ["words", "most words"]
    assert rows[-1][:5] == ["raw", "web", "3", "2.00", "2"]
    with pytest.raises(CornerstoneError, match="Cannot load the tokenizer 'bert'"):
        counted_of(path, "bert")


def test_what_has_no_statistics(tmp_path):
    with pytest.raises(CornerstoneError, match="the folder does not exist"):
        counted_of(str(tmp_path / "nowhere"))
    manifest = Manifest("features", "f", DataSet.open(some(tmp_path)).manifest.shards)
    manifest.write(Location.of(str(tmp_path / "one")))
    with pytest.raises(CornerstoneError, match="holds features: expected pairs or documents"):
        counted_of(str(tmp_path / "one"))


def some(tmp_path) -> str:
    with ShardWriter(str(tmp_path / "one"), name="docs", kind="documents") as writer:
        writer.add(Document("a", (Segment(text="x"),)))
    return str(tmp_path / "one")


def test_sample_rows_are_drawn_by_seed():
    drawn = sample_rows(1000, 24, 0)
    assert drawn == sorted(set(drawn))
    assert len(drawn) == 24
    assert drawn == sample_rows(1000, 24, 0) != sample_rows(1000, 24, 1)
    assert sample_rows(3, 24, 5) == [0, 1, 2]
    assert sample_rows(3, 0, 5) == []


def test_a_page_of_pairs(here, small_data, tmp_path):
    texts = (Caption("<src>", "raw", "<script>alert(1)</script> & more"), Caption("b", "long", "plain"))
    pairs = [small_data.pair(i, captions=texts) for i in range(5)] + [small_data.pair(5, image=b"broken")]
    path = small_data.write(tmp_path / "pairs", pairs, classes=("a<b", "dog", "bus", "sky"))
    page = render(counted_of(path, say=print), DataSet.open(path), samples=24)
    assert page.count("data:image/jpeg;base64,") == 5
    assert "<script" not in page
    assert page.count("&lt;script&gt;alert(1)&lt;/script&gt; &amp; more") == 5
    assert "&lt;src&gt; · raw" in page
    assert "a&lt;b" in page
    assert "not readable as an image" in page
    assert not re.search(r'(src|href)="(?!data:)', page)  # nothing beside it is needed
    assert render(counted_of(path), DataSet.open(path), samples=2, seed=3).count('class="card"') == 2


def test_a_page_of_documents(here, documents, small_data, tmp_path):
    page = render(counted_of(documents), DataSet.open(documents))
    assert page.count("data:image/jpeg;base64,") == 5
    assert "one &lt;i&gt;2&lt;/i&gt;. two" in page
    assert "&lt;b&gt;1 · 4 segments, 2 images" in page
    long = (*(Segment(text=f"far {i}") for i in range(9)), Segment(image=small_data.picture(0)))
    with ShardWriter(str(tmp_path / "long"), name="long", kind="documents") as writer:
        writer.add(Document("a", (*long, *(Segment(text=f"after {i}") for i in range(9)))))
    page = render(counted_of(str(tmp_path / "long")), DataSet.open(str(tmp_path / "long")))
    assert re.findall(r"<p>((?:far|after) \d)</p>", page) == ["far 7", "far 8", "after 0", "after 1"]
    assert page.count("… 7 more segments") == 2


def test_the_command_in_parallel(ray_cluster, pairs_folder, tmp_path, capsys):
    html, numbers = tmp_path / "new" / "page.html", tmp_path / "numbers.json"
    cli.main(["data", "stats", pairs_folder, "--html", str(html), "--json", str(numbers), "--samples", "3"])
    said = " ".join(capsys.readouterr().out.split())
    assert "pairs: 50 pairs, 50 images" in said
    assert "role source texts tokens median 90 % most > 77 > 128 > 256 sub-captions cleaned" in said
    assert "long all 150" in said
    assert len(json.loads(numbers.read_text())["texts"]) == 5
    assert html.read_text().count('class="card"') == 3
    shard = tmp_path / "broken" / "shard-00000.parquet"
    shard.parent.mkdir()
    (shard.parent / "manifest.json").write_text((Path(pairs_folder) / "manifest.json").read_text())
    shard.write_bytes(b"PAR1")
    with pytest.raises(SystemExit):
        cli.main(["data", "stats", str(shard.parent)])
    assert f"Error: Cannot read {shard.parent}: {shard} is not readable" in " ".join(capsys.readouterr().out.split())


def test_iiw_counts_as_the_paper_does(here, test_data, small_data, tmp_path):
    """612 texts give 10.157 cleaned sub-captions (paper: 10.16); the 400 that are here give 9.4175."""
    listed = test_data / "iiw_text" / "IIW-400.jsonl"
    texts = [json.loads(line)["IIW"] for line in listed.read_text().splitlines()]
    picture = small_data.picture(0)
    pairs = (small_data.pair(i, image=picture, captions=(Caption("IIW", "long", t),)) for i, t in enumerate(texts))
    path = small_data.write(tmp_path / "iiw", pairs, rows_per_shard=400, rows_per_group=64)
    one = of(counted_of(path, "bert-base-uncased"), "long", "IIW")
    assert one["texts"] == 400
    assert one["sub_captions_cleaned"]["mean"] == pytest.approx(9.4175)
    assert one["sub_captions"]["mean"] == pytest.approx(np.mean([len(sub_captions(t)) for t in texts]))
    assert one["tokens"]["mean"] == pytest.approx(239.73, rel=0.05)
