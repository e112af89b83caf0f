"""Transfer runs as recipes: what is prepared for them, and that each learns and is judged by a task of its own. No Ray."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch

from cornerstone import cli
from cornerstone.data.layout import Layout
from cornerstone.data.stream import Stream
from cornerstone.errors import CornerstoneError
from cornerstone.evaluation.evaluator import evaluate
from cornerstone.evaluation.judged import chance_of, metrics_of
from cornerstone.inference.saved_model import load, save_model
from cornerstone.recipes import CausalText, ImageTower, LabelledScenes, Placement, SceneConversations, Scenes
from cornerstone.recipes.transfers import (
    TRANSFER_TASKS,
    DialogueData,
    TaskData,
    from_run,
    from_scratch_like,
    stages,
    transfer_recipe,
)
from cornerstone.training.build import build_method, build_tower
from cornerstone.training.engine import PlainEngine
from cornerstone.training.job import Identity, Job
from cornerstone.training.launch import launch
from cornerstone.training.prepare import Preparer
from cornerstone.training.schedule import learning_rate

TOWER = ImageTower(
    "vit_base_patch16_224", False, False, 32, "none", width=32, layers=2, heads=2, patch=8, drop_path=0.1
)
LABELLED = LabelledScenes(images=192, test_images=96)
PAIRS = Scenes(pairs=64, evaluation_images=32)
TALKS = SceneConversations(conversations=64, test=16)
SCENES = {"classification": LABELLED, "dialogue": TALKS}


def quiet(text: str) -> None:
    """Nothing is shown."""


@pytest.fixture(scope="module")
def preparer(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CORNERSTONE_HOME", str(tmp_path_factory.mktemp("home")))
        yield Preparer(quiet)


def small(task, tower=TOWER, frozen=True, **schedule):
    data = TaskData(**({"steps": 3, "batch_size": 8} | schedule))
    recipe = transfer_recipe(task, from_scratch_like(tower), frozen, data)
    return recipe.with_data(scenes=SCENES.get(task, PAIRS))


def trained(prepared, tower=None):
    """A model after all steps, and its metrics, as a worker computes them."""
    recipe, stream = prepared.recipe, Stream.local(Layout(prepared.stream(), 1), 0, 0)
    tower = tower or build_tower(prepared)
    module = build_method(prepared, tower)
    engine = PlainEngine(module, recipe.optimization)
    for step in range(recipe.optimization.steps):
        report = engine.step(stream.batch(step), learning_rate(step, recipe.optimization))
        assert torch.isfinite(report.loss)
    texts = prepared.evaluation_texts
    form = texts.open() if texts is not None else None
    batches = stream.evaluation(recipe.optimization.steps - 1)
    judged = evaluate(module.eval(), batches, prepared.sets, form, torch.device("cpu"))
    return module, judged


@pytest.mark.parametrize("frozen", [True, False])
@pytest.mark.parametrize("task", TRANSFER_TASKS)
def test_each_task_trains_and_is_judged_by_its_own_task(preparer, task, frozen):
    prepared = preparer.prepare(small(task, frozen=frozen))
    assert prepared.recipe.method.image_tower.locked == frozen
    assert prepared.recipe.method.image_tower.drop_path == 0
    before = build_tower(prepared)
    weights = {name: value.clone() for name, value in before.state_dict().items()}
    module, judged = trained(prepared, before)
    changed = any(not torch.equal(weights[name], value) for name, value in module.image_tower.state_dict().items())
    assert changed != frozen
    expected = {
        "classification": {"eval/class/top1", "eval/class/top5"},
        "retrieval": {f"eval/short/{way}_r{k}" for way in ("i2t", "t2i") for k in (1, 5)},
        "caption": {f"eval/short/{name}" for name in ("cider", "rouge_l", "bleu1", "bleu2", "bleu3", "bleu4")},
        "dialogue": {"eval/conversations/accuracy"},
    }[task]
    assert expected <= set(metrics_of(judged))
    named = {"classification": "class", "dialogue": "conversations"}
    assert {one.set for one in judged} == {named.get(task, "short")}


def test_dialogue_goes_on_with_the_projector_and_the_tower_of_its_first_stage(preparer, tmp_path):
    data = DialogueData(steps=40, batch_size=16, learning_rate=5e-3, alignment_steps=4, alignment_batch_size=8)
    first, second = (stage.recipe for stage in stages("dialogue"))
    scratch = from_scratch_like(TOWER)
    prepared = preparer.prepare(first(scratch, False, data, "").with_data(scenes=TALKS))
    assert prepared.sets == ()
    tower = build_tower(prepared)
    drawn = build_method(prepared, tower).state_dict()
    aligned, _ = trained(prepared, tower)
    moved = {n for n, value in aligned.state_dict().items() if not torch.equal(value, drawn[n])}
    assert moved == {n for n in drawn if n.startswith("projector.")}
    model = str(tmp_path / "model")
    save_model(model, aligned, recipe={}, tokenizer_json=prepared.tokenizer, image_tower=tower)

    followed = preparer.prepare(second(scratch, False, data, model).with_data(scenes=TALKS))
    begun, started = build_method(followed, build_tower(followed)), aligned.state_dict()
    assert all(torch.equal(value, started[n]) for n, value in begun.state_dict().items() if not n.startswith("visual."))
    assert all(torch.equal(x, tower.state_dict()[n]) for n, x in begun.image_tower.state_dict().items())
    without = followed.recipe.with_method(projector="")
    assert preparer.prepare(without).recipe_hash != followed.recipe_hash
    module, (judged,) = trained(followed)
    assert judged.measured.counts == {"questions": 48}
    weights = dict(module.named_parameters())
    changed = {n for n, value in begun.named_parameters() if not torch.equal(value, weights[n])}
    assert {n.partition(".")[0] for n in changed} == {"projector", "language", "visual"}
    last = [n for n in weights if n.startswith(("visual.model.blocks.1.", "visual.model.norm."))]
    assert last
    assert not changed & set(last)  # what is not read is not trained
    save_model(tmp_path / "second" / "model", module, recipe={}, tokenizer_json=prepared.tokenizer)
    given = ["--data", followed.sets[0].folder, "--json", str(tmp_path / "found.json")]
    cli.main(["evaluate", str(tmp_path / "second"), "--task", "conversations", *given])
    found = json.loads((tmp_path / "found.json").read_text())["eval/conversations-validation/accuracy"]
    assert found == pytest.approx(judged.measured.metrics["accuracy"])
    assert found > 0


def test_the_first_stage_of_dialogue_learns_pairs(preparer):
    """As LLaVA's 558,000 are imported: a caption each, and no question."""
    folder = preparer.prepare(small("caption")).recipe.data.train
    data = DialogueData(train="talks", alignment=folder, alignment_steps=2, alignment_batch_size=8)
    (first, _) = stages("dialogue")
    recipe = first.recipe(from_scratch_like(TOWER), False, data, "").with_method(
        token_limit=64, language=CausalText(32, 1, 2, 128)
    )
    prepared = preparer.prepare(replace(recipe, precision="fp32"))
    assert prepared.train.kind == "pairs"
    trained(prepared)


