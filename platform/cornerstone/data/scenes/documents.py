"""Interleaved documents of scenes, for LCL: what an image is worth to a reader of the text is known in nats.

A document has a topic, a background and 12 species, and 1 + Binomial(5, 1/4) images of scenes that are drawn from it. The
sentences around an image, in stored order:

    2 or 3 before it    each speaks of the coming image with probability `context`, or of nothing in particular
    the image
    the matched one     which the reader of a packing puts behind the image or before it, as MMC4's
    2 or 3 behind it

A fact that the matched sentence or one behind the image states *repeats*, in another form, one that stands before the image,
with probability `redundancy`: it can be copied. Otherwise it is *new*: of all values that the text leaves open each is equally
probable, and only the image tells which. The log of their number is what the image is worth there, to a reader who knows the
topic.

| fact | values left open |
|---|---|
| "a large X is in the P", "a small X is in the P" | species of the topic and cells that no sentence has named for this image |
| "the image shows five objects" | the numbers of objects that there may be |
"""

from __future__ import annotations

import json
import math
import random
from dataclasses import asdict, dataclass
from typing import Any, Literal

from cornerstone.data.records import Document, Segment
from cornerstone.data.scenes.draw import encode, paint
from cornerstone.data.scenes.facts import CountFact, Fact, ObjectFact, object_fact
from cornerstone.data.scenes.texts import JUNK, sentence
from cornerstone.data.scenes.world import BACKGROUNDS, SPECIES, Scene, ScenesSpec, Thing
from cornerstone.errors import CornerstoneError

TOPIC_SPECIES = 12
MORE_IMAGES, MORE_SHARE = 5, 0.25
AROUND = (2, 3)
"""Fewest and most sentences before and behind an image, without the matched one."""
MATCHED, MISMATCHED = (0.25, 0.45), (0.05, 0.23)
"""Similarities of images with their sentence; MMC4's filter keeps those of 0.24 or more."""
MOST_PLACED = 4
"""Objects that are named before the number of objects could be told from them."""
WordKind = Literal["context", "filler", "copyable", "new"]


@dataclass(frozen=True)
class DocumentsSpec(ScenesSpec):
    """Everything that determines a set of documents: equal specs give equal bytes."""

    set: str = "documents"
    redundancy: float = 0.5
    """Probability that a fact behind an image repeats one that stands before it."""
    context: float = 0.75
    """Probability that a sentence before an image speaks of it."""
    mismatch: float = 0.0
    """Share of images that are replaced by a scene of another topic, with a low similarity."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("redundancy", "context", "mismatch"):
            if not 0 <= getattr(self, name) <= 1:
                raise CornerstoneError(f"--{name} {getattr(self, name)}: expected 0 to 1.")


@dataclass(frozen=True)
class Said:
    """A sentence, what kind its value words are of, and what the image is worth to them in nats."""

    text: str
    kind: WordKind
    nats: float = 0.0


@dataclass(frozen=True)
class Passage:
    """An image and the sentences around it."""

    scene: Scene
    shown: Scene
    """The scene that is drawn: another one if the image is mismatched."""
    similarity: float
    before: tuple[Said, ...]
    matched: Said
    after: tuple[Said, ...]

    @property
    def worth(self) -> float:
        """Nats, on average over the two sides that the image may stand on; 0 if the image is another one."""
        if self.shown is not self.scene:
            return 0.0
        return sum(said.nats for said in self.after) + self.matched.nats / 2


def document(spec: DocumentsSpec, index: int) -> Document:
    """A row of the set."""
    passages = passages_of(spec, index)
    segments: list[Segment] = []
    for passage in passages:
        segments += map(_segment, passage.before)
        known = {"matched_text_index": sum(s.text is not None for s in segments), "matched_sim": passage.similarity}
        picture = encode(paint(passage.shown, spec.image_size))
        segments.append(Segment(image=picture, extra=_json({**known, "scene": passage.shown.as_json()})))
        segments += map(_segment, (passage.matched, *passage.after))
    worth = sum(passage.worth for passage in passages)
    return Document(f"{spec.set}-{index:08d}", tuple(segments), _json({"worth": round(worth, 6)}))


def manifest_fields(spec: DocumentsSpec) -> dict[str, Any]:
    """The manifest's fields of the set, without its shards. `source` holds the knobs and the worth of all images."""
    passages = [passage for index in range(spec.rows) for passage in passages_of(spec, index)]
    source = {
        "scenes": {**asdict(spec), "sentences": list(spec.sentences)},
        "images": len(passages),
        "mismatched": sum(passage.shown is not passage.scene for passage in passages),
        "expected_worth": round(sum(passage.worth for passage in passages), 3),
    }
    return {"name": spec.set, "source": source}


