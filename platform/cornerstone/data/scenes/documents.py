"""Interleaved documents of scenes, in which the worth of the images for predicting the text is known in nats.

A document has a topic, a background and 12 species, from which each of its scenes is drawn. In the order of reading, an image
has 2 or 3 sentences before it, then its matched sentence, then 2 or 3 sentences after it. Three knobs, each a probability:

- `context`: a sentence before an image states a fact of the image; otherwise it only suits the topic (or is junk).
- `redundancy`: the matched sentence, and each sentence after it, repeats a fact that a sentence before the image states;
  otherwise it states a new one, which can be read only from the image. Where a repetition is drawn and no sentence before
  the image speaks of it, one is made to.
- `mismatch`: the image shows a scene of another topic, has a low matched similarity, and is worth nothing.

An image stands directly before its matched sentence, as importers store it: the reader of packed sequences draws which comes
first. So the image's worth at new facts counts in all epochs for the sentences after (`worth_after`), and in half of them for
the matched sentence (`worth_matched`). `statements` says how the worth of a word is computed. It supposes that the topic is
known; for who still has to learn the topic from the document, an image may be worth more.

Pictures, facts, their order and the number of sentences do not depend on the knobs, so that sets which differ in one knob can
be compared image by image.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from itertools import cycle
from math import fsum
from typing import Any, ClassVar

from cornerstone.data.manifest import Manifest
from cornerstone.data.records import Document, Segment
from cornerstone.data.scenes.draw import encode, paint
from cornerstone.data.scenes.statements import AGAIN, COMING, HERE, Fact, Forms, Status, Untold, filler, stated
from cornerstone.data.scenes.world import BACKGROUNDS, SPECIES, Scene, WorldSpec, draw_scene, refuse
from cornerstone.errors import CornerstoneError, did_you_mean

DOCUMENT_SETS = ("documents", "documents-validation")
TOPIC = 12
"""Number of species of a topic."""
ANOTHER_IMAGE = 0.25
BEFORE = AFTER = (2, 3)
"""Fewest and most sentences on either side of an image and its matched sentence."""
MATCHED, MISMATCHED = (0.25, 0.45), (0.05, 0.23)
"""Ranges of the matched similarity, on either side of the papers' threshold of 0.24."""


@dataclass(frozen=True)
class DocumentsSpec(WorldSpec):
    """Everything that determines a set of documents: equal specs give equal bytes. `set` is one of `DOCUMENT_SETS`."""

    set: str = "documents"
    redundancy: float = 0.5
    context: float = 0.75
    mismatch: float = 0.0
    images_per_document: int = 6
    """Most images of a document: it has one, and each of the others with probability 1/4."""

    rows_option: ClassVar[str] = "--documents"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.set not in DOCUMENT_SETS:
            raise CornerstoneError(f"{self.set!r} is not a set of documents{did_you_mean(self.set, DOCUMENT_SETS)}")
        for knob in ("redundancy", "context", "mismatch"):
            if not 0 <= getattr(self, knob) <= 1:
                refuse(knob, getattr(self, knob), f"a probability, 0 to 1; change --{knob}")
        if self.images_per_document < 1:
            refuse("images_per_document", self.images_per_document, "1 or more; raise --images-per-document")
        least, most = BEFORE[1] + AFTER[1] - 2, min(TOPIC, self.cells**2 - 1)  # enough facts, and an empty cell
        if not least <= self.min_objects <= self.max_objects <= most:
            refuse("objects", (self.min_objects, self.max_objects), f"{least} <= fewest <= most <= {most} in documents")


@dataclass(frozen=True)
class Topic:
    """What all images of a document have in common."""

    background: int
    species: tuple[int, ...]

    @staticmethod
    def of(spec: DocumentsSpec, index: int) -> Topic:
        """The topic of a document."""
        rng = spec.rng("topic", index)
        return Topic(rng.randrange(len(BACKGROUNDS)), tuple(sorted(rng.sample(range(SPECIES), TOPIC))))

    def scene(self, spec: DocumentsSpec, purpose: str, *parts: int) -> Scene:
        """A scene of the topic."""
        return draw_scene(spec, spec.rng(purpose, *parts), background=self.background, among=self.species)