def test_the_language_model_is_named_by_its_weights_not_its_place(preparer, tmp_path):
    from cornerstone.models.language_model import LanguageModel

    words = preparer.prepare(small("dialogue")).vocab_size
    hashes = []
    for place, seed in (("a", 1), ("b", 1), ("c", 2)):
        language = LanguageModel.from_scratch(CausalText(32, 1, 2, 256), words, seed, 2, 3)
        language.model.save_pretrained(tmp_path / place)
        recipe = small("dialogue").with_method(language_model=str(tmp_path / place))
        prepared = preparer.prepare(recipe)
        hashes.append(prepared.recipe_hash)
        built = build_method(prepared, build_tower(prepared)).language.state_dict()
        assert all(torch.equal(value, language.state_dict()[name]) for name, value in built.items())
    assert hashes[0] == hashes[1] != hashes[2]
    with pytest.raises(CornerstoneError, match="trains the projector alone"):
        recipe.with_method(stage="projector", frozen=False)


def test_a_classifier_learns_the_classes_of_its_images(preparer):
    recipe = small("classification", frozen=False, steps=80, batch_size=64, learning_rate=3e-3)
    folder = preparer.prepare(recipe).recipe.data.train
    prepared = preparer.prepare(recipe.with_evaluation(sets=(f"seen={folder}",)))
    assert prepared.recipe.method.classes == 96
    _, judged = trained(prepared)
    assert chance_of(judged)["eval/seen/top1"] == pytest.approx(100 / 96)
    assert metrics_of(judged)["eval/seen/top1"] > 30


def test_a_follow_up_takes_the_trained_tower_of_a_run(preparer, tmp_path):
    """The tower of a saved model: its weights, and a hash that belongs to them."""
    prepared = preparer.prepare(small("classification", frozen=False))
    module, _ = trained(prepared)
    save_model(tmp_path / "model", module, recipe={}, tokenizer_json=prepared.tokenizer)
    assert load(tmp_path).text_input is None
    again = transfer_recipe(
        "retrieval", from_run(str(tmp_path / "model"), TOWER), True, TaskData(steps=2, batch_size=8)
    )
    followed = preparer.prepare(again.with_data(scenes=PAIRS))
    ours, theirs = build_tower(followed).state_dict(), module.image_tower.state_dict()
    assert all(torch.equal(ours[name], value) for name, value in theirs.items())
    floor = preparer.prepare(small("retrieval", steps=2))
    assert followed.recipe.hash(followed.content) != floor.recipe.hash(floor.content)


