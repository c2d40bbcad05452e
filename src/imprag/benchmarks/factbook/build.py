"""Builds the factbook benchmark from the built-in corpus ``default``."""

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

from tqdm import tqdm

from imprag.benchmarks.factbook import tasks
from imprag.benchmarks.factbook.articles import article_questions
from imprag.benchmarks.factbook.facts import KnownFact, known_facts
from imprag.benchmarks.factbook.leaks import HeldOutFacts
from imprag.benchmarks.factbook.linking import (
    PROSE,
    Link,
    article_links,
    country_links,
    lead,
    link_example,
)
from imprag.benchmarks.factbook.names import Country, read_countries
from imprag.benchmarks.factbook.questions import questions, slots, statements, two_hop
from imprag.benchmarks.factbook.relations import load_relations
from imprag.benchmarks.factbook.splits import (
    ENTITY_SHARES,
    RELATION_SHARES,
    SPLITS,
    drawn,
    split_names,
)
from imprag.corpus import Corpus, Fact, Passage, factbook_fields, load_corpus
from imprag.io.files import atomic_path, expand_home, sha256, write_json
from imprag.io.locking import new_folder
from imprag.tasks.benchmark import MANIFEST
from imprag.tasks.example import Example, write_examples
from imprag.tasks.synthetic import phrase_denoising, sentence_generation
from imprag.tasks.task import Task

#: Raise it with every change that gives other examples.
VERSION = 2

_MIN_PROSE_WORDS = 20
_MAX_COUNTRY_LINKS = 60  # per country; without a limit, the United Kingdom has a third of them


class ExampleSet(NamedTuple):
    """The examples of one task and split."""

    task: Task
    split: str
    examples: Iterable[Example]


def build_factbook(out: str | Path, seed: int = 0) -> dict[str, Any]:
    """Build the benchmark in a new folder: a JSONL file per task and split, and a manifest.

    The same seed gives the same files, byte for byte. The corpus ``default`` is built in the cache
    folder if it is missing.

    Args:
        out: the folder to create.
        seed: the seed of splits and examples, 0 by default.

    Returns:
        The manifest, as in ``benchmark.json``: version, seed and the corpus's fingerprint; every
        task's corpus, and for every split the file, its checksum and the number of examples; the
        splits of countries, relations and articles; the number of facts.

    Raises:
        ImpRAGError: the folder exists and is not empty, or cannot be written, or a package with
            the text is missing or has another version.
    """
    out = expand_home(out)
    with new_folder(out):
        material = _Material(load_corpus("default"), seed)
        files: dict[str, Any] = {}
        with atomic_path(out) as folder:
            sets = list(_example_sets(material))
            for task, split, examples in tqdm(
                sets, "factbook benchmark", unit=" files", disable=None
            ):
                if split == "train":
                    examples = (one for one in examples if not material.held_out.told_by(one))
                file = f"{task.name}/{split}.jsonl"
                count = write_examples(
                    folder / file, (replace(example, task=task.name) for example in examples)
                )
                entry = files.setdefault(
                    task.name, {"corpus": task.name.partition("/")[0], "splits": {}}
                )
                entry["splits"][split] = {
                    "file": file,
                    "examples": count,
                    "sha256": sha256(folder / file),
                }
            manifest = material.manifest(files)
            write_json(folder / MANIFEST, manifest)
    return manifest


@dataclass(frozen=True)
class _Material:
    """The corpus, and everything derived from it that examples are made from."""

    corpus: Corpus
    seed: int

    @cached_property
    def country_passages(self) -> Mapping[str, list[Passage]]:
        """The passages of each country, by its name; first those that say what it is."""
        found = defaultdict(list)
        for passage in self.corpus:
            if passage.id.startswith("factbook/") and passage.meta["code"] in self.countries:
                found[passage.meta["country"]].append(passage)
        for passages in found.values():
            passages.sort(key=lambda passage: _rank(passage.meta["fields"]))
        return found

    @cached_property
    def articles(self) -> list[Passage]:
        return [passage for passage in self.corpus if passage.id.startswith("wiki10k/")]

    @cached_property
    def entries(self) -> list[Fact]:
        return list(factbook_fields())

    @cached_property
    def countries(self) -> dict[str, Country]:
        return read_countries(self.entries)

    @cached_property
    def facts(self) -> list[KnownFact]:
        passages = [passage for group in self.country_passages.values() for passage in group]
        return list(known_facts(self.entries, passages, self.countries, load_relations()))

    @cached_property
    def country_split(self) -> dict[str, str]:
        names = [country.name for country in self.countries.values()]
        return split_names(names, ENTITY_SHARES, self.seed, "country")

    @cached_property
    def field_split(self) -> dict[str, str]:
        """The split of every field. Relations from the same field share a split."""
        fields = {relation.field for relation in load_relations()}
        return split_names(fields, RELATION_SHARES, self.seed, "relation")

    @cached_property
    def article_split(self) -> dict[str, str]:
        """The split of every article. An article about a country has the country's split."""
        titles = [article.title for article in self.articles]
        split_of = split_names(titles, ENTITY_SHARES, self.seed, "article")
        for country in self.countries.values():
            for name in country.names:
                if name in split_of:
                    split_of[name] = self.country_split[country.name]
        return split_of

    @cached_property
    def held_out(self) -> HeldOutFacts:
        facts = [fact for fact in self.facts if self.country_split[fact.country.name] != "train"]
        return HeldOutFacts(facts, self.countries.values())

    def facts_of(self, countries: str, relations: str) -> list[KnownFact]:
        """The facts about countries of one split, with relations of another."""
        return [
            fact
            for fact in self.facts
            if self.country_split[fact.country.name] == countries
            and self.field_split[fact.relation.field] == relations
        ]

    def manifest(self, files: dict[str, Any]) -> dict[str, Any]:
        split_of_relation = {
            relation.name: self.field_split[relation.field] for relation in load_relations()
        }
        return {
            "name": "factbook",
            "version": VERSION,
            "seed": self.seed,
            "corpus": {"name": "default", "fingerprint": self.corpus.text_fingerprint},
            "tasks": files,
            "facts": Counter(self.country_split[fact.country.name] for fact in self.facts),
            "splits": {
                "countries": _by_split(self.country_split),
                "relations": _by_split(split_of_relation),
                "articles": _by_split(self.article_split),
            },
        }


