"""Captions by a vision-language model: the tiny LLaVA here is drawn at random, its sentences mean nothing."""

from __future__ import annotations

import contextlib
import io
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import cornerstone.models  # noqa: F401 - mends torchvision, which transformers' processors import
from cornerstone import cli
from cornerstone.data.images import decode
from cornerstone.data.manifest import Manifest
from cornerstone.data.records import Caption
from cornerstone.data.shards import DataSet, Reader
from cornerstone.errors import CornerstoneError
from cornerstone.jobs.captioner import Captioner, CaptionerConfig, _Drawn, _prompt
from cornerstone.jobs.recaption import _Actor, prepare_recaption, recaption

SAMPLED = {"max_new_tokens": 6, "temperature": 1.0, "top_p": 0.9, "seed": 7}
SHARDS = 4


def save_llava(folder: Path, wordpiece: Path, *, template: str | None = None) -> Path:
    """A LLaVA of some thousand weights with its processor, in transformers' layout."""
    from transformers import (
        CLIPImageProcessor,
        CLIPVisionConfig,
        LlamaConfig,
        LlavaConfig,
        LlavaForConditionalGeneration,
        LlavaProcessor,
        PreTrainedTokenizerFast,
    )

    tokenizer = PreTrainedTokenizerFast(
        tokenizer_file=str(wordpiece), pad_token="[PAD]", unk_token="[UNK]", bos_token="[CLS]", eos_token="[SEP]"
    )
    tokenizer.add_special_tokens({"additional_special_tokens": ["<image>"]})
    vision = CLIPVisionConfig(
        hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2, image_size=16, patch_size=8
    )
    language = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
        initializer_range=0.6,  # else every picture would get the same answer
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    config = LlavaConfig(
        vision_config=vision,
        text_config=language,
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        vision_feature_layer=-1,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        LlavaForConditionalGeneration(config).save_pretrained(folder)
    images = CLIPImageProcessor(size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16})
    LlavaProcessor(
        images,
        tokenizer,
        patch_size=8,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=template,
    ).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def llava(tmp_path_factory, wordpiece) -> Path:
    return save_llava(tmp_path_factory.mktemp("models") / "tiny-llava", wordpiece)


def rows(folder) -> list[dict]:
    data = DataSet.open(str(folder), "pairs")
    return Reader(data).take(np.arange(len(data))).to_pylist()


def new_texts(folder, source="tiny-llava") -> list[str | None]:
    """The text that each row was given: it comes last."""
    last = [row["captions"][-1] for row in rows(folder)]
    return [c["text"] if (c["source"], c["role"]) == (source, "long") else None for c in last]


@pytest.fixture(scope="module")
def folder(tmp_path_factory, small_data, wordpiece) -> str:
    """26 pairs in 4 shards; the image of row 5 is truncated."""
    pairs = [small_data.pair(i) for i in range(26)]
    pairs[5] = small_data.pair(5, image=small_data.picture(5)[:60])
    path = small_data.write(
        tmp_path_factory.mktemp("recaption") / "pairs", pairs, rows_per_shard=8, classes=("a", "b", "c", "d")
    )
    (Path(path) / "tokenizer.json").write_text(wordpiece.read_text())
    return path


@pytest.fixture(scope="module")
def captioned(ray_cluster, tmp_path_factory, folder, llava) -> tuple[str, Manifest]:
    """The whole set by the command: sampled, three images at a time, two actors."""
    out = str(tmp_path_factory.mktemp("recaption") / "out")
    options = [f"--{name.replace('_', '-')}={value}" for name, value in SAMPLED.items()]
    with contextlib.redirect_stdout(io.StringIO()) as stream:
        cli.main(
            ["recaption", folder, "--out", out, "--captioner", str(llava), *options, "--batch-size=3", "--actors=2"]
        )
    said = " ".join(stream.getvalue().split())
    assert f"26 rows in {out} (content {Manifest.read(out).content_hash}) 1 undecodable images: their rows" in said
    assert "are finished already" not in said
    return out, Manifest.read(out)


