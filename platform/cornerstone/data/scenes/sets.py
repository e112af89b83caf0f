"""The rows of the training set and of every evaluation set, each sampled with random streams of its own.

| set | captions of a row | task |
|---|---|---|
| `scenes` | a raw caption (`alt`), long captions by A, B and C | training |
| `scenes-rewrites` | the same rows, each with four rewrites of its raw caption | training |
| `scenes-short` | five raw captions, as `short` (like LAION-COCO) | training |
| `long-human` | every fact, no errors, half the sentences by templates not seen in training (like DCI, IIW) | retrieval |
| `long-captioner`, `validation` | captioner C (like ShareGPT4V) | retrieval |
| `short` | five, each with the salient object, another one and their relation (like COCO) | retrieval |
| `probe` | none, as `class` | probes of a frozen image tower |
| `labelled` | none, as `class` | training of a classifier |
| `class` | none; the salient object's species is the label (like ImageNet) | classification |
| `lookalike` | every fact, no errors; and a short caption | choice among four images with equal salient object and background |
| `sentence-swap` | five facts, no errors, and for each of them the same text with that fact made false | telling them apart |
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import Any

from cornerstone.data.manifest import CLASSIFICATION, LOOKALIKE, PROBE, RETRIEVAL, SENTENCE_SWAP
from cornerstone.data.records import Caption, Pair
from cornerstone.data.scenes.captioners import HUMAN, A, B, C, Captioner, describe, stated
from cornerstone.data.scenes.draw import encode, paint
from cornerstone.data.scenes.facts import Fact, falsified, object_fact
from cornerstone.data.scenes.texts import PROMPTS, joined, raw_text, rewritten, sentence, short_texts
from cornerstone.data.scenes.world import BACKGROUNDS, NOUNS, SPECIES, Scene, ScenesSpec, draw_scene
from cornerstone.errors import CornerstoneError, did_you_mean

GROUP = 4
SHORT_TEXTS = 5
REWRITES = 4
"""Of each raw caption, as many as LaCLIP's authors have released."""
_SWAPPED = Captioner("long", (5, 5))
"""So short that a model with the usual limit of 64 tokens reads all of it."""
_EXACT = replace(HUMAN, name="long", unseen=0.0, salient_first=1.0)


@dataclass(frozen=True)
class Row:
    """A row without its image: the scene, captions, what is known about them, and the group of look-alikes."""

    scene: Scene
    captions: tuple[Caption, ...] = ()
    known: dict[str, Any] | None = None
    group: str | None = None


def _training(spec: ScenesSpec, index: int) -> Row:
    scene = draw_scene(spec, spec.rng("scene", index))
    raw, about = raw_text(scene, spec.rng("raw", index))
    captions, errors = [Caption("alt", "raw", raw)], []
    for captioner in (A, B, _by_c(spec)):
        text, wrong = describe(scene, captioner, spec.rng(captioner.name, index), spec.sentences[1])
        captions.append(Caption(captioner.name, "long", text))
        errors += wrong
    return Row(scene, tuple(captions), {"raw": about, "errors": errors})


def _rewritten(spec: ScenesSpec, index: int) -> Row:
    row = _training(replace(spec, set="scenes"), index)
    rng = spec.rng("rewrite", index)
    rewrites = [Caption(f"rewrite-{n + 1}", "rewrite", rewritten(row.captions[0].text, rng)) for n in range(REWRITES)]
    return replace(row, captions=(*row.captions, *rewrites))


def _described(captioner: Captioner) -> Callable[[ScenesSpec, int], Row]:
    def row(spec: ScenesSpec, index: int) -> Row:
        scene = draw_scene(spec, spec.rng("scene", index))
        writer = _by_c(spec) if captioner is C else captioner
        text, errors = describe(scene, writer, spec.rng(writer.name, index), spec.sentences[1])
        return Row(scene, (Caption(writer.name, "long", text),), {"errors": errors})

    return row


def _short(spec: ScenesSpec, index: int) -> Row:
    scene = draw_scene(spec, spec.rng("scene", index))
    texts = short_texts(scene, spec.rng("short", index), SHORT_TEXTS)
    return Row(scene, tuple(Caption("short", "raw", text) for text in texts))


def _class(spec: ScenesSpec, index: int) -> Row:
    """Classes in turn, so that each occurs equally often."""
    return Row(draw_scene(spec, spec.rng("scene", index), salient=index % SPECIES))


def _lookalike(spec: ScenesSpec, index: int) -> Row:
    group, member = divmod(index, GROUP)
    scene = lookalikes(spec, group)[member]
    long, _ = describe(scene, _EXACT, spec.rng("long", index), spec.sentences[1])
    opening = sentence(object_fact(scene, scene.salient), scene.cells, spec.rng("opening", group))
    long = opening + long[long.index(". ") :]  # the first sentence is the same in all four
    (short,) = short_texts(scene, spec.rng("short", index), 1)
    return Row(scene, (Caption("long", "long", long), Caption("short", "raw", short)), group=f"{group:06d}")