def _example_sets(material: _Material) -> Iterator[ExampleSet]:
    seed = material.seed
    for split in SPLITS:
        facts = material.facts_of(split, "train")
        asked = questions(facts, seed, every_wording=split == "train")
        yield ExampleSet(tasks.QA, split, asked)
        yield ExampleSet(tasks.TWO_HOP, split, two_hop(facts, material.facts, seed))
        yield ExampleSet(tasks.TREX, split, slots(facts))
        yield ExampleSet(tasks.FEVER, split, statements(facts, seed))
    for split in ("dev", "test"):
        facts = material.facts_of(split, split)
        asked = questions(facts, seed, every_wording=False)
        yield ExampleSet(tasks.QA_UNSEEN, split, asked)
        yield ExampleSet(tasks.ZSRE, split, slots(facts))
    yield from _linking_sets(material)
    about = list(article_questions(material.articles, seed))
    for split in ("train", "dev"):
        examples = [one for one in about if material.article_split[one.meta["title"]] == split]
        yield ExampleSet(tasks.WIKI_QA, split, examples)
    yield from _synthetic_sets(material)


def _linking_sets(material: _Material) -> Iterator[ExampleSet]:
    pages: dict[str, tuple[Sequence[str], Sequence[str]]] = {
        country.name: (
            country.names,
            [passage.id for passage in material.country_passages[country.name]],
        )
        for country in material.countries.values()
    }
    links = _thinned(country_links(material.entries, material.countries), material.seed)
    yield from _split_links(tasks.AIDA, links, pages, material.country_split)
    pages = {article.title: ([article.title], [article.id]) for article in material.articles}
    links = list(article_links(material.articles))
    yield from _split_links(tasks.WIKI_AIDA, links, pages, material.article_split)


def _thinned(links: Iterable[Link], seed: int) -> list[Link]:
    """The links, at most ``_MAX_COUNTRY_LINKS`` per country."""
    of_country = defaultdict(list)
    for link in links:
        of_country[link.entity].append(link)
    for country, group in of_country.items():
        group.sort(key=lambda link: drawn(seed, "link", link.sentence))
        del of_country[country][_MAX_COUNTRY_LINKS:]
    return [link for group in of_country.values() for link in group]


def _split_links(
    task: Task,
    links: Sequence[Link],
    pages: Mapping[str, tuple[Sequence[str], Sequence[str]]],
    split_of: Mapping[str, str],
) -> Iterator[ExampleSet]:
    """Split links by the mentioned entity. A training sentence is also from the text of an entity
    of train, and is in no example of dev or test."""
    held_out = {link.sentence for link in links if split_of[link.entity] != "train"}
    for split in SPLITS:
        yield ExampleSet(
            task,
            split,
            [
                link_example(link, *pages[link.entity], number)
                for number, link in enumerate(links, 1)
                if split_of[link.entity] == split
                and (
                    split != "train"
                    or (split_of[link.source] == "train" and link.sentence not in held_out)
                )
            ],
        )


def _synthetic_sets(material: _Material) -> Iterator[ExampleSet]:
    seed = material.seed
    for split in SPLITS:
        prose = [
            replace(passage, text=text)
            for country, group in material.country_passages.items()
            if material.country_split[country] == split
            for passage in group
            if len((text := _prose(passage)).split()) >= _MIN_PROSE_WORDS
        ]
        yield ExampleSet(tasks.DENOISE, split, phrase_denoising(prose, seed))
        yield ExampleSet(tasks.SENTENCES, split, sentence_generation(prose, seed))
        articles = [
            replace(article, text=" ".join(lead(article)))
            for article in material.articles
            if material.article_split[article.title] == split
        ]
        yield ExampleSet(tasks.WIKI_DENOISE, split, phrase_denoising(articles, seed))
        yield ExampleSet(tasks.WIKI_SENTENCES, split, sentence_generation(articles, seed))


def _prose(passage: Passage) -> str:
    """The lines written in sentences, without their labels; they hold no relation."""
    lines = (line.partition(": ") for line in passage.text.splitlines())
    return "\n".join(text for field, _, text in lines if field in PROSE)


def _rank(fields: Sequence[str]) -> int:
    """The rank of a passage among those that say what a country is."""
    defining = ("Country name: conventional short form", "Background", "Nationality: adjective")
    return next((rank for rank, field in enumerate(defining) if field in fields), len(defining))


def _by_split(split_of: Mapping[str, str]) -> dict[str, list[str]]:
    return {split: sorted(name for name in split_of if split_of[name] == split) for split in SPLITS}
