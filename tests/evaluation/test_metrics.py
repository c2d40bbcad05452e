"""The metrics against hand-computed values, the KILT scorer and trec_eval."""

import json
import math
import os
import statistics
import unicodedata
from pathlib import Path
from typing import Any

import ir_measures
import pytest
import pytrec_eval
from hypothesis import given, settings
from hypothesis import strategies as st
from ir_measures import RR, nDCG

from imprag.errors import ImpRAGError
from imprag.evaluation.metrics import (
    ANSWER_METRICS,
    accuracy,
    answer_recall,
    exact_match,
    f1,
    ndcg,
    normalize_answer,
    provenance_recall,
    r_precision,
    reciprocal_rank,
)

# --- Answers ------------------------------------------------------------------------------------


def test_normalize_answer_follows_squad() -> None:
    assert normalize_answer("  The  Cat's\tan  A-team, (1990)! ") == "cats ateam 1990"
    assert normalize_answer("Theodore another") == "theodore another"
    # SQuAD removes ASCII punctuation only and keeps accents.
    assert normalize_answer("São Tomé – “x”") == "são tomé – “x”"


@settings(deadline=None)
@given(st.text())
def test_normalize_answer_is_idempotent_on_what_it_lowers(text: str) -> None:
    once = normalize_answer(text)
    assert normalize_answer(once).split() == [
        w for w in once.split() if w not in {"a", "an", "the"}
    ]


@pytest.mark.parametrize(
    ("prediction", "answers", "em", "word_f1"),
    [
        ("The Beatles.", ["beatles"], 1, 1),
        ("Paris", ["Lyon", "paris"], 1, 1),
        ("in Paris, France", ["Paris"], 0, 2 * 1 / (3 + 1)),
        ("red red blue", ["red blue blue"], 0, 2 * 2 / (3 + 3)),
        ("green", ["red", "blue"], 0, 0),
        ("", ["red"], 0, 0),
        ("one two three", ["one", "one two"], 0, 2 * 2 / (3 + 2)),
    ],
)
def test_exact_match_and_f1(prediction: str, answers: list[str], em: float, word_f1: float) -> None:
    assert exact_match(prediction, answers) == em
    assert f1(prediction, answers) == pytest.approx(word_f1, abs=1e-12)


@pytest.mark.parametrize(
    ("prediction", "label", "score"),
    [("True", "True", 1), ("true.", "True", 1), ("False", "True", 0), ("it is true", "True", 0)],
)
def test_accuracy_compares_labels(prediction: str, label: str, score: float) -> None:
    assert accuracy(prediction, [label]) == score


@pytest.mark.parametrize("metric", ANSWER_METRICS.values())
def test_empty_answer_list_is_refused(metric: Any) -> None:
    with pytest.raises(ImpRAGError, match="answer list is empty"):
        metric("x", [])


@settings(deadline=None)
@given(st.text("ab the.,", max_size=12), st.lists(st.text("ab the.,", max_size=12), min_size=1))
def test_f1_is_one_for_equal_words_and_symmetric(prediction: str, answers: list[str]) -> None:
    score = f1(prediction, answers)
    assert 0 <= score <= 1
    assert score == max(f1(answer, [prediction]) for answer in answers)
    if exact_match(prediction, answers):
        assert score == 1


@pytest.mark.parametrize(
    ("prediction", "answer", "em", "word_f1"),
    [
        ("A", "A", 1, 1),
        ("A.", "a", 1, 1),
        ("vitamin A", "A", 0, 2 * 1 / (2 + 1)),
        ("", "A", 0, 0),
        ("the", "a", 0, 0),
        ("?", "The The", 0, 0),
        ("the the", "The The", 1, 1),
        ("+", "+", 1, 1),
        ("-", "+", 0, 0),
        ("...", "A", 0, 0),
        ("B", "A", 0, 0),
    ],
)
def test_answers_of_only_articles_or_punctuation_keep_them(
    prediction: str, answer: str, em: float, word_f1: float
) -> None:
    assert exact_match(prediction, [answer]) == em
    assert exact_match(answer, [prediction]) == em
    assert f1(prediction, [answer]) == pytest.approx(word_f1, abs=1e-12)


def test_an_answer_of_an_article_matches_no_other_words() -> None:
    assert exact_match("a", ["B", "the"]) == 0
    assert exact_match("The Beatles", ["A", "Beatles"]) == 1


@settings(deadline=None)
@given(st.text(max_size=20), st.sampled_from(["NFC", "NFD", "NFKC", "NFKD"]))
def test_unicode_forms_of_an_answer_are_equal(text: str, form: Any) -> None:
    other = unicodedata.normalize(form, text)
    assert exact_match(other, [text]) == 1
    assert f1(other, [text]) == 1


@pytest.mark.parametrize(
    ("prediction", "answer"),
    [
        ("Beyonce\u0301", "Beyonc\u00e9"),
        ("１９７８年", "1978年"),
        ("ＮＡＳＡ", "nasa"),
        ("ﬁle", "file"),
        ("ﾊﾟﾘ", "パリ"),
        ("bey\u00adon\u200bcé", "beyoncé"),
        ("a\u0331", "A\u0331"),
    ],
)
def test_compatible_characters_are_equal(prediction: str, answer: str) -> None:
    assert exact_match(prediction, [answer]) == f1(prediction, [answer]) == 1