def passages_of(spec: DocumentsSpec, index: int) -> list[Passage]:
    """The images of a document and what is said around them."""
    rng = spec.rng("document", index)
    topic = _topic(rng)
    images = 1 + sum(rng.random() < MORE_SHARE for _ in range(MORE_IMAGES))
    return [_passage(spec, topic, rng) for _ in range(images)]


@dataclass(frozen=True)
class _Topic:
    background: int
    species: tuple[int, ...]


def _topic(rng: random.Random) -> _Topic:
    return _Topic(rng.randrange(len(BACKGROUNDS)), tuple(rng.sample(range(SPECIES), TOPIC_SPECIES)))


def _scene(spec: DocumentsSpec, topic: _Topic, rng: random.Random) -> Scene:
    count = rng.randint(spec.min_objects, spec.max_objects)
    places = zip(rng.sample(topic.species, count), rng.sample(range(spec.cells**2), count), strict=True)
    jitter = (-1, 0, 1)
    things = tuple(Thing(species, cell, rng.choice(jitter), rng.choice(jitter)) for species, cell in places)
    return Scene(spec.cells, topic.background, things)


def _passage(spec: DocumentsSpec, topic: _Topic, rng: random.Random) -> Passage:
    scene = _scene(spec, topic, rng)
    teller = _Teller(spec, scene, rng)
    sentences = rng.randint(*AROUND)
    repeats = [rng.random() < spec.redundancy for _ in range(1 + rng.randint(*AROUND))]
    about = [rng.random() < spec.context for _ in range(sentences)]
    about[-1] = about[-1] or (any(repeats) and not any(about))  # there must be something to repeat
    before = tuple(teller.context() if speaks else _filler(rng) for speaks in about)
    behind = [teller.repeated() if repeat else teller.new() for repeat in repeats]
    mismatched = rng.random() < spec.mismatch
    shown = _scene(spec, _topic(rng), rng) if mismatched else scene
    similarity = round(rng.uniform(*(MISMATCHED if mismatched else MATCHED)), 4)
    return Passage(scene, shown, similarity, before, behind[0], tuple(said for said in behind[1:] if said.text))


class _Teller:
    """States facts about one image, each at most once, and knows what the text has left open."""

    def __init__(self, spec: DocumentsSpec, scene: Scene, rng: random.Random) -> None:
        self.spec, self.scene, self.rng = spec, scene, rng
        self.open: list[Fact] = [object_fact(scene, thing) for thing in scene.things]
        self.open.append(CountFact(None, len(scene.things)))
        rng.shuffle(self.open)
        self.placed = 0
        self.said: list[tuple[Fact, str]] = []
        """Facts that stand before the image, with their sentences."""

    def context(self) -> Said:
        """A sentence before the image that speaks of it."""
        fact, _ = self._next()
        text = self._text(fact)
        self.said.append((fact, text))
        return Said(text, "context")

    def new(self) -> Said:
        """A fact that no sentence has stated."""
        if not self.open:
            return Said("", "filler")
        fact, nats = self._next()
        return Said(self._text(fact), "new", nats)

    def repeated(self) -> Said:
        """A fact from before the image, in another form."""
        fact, before = self.rng.choice(self.said)
        return Said(next(text for text in iter(lambda: self._text(fact), None) if text != before), "copyable")

    def _next(self) -> tuple[Fact, float]:
        """The next fact, and the log of the number of values that the text leaves open for it."""
        counts = self.placed < MOST_PLACED
        place = next(
            i for i, fact in enumerate(self.open) if counts or isinstance(fact, ObjectFact) or len(self.open) == 1
        )
        fact = self.open.pop(place)
        if isinstance(fact, CountFact):
            fewest = max(self.spec.min_objects, self.placed)
            return fact, math.log(self.spec.max_objects - fewest + 1)
        nats = math.log(TOPIC_SPECIES - self.placed) + math.log(self.spec.cells**2 - self.placed)
        self.placed += 1
        return fact, nats

    def _text(self, fact: Fact) -> str:
        return sentence(fact, self.spec.cells, self.rng)


def _filler(rng: random.Random) -> Said:
    return Said(" ".join(rng.choices(JUNK, k=rng.randint(6, 9))), "filler")


def _segment(said: Said) -> Segment:
    return Segment(text=said.text + ".", extra=_json({"words": said.kind, "nats": round(said.nats, 6)}))


def _json(value: dict[str, Any]) -> str:
    return json.dumps(value, separators=(",", ":"))
