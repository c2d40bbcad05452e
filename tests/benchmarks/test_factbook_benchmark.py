"""The built benchmark keeps its promises about examples, splits, gold passages and leaks."""

import math
import re
from collections import Counter, defaultdict
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest

from factbook_built import Built
from imprag.benchmarks.factbook import VERSION, build_factbook
from imprag.benchmarks.factbook.facts import KnownFact, known_facts
from imprag.benchmarks.factbook.linking import PROSE
from imprag.benchmarks.factbook.names import Country, read_countries
from imprag.benchmarks.factbook.relations import load_relations
from imprag.corpus import factbook_fields
from imprag.errors import ImpRAGError
from imprag.io.files import sha256, write_json
from imprag.tasks import load_benchmark, load_task
from imprag.tasks.matching import contains_answer

EIGHT = {
    *("factbook/qa", "factbook/qa_unseen", "factbook/two_hop", "factbook/trex"),
    *("factbook/zsre", "factbook/fever", "factbook/aida", "wiki10k/aida"),
}
NINE = EIGHT | {"wiki10k/qa"}
SYNTHETIC = {
    *("factbook/denoising", "factbook/next_sentence"),
    *("wiki10k/denoising", "wiki10k/next_sentence"),
}
ABOUT_FACTS = EIGHT - {"factbook/aida", "wiki10k/aida"}


@pytest.fixture(scope="module")
def countries() -> dict[str, Country]:
    return {country.name: country for country in read_countries(factbook_fields()).values()}


@pytest.fixture(scope="module")
def facts(built: Built, countries: dict[str, Country]) -> list[KnownFact]:
    passages = [passage for passage in built.corpus if passage.id.startswith("factbook/")]
    by_code = {country.code: country for country in countries.values()}
    return list(known_facts(factbook_fields(), passages, by_code, load_relations()))


def test_the_same_seed_builds_the_same_files(built: Built) -> None:
    files = sorted(path.relative_to(built.folder) for path in built.folder.rglob("*.json*"))
    assert files == sorted(path.relative_to(built.other) for path in built.other.rglob("*.json*"))
    for file in files:
        assert (built.folder / file).read_bytes() == (built.other / file).read_bytes(), file


def test_the_manifest_describes_the_files(built: Built) -> None:
    assert built.manifest == load_benchmark(built.folder)
    assert built.manifest["corpus"]["fingerprint"] == built.corpus.text_fingerprint
    assert set(built.manifest["tasks"]) == NINE | SYNTHETIC
    for task, group in built.manifest["tasks"].items():
        assert group["corpus"] == task.split("/")[0]
        for split, entry in group["splits"].items():
            assert sha256(built.folder / entry["file"]) == entry["sha256"]
            assert len(built.examples[task, split]) == entry["examples"] > 0


def test_the_benchmark_has_enough_relations_facts_and_examples(
    built: Built, facts: list[KnownFact]
) -> None:
    assert len(load_relations()) >= 60
    assert len(facts) >= 12_000
    assert built.manifest["facts"] == Counter(
        _split(built, "countries")[f.country.name] for f in facts
    )
    assert min(Counter(fact.relation.name for fact in facts).values()) >= 50
    counts = {task: 0 for task, _ in built.examples}
    for (task, _), examples in built.examples.items():
        counts[task] += len(examples)
    assert counts["factbook/two_hop"] >= 1500
    assert counts["wiki10k/aida"] >= 9000
    assert counts["factbook/aida"] >= 1200
    for task in EIGHT - {"factbook/aida"}:
        assert len(built.examples[task, "test"]) >= 1000, task


def test_the_documentation_states_the_actual_numbers(built: Built) -> None:
    text = (Path(__file__).parents[2] / "docs/reference/factbook.md").read_text(encoding="utf-8")
    for task, group in built.manifest["tasks"].items():
        splits = (group["splits"].get(split) for split in ("train", "dev", "test"))
        cells = [f"{entry['examples']:,}" if entry else "" for entry in splits]
        row = re.search(rf"^\| `{task}` \|.*\|(.*\|.*\|.*)\|$", text, re.MULTILINE)
        assert row, task
        assert [cell.strip() for cell in row[1].split("|")] == cells, task
    assert f"{sum(built.manifest['facts'].values()):,} facts" in text
    assert f"{len(load_relations())} relations" in text


def test_every_relation_has_distinct_complete_templates() -> None:
    relations = load_relations()
    assert len({relation.name for relation in relations}) == len(relations)
    wordings = [text for relation in relations for text in relation.questions]
    assert len(set(wordings)) == len(wordings)
    for relation in relations:
        assert len(relation.questions) >= 4, relation.name
        assert len(relation.statements) >= 2, relation.name
        assert any("{X's}" not in wording for wording in relation.questions), "no two-hop wording"
        assert all(re.search(r"\{X('s)?\}.*\?$", wording) for wording in relation.questions)
        assert all("{V}" in text and text.endswith(".") for text in relation.statements)


