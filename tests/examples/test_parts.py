"""Questions about the parts of values."""

import json
import re
from pathlib import Path

import pytest
from parts import FIELDS, main, parts

from imprag.corpus import Corpus, Passage, load_corpus
from imprag.tasks import read_examples

TEXTS = {
    "Land boundaries: total: 1,136 km; border countries: China 477 km; India 659 km": {
        "China": "477 km",
        "India": "659 km",
    },
    "Major rivers (by length in km): Euphrates river source (shared with Syria) - 3,596 km; "
    "Tigris - 1,950 km; note: [s] a source - 1 km": {
        "Euphrates": "3,596 km",
        "Tigris": "1,950 km",
    },
    "Major lakes (area sq km): fresh water lake(s): Lake Malawi (shared) - 22,490 sq km; salt "
    "water lake(s): Lake Chilwa - 1,040 sq km": {
        "Lake Malawi": "22,490 sq km",
        "Lake Chilwa": "1,040 sq km",
    },
    "Major watersheds (area sq km): Atlantic Ocean drainage: Congo (3,730,881 sq km); Indian Ocean "
    "drainage: Zambezi (1,332,412 sq km)": {
        "Congo": "3,730,881 sq km",
        "Zambezi": "1,332,412 sq km",
    },
    "Major urban areas - population: 3.008 million Dubai, 567,000 ABU DHABI (capital) (2023)": {
        "Dubai": "3.008 million",
        "Abu Dhabi": "567,000",
    },
    "Imports - partners: UAE 53%, Costa Rica 15%, China 6% (2023); note: top five": {
        "UAE": "53%",
        "Costa Rica": "15%",
        "China": "6%",
    },
    "Merchant marine: total: 57 (2023); by type: general cargo 5, oil tanker 1,051, other 51": {
        "general cargo": "5",
        "oil tanker": "1,051",
        "other": "51",
    },
    "Literacy: total population: 98.8% (2024 est.); male: 99% (2024 est.); female: 98.4%": {
        "male": "99%",
        "female": "98.4%",
    },
    "Executive branch: chief of state: President Mahamat Idriss DEBY Itno (since 6 May 2024); head "
    "of government: Prime Minister Ann LEE (since 1 May 2022)": {
        "Mahamat Idriss Deby Itno": "6 May 2024",
        "Ann Lee": "1 May 2022",
    },
    "National holiday: Waitangi Day, 6 February (1840); Anzac Day, 25 April (1915)": {
        "Waitangi Day": "1840"
    },
    "Railways: total: 401 km; standard gauge: 319 km (2017) 1.435-m gauge": {
        "standard gauge": "319 km"
    },
}


def says(question: str, part: str) -> bool:
    """Whether a question has a part as a whole: "male" is no part of "female"."""
    return re.search(rf"(?<![\w,]){re.escape(part)}(?![\w,]*\d)(?!\w)", question) is not None


@pytest.mark.parametrize("text", TEXTS, ids=lambda text: text.partition(":")[0])
def test_each_part_is_asked_for_by_the_other(text: str) -> None:
    passage = Passage("p1", "South Chad, Bhutan, Geography", f"Climate: 7 km\n{text}")
    seen = {}
    for seed in range(20):
        for one in parts([passage], seed, each=9):
            assert "South Chad, Bhutan" in one.input
            assert list(one.gold_ids) == ["p1"]
            assert one.meta["relation"] == text.partition(":")[0]
            seen[one.input] = one.answers[0]
    for name, value in TEXTS[text].items():
        asked = [answer for question, answer in seen.items() if says(question, name)]
        assert set(asked) == {value}, name
        by_value = {answer for question, answer in seen.items() if says(question, value)}
        assert by_value <= {name}
    assert set(seen.values()) <= {part for pair in TEXTS[text].items() for part in pair}


def test_men_women_and_shares_of_an_age_are_told_apart() -> None:
    text = (
        "Age structure: 0-14 years: 42.3% (male 453,513/female 448,514); "
        "65 years and over: 3.1% (2024 est.) (male 27,529/female 38,621)"
    )
    made = list(parts([Passage("p1", "Chad, People and Society", text)], each=99))
    answers = {
        ("0-14 years", "share"): "42.3%",
        ("0-14 years", "males"): "453,513",
        ("0-14 years", "females"): "448,514",
        ("65 years and over", "share"): "3.1%",
        ("65 years and over", "males"): "27,529",
        ("65 years and over", "females"): "38,621",
    }
    for (age, kind), value in answers.items():
        asked = [
            one.answers
            for one in made
            if age in one.input and kind in one.input.replace("what percentage", "share").split()
        ]
        assert [[value]] == asked if kind != "males" else [value] in asked
        (named,) = (one.answers for one in made if value in one.input)
        assert named == [age]


def test_ranks_follow_the_order_of_the_list() -> None:
    text = "Exports - partners: Jordan 34%, Colombia 31%, USA 31%, Guyana 5%"
    passage = Passage("p1", "Aruba, Economy", text)
    made = {one.input: one.answers for seed in range(9) for one in parts([passage], seed, each=99)}
    assert made["Which is the second largest export partner of Aruba?"] == ["Colombia"]
    assert made["Which is the fourth largest export partner of Aruba?"] == ["Guyana"]
    assert not any("31%" in question for question in made)  # two countries have it


def test_the_greatest_part_is_asked_for_without_the_other() -> None:
    text = "Land boundaries: total: 9 km; border countries: China 477 km; India 1,659 km; Oman 6 km"
    passage = Passage("p1", "Aruba, Geography", text)
    made = {one.input: one.answers for seed in range(60) for one in parts([passage], seed, each=99)}
    assert made["Aruba: neighbor with the longest border"] == ["India"]
    assert made["length of the longest border of Aruba"] == ["1,659 km"]
    alike = Passage("p1", "Aruba, Geography", text.replace("1,659", "477"))
    assert not any("longest" in one.input for one in parts([alike], each=99))


def test_the_benchmarks_unseen_relations_are_left_alone() -> None:
    unseen = (
        "Elevation",
        "National anthem(s)",
        "Population",
        "Unemployment rate",
        "Irrigated land",
    )
    assert not {field.label for field in FIELDS} & set(unseen)
    assert not any("Legislative" in field.label for field in FIELDS)


def test_the_script_writes_what_training_reads(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Corpus.build([Passage("p1", "Aruba, Economy", next(iter(TEXTS)))], tmp_path / "corpus")
    out = tmp_path / "parts.jsonl"
    words = [str(tmp_path / "corpus"), "--out", str(out)]
    main([*words, "--limit", "2"])
    assert json.loads(capsys.readouterr().out) == {"questions": 2}
    corpus = load_corpus(tmp_path / "corpus")
    assert all(corpus.rows(one.gold_ids) == [0] for one in read_examples(out))
    with pytest.raises(SystemExit):
        main(words)
    assert "exists already" in capsys.readouterr().err