@pytest.mark.parametrize(
    ("prediction", "answer", "em", "word_f1"),
    [
        ("巴黎市", "巴黎", 0, 2 * 2 / (3 + 2)),
        ("「巴黎」。", "巴黎", 1, 1),
        ("巴 黎", "巴黎", 1, 1),
        ("“北京”", "北京", 1, 1),
        ("东京塔", "巴黎", 0, 0),
        ("エッフェル塔", "エッフェル", 0, 2 * 5 / (6 + 5)),
        ("กรุงเทพ", "กรุง", 0, 2 * 3 / (6 + 3)),  # ก รุ ง เ ท พ
        ("ວຽງຈັນ", "ວຽງຈັນ.", 1, 1),
        ("ភ្នំពេញ។", "ភ្នំពេញ", 1, 1),
        ("ရန်ကုန်", "ကုန်", 0, 2 * 2 / (4 + 2)),
        ("नई दिल्ली।", "नई दिल्ली", 1, 1),
        ("दिल्ली", "नई दिल्ली", 0, 2 * 1 / (1 + 2)),
        ("서울 시", "서울", 0, 2 * 1 / (2 + 1)),
        ("iPhone手机", "iPhone 手机", 1, 1),
        ("القاهرة؟", "القاهرة", 1, 1),
        ("«Война и мир»", "Война и мир", 1, 1),
    ],
)
def test_scripts_without_spaces_are_compared_by_characters(
    prediction: str, answer: str, em: float, word_f1: float
) -> None:
    assert exact_match(prediction, [answer]) == em
    assert f1(prediction, [answer]) == pytest.approx(word_f1, abs=1e-12)


# --- Retrieval by answer string -----------------------------------------------------------------


def test_answer_recall_looks_at_the_top_k() -> None:
    texts = ["red", "green", "blue sky"]
    assert answer_recall(["法国的首都是巴黎。"], ["巴黎"], 1) == 1
    assert [answer_recall(texts, ["blue", "black"], k) for k in (1, 2, 3, 10)] == [0, 0, 1, 1]
    with pytest.raises(ImpRAGError, match="answer list is empty"):
        answer_recall(texts, [], 1)


# --- Retrieval by provenance --------------------------------------------------------------------


def test_provenance_recall_of_alternatives_and_of_two_hops() -> None:
    ranking = ["p1", "p2", "p3"]
    either, both = [["p2"], ["p9"]], [["p1", "p3"]]
    assert [provenance_recall(ranking, either, k) for k in (1, 2, 3)] == [0, 1, 1]
    assert [provenance_recall(ranking, both, k) for k in (1, 2, 3)] == [0, 0, 1]
    assert provenance_recall(ranking, [[], ["p1"]], 1) == 1


@pytest.mark.parametrize(
    "metric",
    [
        lambda: provenance_recall(["p"], [[]], 1),
        lambda: r_precision(["p"], [[], []]),
        lambda: reciprocal_rank(["p"], []),
        lambda: ndcg(["p"], {}),
    ],
)
def test_an_instance_without_gold_is_refused(metric: Any) -> None:
    with pytest.raises(ImpRAGError, match="no gold passage"):
        metric()


def test_reciprocal_rank_and_ndcg_by_hand() -> None:
    assert reciprocal_rank(["a", "b", "c"], ["c", "b"]) == 1 / 2
    assert reciprocal_rank(["a"], ["z"]) == 0
    dcg, ideal = 1 / math.log2(3) + 1 / math.log2(5), 1 + 1 / math.log2(3) + 1 / math.log2(4)
    alike = dict.fromkeys("abc", 1)
    assert ndcg(["x", "a", "y", "b"], alike) == pytest.approx(dcg / ideal, abs=1e-12)
    assert ndcg(["a", "b"], alike, k=1) == 1
    graded = (1 + 3 / math.log2(3)) / (3 + 1 / math.log2(3))
    assert ndcg(["a", "b"], {"a": 1, "b": 3}) == pytest.approx(graded, abs=1e-12)


IDS = [f"p{number:02d}" for number in range(14)]
# trec_eval keeps scores in single precision: these are exact in it, so only real ties are ties.
RUNS = st.dictionaries(st.sampled_from(IDS), st.integers(-8, 8).map(lambda n: n / 4), min_size=1)

GRADES = st.dictionaries(st.sampled_from(IDS), st.integers(1, 3), min_size=1)


def trec_order(run: dict[str, float]) -> list[str]:
    """Ids in trec_eval's order: by score, ties by id, both descending."""
    return sorted(run, key=lambda id: (run[id], id), reverse=True)


