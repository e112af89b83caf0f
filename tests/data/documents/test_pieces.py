"""Which part of which document stands where: against slow references that put tokens down one by one."""

from __future__ import annotations

import json
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cornerstone.data.documents import PackingConfig
from cornerstone.data.documents.pieces import best_fit, bundles, cut_anywhere, left_out_images, measured, pack
from cornerstone.errors import CornerstoneError

IMAGE = 5  # patch tokens; 7 with the edges


def document(config, row, *segments):
    """Texts by their number of tokens, images by their matched similarity: `.3`, or None."""
    is_image = [not isinstance(segment, int) for segment in segments]
    extras = [json.dumps({"matched_sim": s}) if image else None for s, image in zip(segments, is_image, strict=True)]
    return measured(config, row, is_image, extras, [0 if i else s for s, i in zip(segments, is_image, strict=True)])


def config(budget=20, **changes):
    return PackingConfig(token_budget=budget, image_tokens=IMAGE, **changes)


def spread(piece, lengths):
    """The tokens of a piece one by one: <bos>, <eos>, or (segment, place in it)."""
    tokens = ["<bos>"] if (piece.first, piece.first_token) == (0, 0) else []
    for segment in range(piece.first, min(piece.stop + 1, len(lengths))):
        start = piece.first_token if segment == piece.first else 0
        stop = piece.stop_token if segment == piece.stop else lengths.tokens[segment]
        tokens += [(segment, place) for place in range(start, stop)]
    return tokens + ["<eos>"] * piece.end


def of_documents(sequences, documents):
    """(row, its tokens) for every piece, sequence by sequence."""
    lengths = {one.row: one for one in documents}
    return [[(piece.row, spread(piece, lengths[piece.row])) for piece in sequence] for sequence in sequences]


def atoms_of(lengths, together):
    """What is never cut, as lists of tokens, <bos> with the first."""
    groups = bundles(lengths.is_image) if together else ((s, s + 1) for s in range(len(lengths)))
    atoms = []
    for start, stop in groups:
        tokens = [(segment, place) for segment in range(start, stop) for place in range(lengths.tokens[segment])]
        whole = together or lengths.is_image[start]
        atoms += [tokens] if whole else [[token] for token in tokens]
    atoms = [atom for atom in atoms if atom]
    return [["<bos>", *atoms[0]], *atoms[1:]]


def reference_windows(documents, settings):
    sequences = []
    for one in documents:
        if not one.images:
            continue
        if settings.one_document:
            sequences.append([])
        for number, atom in enumerate([*atoms_of(one, together=False), ["<eos>"]]):
            if not sequences or sum(len(t) for _, t in sequences[-1]) + len(atom) > settings.token_budget:
                if atom == ["<eos>"]:
                    continue
                sequences.append([])
            if number == 0 or not sequences[-1]:
                sequences[-1].append((one.row, []))
            sequences[-1][-1][1].extend(atom)
    return sequences


def reference_prefix(one, settings):
    """What `mmc4` keeps of a document without its surplus."""
    kept = []
    for atom in [*atoms_of(one, together=True), ["<eos>"]]:
        if len(kept) + len(atom) > settings.token_budget:
            break
        kept += atom
    return kept


segments = st.lists(st.one_of(st.integers(0, 24), st.sampled_from([0.1, 0.24, 0.3, None])), min_size=1, max_size=10)
worlds = st.lists(segments, min_size=1, max_size=12)


def packed(world, settings):
    documents = [document(settings, row, *segments) for row, segments in enumerate(world)]
    return documents, *pack(documents, settings)


@settings(deadline=None, max_examples=300)
@given(
    world=worlds,
    budget=st.integers(9, 40),
    rule=st.sampled_from(["mmc4", "obelics", "laion"]),
    keep_surplus=st.booleans(),
    one_document=st.booleans(),
    max_images=st.integers(1, 3),
)
def test_every_segment_stands_once_or_is_counted(world, budget, rule, keep_surplus, one_document, max_images):
    made = config(budget, rule=rule, keep_surplus=keep_surplus, one_document=one_document, max_images=max_images)
    documents, sequences, counted = packed(world, made)
    stood = {one.row: Counter() for one in documents}
    for sequence in sequences:
        assert sequence
        assert sum(piece.tokens for piece in sequence) <= budget
        assert len(sequence) == 1 or not one_document
        for piece in sequence:
            tokens = spread(piece, documents[piece.row])
            inside = [token for token in tokens if isinstance(token, tuple)]
            assert inside
            assert piece.tokens == (len(tokens) if rule != "laion" else len(inside) + 1)
            stood[piece.row].update(inside)
            whole = Counter(segment for segment, _ in inside)
            for segment, count in whole.items():
                if rule != "obelics" or documents[piece.row].is_image[segment]:
                    assert count == documents[piece.row].tokens[segment]
            assert piece.images == sum(documents[piece.row].is_image[segment] for segment in whole)
    found, kept = Counter(), Counter()
    for one, asked in zip(documents, world, strict=True):
        assert set(stood[one.row].values()) <= {1}
        found["documents"] += 1
        kept["documents"] += bool(stood[one.row])
        for segment, given_ in enumerate(asked):
            here = sum(token[0] == segment for token in stood[one.row])
            what = "images" if one.is_image[segment] else "texts"
            found[what] += 1
            kept[what] += here > 0
            if what == "texts":
                found["text tokens"] += given_
                kept["text tokens"] += here
    for what in found:
        assert counted.found[what] == found[what]
        assert counted.packed(what) == kept[what], (what, counted.left_out)


