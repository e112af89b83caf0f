"""Every benchmark from files as they are released: questions, prompts, and scores computed by hand."""

from __future__ import annotations

import base64
import csv
import json

import pytest

from cornerstone.data.storage import Location
from cornerstone.errors import CornerstoneError
from cornerstone.evaluation.dialogue import BENCHMARKS, benchmark
from cornerstone.evaluation.dialogue.open_answers import soft_accuracy, vizwiz_accuracy
from cornerstone.evaluation.dialogue.yes_no import COGNITION, PERCEPTION

SHORT = "\nAnswer the question using a single word or phrase."
LETTER = "\nAnswer with the option's letter from the given choices directly."


def put(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def people(*answers):
    return [{"answer": answer, "answer_confidence": "yes", "answer_id": i} for i, answer in enumerate(answers, 1)]


def vqav2(root):
    asked = [
        {"question_id": 42000, "image_id": 42, "question": "What is it?"},
        {"question_id": 42001, "image_id": 42, "question": "How many?"},
    ]
    head = {"info": {}, "data_type": "mscoco", "data_subtype": "val2014"}
    said = [
        {"question_id": 42000, "answer_type": "other", "answers": people(*["net"] * 2, *["racket"] * 8)},
        {"question_id": 42001, "answer_type": "number", "answers": people(*["2"] * 10)},
    ]
    return [put(root / "q.json", {**head, "questions": asked}), put(root / "a.json", {"annotations": said})]


def gqa(root):
    rows = {
        "201": {"imageId": "n1", "question": "Is it red?", "answer": "no", "types": {"structural": "verify"}},
        "202": {"imageId": "n1", "question": "Who?", "answer": "girl", "types": {"structural": "query"}},
    }
    return [put(root / "testdev_balanced_questions.json", rows)]


def vizwiz(root):
    rows = [
        {"image": "V_0.jpg", "question": "What?", "answers": people(*["unanswerable"] * 6, *["soup"] * 4)},
        {"image": "V_1.jpg", "question": "Which?", "answers": people(*["soup"] * 10), "answer_type": "other"},
    ]
    return [put(root / "val.json", rows)]


def scienceqa(root):
    usual = {
        "question": "Which?",
        "choices": ["cat", "dog", "fox"],
        "answer": 1,
        "hint": "",
        "subject": "natural science",
    }
    rows = {
        "4": {**usual, "image": "image.png", "split": "test", "hint": "Look."},
        "5": {**usual, "image": None, "split": "test"},
        "6": {**usual, "image": "image.png", "split": "train"},
    }
    return [put(root / "problems.json", rows)]


def pope(root):
    for split in ("random", "popular", "adversarial"):
        rows = [
            {"question_id": i, "image": "COCO_val2014_1.jpg", "text": f"Is there a {thing}?", "label": label}
            for i, (thing, label) in enumerate([("cat", "yes"), ("dog", "no"), ("fox", "yes"), ("owl", "no")])
        ]
        put(root / f"coco_pope_{split}.json", "".join(json.dumps(row) + "\n" for row in rows))
    return [root]


def mme(root):
    for task in (*PERCEPTION, *COGNITION):
        apart = task in ("celebrity", "posters")
        texts, images = (root / task / "questions_answers_YN", root / task / "images") if apart else (root / task,) * 2
        asked = "Is it? Please answer yes or no.\tYes\nIs it not? Please answer yes or no.\tNo\n"
        for name in ("000", "001"):
            put(texts / f"{name}.txt", asked)
            put(images / f"{name}.png", "picture")
    return [root]


def mmbench(root, image=b"picture", rows=None):
    picture = base64.b64encode(image).decode()
    usual = {"question": "Which?", "hint": "", "A": "cat", "B": "dog", "C": "fox", "D": "", "l2-category": "seeing"}
    rows = rows or [
        {"index": 7, **usual, "answer": "B", "image": picture},
        {"index": 8, **usual, "answer": "A", "image": picture},
        {"index": 1_000_008, **usual, "A": "dog", "B": "fox", "C": "cat", "answer": "C", "image": "8"},
    ]
    path = root / "mmbench_dev.tsv"
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as stream:
        writer = csv.DictWriter(stream, list(rows[0]), delimiter="\t")
        writer.writeheader()
        writer.writerows(rows)
    return [path]


def seed(root):
    usual = {"question": "Which?", "choice_a": "cat", "choice_b": "dog", "choice_c": "fox", "choice_d": "owl"}
    rows = [
        {"question_id": "1", "data_id": "1_2", "data_type": "image", "answer": "D", "question_type_id": 1, **usual},
        {"question_id": "2", "data_id": "v.mp4", "data_type": "video", "answer": "A", "question_type_id": 12, **usual},
    ]
    return [put(root / "SEED-Bench.json", {"questions": rows, "question_type": {"Scene Understanding": 1}})]


WRITERS = {
    "vqav2": vqav2,
    "gqa": gqa,
    "vizwiz": vizwiz,
    "scienceqa": scienceqa,
    "pope": pope,
    "mme": mme,
    "mmbench": mmbench,
    "seed": seed,
}


def read(name, root):
    return benchmark(name).read([Location.of(path) for path in WRITERS[name](root)])


def scored(name, root, answer):
    """Scores of `answer(question)` to each."""
    questions = read(name, root)
    return benchmark(name).score(questions, {one.key: answer(one) for one in questions})


def test_every_benchmark_has_files_here():
    assert {*WRITERS, "conversations"} == set(BENCHMARKS)


def test_the_prompts_and_images_of_open_questions(tmp_path):
    first, second = read("vqav2", tmp_path / "vqa")
    assert first.prompt == "What is it?" + SHORT
    assert first.image == second.image == "COCO_val2014_000000000042.jpg"
    assert read("gqa", tmp_path / "gqa")[0].image == "n1.jpg"
    prompt = read("vizwiz", tmp_path / "vizwiz")[0].prompt
    assert prompt == "What?\nWhen the provided information is insufficient, respond with 'Unanswerable'." + SHORT


def test_the_prompts_of_lettered_questions(tmp_path):
    (only,) = read("scienceqa", tmp_path / "sqa")
    assert only.prompt == "Context: Look.\nWhich?\nA. cat\nB. dog\nC. fox" + LETTER
    assert only.image == "test/4/image.png"
    (only,) = read("seed", tmp_path / "seed")
    assert only.prompt == "Which?\nA. cat\nB. dog\nC. fox\nD. owl" + LETTER
    assert (only.image, only.kind) == ("1_2", "Scene Understanding")


def test_vqa_gives_part_of_a_point_to_what_few_said(tmp_path):
    """Two of ten: left out in turn, 8 times 2/3 and twice 1/3."""
    found = scored("vqav2", tmp_path, lambda one: "Net." if "What" in one.prompt else "2")
    assert found.metrics["accuracy_other"] == pytest.approx(100 * (8 * 2 / 3 + 2 * 1 / 3) / 10)
    assert found.metrics["accuracy_number"] == 100
    assert found.metrics["accuracy"] == pytest.approx((60 + 100) / 2)
    assert found.right_Q.tolist() == pytest.approx([60, 100])


def test_gqa_is_exact_without_case_and_period(tmp_path):
    found = scored("gqa", tmp_path, lambda one: "No." if "red" in one.prompt else "a girl")
    assert found.metrics == {"accuracy": 50, "accuracy_query": 0, "accuracy_verify": 100}


def test_vizwiz_counts_what_is_called_unanswerable(tmp_path):
    found = scored("vizwiz", tmp_path, lambda one: "Unanswerable")
    assert found.metrics["accuracy"] == 50
    assert (found.metrics["called_unanswerable"], found.metrics["unanswerable"]) == (100, 50)


def test_vizwiz_normalises_the_answer_alone(tmp_path):
    """As VizWiz's own evaluation: people's answers stand as they are, even if all ten agree, which VQA's does otherwise."""
    cases = [
        ("Coca-Cola.", ["coca-cola"] * 10, 0.0, 1.0),
        ("The soup", ["soup"] * 10, 1.0, 0.0),
        ("two", ["2"] * 2 + ["two"] * 8, (2 * 1 / 3 + 8 * 2 / 3) / 10, (2 * 1 / 3 + 8 * 2 / 3) / 10),
        ("coca-cola", ["coca-cola"] * 9 + ["pepsi"], 0.0, 1.0),
        ("green\ntea", ["green tea"] * 3 + ["tea"] * 7, (3 * 2 / 3 + 7) / 10, (3 * 2 / 3 + 7) / 10),
    ]
    for said, people_said, vizwiz_s, vqa_s in cases:
        assert vizwiz_accuracy(said.lower().rstrip("."), people_said) == pytest.approx(vizwiz_s), said
        assert soft_accuracy(said.lower().rstrip("."), people_said) == pytest.approx(vqa_s), said
    rows = [{"image": "V.jpg", "question": "?", "answers": people(*["coca-cola"] * 10)}]
    questions = BENCHMARKS["vizwiz"].read([put(tmp_path / "val.json", rows)])
    assert BENCHMARKS["vizwiz"].score(questions, {"V.jpg": "coca-cola"}).metrics["accuracy"] == 0


def test_scienceqa_without_a_hint_has_no_context(tmp_path):
    row = {
        "question": "Which?",
        "choices": ["cat", "dog"],
        "answer": 0,
        "hint": "",
        "image": "image.png",
        "split": "test",
    }
    (only,) = BENCHMARKS["scienceqa"].read([put(tmp_path / "problems.json", {"7": row})])
    assert only.prompt == "Which?\nA. cat\nB. dog" + LETTER


def test_pope_by_hand(tmp_path):
    """Yes to cat, dog and fox: precision 2/3, recall 1, F1 4/5, accuracy 3/4."""
    found = scored("pope", tmp_path, lambda one: "No, there is not." if "owl" in one.prompt else "Yes, there is")
    expected = {"f1": 80, "accuracy": 75, "precision": 200 / 3, "recall": 100, "yes_ratio": 75}
    for name, value in expected.items():
        assert found.metrics[name] == pytest.approx(value)
        assert found.metrics[f"{name}_popular"] == pytest.approx(value)
    silent = scored("pope", tmp_path, lambda one: "no")
    assert (silent.metrics["f1"], silent.metrics["precision"], silent.metrics["accuracy"]) == (0, 0, 50)


def test_mme_adds_accuracy_and_accuracy_of_both_questions(tmp_path):
    assert scored("mme", tmp_path, lambda one: "Yes" if one.truth else "No").metrics["perception"] == 2000
    found = scored("mme", tmp_path, lambda one: "Yes")  # each image has one right answer: 50 and 0 points a subtask
    assert (found.metrics["perception"], found.metrics["cognition"]) == (500, 200)

    def half(one):  # both right for the first image: 75 and 50 points
        return ("yes" if one.truth else "no") if one.group.endswith("000") else "yes, it is"

    found = scored("mme", tmp_path, half)
    assert (found.metrics["points_ocr"], found.metrics["cognition"]) == (125, 500)
    others = scored("mme", tmp_path, lambda one: "perhaps")
    assert others.metrics["perception"] == 0


def test_mme_asks_without_its_own_request_and_finds_images(tmp_path):
    questions = read("mme", tmp_path)
    assert {one.prompt for one in questions} == {"Is it?" + SHORT, "Is it not?" + SHORT}
    images = {one.image for one in questions}
    assert {"existence/000.png", "celebrity/images/001.png"} <= images
    assert len(images) == 28


def test_mmbench_wants_every_rotation(tmp_path):
    questions = read("mmbench", tmp_path)
    assert {one.image for one in questions} == {b"picture"}
    rotated = [one for one in questions if one.group == "7"]
    assert [one.truth[0] for one in rotated] == ["B", "A", "C"]
    assert "A. dog\nB. fox\nC. cat" in rotated[1].prompt
    given = [one for one in questions if one.group == "8"]
    assert [one.truth[0] for one in given] == ["A", "C"]
    right = {one.key: one.truth[0] for one in questions}
    assert BENCHMARKS["mmbench"].score(questions, right).metrics == {"accuracy": 100, "accuracy_single": 100}
    once = BENCHMARKS["mmbench"].score(questions, right | {rotated[2].key: "A"})
    assert once.metrics == {"accuracy": 50, "accuracy_single": 80}


def test_letters_are_read_out_of_sentences(tmp_path):
    for answer, right in (("D", 100), ("D. owl", 100), ("(D) owl", 100), ("The answer is D.", 100), ("owl", 0)):
        assert scored("seed", tmp_path, lambda one, said=answer: said).metrics["accuracy"] == right
    (only,) = read("scienceqa", tmp_path / "sqa")
    assert BENCHMARKS["scienceqa"].score([only], {only.key: "D"}).metrics["accuracy"] == 0
    assert BENCHMARKS["scienceqa"].score([only], {only.key: "B"}).metrics["accuracy"] == 100


@pytest.mark.parametrize("name", sorted(WRITERS))
def test_an_image_that_could_not_be_read_counts_as_wrong(tmp_path, name):
    found = scored(name, tmp_path, lambda one: None)
    assert not found.right_Q.any()
    assert not any(found.metrics[metric] for metric in ("accuracy", "perception", "f1") if metric in found.metrics)


@pytest.mark.parametrize("name", sorted(WRITERS))
def test_a_score_needs_an_answer_to_each_question(tmp_path, name):
    questions = read(name, tmp_path)
    answers = {one.key: "yes" for one in questions[1:]}
    with pytest.raises(CornerstoneError, match=r"1 of \d+ questions of .* have no answer"):
        benchmark(name).score(questions, answers)


@pytest.mark.parametrize("name", sorted(WRITERS))
def test_files_of_another_benchmark_are_refused(tmp_path, name):
    for other in sorted(WRITERS):
        if other == name:
            continue
        files = [Location.of(path) for path in WRITERS[other](tmp_path / other)]
        files = (files * 2)[: benchmark(name).files]
        with pytest.raises(
            CornerstoneError, match=r"another benchmark|no question file|no folder of|No file of questions"
        ):
            benchmark(name).read(files)


def test_answers_of_another_split_and_of_a_server_are_refused(tmp_path):
    questions, answers = vqav2(tmp_path / "vqa")
    put(answers, {"annotations": json.loads(answers.read_text())["annotations"][:1]})
    with pytest.raises(CornerstoneError, match=r"lacks the answers to 1 of 2 questions .*, 42001 among them"):
        benchmark("vqav2").read([Location.of(questions), Location.of(answers)])
    row = {"index": 7, "question": "Which?", "A": "cat", "B": "dog", "answer": "", "image": ""}
    with pytest.raises(CornerstoneError, match="kept by a server"):
        benchmark("mmbench").read([Location.of(path) for path in mmbench(tmp_path / "test", rows=[row])])


def test_an_unknown_benchmark_is_named(tmp_path):
    with pytest.raises(CornerstoneError, match=r"Unknown benchmark 'mmbanch'.*mmbench"):
        benchmark("mmbanch")