def test_splits_have_their_shares(built: Built, countries: dict[str, Country]) -> None:
    splits = built.manifest["splits"]
    for kind, total in (("countries", len(countries)), ("articles", 10_032)):
        names = [name for split in splits[kind].values() for name in split]
        assert len(names) == len(set(names)) == total
        for split, share in (("train", 0.60), ("dev", 0.15), ("test", 0.25)):
            assert len(splits[kind][split]) / total == pytest.approx(share, abs=0.01)
    relations = {split: set(names) for split, names in splits["relations"].items()}
    assert set().union(*relations.values()) == {relation.name for relation in load_relations()}
    assert len(relations["test"]) / len(load_relations()) == pytest.approx(0.2, abs=0.02)
    fields = {relation.name: relation.field for relation in load_relations()}
    seen = {fields[name] for name in relations["train"]}
    assert seen.isdisjoint(fields[name] for name in relations["dev"] | relations["test"])


def test_another_seed_gives_other_splits(built: Built, tmp_path: Path) -> None:
    from imprag.benchmarks.factbook.splits import ENTITY_SHARES, split_names

    names = list(_split(built, "countries"))
    assert split_names(names, ENTITY_SHARES, 0, "country") == _split(built, "countries")
    assert split_names(names, ENTITY_SHARES, 1, "country") != _split(built, "countries")


def test_examples_are_in_their_split(built: Built) -> None:
    country_split, relation_split = _split(built, "countries"), _split(built, "relations")
    for (task, split), examples in built.examples.items():
        for example in examples if task in ABOUT_FACTS else ():
            unseen = task in ("factbook/qa_unseen", "factbook/zsre")
            for about in (example.meta, example.meta.get("bridge", example.meta)):
                assert country_split[about["country"]] == split
                assert relation_split[about["relation"]] == (split if unseen else "train")


def test_linked_entities_are_in_their_split(built: Built) -> None:
    for task, kind in (("factbook/aida", "countries"), ("wiki10k/aida", "articles")):
        split_of = _split(built, kind)
        sentences = defaultdict(set)
        for split in ("train", "dev", "test"):
            for example in built.examples[task, split]:
                assert split_of[example.answers[0]] == split
                assert example.answers[0] != example.meta["source"]
                sentences[split].add(re.sub(r"\[(?:START|END)\] ?", "", example.input).strip())
                if split == "train":
                    assert split_of[example.meta["source"]] == "train"
        assert sentences["train"].isdisjoint(sentences["dev"] | sentences["test"])


def test_article_questions_are_unambiguous_and_hide_their_answer(built: Built) -> None:
    texts = {passage.id: passage.text for passage in built.corpus}
    split_of, kinds = _split(built, "articles"), Counter()
    assert ("wiki10k/qa", "test") not in built.examples
    for split in ("train", "dev"):
        for example in built.examples["wiki10k/qa", split]:
            kinds[example.meta["kind"]] += 1
            assert split_of[example.meta["title"]] == split
            (gold,) = example.gold_ids
            assert contains_answer(texts[gold], example.answers), example
            assert not contains_answer(example.input, example.answers), example
            assert example.input.endswith("?"), example
            assert not re.search(r"\{[XDYa]\}", example.input), example
    assert min(kinds[kind] for kind in ("born", "died", "person")) >= 800
    assert min(kinds[kind] for kind in ("what", "name")) >= 3000
    # A description that asks for a person or name fits only one article.
    answers = defaultdict(set)
    for example in built.examples["wiki10k/qa", "train"]:
        if example.meta["kind"] in ("name", "person"):
            answers[example.input].add(example.meta["title"])
    assert all(len(titles) == 1 for titles in answers.values())


def test_articles_about_countries_are_in_the_countrys_split(
    built: Built, countries: dict[str, Country]
) -> None:
    country_split, article_split = _split(built, "countries"), _split(built, "articles")
    titles = [name for name in countries if name in article_split]
    assert len(titles) > 150
    assert all(country_split[title] == article_split[title] for title in titles)


