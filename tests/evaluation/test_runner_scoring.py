"""Scores of single examples, and their summary."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from imprag.corpus import Passage
from imprag.evaluation.metrics import answer_recall, provenance_recall
from imprag.evaluation.scoring import (
    RECALL_DEPTHS,
    hit_ranks,
    page_of,
    score_answer,
    score_retrieval,
    summarize,
    summary,
)
from imprag.evaluation.statistics import bootstrap_interval
from imprag.retrieval import RetrievedPassage
from imprag.tasks import Answer, Example, load_task

IDS = [f"p{n}" for n in range(30)]
TEXTS = ["red", "green", "red green", "blue"]
rankings = st.permutations(IDS).flatmap(lambda ids: st.integers(0, 30).map(lambda n: ids[:n]))
evidence = st.lists(st.sets(st.sampled_from(IDS), min_size=1, max_size=3), min_size=1, max_size=3)


@settings(deadline=None, max_examples=60)
@given(rankings, evidence, st.booleans(), st.sampled_from(["red", "blue", "green"]))
def test_hit_ranks_agree_with_recall(
    ids: list[str], sets: list[set[str]], joint: bool, answer: str
) -> None:
    task = load_task("hotpotqa" if joint else "nq")
    output = [Answer(answer, [{"passage_id": id} for id in sorted(ids)]) for ids in sets]
    example = Example("q", "?", output)
    passages = {id: Passage(id, f"t{n // 3}", TEXTS[n % 4]) for n, id in enumerate(IDS)}
    found = [RetrievedPassage(passages[id], 0.0) for id in ids]
    pages = {id: passages[id].title for id in IDS}
    ranks = hit_ranks(task, example, found)
    scores = score_retrieval(task, example, found, pages)
    for k in RECALL_DEPTHS:
        assert scores[f"passage_recall@{k}"] == float((ranks["passage"] or 101) <= k)
        assert scores[f"answer_recall@{k}"] == float((ranks["answer"] or 101) <= k)
        alternatives = sets if joint else [{id} for ids in sets for id in ids]
        assert scores[f"passage_recall@{k}"] == provenance_recall(ids, alternatives, k)
        texts = [item.passage.text for item in found]
        assert scores[f"answer_recall@{k}"] == answer_recall(texts, [answer], k)


def test_a_title_is_not_searched_for_answers() -> None:
    found = [RetrievedPassage(Passage("p0", "Red", "blue"), 1.0)]
    example = Example("q", "?", [Answer("red")])
    assert hit_ranks(load_task("nq"), example, found) == {"answer": None}


def test_the_page_is_the_wikipedia_id_the_title_or_the_passage_id() -> None:
    assert page_of(Passage("p", "Chad", "text", {"wikipedia_id": 5488})) == "5488"
    assert page_of(Passage("p", "Chad", "text", {"code": "cd"})) == "Chad"
    assert page_of(Passage("p", "Chad", "text", {"wikipedia_id": 0})) == "0"
    assert page_of(Passage("p", "Chad", "text", {"wikipedia_id": " "})) == "Chad"
    assert page_of(Passage("p", " ", "text", {"wikipedia_id": None})) == "p"


def test_passages_without_titles_are_different_pages() -> None:
    example = Example("q", "?", [Answer("Bamako", [{"passage_id": "p1"}])])
    right, wrong = Passage("p1", "", "Bamako is in Mali."), Passage("p2", "", "Oslo.")
    pages = {"p1": page_of(right)}
    for ranking, precision in (([wrong, right], 0), ([right, wrong], 1)):
        found = [RetrievedPassage(passage, 1.0) for passage in ranking]
        scores = score_retrieval(load_task("nq"), example, found, pages)
        assert scores["r_precision"] == precision


def test_references_without_a_name_match_no_page() -> None:
    references = [{"passage_id": "p0"}, {"note": "unknown"}]
    example = Example("q", "?", [Answer("x", references)])
    found = [RetrievedPassage(Passage("p9", "None", "text"), 1.0)]
    assert score_retrieval(load_task("nq"), example, found, {"p0": "Chad"})["r_precision"] == 0


def test_references_that_are_not_linked_count_as_missed_pages() -> None:
    references = [{"passage_id": "p0"}, {"wikipedia_id": "77"}, {"title": "Mali"}]
    example = Example("q", "?", [Answer("x", references)])
    found = [RetrievedPassage(Passage("p0", "Chad", "text"), 1.0)]
    scores = score_retrieval(load_task("nq"), example, found, {"p0": "Chad"})
    assert scores["r_precision"] == pytest.approx(1 / 3)
    # Where all are needed and some are not known, there is nothing to ask for.
    assert "mrr" not in score_retrieval(load_task("hotpotqa"), example, found, {"p0": "Chad"})
    assert example.gold_ids == ["p0"]


def test_labels_are_judged_by_accuracy_alone() -> None:
    example = Example("q", "?", [Answer("True")])
    assert score_answer(load_task("fever"), example, "true.") == {"accuracy": 1.0}
    assert score_answer(load_task("nq"), example, "true story") == {
        "exact_match": 0.0,
        "f1": pytest.approx(2 / 3),
    }


def test_summaries_hold_means_and_intervals() -> None:
    rows = [
        {"task": "a", "metrics": {"mrr": 1.0}},
        {"task": "b", "metrics": {}},
        {"task": "a", "metrics": {"mrr": 0.5, "f1": 0.2}},
        {"task": "a", "metrics": {"mrr": 0.0}},
    ]
    low, high = bootstrap_interval([1.0, 0.5, 0.0])
    assert summarize(rows) == {
        "a": {
            "n": 3,
            "metrics": {
                "mrr": {"mean": 0.5, "low": low, "high": high, "n": 3},
                "f1": {"mean": 0.2, "low": 0.2, "high": 0.2, "n": 1},
            },
        },
        "b": {"n": 1, "metrics": {}},
    }
    assert summary([0.25])["mean"] == 0.25