def test_classes_of_a_test_set_are_counted_as_in_training(preparer, tmp_path, small_data):
    from cornerstone.data.shards import ShardWriter

    def folder(name, classes, labels):
        with ShardWriter(str(tmp_path / name), name=name, kind="pairs", classes=classes) as writer:
            for i, label in enumerate(labels):
                writer.add(small_data.pair(i, label=label))
        return str(tmp_path / name)

    train = folder("train", ("cat", "bus", "cup"), [i % 3 for i in range(12)])
    test = folder("test", ("cup", "cat"), [0, 1, 0])
    data = TaskData(train=train, eval=(f"mine={test}",), steps=1, batch_size=4)
    prepared = preparer.prepare(transfer_recipe("classification", from_scratch_like(TOWER), True, data))
    assert prepared.recipe.method.classes == 3
    assert prepared.tokenizer == ""
    ((place, batch),) = evaluation_batches(prepared)
    assert (place, batch.label.tolist()) == (0, [2, 0, 2])
    alien = folder("alien", ("dog",), [0])
    with pytest.raises(CornerstoneError, match=r"1 classes of .*alien are not in .*train, 'dog' among them"):
        preparer.prepare(prepared.recipe.with_evaluation(sets=(alien,)))


def evaluation_batches(prepared):
    stream = Stream.local(Layout(prepared.stream(), 1), 0, 0)
    stream.batch(0)
    return list(stream.evaluation(0))


def test_a_saved_caption_model_is_judged_by_the_command_as_in_training(preparer, tmp_path):
    prepared = preparer.prepare(small("caption", steps=40, learning_rate=3e-3))
    module, (judged,) = trained(prepared)
    assert judged.measured.counts == {"images": 32, "captions": 160}
    assert judged.measured.metrics["rouge_l"] > 0
    save_model(tmp_path / "model", module, recipe={}, tokenizer_json=prepared.tokenizer)
    given = ["--data", prepared.sets[0].folder, "--json", str(tmp_path / "found.json")]
    cli.main(["evaluate", str(tmp_path), "--task", "caption", *given])
    found = json.loads((tmp_path / "found.json").read_text())
    assert {name: found[name] for name in metrics_of([judged])} == pytest.approx(metrics_of([judged]))


def test_stored_features_and_other_data_are_refused():
    with pytest.raises(CornerstoneError, match="reads the patches"):
        small("caption").with_data(features="stored")
    with pytest.raises(CornerstoneError, match="is trained on labelled"):
        replace(small("retrieval"), method=small("classification").method)


def test_a_tower_from_scratch_learns_at_the_rate_of_the_new_parts():
    made, run = small("retrieval", frozen=False), transfer_recipe("retrieval", from_run("model", TOWER), False)
    assert (made.method.tower_lr_factor, run.method.tower_lr_factor) == (1.0, 0.01)


def test_the_papers_schedule_is_that_of_ones_own_data():
    found = {
        task: transfer_recipe(task, from_scratch_like(TOWER), True, TaskData(train="data")) for task in TRANSFER_TASKS
    }
    schedules = {
        t: (r.optimization.steps, r.optimization.batch_size, r.optimization.learning_rate) for t, r in found.items()
    }
    assert schedules == {
        "classification": (14_000, 8_192, 1e-4),
        "retrieval": (5_000, 16_384, 1e-3),
        "caption": (20_000, 512, 1e-4),
        "dialogue": (5_198, 128, 1e-3),  # of a new language model
    }
    assert {task: recipe.optimization.warmup_steps for task, recipe in found.items()} == {
        "classification": 1_500,
        "retrieval": 500,
        "caption": 1_000,
        "dialogue": 156,
    }


@pytest.mark.timeout(240)
def test_a_classifier_through_ray_train(ray_cluster):
    """Two workers under ZeRO: the metrics, and a model whose tower is the one that was frozen."""
    prepared = Preparer(quiet).prepare(small("classification"))
    placement = Placement(workers=2, cpus_per_worker=0.25, cpus_per_decode_actor=0.25, decode_actors=1)
    outcome = launch(Job(prepared, placement, Identity()), quiet)
    assert set(outcome.metrics) == {"eval/class/top1", "eval/class/top5"}
    assert outcome.queries == dict.fromkeys(outcome.metrics, 96)
    tower, frozen = load(outcome.model).module.image_tower, build_tower(prepared)
    assert all(torch.equal(value, frozen.state_dict()[name]) for name, value in tower.state_dict().items())