def document(spec: DocumentsSpec, index: int) -> Document:
    """A document of the spec's set.

    `extra` of a text has the number of its image, its role (`before`, `matched`, `after`), its fact (null if it tells none),
    and the values with their worth. `extra` of an image has what importers of mmc4 store, the scene that it shows and, if
    this is another one, the scene that the text describes.
    """
    topic, key = Topic.of(spec, index), f"{spec.set}-{index:08d}"
    count = spec.rng("images", index)
    images = 1 + sum(count.random() < ANOTHER_IMAGE for _ in range(spec.images_per_document - 1))
    segments: list[Segment] = []
    known: list[dict[str, Any]] = []
    for number in range(images):
        scene = topic.scene(spec, "scene", index, number)
        shown, similarity = _shown(spec, topic, scene, index, number)
        texts = _texts(spec, topic, scene, shown is scene, index, number)
        before = [extra["role"] for _, extra in texts].index("matched")
        extra: dict[str, Any] = {
            "name": f"{key}/{number}",
            "matched_text_index": len(known) + before,
            "matched_sim": similarity,
            "scene": shown.as_json(),
            **({} if shown is scene else {"described": scene.as_json()}),
        }
        around = [Segment(text=text, extra=_json({"image": number, **said})) for text, said in texts]
        picture = Segment(image=encode(paint(shown, spec.image_size)), extra=_json(extra))
        segments += [*around[:before], picture, *around[before:]]
        known += [said for _, said in texts]
    totals = {
        "images": images,
        "sentences": len(known),
        **{
            f"worth_{role}": _nats(extra for extra in known if extra["role"] == role)
            for role in ("before", "matched", "after")
        },
    }
    return Document(key, tuple(segments), _json({"topic": asdict(topic), **totals}))


def _shown(spec: DocumentsSpec, topic: Topic, scene: Scene, index: int, number: int) -> tuple[Scene, float]:
    """The scene that the image shows, and its matched similarity. Another scene has another background: it can be told."""
    rng = spec.rng("mismatch", index, number)
    if rng.random() >= spec.mismatch:
        return scene, round(rng.uniform(*MATCHED), 4)
    background = (topic.background + rng.randrange(1, len(BACKGROUNDS))) % len(BACKGROUNDS)
    other = Topic(background, tuple(rng.sample(range(SPECIES), TOPIC)))
    return other.scene(spec, "other scene", index, number), round(rng.uniform(*MISMATCHED), 4)


def _texts(
    spec: DocumentsSpec, topic: Topic, scene: Scene, seen: bool, index: int, number: int
) -> list[tuple[str, dict[str, Any]]]:
    """The sentences around an image, each with its `extra`. `seen` tells whether the image shows the scene."""
    layout, words = spec.rng("layout", index, number), spec.rng("words", index, number)
    before, after = layout.randint(*BEFORE), layout.randint(*AFTER)
    speaks = [layout.random() < spec.context for _ in range(before)]
    repeats = [layout.random() < spec.redundancy for _ in range(1 + after)]
    if any(repeats) and not any(speaks):
        speaks[layout.randrange(before)] = True
    untold = Untold(scene, spec, len(topic.species), spec.rng("facts", index, number))

    texts, told = list[tuple[str, dict[str, Any]]](), list[Fact]()

    def said(role: str, fact: Fact, forms: Forms, status: Status) -> tuple[str, dict[str, Any]]:
        text = stated(fact, forms, words, unlike=[text for text, _ in texts])
        return text, {"role": role, "fact": fact.kind, "values": fact.values(status, seen)}

    for about in speaks:
        if about:
            told.append(untold.next())
            texts.append(said("before", told[-1], COMING, "context"))
        else:
            text = filler(topic.background, topic.species, words)
            texts.append((text, {"role": "before", "fact": None, "values": []}))
    again = cycle(words.sample(told, len(told)))
    for place, repeated in enumerate(repeats):
        role = "after" if place else "matched"
        if repeated:
            texts.append(said(role, next(again), AGAIN, "copyable"))
        else:
            texts.append(said(role, untold.next(), HERE, "new"))
    return texts


def _nats(extras: Iterable[dict[str, Any]]) -> float:
    return round(fsum(value["nats"] for extra in extras for value in extra["values"]), 4)


def _json(values: dict[str, Any]) -> str:
    return json.dumps(values, separators=(",", ":"))


def documents_source(spec: DocumentsSpec, extras: Sequence[str]) -> dict[str, Any]:
    """The manifest's `source`: the spec, and the sums of what the documents' `extra` counts."""
    counted = [json.loads(extra) for extra in extras]
    counts = {name: sum(each[name] for each in counted) for name in ("images", "sentences")}
    worths = ("worth_before", "worth_matched", "worth_after")
    worth = {name: round(fsum(each[name] for each in counted), 4) for name in worths}
    return {"scenes": asdict(spec), "totals": {"documents": len(counted), **counts, **worth}}


def known_worth(manifest: Manifest) -> float:
    """`expected_worth`, or 0 if it is not known."""
    return expected_worth(manifest) if "worth_after" in manifest.source.get("totals", {}) else 0.0


def expected_worth(manifest: Manifest) -> float:
    """What the images of a set of documents are worth for predicting its text, in nats, expected over the drawn sides.

    Divide it by the number of text targets for the largest gain in the mean loss. Documents that are cut when they are packed
    lose a part of it. Raises CornerstoneError if the worth of the data set's images is not known.
    """
    totals = manifest.source.get("totals", {})
    if manifest.kind != "documents" or not {"worth_matched", "worth_after"} <= set(totals):
        raise CornerstoneError(
            f"The worth of the images of {manifest.name} is not known: expected documents written by "
            f"`cornerstone data scenes --documents N`."
        )
    return float(totals["worth_after"] + totals["worth_matched"] / 2)