@settings(deadline=None, max_examples=200)
@given(world=worlds, budget=st.integers(9, 40), one_document=st.booleans())
def test_windows_are_the_tokens_one_after_another(world, budget, one_document):
    made = config(budget, rule="obelics", one_document=one_document)
    documents, sequences, _ = packed(world, made)
    assert of_documents(sequences, documents) == reference_windows(documents, made)


@settings(deadline=None, max_examples=200)
@given(world=worlds, budget=st.integers(9, 40))
def test_without_surplus_a_document_is_what_fits_before_a_sentence(world, budget):
    made = config(budget)
    documents, sequences, _ = packed(world, made)
    found = {row: tokens for sequence in of_documents(sequences, documents) for row, tokens in sequence}
    expected = {one.row: reference_prefix(one, made) for one in documents if one.images}
    assert found == {row: tokens for row, tokens in expected.items() if tokens}


@given(sizes=st.lists(st.integers(1, 30), max_size=60), room=st.integers(30, 50))
def test_best_fit_is_a_search_through_all_groups(sizes, room):
    groups = best_fit(sizes, room)
    assert sorted(place for group in groups for place in group) == list(range(len(sizes)))
    left = []
    for size in sorted(sizes, reverse=True):
        fitting = [one for one in left if one >= size]
        if fitting:
            left.remove(min(fitting))
        left.append((min(fitting) if fitting else room) - size)
    assert sorted(room - sum(sizes[place] for place in group) for group in groups) == sorted(left)


def test_an_image_that_would_be_cut_moves_whole():
    made = config(12, rule="obelics")
    documents = [document(made, 0, 6, None, 8)]
    assert of_documents(cut_anywhere(documents, made), documents) == [
        [(0, ["<bos>", *((0, place) for place in range(6))])],
        [(0, [*((1, place) for place in range(7)), *((2, place) for place in range(5))])],
        [(0, [(2, 5), (2, 6), (2, 7), "<eos>"])],
    ]


def test_an_image_stays_with_its_sentence():
    made = config(20, keep_surplus=True)
    _, sequences, _ = packed([[10, 0.3, 5, 7, 9]], made)
    assert sorted(tuple(piece) for sequence in sequences for piece in sequence) == [
        (0, 0, 0, 1, 0, False, 11, 0),  # the image would fit, its sentence not
        (0, 1, 0, 4, 0, False, 19, 1),
        (0, 4, 0, 5, 0, True, 10, 0),
    ]


@pytest.mark.parametrize(
    ("rule", "world", "left_out"),
    [
        ("mmc4", [[4, 0.23, 5]], {("documents", "no usable image"): 1, ("images", "similarity below the minimum"): 1,
                                  ("texts", "with its document"): 2, ("text tokens", "with its document"): 9}),
        ("mmc4", [[4, None, 5, 0.24, 1]], {("images", "no matched similarity"): 1}),
        ("mmc4", [[3, 0.3, 4, 30, 2]], {("texts", "longer than the budget"): 1, ("texts", "beyond the budget"): 1,
                                       ("text tokens", "longer than the budget"): 30,
                                       ("text tokens", "beyond the budget"): 2}),
        ("mmc4", [[3, 0.3, 4, 0.1, 30]], {("images", "similarity below the minimum"): 1,
                                          ("texts", "longer than the budget"): 1,
                                          ("text tokens", "longer than the budget"): 30}),
        ("mmc4", [[30, 0.3, 4]], {("documents", "longer than the budget"): 1, ("texts", "longer than the budget"): 1,
                                  ("text tokens", "longer than the budget"): 30, ("images", "beyond the budget"): 1,
                                  ("texts", "beyond the budget"): 1, ("text tokens", "beyond the budget"): 4}),
        ("obelics", [[3, None, 0, 40], [9]], {("texts", "no token"): 1, ("documents", "no usable image"): 1,
                                              ("texts", "with its document"): 1, ("text tokens", "with its document"): 9}),
        ("laion", [[3, None], [3, None, 3], [13, None]], {
            ("documents", "not one image and one text"): 1, ("documents", "longer than the budget"): 1,
            ("images", "with its document"): 2, ("texts", "with its document"): 3,
            ("text tokens", "with its document"): 19}),
    ],
)  # fmt: skip
def test_what_is_left_out_has_its_reason(rule, world, left_out):
    _, _, counted = packed(world, config(20, rule=rule))
    assert dict(counted.left_out) == left_out


def test_images_that_stay_are_drawn_once_for_a_row():
    made = config(max_images=2)
    extras = [json.dumps({"matched_sim": sim}) for sim in (0.3, 0.3, 0.1, 0.3, 0.3)]
    chosen = [left_out_images(made, row, [True] * 5, extras) for row in range(200)]
    assert chosen == [left_out_images(made, row, [True] * 5, extras) for row in range(200)]
    assert {len(out) for out in chosen} == {3}
    assert all(out[2] == "similarity below the minimum" for out in chosen)
    often = Counter(segment for out in chosen for segment in range(5) if segment not in out)
    assert set(often) == {0, 1, 3, 4}
    assert all(70 <= count <= 130 for count in often.values())  # 100 expected, standard deviation 7
    other = config(max_images=2, seed=1)
    assert chosen != [left_out_images(other, row, [True] * 5, extras) for row in range(200)]


def test_too_small_a_budget_is_refused():
    assert PackingConfig(token_budget=9, image_tokens=5).tokens_per_image == 7
    with pytest.raises(CornerstoneError, match="expected --image-tokens of 1 or more, and --budget of 9 or more"):
        PackingConfig(token_budget=8, image_tokens=5)
    with pytest.raises(CornerstoneError, match="--max-images 0"):
        PackingConfig(max_images=0)