def _sentence_swap(spec: ScenesSpec, index: int) -> Row:
    """A false sentence has the form and the manner of naming of the true one: a single value differs."""
    scene = draw_scene(spec, spec.rng("scene", index))
    facts = stated(scene, _SWAPPED, spec.rng("long", index))

    def said(place: int, fact: Fact) -> str:
        return sentence(fact, scene.cells, spec.rng("form", index, place))

    true = [said(place, fact) for place, fact in enumerate(facts)]
    captions = [Caption("long", "long", joined(true))]
    for place, fact in enumerate(facts):
        false = said(place, falsified(fact, scene, spec.rng("false", index, place)))
        salient = fact == object_fact(scene, scene.salient)
        kind = "salient" if salient else type(fact).__name__.removesuffix("Fact").lower()
        captions.append(Caption(kind, "foil", joined([*true[:place], false, *true[place + 1 :]])))
    return Row(scene, tuple(captions))


def lookalikes(spec: ScenesSpec, group: int) -> list[Scene]:
    """Four different scenes with the same salient object in the same place and the same background."""
    rng = spec.rng("group", group)
    salient, cell, background = rng.randrange(SPECIES), rng.randrange(spec.cells**2), rng.randrange(len(BACKGROUNDS))
    scenes: dict[frozenset[tuple[int, int]], Scene] = {}
    while len(scenes) < GROUP:
        scene = draw_scene(spec, rng, salient=salient, cell=cell, background=background)
        scenes.setdefault(frozenset((t.species, t.cell) for t in scene.things), scene)
    return list(scenes.values())


def _by_c(spec: ScenesSpec) -> Captioner:
    return replace(C, sentences=spec.sentences)


@dataclass(frozen=True)
class SetKind:
    """How a set's rows are made, and the evaluation tasks that it is for."""

    row: Callable[[ScenesSpec, int], Row]
    tasks: tuple[str, ...] = ()


SETS = {
    "scenes": SetKind(_training),
    "scenes-rewrites": SetKind(_rewritten),
    "scenes-short": SetKind(_short),
    "long-human": SetKind(_described(HUMAN), (RETRIEVAL,)),
    "long-captioner": SetKind(_described(C), (RETRIEVAL,)),
    "short": SetKind(_short, (RETRIEVAL,)),
    "class": SetKind(_class, (CLASSIFICATION,)),
    "lookalike": SetKind(_lookalike, (LOOKALIKE,)),
    "sentence-swap": SetKind(_sentence_swap, (SENTENCE_SWAP,)),
    "validation": SetKind(_described(C), (RETRIEVAL,)),
    "probe": SetKind(_class, (PROBE,)),
    "labelled": SetKind(_class, (CLASSIFICATION,)),
}
TRAINING_SETS = ("scenes", "scenes-rewrites", "scenes-short")
ON_DEMAND = ("sentence-swap",)
"""Evaluation sets of many texts an image, which a recipe must name (`evaluation.built_in`)."""
EVALUATION_SETS = tuple(name for name in SETS if name not in (*TRAINING_SETS, *ON_DEMAND, "probe", "labelled"))
"""Those that models of images and texts are evaluated on; `probe` is for image towers alone, `labelled` trains classifiers."""


def pair(spec: ScenesSpec, index: int) -> Pair:
    """A row of the spec's set. The label is the salient object's species.

    `extra` has the scene, the errors of the captions, and what the raw caption is about.
    """
    row = set_kind(spec).row(spec, index)
    return Pair(
        key=f"{spec.set}-{index:08d}",
        image=encode(paint(row.scene, spec.image_size)),
        width=spec.image_size,
        height=spec.image_size,
        captions=row.captions,
        label=row.scene.salient.species,
        group=row.group,
        extra=json.dumps({"scene": row.scene.as_json(), **(row.known or {})}, separators=(",", ":")),
    )


def set_kind(spec: ScenesSpec) -> SetKind:
    """The kind of the spec's set. Raises CornerstoneError for an unknown name."""
    if spec.set not in SETS:
        raise CornerstoneError(f"{spec.set!r} is not a set of scenes{did_you_mean(spec.set, SETS)}")
    return SETS[spec.set]


def manifest_fields(spec: ScenesSpec) -> dict[str, Any]:
    """The manifest's fields of the set, without its shards."""
    tasks = set_kind(spec).tasks
    return {
        "name": spec.set,
        "classes": tuple(NOUNS),
        "prompts": PROMPTS,
        "tasks": tasks,
        "pool": min(spec.pool, spec.rows) if tasks == (RETRIEVAL,) else None,
        "source": {"scenes": {**asdict(spec), "sentences": list(spec.sentences)}},
    }
