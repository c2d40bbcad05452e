"""Renames the benchmark's training countries (beyond the paper).

A retriever trained on 152 countries learns their names by heart and confuses other countries. New
names give as many countries as there are words, and only the name in the prompt says which passage
is meant. Longpre et al. (2021) introduced substituted entities, to measure whether a model reads
or remembers.

    python examples/default_model/rename.py factbook-bench --out renamed
"""

import argparse
import json
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, product
from pathlib import Path

from tqdm import tqdm

from imprag.benchmarks.factbook import choose, drawn
from imprag.corpus import Passage, load_corpus
from imprag.errors import ImpRAGError
from imprag.io.building import check_free
from imprag.io.files import expand_home
from imprag.model.base import load_tokenizer
from imprag.tasks import (
    Answer,
    Example,
    load_benchmark,
    read_examples,
    split_of_passages,
    write_open_corpus,
)

TASK = "factbook/qa"
# A capitalised word within a sentence.
_PROPER = re.compile(r"(?<=[a-z,;(] )[A-Z][a-zà-ÿ]{2,}\b")
_LOWER = re.compile(r"\b[a-zà-ÿ]{3,}\b")
_WORD = re.compile(r"[^\W\d_]+")
_STEM = 5  # letters: "Sudanese" must not become a name, because Sudan may be held out
_MAX_LOWER_RATIO = 0.2  # lower-case per capitalised occurrences of a proper noun
_COMPOUND_EVERY = 7
_COMPOUNDS = (
    *("North {}", "South {}", "East {}", "West {}", "New {}", "Upper {}", "Saint {}"),
    *("Republic of {}", "{} Islands", "{} Island", "{} City", "{} Strip"),
)


def rename_countries(
    benchmark: str | Path,
    out: str | Path,
    copies: int = 12,
    seed: int = 0,
    names_from: Sequence[str | Path] = (),
    tokens: Callable[[str], int] = lambda word: 1,
) -> dict[str, int]:
    """Write a folder of the training countries' passages and questions under new names.

    Every country gets a new name in every copy: a proper noun of the training texts, alone or in a
    compound such as ``South Leopold``, but never a word of a country's name. Proper nouns with the
    fewest tokens are used first, because a model confuses them most, and among them the most
    frequent. A copy has one question per fact of the country, in one of its wordings, and the
    passages that state the facts.

    Args:
        benchmark: the folder of the factbook benchmark, whose ``train`` questions are renamed.
        out: the folder to create, with ``passages.jsonl`` (a corpus) and ``questions.jsonl``
            (examples of the task ``factbook/qa``).
        copies: the number of new names per country, 12 by default.
        seed: the seed of names and wordings, 0 by default.
        names_from: further corpora, by path or name, whose proper nouns are used as names, too.
        tokens: a function that counts a word's tokens. By default, every word has one.

    Returns:
        The numbers of ``names``, ``passages`` and ``questions``.

    Raises:
        ImpRAGError: the benchmark is not one or was made from another corpus, there are not enough
            names, or the folder exists or cannot be written.
    """
    benchmark, out = expand_home(benchmark), expand_home(out)
    check_free(out)
    manifest = load_benchmark(benchmark)
    corpus = load_corpus("default")
    if manifest["corpus"]["fingerprint"] != corpus.text_fingerprint:
        raise ImpRAGError(
            f"{benchmark} was made from another version of the corpus; build it again"
        )
    file = benchmark / manifest["tasks"][TASK]["splits"]["train"]["file"]
    asked: dict[str, dict[str, list[Example]]] = defaultdict(lambda: defaultdict(list))
    for example in read_examples(file):
        asked[example.meta["country"]][example.meta["relation"]].append(example)
    split_of = split_of_passages(manifest)
    training = [passage for passage in corpus if split_of(passage) == "train"]
    passage_of = {passage.id: passage for passage in training}
    countries = [name for names in manifest["splits"]["countries"].values() for name in names]
    texts = chain(training, *(load_corpus(name) for name in names_from))
    words = _proper_nouns((passage.text for passage in texts), countries)
    if not 1 <= copies <= len(words) // len(asked):
        raise ImpRAGError(
            f"{len(words):,} words can name {len(asked)} countries at most "
            f"{len(words) // len(asked)} times, not {copies}"
        )
    words.sort(key=tokens)
    names = iter(_shuffled_names(words[: copies * len(asked)], seed))
    passages: dict[str, Passage] = {}

    def questions() -> Iterator[Example]:
        rows = tqdm(range(copies), "renaming", unit=" copies", disable=None)
        for copy, country in product(rows, sorted(asked)):
            entity = _Renamed(country, next(names), copy)
            for relation, wordings in sorted(asked[country].items()):
                question = choose(wordings, seed, "renamed", entity.name, relation)
                if (renamed := entity.question(question)) is None:
                    continue
                for old, new in zip(question.gold_ids, renamed.gold_ids, strict=True):
                    if new not in passages:
                        passages[new] = entity.passage(passage_of[old])
                yield renamed

    return {"names": copies * len(asked), **write_open_corpus(out, questions(), passages)}


