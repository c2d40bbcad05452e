"""Reading answers from the Factbook's entries, and the names of countries in text."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from imprag.benchmarks.factbook import values
from imprag.benchmarks.factbook.linking import country_names
from imprag.benchmarks.factbook.mentions import NameFinder, mark, stands_alone
from imprag.benchmarks.factbook.names import read_countries
from imprag.corpus import Fact


@pytest.mark.parametrize(
    ("reader", "entry", "answers"),
    [
        (values.text, "Republic of Exland", ["Republic of Exland"]),
        (values.text, "none", []),
        (values.text, "AsiaEurope", []),
        (values.first_clause, "island republic (Diet); part of a union", ["island republic"]),
        (values.first_clause, "formerly, island republic", []),
        (values.names, "Parliament (Tinget)", ["Parliament", "Tinget"]),
        (values.names, "Parliament (elected)", ["Parliament"]),
        (values.alternatives, "Exo (English)/ Ekso (Exish)", ["Exo", "Ekso"]),
        (values.former_names, "Old Exland, Exia (until 1900); the Ex", ["Old Exland", "Exia"]),
        (values.demonyms, "Exer(s) or Exonian", ["Exer", "Exers", "Exonian"]),
        (values.demonyms, "Exman(men), Exwoman(women)", ["Exman", "Exwoman"]),
        (values.capitals, "Exton (Extun, Ekston)", ["Exton", "Extun", "Ekston"]),
        (values.capitals, "Exton (on the coast); note - Why is far", ["Exton"]),
        (values.capitals, "Exton (royal capital), Why (old capital)", ["Exton", "Why"]),
        (values.capitals, "Éxton (Exten is the Exish name)", ["Éxton", "Exton", "Exten"]),
        (values.capitals, "administered from Exton", []),
        (values.quantity, "12 km (landlocked)", ["12 km"]),
        (values.quantity, "-4.7% (2025 est.)", ["-4.7%", "-4.7 percent"]),
        (values.quantity, "1.7% of GDP (2024 est.)", ["1.7% of GDP", "1.7%", "1.7 percent"]),
        (values.quantity, "$5.25 billion (2023)", ["$5.25 billion"]),
        (values.quantity, "3-5 years", []),
        (values.quantity, "NA", []),
        (values.percentage, "97% of total capacity (2023)", ["97%", "97 percent"]),
        (values.count, "1,223 (12 large)", ["1,223", "1223"]),
        (values.count, "about 3", []),
        (values.age, "18 years of age; universal", ["18", "18 years", "18 years of age"]),
        (values.age, "16-70 years of age", []),
        (values.first_date, "1 July 1900 (from Whyland)", ["1 July 1900", "July 1, 1900"]),
        (values.first_date, "1 July 1900 (union); 2 May 1901 (kingdom)", []),
        (values.first_date, "1 July 1900 (new); notable earlier dates: 2 May 900", None),
        (values.former_ruler, "1 July 1900 (from the UK)", ["the UK", "UK"]),
        (values.former_ruler, "1 July 1900 (from the UK and France)", []),
        (values.holiday, "Ex Day (or Old Day), 1 July (1900)", ["Ex Day"]),
        (values.holiday, "Ex Day, 1 July (1900); New Day, 2 May (1950)", []),
        (values.holiday_date, "Ex Day, 1 July (1900)", ["1 July", "July 1"]),
        (values.symbols, "lion (gold), owl", ["lion, owl", "lion", "owl"]),
        (values.colors, "red, light blue", ["red, light blue", "red and light blue", None]),
        (values.anthem, '"Exo" (Song of Ex)', ["Exo", "Song of Ex"]),
        (values.anthem, '"Exo" and "Why"', []),
        (values.composer, "Ann EXER/Ben WHY and Cy ZED", ["Ben Why and Cy Zed", None, "Cy Zed"]),
        (values.lyricist, "Ann EXER/Ben WHY", ["Ann Exer"]),
        (values.composer, "Ann EXER/unknown", []),
        (values.person, "President Ann EXER (since 2020)", ["Ann Exer", "President Ann Exer"]),
        (values.person, "King LEO XIV; represented by Governor Ben WHY", ["Leo XIV", None]),
        (values.person, "Chair of the Council of Ministers XI Ann", ["Xi Ann", None]),
        (values.person, "King LEO II of Whyland (since 2020)", ["Leo II", None]),
        (values.person, "Ambassador (vacant); Chargé d'Affaires Ben WHY", []),
        (values.time_zone, "UTC+5.75 (10 hours ahead)", ["UTC+5.75"]),
        (values.place_with_height, "Mount Ex/Why 4,220 m", ["Mount Ex", "Why"]),
        (values.place_with_height, "unnamed elevation 5 m", []),
        (values.height, "Mount Ex (in the north) 4,220 m", ["4,220 m", "4,220", None, None]),
        (values.official_language, "Exish 9.5% (official), Whyish 3%", ["Exish"]),
        (values.official_language, "Exish (official), Whyish (official)", []),
        (values.largest_share, "Ex (mostly north) 60%, Why 40% (2020 est.)", ["Ex"]),
        (values.largest_share, "Ex 30%, Why 20%, none 50%", []),
        (values.largest_partner, "Exland 10%, Whyland 10%", []),
        (values.largest_city, "90,000 EXTON-OF-SEA (capital), 1.2 million Why (2018)", ["Why"]),
        (values.longest_river, "Éx (shared with X) - 900 km; Wai (Why) - 1,900 km", ["Why", "Wai"]),
        (values.first_item, "salt, fish (2023)", ["salt"]),
        (values.first_item, "salt; fish", []),
        (values.currency, "Exish pesos (XSP) per US dollar", ["Exish pesos", "Exish peso"]),
        (values.currency_code, "Exish pesos (XSP) per US dollar", ["XSP"]),
        (values.internet_codes, ".ex; note - .wy is used, too", [".ex", ".wy"]),
    ],
)
def test_readers_return_the_forms_of_the_answer(
    reader: values.Reader, entry: str, answers: list[str | None] | None
) -> None:
    """None accepts any answer or form."""
    found = reader(entry)
    if answers is None:
        assert found
    else:
        assert len(found) == len(answers)
        assert all(one in (other, None) for one, other in zip(answers, found, strict=True))


@given(
    number=st.integers(1000, 10**9),
    unit=st.sampled_from(["", " sq km", " km", " tons of waste"]),
    note=st.sampled_from(["", " (2024 est.)", "; note - old", " note: old"]),
)
def test_a_quantity_has_all_its_forms(number: int, unit: str, note: str) -> None:
    forms = values.quantity(f"{number:,}{unit}{note}")
    assert forms[0] == f"{number:,}{unit}"
    assert set(forms) == {f"{number:,}{unit}", f"{number}{unit}", f"{number:,}", f"{number}"}


@given(st.text(max_size=40))
def test_readers_accept_any_text(entry: str) -> None:
    for reader in values.READERS.values():
        forms = reader(entry)
        assert all(forms)
        assert len(set(forms)) == len(forms)


def _entry(code: str, country: str, label: str, text: str) -> Fact:
    field, _, subfield = label.partition(": ")
    return Fact(code, country, "Government", field, subfield, text)


ENTRIES = [
    _entry("ex", "Exland", "Country name: conventional long form", "Republic of Exland"),
    _entry("ex", "Exland", "Nationality: adjective", "Exish"),
    _entry("ex", "Exland", "Country name: former", "Old Exia"),
    _entry("nx", "New Exland", "Nationality: adjective", "Exish"),
    _entry("nx", "New Exland", "Dependency status", "territory of Exland"),
    _entry("wy", "The Whys", "Nationality: adjective", "Whyish"),
    _entry("zi", "Saint Zed Islands", "Nationality: adjective", "Whyish"),
    _entry("xx", "World", "Country name: conventional long form", "World"),
]


def test_countries_get_articles_and_possessives_in_sentences() -> None:
    countries = read_countries(ENTRIES)
    assert [country.in_sentence for country in countries.values()] == [
        "Exland",
        "New Exland",
        "Whys",
        "the Saint Zed Islands",
    ]
    assert countries["ex"].possessive == "Exland's"
    assert countries["zi"].possessive == "the Saint Zed Islands'"
    assert "St. Zed Islands" in countries["zi"].names


def test_ambiguous_names_stand_for_no_country() -> None:
    names = {
        name: country.code
        for name, country in country_names(read_countries(ENTRIES).values()).items()
    }
    assert names["Exish"] == "ex"  # the state rather than its territory
    assert names["Old Exia"] == "ex"
    assert "Whyish" not in names


@pytest.mark.parametrize(
    ("text", "alone"),
    [
        ("He went to Exland.", True),
        ("In Exland's north", True),
        ("The Exland of today", True),
        ("Whyland, Exland, and Zed", True),
        ("the Gulf of Exland", False),
        ("the Battle of the Exland", False),
        ("Upper Exland", False),
        ("Exland City", False),
        ("the Exland–Zed border", False),
        ("anti-Exland", False),
    ],
)
def test_stands_alone_refuses_parts_of_longer_names(text: str, alone: bool) -> None:
    (mention,) = NameFinder(["Exland"]).find(text)
    assert stands_alone(text, mention) is alone


def test_finder_prefers_the_longest_name() -> None:
    finder = NameFinder(["Exland", "New Exland", "Ex"])
    text = "New Exland, Exland and Ex, but no Exlander and no exland"
    found = list(finder.find(text))
    assert [mention.name for mention in found] == ["New Exland", "Exland", "Ex"]
    assert mark(text, found[1]).startswith("New Exland, [START] Exland [END] and")


@given(st.lists(st.sampled_from(["Ex", "Exland", "New Exland", "land", ",", "new"]), max_size=8))
def test_finder_returns_the_span_of_each_name(words: list[str]) -> None:
    text = " ".join(words)
    found = list(NameFinder(["Ex", "Exland", "New Exland"]).find(text))
    assert all(text[mention.start : mention.end] == mention.name for mention in found)
    assert all(one.end <= other.start for one, other in pairwise(found))
    assert sum("Ex" in mention.name for mention in found) == sum("Ex" in word for word in words)