def test_no_training_text_tells_a_held_out_fact(
    built: Built, facts: list[KnownFact], countries: dict[str, Country]
) -> None:
    """Searches by plain text, independently of the benchmark's own filter."""
    split_of = _split(built, "countries")
    held_out = [name for name in countries if split_of[name] != "train"]
    others = [
        form for name in countries if split_of[name] == "train" for form in countries[name].names
    ]
    others = sorted((form for form in others if any(name in form for name in held_out)), key=len)
    told = defaultdict(list)
    for fact in facts:
        told[fact.country.name].append(fact)
    named = 0
    for task, example in built.train():
        text = "\n".join([example.input, *example.answers])
        for form in reversed(others):  # "Guinea-Bissau" does not name Guinea
            text = text.replace(form, "")
        for name in held_out:
            if name in text and contains_answer(text, [name]):
                named += 1
                beside = text  # names alone, such as "Spain" and "Spanish", tell no fact
                country = countries[name]
                forms = [*country.names, *country.demonyms, *country.former_names]
                for form in sorted(forms, key=len, reverse=True):
                    beside = beside.replace(form, "■")
                for fact in told[name]:
                    assert not contains_answer(beside, fact.answers), (task, example.id, fact)
    assert named > 100  # the search does find names, only no facts


def test_the_leak_search_finds_leaks(facts: list[KnownFact]) -> None:
    from imprag.benchmarks.factbook.leaks import HeldOutFacts

    by_code = read_countries(factbook_fields())
    chad = [fact for fact in facts if fact.country.name == "Chad"]
    held_out = HeldOutFacts(chad, by_code.values())
    told = held_out.told_in("From N'Djamena, Chad is governed.")
    assert told is not None
    assert told.relation.name == "capital"
    assert held_out.told_in("Chadian troops left N'Djamena.") is not None
    assert held_out.told_in("N'Djamena is on the Chari.") is None
    assert held_out.told_in("The French went to Chad.") is None


def test_training_texts_contain_no_unseen_relation(built: Built) -> None:
    unseen = {name for name, split in _split(built, "relations").items() if split != "train"}
    unseen_wordings = [
        re.escape(wording).replace(r"\{X\}", "(.+)").replace(r"\{X's\}", "(.+)'s?")
        for relation in load_relations()
        if relation.name in unseen
        for wording in relation.questions
    ]
    pattern = re.compile("|".join(f"(?:{wording})" for wording in unseen_wordings))
    for task, example in built.train():
        if task in ("factbook/qa", "factbook/two_hop"):
            assert not pattern.fullmatch(example.input), example.input
        if task == "factbook/trex":
            assert example.input.split(" [SEP] ")[1] not in unseen
    # The synthetic tasks use only prose, which states no relation.
    assert PROSE.isdisjoint(relation.field for relation in load_relations())


def test_gold_passages_state_the_answer(built: Built) -> None:
    """Statements are exempt (their answers are labels), and denoising (its answer is a list)."""
    texts = {passage.id: f"{passage.title}\n{passage.text}" for passage in built.corpus}
    for (task, _), examples in built.examples.items():
        for example in examples:
            gold = example.evidence_sets(joint=load_task(task).joint_evidence)
            assert gold, example.id
            for ids in gold:
                if task == "factbook/two_hop":
                    assert len(ids) == 2, example.id
                stated = [texts[id] for id in ids]
                if task == "factbook/fever":
                    continue
                answers = example.answers
                if task.endswith("/denoising"):
                    answers = answers[0].split(", ")
                assert any(contains_answer(text, answers) for text in stated), example.id


def test_gold_passages_are_about_the_country_asked_for(
    built: Built, countries: dict[str, Country]
) -> None:
    for task in ABOUT_FACTS:
        for example in built.examples[task, "test"]:
            code = countries[example.meta["country"]].code
            bridge = countries[example.meta.get("bridge", example.meta)["country"]].code
            for ids in example.evidence_sets(joint=load_task(task).joint_evidence):
                assert {id.split("/")[1] for id in ids} == {code, bridge}, example.id


def test_answers_include_every_form(built: Built) -> None:
    answers = {
        (example.meta["country"], example.meta["relation"]): example.answers
        for split in ("train", "dev", "test")
        for example in built.examples["factbook/trex", split]
    }
    assert answers["Chad", "capital"] == ["N'Djamena"]
    assert answers["Colombia", "capital"] == ["Bogotá", "Bogota"]
    assert answers["Burma", "capital"] == ["Rangoon", "Yangon", "Nay Pyi Taw"]
    assert {"147,181 sq km", "147181 sq km", "147,181"} <= {*answers["Nepal", "total area"]}
    linked = {
        example.answers[0]: example.answers
        for split in ("train", "dev", "test")
        for example in built.examples["factbook/aida", split]
    }
    assert "Myanmar" in linked["Burma"]
    assert {"United Kingdom", "UK"} <= {*linked["United Kingdom"]}


def test_two_hop_descriptions_fit_only_one_country(built: Built, facts: list[KnownFact]) -> None:
    countries_with = defaultdict(set)
    for fact in facts:
        countries_with[fact.relation.name, fact.answers[0].casefold()].add(fact.country.name)
    value = {(fact.country.name, fact.relation.name): fact for fact in facts}
    partners = 0
    for split in ("train", "dev", "test"):
        for example in built.examples["factbook/two_hop", split]:
            bridge = example.meta["bridge"]
            fact = value[bridge["country"], bridge["relation"]]
            if fact.relation.partner:
                partners += 1
                assert fact.partner is not None
                assert fact.partner.name == example.meta["country"]
            else:
                assert example.meta["country"] == bridge["country"]
                same = countries_with[fact.relation.name, fact.answers[0].casefold()]
                assert same == {bridge["country"]}
                assert not contains_answer(example.input, fact.country.names), example.input
    assert partners > 100