@dataclass(frozen=True)
class _Renamed:
    """A country under a new name, in one of the copies."""

    country: str
    name: str
    copy: int

    def question(self, example: Example) -> Example | None:
        """The question with the new name; None if it does not name the country."""
        asked = self._renamed(example.input)
        if asked == example.input:
            return None
        return Example(
            id=self._id(example.id),
            input=asked[0].upper() + asked[1:],
            output=[
                Answer(
                    self._renamed(each.answer),
                    [{"passage_id": self._id(ref["passage_id"])} for ref in each.provenance],
                )
                for each in example.output
            ],
            meta={"country": self.name, "relation": example.meta["relation"]},
            task=TASK,
        )

    def passage(self, passage: Passage) -> Passage:
        """The passage with the new name."""
        return Passage(
            id=self._id(passage.id),
            title=passage.title.replace(self.country, self.name),
            text=self._renamed(passage.text),
            meta={
                "country": self.name,
                "section": passage.meta["section"],
                "fields": passage.meta["fields"],
            },
        )

    def _id(self, id: str) -> str:
        return f"renamed-{self.copy}/{id}"

    def _renamed(self, text: str) -> str:
        return renamed_text(text, self.country, self.name)


def renamed_text(text: str, country: str, name: str) -> str:
    """Replace a country's name with its article; the new name has none and a regular genitive."""
    old = re.escape(country.removeprefix("The "))
    return re.sub(
        rf"\b(?:[Tt]he )?{old}(?P<genitive>'(?!\w))?(?!\w)",
        lambda found: name + ("'s" if found["genitive"] else ""),
        text,
    )


def _proper_nouns(texts: Iterable[str], countries: Iterable[str]) -> list[str]:
    """Proper nouns, the most frequent first, without words of the countries' names."""
    proper: Counter[str] = Counter()
    lower: Counter[str] = Counter()
    for text in texts:
        proper.update(_PROPER.findall(text))
        lower.update(_LOWER.findall(text))
    taken = {word for country in countries for word in _WORD.findall(country)}
    stems = tuple(word[:_STEM] for word in taken if len(word) >= _STEM)
    return sorted(
        (
            word
            for word, times in proper.items()
            if times > 1
            and lower[word.lower()] <= _MAX_LOWER_RATIO * times
            and word not in taken
            and not word.startswith(stems)
        ),
        key=lambda word: (-proper[word], word),
    )


def _shuffled_names(words: Sequence[str], seed: int) -> list[str]:
    """The words in random order, some of them in a compound."""
    names = sorted(words, key=lambda word: drawn(seed, "renamed", word))
    return [
        choose(_COMPOUNDS, seed, "compound", word).format(word)
        if number % _COMPOUND_EVERY == 0
        else word
        for number, word in enumerate(names)
    ]


def main(arguments: Sequence[str] | None = None) -> None:
    """Write the folder given on the command line, and print the counts as JSON."""
    parser = argparse.ArgumentParser(
        description="Make passages and questions about the training countries under new names."
    )
    parser.add_argument("benchmark", help="the folder of the factbook benchmark")
    parser.add_argument("--out", required=True, help="the folder to create")
    parser.add_argument("--copies", type=int, default=12, help="number of new names per country")
    parser.add_argument(
        "--names-from", nargs="+", default=[], help="more corpora whose proper nouns become names"
    )
    parser.add_argument(
        "--model",
        default="smollm2-135m",
        help="base model, or its folder; words with the fewest of its tokens become names first",
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of names and wordings")
    asked = parser.parse_args(arguments)
    try:
        tokenizer = load_tokenizer(asked.model)
        counts = rename_countries(
            asked.benchmark,
            asked.out,
            asked.copies,
            asked.seed,
            asked.names_from,
            lambda word: len(tokenizer.tokenize(f" {word}")),
        )
    except ImpRAGError as error:
        parser.error(str(error))
    print(json.dumps(counts))


if __name__ == "__main__":
    main()
