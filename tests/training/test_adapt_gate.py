"""The gate of hybrid retrieval is fitted on people's questions that nothing else learnt from."""

import random
from dataclasses import replace
from pathlib import Path

import pytest

from conftest import tiny_lm, tiny_tokenizer
from imprag import ImpRAG
from imprag.corpus import Corpus, Passage
from imprag.index.folder import IndexFolder
from imprag.model import ImpRAGConfig, ImpRAGModel, PassageEncoder
from imprag.retrieval.gate import Gate
from imprag.training.adapt_gate import FEWEST_QUESTIONS, refit_gate
from imprag.training.data import TrainingExample, TrainingSource

COUNT = 120
OWN_SCORES = Gate({"bias": 4.0}, {"bias": -4.0}, {"bias": -4.0})
DRAWN = random.Random(1)
TEXTS = [" ".join(f"w{DRAWN.randrange(94)}" for _ in range(8)) for _ in range(COUNT)]


def pipeline(folder: Path, gate: Gate | None, *, lexical: bool = True) -> ImpRAG:
    config = ImpRAGConfig(
        base_model="tiny", b=2, t=4, gate=None if gate is None else gate.to_json()
    )
    model, tokenizer = ImpRAGModel(tiny_lm(), config), tiny_tokenizer()
    passages = [Passage(f"p{n}", "", text) for n, text in enumerate(TEXTS)]
    corpus = Corpus.build(passages, folder / "corpus")
    encoder = PassageEncoder(model, tokenizer)
    index = IndexFolder.build(corpus, encoder, folder / "index", lexical=lexical, progress=False)
    return ImpRAG(model, tokenizer, index)


def questions(count: int, name: str = "asked") -> TrainingSource:
    """Questions in a passage's own words."""
    return TrainingSource(
        name,
        [
            TrainingExample(f"{name}{n}", " ".join(TEXTS[n].split()[:5]), "w1", (n,))
            for n in range(count)
        ],
    )


def test_a_gate_that_ignores_the_words_is_replaced(tmp_path: Path) -> None:
    rag = pipeline(tmp_path, OWN_SCORES)
    found = refit_gate(rag, [questions(40, "one"), questions(COUNT, "other")])
    assert found is not None
    assert (found.questions, found.gate is not None) == (COUNT + 40, True)
    assert found.before[0] < 0.5 < 0.9 < found.after[0]
    # What was said about the other half of the questions holds for the gate that is kept.
    assert found.gate is not None
    better = ImpRAG(rag.model.with_settings(gate=found.gate.to_json()), rag.tokenizer, rag.index)
    asked = questions(COUNT).examples
    first = [
        ranked[0].row in example.positives
        for ranked, example in zip(
            better.retrieve([one.prompt for one in asked], 1), asked, strict=True
        )
    ]
    assert sum(first) / len(first) > 0.9


def test_a_gate_that_finds_as_much_stays(tmp_path: Path) -> None:
    words = Gate({"bias": -4.0}, {"bias": 2.0}, {"bias": -4.0})
    found = refit_gate(pipeline(tmp_path, words), [questions(COUNT)])
    assert found is not None
    assert found.before[0] > 0.95
    assert (found.gate is None) == (sum(found.after) <= sum(found.before))


def test_too_few_questions_or_none_that_can_be_found(tmp_path: Path) -> None:
    rag = pipeline(tmp_path, OWN_SCORES)
    found = refit_gate(rag, [questions(FEWEST_QUESTIONS - 1)])
    assert found is not None
    assert (found.usable, found.gate) == (FEWEST_QUESTIONS - 1, None)
    assert found.before == found.after
    # Passages that are left out are no candidates.
    few = questions(FEWEST_QUESTIONS + 10)
    left_out = frozenset(range(20))
    found = refit_gate(rag, [few], left_out)
    assert found is not None
    assert found.usable == FEWEST_QUESTIONS + 10 - 20
    whole = refit_gate(rag, [few])
    assert whole is not None
    assert found.before[1] <= whole.before[1]


@pytest.mark.parametrize(("gate", "lexical"), [(None, True), (OWN_SCORES, False)])
def test_models_without_a_gate_and_indexes_without_words(
    tmp_path: Path, gate: Gate | None, lexical: bool
) -> None:
    rag = pipeline(tmp_path, gate, lexical=lexical)
    assert refit_gate(rag, [replace(questions(COUNT), weight=1.0)]) is None
