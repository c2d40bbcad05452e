"""BM25: the formula, any query, one build."""

import math
from collections import Counter
from pathlib import Path

import pytest

from conftest import TEXTS
from imprag.corpus import Corpus, Passage
from imprag.errors import ImpRAGError
from imprag.retrieval.dense import TextEncoder
from imprag.retrieval.lexical import LexicalRetriever


def lucene_bm25(query: list[str], documents: list[list[str]]) -> list[float]:
    mean = sum(map(len, documents)) / len(documents)
    scores = []
    for document in documents:
        counts = Counter(document)
        score = 0.0
        for word in query:
            containing = sum(word in other for other in documents)
            idf = math.log(1 + (len(documents) - containing + 0.5) / (containing + 0.5))
            length = 1 - 0.75 + 0.75 * len(document) / mean
            score += idf * counts[word] * 2.2 / (counts[word] + 1.2 * length)
        scores.append(score)
    return scores


def test_bm25_scores_follow_the_formula(corpus: Corpus) -> None:
    documents = [
        f"{title} {text}".lower().replace(",", "").replace("'", " ").split()
        for title, text in TEXTS
    ]
    for query in ("What is the CAPITAL of Chad?", "who", "vitamin c", "river Chari Mali"):
        expected = lucene_bm25(query.lower().strip("?").split(), documents)
        (found,) = LexicalRetriever(corpus).retrieve([query], 4)
        scores = {item.passage.id: item.score for item in found}
        assert [scores[f"p{n}"] for n in range(4)] == pytest.approx(expected, abs=1e-5)
        assert [item.score for item in found] == sorted(scores.values(), reverse=True)
        assert found[0].passage == corpus[expected.index(max(expected))]


def test_bm25_takes_any_query(corpus: Corpus) -> None:
    bm25 = LexicalRetriever(corpus)
    assert bm25.retrieve([], 2) == []
    rows = bm25.retrieve(["", "xyzzy", "?!", "Bamako"], 2)
    assert [len(row) for row in rows] == [2, 2, 2, 2]
    assert all(item.score == 0 for row in rows[:3] for item in row)
    assert rows[3][0].passage.id == "p2"
    with pytest.raises(ImpRAGError, match="k is 5, but the corpus has only 4 passages"):
        bm25.retrieve(["who"], 5)
    for search in (bm25.retrieve, bm25.rank):
        with pytest.raises(ImpRAGError, match=r"are one text; pass \[prompt\]"):
            search("who", 1)


def test_a_text_encoder_takes_no_single_text() -> None:
    with pytest.raises(ImpRAGError, match=r"are one text; pass \[prompt\]"):
        TextEncoder.queries(object.__new__(TextEncoder), "who")


@pytest.mark.parametrize(
    ("query", "right"),
    [
        ("法国的首都在哪里？", 0),
        ("茶", 1),
        ("日本の首都はどこですか", 2),
        ("เมืองหลวงของไทยคืออะไร", 3),
        ("한국의 수도", 4),
        ("भारत की राजधानी", 5),
        ("ກຸງວຽງຈັນ", 6),
        ("ភ្នំពេញ", 7),
        ("မြန်မာ", 8),
        ("Beyonce\u0301", 9),
    ],
)
def test_bm25_finds_text_without_spaces(
    query: str, right: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("IMPRAG_CACHE", str(tmp_path / "cache"))
    texts = [
        "巴黎是法国的首都，也是最大的城市。",
        "中国人每天都喝茶。",
        "東京は日本の首都である。",
        "กรุงเทพมหานครเป็นเมืองหลวงของประเทศไทย",
        "서울은 대한민국의 수도이며 한국에서 가장 큰 도시이다.",
        "नई दिल्ली भारत की राजधानी है।",
        "ວຽງຈັນແມ່ນນະຄອນຫຼວງຂອງລາວ",
        "ភ្នំពេញជារាជធានីរបស់កម្ពុជា",
        "နေပြည်တော်သည် မြန်မာနိုင်ငံ၏ မြို့တော်ဖြစ်သည်",
        "Beyoncé is a singer.",
    ]
    passages = [Passage(f"p{n}", "", text) for n, text in enumerate(texts)]
    bm25 = LexicalRetriever(Corpus.build(passages, tmp_path / "corpus"))
    ((best, second),) = bm25.retrieve([query], 2)
    assert best.passage.id == f"p{right}"
    assert best.score > second.score


def test_bm25_takes_a_corpus_without_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("IMPRAG_CACHE", str(tmp_path / "cache"))
    corpus = Corpus.build([Passage("1", "", "?!"), Passage("2", "", "...")], tmp_path / "corpus")
    ((one, other),) = LexicalRetriever(corpus).retrieve(["who?"], 2)
    assert {one.passage.id, other.passage.id} == {"1", "2"}


def test_the_lexical_index_of_a_corpus_is_made_once(
    corpus: Corpus, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = LexicalRetriever(corpus).retrieve(["capital city"], 3)
    monkeypatch.setattr("imprag.index.lexical._write", lambda *a: pytest.fail("built again"))
    assert LexicalRetriever(corpus).retrieve(["capital city"], 3) == first