def test_statements_do_not_reveal_their_label(built: Built) -> None:
    def labelled(split: str) -> list[tuple[list[str], str]]:
        return [
            (re.findall(r"\w+|[^\w\s]", example.input.lower()), example.answers[0])
            for example in built.examples["factbook/fever", split]
        ]

    for split in ("dev", "test"):  # over a split, true and false statements have the same words
        words = {"True": Counter[str](), "False": Counter[str]()}
        for tokens, label in labelled(split):
            words[label].update(tokens)
        assert words["True"] == words["False"]

    # Naive Bayes over words and pairs of words, learned from train, is at chance on test.
    counts = {"True": Counter[str](), "False": Counter[str]()}
    for tokens, label in labelled("train"):
        counts[label].update([*tokens, *map("_".join, pairwise(tokens))])
    vocabulary = len({*counts["True"], *counts["False"]})
    totals = {label: count.total() + vocabulary for label, count in counts.items()}
    right = 0
    test = labelled("test")
    for tokens, label in test:
        score = {
            name: sum(
                math.log((count[feature] + 1) / totals[name])
                for feature in [*tokens, *map("_".join, pairwise(tokens))]
            )
            for name, count in counts.items()
        }
        right += (score["True"] > score["False"]) == (label == "True")
    assert right / len(test) == pytest.approx(0.5, abs=0.02)


def test_statements_are_balanced(built: Built) -> None:
    for split in ("train", "dev", "test"):
        examples = built.examples["factbook/fever", split]
        labels = Counter(example.answers[0] for example in examples)
        assert labels["True"] / len(examples) == pytest.approx(0.5, abs=0.001)
        if split != "train":  # train drops single statements that tell held-out facts
            countries = Counter((one.meta["country"], one.answers[0]) for one in examples)
            assert all(countries[name, "True"] == countries[name, "False"] for name, _ in countries)


def test_false_statements_are_false(built: Built, facts: list[KnownFact]) -> None:
    value = {(fact.country.name, fact.relation.name): fact for fact in facts}
    for example in built.examples["factbook/fever", "test"]:
        fact = value[example.meta["country"], example.meta["relation"]]
        stated = contains_answer(example.input, [*fact.answers, fact.shown])
        if example.answers == ["True"]:
            assert stated, example.input
        elif len(fact.answers[0].split()) > 1:  # "3" may occur in "2.3 million"
            assert not contains_answer(example.input, [fact.shown]), example.input


def test_every_mention_is_marked_once(built: Built) -> None:
    for task in ("factbook/aida", "wiki10k/aida"):
        for split in ("train", "dev", "test"):
            for example in built.examples[task, split]:
                assert f"[START] {example.meta['mention']} [END]" in example.input
                assert example.input.count("[START]") == example.input.count("[END]") == 1
    kinds = {example.meta["mention"] for example in built.examples["factbook/aida", "test"]}
    assert {"Spanish", "UK", "India"} <= kinds


def test_every_example_has_a_prompt(built: Built) -> None:
    for (task, split), examples in built.examples.items():
        declared = load_task(task)
        assert declared.retrieval is (task in NINE)
        for example in examples[:50]:
            assert example.input in declared.prompt(example)
        file = built.folder / built.manifest["tasks"][task]["splits"][split]["file"]
        read, written = next(iter(declared.read(file))), examples[0]
        assert replace(read, meta=written.meta) == written
        if task in ABOUT_FACTS:
            assert read.group == (written.meta["country"], written.meta["relation"])
        else:
            assert read == written


def test_a_folder_that_is_not_empty_is_refused(built: Built, tmp_path: Path) -> None:
    (tmp_path / "note.txt").write_text("mine")
    with pytest.raises(ImpRAGError, match="exists already"):
        build_factbook(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["note.txt"]


def test_a_folder_of_another_version_is_refused(built: Built, tmp_path: Path) -> None:
    folder = tmp_path / "old"
    write_json(folder / "benchmark.json", {**built.manifest, "version": 0})
    again = f"delete it and run .imprag tasks build factbook --out {folder}"
    with pytest.raises(ImpRAGError, match=f"holds version 0, not {VERSION}: {again}"):
        load_benchmark(folder)


def _split(built: Built, kind: str) -> dict[str, str]:
    return {
        name: split for split, names in built.manifest["splits"][kind].items() for name in names
    }
