"""Questions of two hops from the fields of passages."""

import json
from pathlib import Path

import pytest
import two_hops

from imprag.corpus import Corpus, Passage

COUNTRIES = {
    "Nepal": ("Kathmandu", "President Ramchandra PAUDEL", "8,849 m"),
    "Chad": ("N'Djamena", "President Mahamat Idriss DEBY Itno", "3,445 m"),
    "Elsewhere": ("Kathmandu", "King NOBODY", "12 m"),
}


def passages() -> list[Passage]:
    made = []
    for country, (capital, chief, height) in COUNTRIES.items():
        fields = {
            "Government": {
                "Capital: name": capital,
                "Executive branch: chief of state": chief,
            },
            "Geography": {"Elevation: highest point": height},
        }
        for section, facts in fields.items():
            text = "\n".join(f"{label}: {value}" for label, value in facts.items())
            meta = {"section": section, "fields": list(facts)}
            made.append(Passage(f"{country}/{section}", f"{country}, {section}", text, meta))
    return made


def test_a_country_is_named_by_a_field_of_another_passage() -> None:
    made = {one.gold_ids[-1]: one for one in two_hops.two_hops(passages())}
    chad = made["Chad/Geography"]
    assert chad.meta["bridge_answer"] == "Chad"
    assert "Chad" not in chad.input
    assert "N'Djamena" in chad.input or "Mahamat Idriss Deby Itno" in chad.input
    assert list(chad.answers) == ["3,445 m"]
    assert list(chad.gold_ids) == ["Chad/Government", "Chad/Geography"]


def test_a_value_that_two_countries_have_names_none() -> None:
    for seed in range(10):
        made = {one.gold_ids[-1]: one for one in two_hops.two_hops(passages(), seed)}
        assert "Ramchandra Paudel" in made["Nepal/Geography"].input


def test_copies_of_a_country_are_named_within_their_copy() -> None:
    named = [
        Passage(
            f"renamed-{copy}/{one.id}",
            one.title.replace("Chad", name),
            one.text,
            one.meta,
        )
        for copy, name in enumerate(("Leopold", "Phoenix"))
        for one in passages()
        if one.title.startswith("Chad")
    ]
    made = {one.meta["bridge_answer"]: one for one in two_hops.two_hops(named)}
    assert set(made) == {"Leopold", "Phoenix"}
    for copy, name in enumerate(made):
        assert all(id.startswith(f"renamed-{copy}/") for id in made[name].gold_ids)


def test_each_hop_is_a_question_with_its_own_passage() -> None:
    chad = next(
        one for one in two_hops.two_hops(passages()) if one.gold_ids[-1] == "Chad/Geography"
    )
    first, second = two_hops.each_hop([chad], ";")
    assert (first.input, second.input) == (chad.input, f"{chad.input} Chad ;")
    assert [list(one.gold_ids) for one in (first, second)] == [
        ["Chad/Government"],
        ["Chad/Geography"],
    ]


def test_held_out_countries_are_left_out(tmp_path: Path) -> None:
    corpus, benchmark = tmp_path / "corpus", tmp_path / "benchmark"
    Corpus.build(passages(), corpus)
    benchmark.mkdir()
    splits = {"countries": {"train": ["Chad", "Elsewhere"], "test": ["Nepal"]}}
    manifest = {"name": "own", "version": 1, "seed": 0, "tasks": {}, "splits": splits}
    (benchmark / "benchmark.json").write_text(json.dumps(manifest))
    made = {}
    for name, options in (("all", []), ("some", ["--leave-out", str(benchmark)])):
        out = tmp_path / f"{name}.jsonl"
        two_hops.main([str(corpus), *options, "--out", str(out)])
        rows = map(json.loads, out.read_text().splitlines())
        made[name] = {row["meta"]["bridge_answer"] for row in rows}
    assert made == {"all": set(COUNTRIES), "some": {"Chad", "Elsewhere"}}


@pytest.mark.parametrize("countries", [{"train": ["Chad"], "test": ["Narnia"]}, None])
def test_a_benchmark_that_holds_out_nothing_is_refused(
    countries: dict[str, list[str]] | None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Corpus.build(passages(), tmp_path / "corpus")
    manifest = {"name": "own", "version": 1, "seed": 0, "tasks": {}}
    splits = {} if countries is None else {"countries": countries}
    (tmp_path / "benchmark.json").write_text(json.dumps({**manifest, "splits": splits}))
    words = [str(tmp_path / "corpus"), "--leave-out", str(tmp_path), "--out", str(tmp_path / "o")]
    with pytest.raises(SystemExit):
        two_hops.main(words)
    assert "holds out no country" in capsys.readouterr().err


def test_names_that_tell_the_country_are_not_used() -> None:
    fields = {"Government": {"Capital: name": "Andorra la Vella"}, "Geography": {"Area: land": "1"}}
    made = [
        Passage(
            f"a/{section}",
            f"Andorra, {section}",
            "\n".join(f"{label}: {value}" for label, value in facts.items()),
            {"section": section, "fields": list(facts)},
        )
        for section, facts in fields.items()
    ]
    assert list(two_hops.two_hops(made)) == []


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        ("President Nayib Armando BUKELE Ortez (since 2019)", "Nayib Armando Bukele Ortez"),
        ("Minister of State Christophe MIRMAND", "Christophe Mirmand"),
        ("Acting Prime Minister Denis SASSOU-Nguesso", "Denis Sassou-Nguesso"),
    ],
)
def test_names_are_written_as_people_write_them(value: str, shown: str) -> None:
    fact = two_hops.Fact("X", "Executive branch, head of government", value, "p", "q")
    assert two_hops._shown(fact) == shown


@pytest.mark.parametrize(
    ("options", "message"), [(["--limit", "-3"], "not above 0"), ([], "no question can be made")]
)
def test_nothing_is_written_if_nothing_can_be_made(
    options: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Corpus.build([Passage("1", "A", "text")], tmp_path / "corpus")
    out = tmp_path / "out.jsonl"
    with pytest.raises(SystemExit):
        two_hops.main([str(tmp_path / "corpus"), *options, "--out", str(out)])
    assert message in capsys.readouterr().err
    assert not out.exists()


def test_the_file_can_be_trained_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    corpus, out = tmp_path / "corpus", tmp_path / "two-hops.jsonl"
    Corpus.build(passages(), corpus)
    two_hops.main([str(corpus), "--limit", "2", "--out", str(out)])
    assert json.loads(capsys.readouterr().out) == {"questions": 2}
    for line in out.read_text().splitlines():
        row = json.loads(line)
        assert row["meta"]["bridge_answer"] in COUNTRIES
        assert len(row["output"][0]["provenance"]) == 2
    with pytest.raises(SystemExit):
        two_hops.main([str(corpus), "--out", str(out)])
    assert "exists already" in capsys.readouterr().err