def test_only_the_captions_change(captioned, folder):
    out, manifest = captioned
    parent = Manifest.read(folder)
    assert [s.file for s in manifest.shards] == [s.file for s in parent.shards]
    assert manifest.row_groups == parent.row_groups
    assert (manifest.name, manifest.classes, manifest.kind) == (parent.name, parent.classes, "pairs")
    assert manifest.content_hash != parent.content_hash
    before, after = rows(folder), rows(out)
    added = 0
    for old, new in zip(before, after, strict=True):
        assert {k: v for k, v in new.items() if k != "captions"} == {k: v for k, v in old.items() if k != "captions"}
        assert new["captions"][: len(old["captions"])] == old["captions"]
        added += len(new["captions"]) - len(old["captions"])
    assert added == 25 - manifest.source["without_text"] >= 20
    assert len(after[5]["captions"]) == len(before[5]["captions"])
    assert len({text for text in new_texts(out) if text}) > 10  # each picture its own
    assert sorted(p.name for p in Path(out).iterdir()) == sorted(p.name for p in Path(folder).iterdir())


def test_the_manifest_tells_how(captioned, folder, llava):
    source = captioned[1].source
    assert (
        source["captioner"].items()
        >= {**SAMPLED, "name": str(llava), "prompt": "Describe the image in detail."}.items()
    )
    assert source["parent"] == Manifest.read(folder).content_hash
    assert (source["undecodable"], source["caption_source"]) == (1, "tiny-llava")


def test_texts_are_those_of_the_model_alone(captioned, folder, llava):
    """Row by row in this process, in another order and batch than in the actors."""
    captioner = Captioner(CaptionerConfig(str(llava), **SAMPLED))
    wanted = new_texts(captioned[0])
    for places in ([25], [13, 2, 9, 20]):
        pictures = [decode(rows(folder)[place]["image"]) for place in places]
        assert [t or None for t in captioner(pictures, places)] == [wanted[place] for place in places]
    other_rows = captioner([decode(rows(folder)[2]["image"])] * 4, [2, 3, 4, 6])
    assert len(set(other_rows)) > 1  # the draw is the row's, not the picture's


def test_an_interrupted_run_goes_on_after_its_finished_shards(captioned, folder, llava, tmp_path):
    job = prepare_recaption(folder, str(tmp_path / "out"), CaptionerConfig(str(llava), **SAMPLED), batch_size=5)
    job.out.make()
    actor = _Actor(job)
    for index in (0, 2):
        actor({"shard": np.array([index])})
    (tmp_path / "out" / "shard-00001.parquet").write_bytes(b"PAR1 half")  # what a killed actor leaves
    kept = {i: (tmp_path / "out" / f"shard-0000{i}.parquet").stat().st_mtime_ns for i in (0, 2)}
    with pytest.raises(CornerstoneError, match="is unfinished"):
        DataSet.open(str(tmp_path / "out"))
    said, told = [], []
    report = recaption(job, say=said.append, progress=lambda *done: told.append(done))
    assert said == ["2 of 4 shards are finished already"]
    assert (report.computed, told) == (2, [(1, 2), (2, 2)])
    assert {i: (tmp_path / "out" / f"shard-0000{i}.parquet").stat().st_mtime_ns for i in (0, 2)} == kept
    assert report.manifest.content_hash == captioned[1].content_hash  # also: another batch size, other actors
    assert report.undecodable == 1


def test_shards_of_other_settings_are_computed_again(folder, llava, tmp_path):
    config = CaptionerConfig(str(llava), **SAMPLED)
    job = prepare_recaption(folder, str(tmp_path / "out"), config)
    job.out.make()
    _Actor(job)({"shard": np.array([0])})
    assert job.finished(0) is not None
    for changed in ({"seed": 8}, {"prompt": "What is this?"}, {"max_new_tokens": 7}):
        assert prepare_recaption(folder, str(tmp_path / "out"), replace(config, **changed)).finished(0) is None
    assert prepare_recaption(folder, str(tmp_path / "out"), config, source="other").finished(0) is None
    with (tmp_path / "out" / "shard-00000.parquet").open("ab") as file:
        file.write(b"more")
    assert job.finished(0) is None