@settings(deadline=None)
@given(RUNS, GRADES)
def test_ranking_metrics_equal_trec_eval(run: dict[str, float], relevant: dict[str, int]) -> None:
    qrels = {"q": relevant}
    names = {"recip_rank", "ndcg_cut.5,10", "success.1,5,10", "Rprec"}
    expected = pytrec_eval.RelevanceEvaluator(qrels, names).evaluate({"q": run})["q"]
    ranking = trec_order(run)

    assert reciprocal_rank(ranking, relevant) == pytest.approx(expected["recip_rank"], abs=1e-9)
    assert r_precision(ranking, [list(relevant)]) == pytest.approx(expected["Rprec"], abs=1e-9)
    for k in (5, 10):
        assert ndcg(ranking, relevant, k) == pytest.approx(expected[f"ndcg_cut_{k}"], abs=1e-9)
    for k in (1, 5, 10):
        single = [[id] for id in relevant]
        assert provenance_recall(ranking, single, k) == expected[f"success_{k}"]


@settings(deadline=None)
@given(st.lists(st.tuples(RUNS, GRADES), min_size=1, max_size=4))
def test_means_equal_ir_measures(queries: list[tuple[dict[str, float], dict[str, int]]]) -> None:
    qrels = {f"q{i}": relevant for i, (_, relevant) in enumerate(queries)}
    runs = {f"q{i}": run for i, (run, _) in enumerate(queries)}
    expected = ir_measures.calc_aggregate([RR, nDCG @ 10], qrels, runs)
    rankings = [(trec_order(run), relevant) for run, relevant in queries]

    ours = {
        RR: statistics.mean(reciprocal_rank(*query) for query in rankings),
        nDCG @ 10: statistics.mean(ndcg(*query) for query in rankings),
    }
    for measure, value in expected.items():
        assert ours[measure] == pytest.approx(value, abs=1e-9)


# --- KILT ---------------------------------------------------------------------------------------


def test_r_precision_by_hand() -> None:
    ranking = ["tide", "harbour", "sail", "crane", "moon", "mast", "pier"]
    evidence_sets = [["moon", "tide"], ["harbour"], ["sail", "mast", "keel"]]
    # "tide" is one of two pages; "harbour" is not first; "sail" is one of three.
    assert r_precision(ranking, evidence_sets) == 1 / 2


def test_r_precision_counts_a_page_once() -> None:
    assert r_precision(["tide", "tide", "moon"], [["moon", "tide"]]) == 1


DATA = os.environ.get("IMPRAG_TEST_DATA")
needs_data = pytest.mark.skipif(not DATA, reason="set IMPRAG_TEST_DATA to the development data")
PAGE, SECTION = ["wikipedia_id"], ["wikipedia_id", "section"]
PARAGRAPH = ["wikipedia_id", "start_paragraph_id", "end_paragraph_id"]


def kilt_pairs(gold: str, guess: str) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    def rows(name: str) -> list[dict[str, Any]]:
        lines = (Path(str(DATA)) / "samples" / f"kilt_{name}.jsonl").read_text().splitlines()
        return [json.loads(line) for line in lines]

    return list(zip(rows(gold), rows(guess), strict=True))


def evidence(row: dict[str, Any], keys: list[str]) -> list[list[str]]:
    return [
        ["+".join(str(item[key]) for key in keys) for item in output["provenance"]]
        for output in row["output"]
    ]


@needs_data
@pytest.mark.parametrize(
    ("gold", "guess", "figures"),
    [
        ("gold1", "guess1_1", [2 / 3, 0.8333333333333334, 1 / 3, 1 / 3, 1 / 3]),
        ("gold1", "gold1", [1, 1, 1, 1, 1]),
        ("gold3", "guess3_1", [0, 0.5102040816326531, 0, 0.25510204081632654, 1 / 2]),
    ],
)
def test_kilt_scorer_figures(gold: str, guess: str, figures: list[float]) -> None:
    pairs = kilt_pairs(gold, guess)
    answers = [[output["answer"] for output in row["output"]] for row, _ in pairs]
    predictions = [row["output"][0]["answer"] for _, row in pairs]
    rankings = [evidence(row, PAGE)[0] for _, row in pairs]
    sets = [evidence(row, PAGE) for row, _ in pairs]
    em = list(map(exact_match, predictions, answers))
    words = list(map(f1, predictions, answers))
    precision = list(map(r_precision, rankings, sets))
    kilt_em, kilt_f1 = (
        [score * (p == 1) for score, p in zip(scores, precision, strict=True)]
        for scores in (em, words)
    )
    means = [statistics.mean(s) for s in (em, words, kilt_em, kilt_f1, precision)]
    assert means == pytest.approx(figures, abs=1e-9)


@needs_data
@pytest.mark.parametrize("keys", [PAGE, SECTION, PARAGRAPH])
@pytest.mark.parametrize(("guess", "figure"), [("guess2_1", 1 / 2), ("guess2_2", 1)])
def test_kilt_scorer_retrieval_figures(guess: str, figure: float, keys: list[str]) -> None:
    [(gold_row, guess_row)] = kilt_pairs("gold2", guess)
    sets, [ranking] = evidence(gold_row, keys), evidence(guess_row, keys)
    assert r_precision(ranking, sets) == pytest.approx(figure, abs=1e-9)
