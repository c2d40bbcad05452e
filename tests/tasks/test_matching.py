"""Finding answers in texts."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from imprag.tasks.matching import AnswerFinder, contains_answer


@pytest.mark.parametrize(
    ("text", "answer", "found"),
    [
        ("He lived in New  York\nCity.", "new york city", True),
        ("The telephone rang.", "phone", False),
        ("It was founded in 19781.", "1978", False),
        ("(1978)", "1978", True),
        ("the U.S. Senate", "U.S.", True),
        ("the US Senate", "U.S.", False),
        ("Sa\u0303o Tome\u0301", "São Tomé", True),
        ("the café", "cafe", False),
        ("a résumé", "re", False),
        ("New and York", "New York", False),
        ("anything", "  ", False),
        ("anything", "\u200b", False),
        ("法国的首都是巴黎。", "巴黎", True),
        ("法国的首都是巴黎。", "巴 黎", True),
        ("法国的首都是巴黎。", "京", False),
        ("フランスの首都はパリです。", "パリ", True),
        ("フランスの首都はﾊﾟﾘです。", "パリ", True),
        ("เมืองหลวงคือกรุงเทพมหานคร", "กรุงเทพมหานคร", True),
        ("เมืองหลวงคือกรุงเทพมหานคร", "กรง", False),  # a vowel sign belongs to its consonant
        ("ນະຄອນຫຼວງວຽງຈັນ", "ວຽງຈັນ", True),
        ("រាជធានីគឺភ្នំពេញ។", "ភ្នំពេញ", True),
        ("မြို့တော်မှာနေပြည်တော်ဖြစ်သည်", "နေပြည်တော်", True),
        ("भारत की राजधानी नई दिल्ली है।", "नई दिल्ली", True),
        ("हिन्दी भाषा", "हिन्द", False),
        ("프랑스의 수도는 파리이다.", "파리", True),
        ("대파리", "파리", False),
        ("im Jahr １９７８", "1978", True),
        ("in 1978年", "1978", True),
        ("vitamin A helps", "A", True),
        ("a vitamin helps", "A", False),
        ("listen to The The tonight", "The The", True),
        ("the the", "The The", False),
        ("it ends with +", "+", True),
    ],
)
def test_contains_answer_matches_whole_words(text: str, answer: str, found: bool) -> None:
    assert contains_answer(text, [answer]) is found
    assert contains_answer(text, ["no such answer", answer]) is found


@settings(deadline=None)
@given(
    st.lists(st.sampled_from(["ab", "cd", ".", ",", "é", "1", "?"])),
    st.lists(st.sampled_from(["ab", ".", "é", "1"])),
)
def test_contains_answer_equals_a_search_in_token_lists(text: list[str], answer: list[str]) -> None:
    places = range(len(text) - len(answer) + 1)
    expected = bool(answer) and any(text[i : i + len(answer)] == answer for i in places)
    assert contains_answer(" ".join(text), [" ".join(answer)]) is expected


units = [
    "ab",
    "cd",
    "AB",
    ".",
    "é",
    "1",
    " ",
    "A",
    "a",
    "the",
    "巴黎",
    "巴",
    "กรุง",
    "파리",
    "파리는",
]
words = st.lists(st.sampled_from(units)).map(" ".join)


@settings(deadline=None)
@given(st.lists(words, max_size=6), st.lists(words, max_size=3))
def test_answer_finder_equals_contains_answer_on_each_text(
    texts: list[str], answers: list[str]
) -> None:
    expected = {n for n, text in enumerate(texts) if contains_answer(text, answers)}
    assert AnswerFinder(texts).texts_with(answers) == expected