def test_the_same_again_is_nothing_and_a_name_is_taken_once(ray_cluster, captioned, folder, llava, tmp_path):
    out, manifest = captioned
    config = CaptionerConfig(str(llava), **SAMPLED)
    said = []
    report = recaption(prepare_recaption(folder, out, config), say=said.append)
    assert (report.computed, report.undecodable, report.manifest) == (0, 1, manifest)
    assert "nothing is computed" in said[0]
    with pytest.raises(CornerstoneError, match="already holds a finished data set"):
        prepare_recaption(folder, out, replace(config, seed=8))
    with pytest.raises(CornerstoneError, match=r"has long captions by 'tiny-llava' already. Give --replace"):
        prepare_recaption(out, str(tmp_path / "again"), config)
    with pytest.raises(CornerstoneError, match="is the data set itself"):
        prepare_recaption(out, out + "/", config, replaces=True)
    greedy = prepare_recaption(
        out, str(tmp_path / "again"), CaptionerConfig(str(llava), max_new_tokens=6), replaces=True
    )
    for index in range(SHARDS):
        greedy.out.make()
        _Actor(greedy)({"shard": np.array([index])})
    recaption(greedy, say=said.append)
    counts = [[c["source"] for c in row["captions"]].count("tiny-llava") for row in rows(tmp_path / "again")]
    assert set(counts) <= {0, 1}
    assert counts[5] == 0
    assert new_texts(tmp_path / "again") != new_texts(out)


def test_a_name_met_later_stops_the_shard_before_the_model_is_loaded(small_data, llava, tmp_path):
    pairs = [small_data.pair(i) for i in range(12)]
    pairs[9] = small_data.pair(9, captions=(Caption("tiny-llava", "long", "an old one"),))
    path = small_data.write(tmp_path / "pairs", pairs, rows_per_shard=4)
    job = prepare_recaption(path, str(tmp_path / "out"), CaptionerConfig(str(llava), max_new_tokens=1))
    actor = _Actor(job)
    with pytest.raises(CornerstoneError, match=r"'tiny-llava' already. Give --replace"):
        actor({"shard": np.array([2])})
    assert "captioner" not in vars(actor)
    assert not (tmp_path / "out").exists()
    raw = [small_data.pair(i, captions=(Caption("tiny-llava", "raw", "a raw one"),)) for i in range(4)]
    prepare_recaption(
        small_data.write(tmp_path / "raw", raw), str(tmp_path / "out2"), CaptionerConfig(str(llava))
    )  # another role


def test_draws_follow_the_distribution():
    """Gumbel-max against the softmax it stands for, top-p applied."""
    scores = torch.log(torch.tensor([[0.5, 0.3, 0.15, 0.05]])).repeat(4000, 1)
    drawn = _Drawn(CaptionerConfig("x", temperature=1.0, top_p=0.9), range(4000))(torch.zeros(4000, 1).long(), scores)
    counts = torch.bincount(drawn.argmax(dim=1), minlength=4) / 4000
    torch.testing.assert_close(counts, torch.tensor([0.5, 0.3, 0.15, 0]) / 0.95, atol=0.03, rtol=0)


def test_prompts(wordpiece, tmp_path, llava):
    from transformers import AutoProcessor

    assert _prompt(AutoProcessor.from_pretrained(llava), "What?") == "<image>\nWhat?"
    assert _prompt(AutoProcessor.from_pretrained(llava), "A <image>: what?") == "A <image>: what?"
    template = (
        "{% for m in messages %}USER: {% for part in m['content'] %}{% if part['type'] == 'image' %}<image>\n"
        "{% else %}{{ part['text'] }}{% endif %}{% endfor %}{% endfor %}{% if add_generation_prompt %} ASSISTANT:{% endif %}"
    )
    chat = save_llava(tmp_path / "chat", wordpiece, template=template)
    captioner = Captioner(CaptionerConfig(str(chat), prompt="What?", max_new_tokens=4))
    assert captioner.prompt == "USER: <image>\nWhat? ASSISTANT:"
    (text,) = captioner([Image.new("RGB", (9, 7), "red")], [0])
    assert "ASSISTANT" not in text  # the prompt is cut off
    assert "assistant" not in text


def test_instructblip_is_spoken_to_as_it_is(tmp_path, wordpiece):
    """A Q-Former of one layer before an OPT; its processor puts the image's tokens in itself."""
    from transformers import (
        BertTokenizerFast,
        BlipImageProcessor,
        InstructBlipConfig,
        InstructBlipForConditionalGeneration,
        InstructBlipProcessor,
        PreTrainedTokenizerFast,
    )

    def tokenizer(kind):
        return kind(
            tokenizer_file=str(wordpiece), pad_token="[PAD]", unk_token="[UNK]", bos_token="[CLS]", eos_token="[SEP]"
        )

    processor = InstructBlipProcessor(
        BlipImageProcessor(size={"height": 16, "width": 16}),
        tokenizer(PreTrainedTokenizerFast),
        tokenizer(BertTokenizerFast),
        num_query_tokens=2,
    )
    small = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    words = len(processor.tokenizer)
    language = {"model_type": "opt", "vocab_size": words, "hidden_size": 16, "ffn_dim": 32, "num_hidden_layers": 1}
    ends = {"pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 3}
    config = InstructBlipConfig(
        vision_config={**small, "image_size": 16, "patch_size": 8},
        qformer_config={**small, "vocab_size": words, "encoder_hidden_size": 16, "cross_attention_frequency": 1},
        text_config={**language, "num_attention_heads": 2, "word_embed_proj_dim": 16, **ends},
        num_query_tokens=2,
        image_token_index=processor.tokenizer.convert_tokens_to_ids("<image>"),
    )
    InstructBlipForConditionalGeneration(config).save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    captioner = Captioner(CaptionerConfig(str(tmp_path), prompt="raw picture", max_new_tokens=4, temperature=1.0))
    assert captioner.prompt == "raw picture"
    texts = captioner([Image.new("RGB", (9, 7), "red"), Image.new("RGB", (30, 20), "blue")], [0, 1])
    assert len(texts) == 2
    assert not any(text.startswith("raw picture") for text in texts)


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"name": ""}, "No captioner is named"),
        ({"max_new_tokens": 0}, "--max-new-tokens 0"),
        ({"temperature": -1.0}, "--temperature -1.0"),
        ({"top_p": 0.0}, "--top-p 0.0"),
    ],
)
def test_settings_that_cannot_be(fields, said):
    with pytest.raises(CornerstoneError, match=said):
        CaptionerConfig(**{"name": "x", **fields})


def test_a_captioner_that_cannot_be_had(monkeypatch, folder, tmp_path):
    monkeypatch.setattr("cornerstone.jobs.captioner.hub_answers", lambda: False)
    out = str(tmp_path / "out")
    with pytest.raises(CornerstoneError, match=r"Cannot load the captioner 'llava-hf/none'.*The hub does not answer"):
        prepare_recaption(folder, out, CaptionerConfig("llava-hf/none"))
    (tmp_path / "bert").mkdir()
    (tmp_path / "bert" / "config.json").write_text(json.dumps({"model_type": "bert"}))
    with pytest.raises(
        CornerstoneError, match="is a 'bert', which transformers does not know as an image-text-to-text"
    ):
        prepare_recaption(folder, out, CaptionerConfig(str(tmp_path / "bert")))
    assert not (tmp_path / "out").exists()


def test_damaged_weights_and_options_without_effect(monkeypatch, folder, llava, tmp_path, capsys):
    broken = tmp_path / "broken"
    broken.mkdir()
    for file in llava.iterdir():
        content = file.read_bytes()
        (broken / file.name).write_bytes(content[:1000] if file.suffix == ".safetensors" else content)
    job = prepare_recaption(folder, str(tmp_path / "out"), CaptionerConfig(str(broken)))
    job.out.make()
    with pytest.raises(CornerstoneError, match="Cannot load the captioner"):
        _Actor(job)({"shard": np.array([0])})
    stopped = CornerstoneError("as far as this")
    monkeypatch.setattr("cornerstone.runtime.cluster.connect", lambda say: (_ for _ in ()).throw(stopped))
    with pytest.raises(SystemExit):
        cli.main(["recaption", folder, "--out", str(tmp_path / "x"), "--captioner", str(llava), "--seed", "3"])
    said = capsys.readouterr().out
    assert "--top-p and --seed have no effect at --temperature 0" in said
    assert "as far as this" in said
