"""The model that lies in the package."""

from pathlib import Path

import numpy as np
import pytest

import imprag
from conftest import needs_smollm2
from imprag import ImpRAG
from imprag.corpus import load_corpus
from imprag.index.stored_embeddings import StoredEmbeddings
from imprag.model.load import DEFAULT_FOLDER, EMBEDDINGS

PAGE = Path(imprag.__file__).parent / "serving" / "web"

pytestmark = [needs_smollm2, pytest.mark.real_model]


@pytest.fixture(scope="module")
def rag() -> ImpRAG:
    return ImpRAG.from_pretrained("default")


def test_it_is_small() -> None:
    assert sum(path.stat().st_size for path in DEFAULT_FOLDER.iterdir()) < 30e6


def test_passages_have_the_embeddings_that_are_stored(rag: ImpRAG) -> None:
    corpus = load_corpus("default")
    stored = StoredEmbeddings(DEFAULT_FOLDER / EMBEDDINGS, corpus, rag.encoder.fingerprint())
    passages = corpus.passages(range(0, len(corpus), len(corpus) // 50))
    assert len(passages) >= 50
    expected, found = stored(passages), rag.encoder(passages)
    norms = np.linalg.norm(expected, axis=1) * np.linalg.norm(found, axis=1)
    assert ((expected * found).sum(axis=1) / norms).min() > 0.999


def test_it_finds_and_answers_at_once(rag: ImpRAG) -> None:
    """The index is made of the stored embeddings: nothing is embedded."""
    answer = rag.ask("Q: How long is the coastline of Brazil? A:")
    assert answer.passages[0].passage.title == "Brazil, Geography"
    assert answer.text == "7,491 km"


def test_it_finds_by_a_prompt_that_training_never_showed(rag: ImpRAG) -> None:
    answer = rag.ask(
        "Chad [SEP] capital Provide the answer corresponding to the relation specified after [SEP] "
        "for the entity mentioned before [SEP]. A:"
    )
    # Two sections score alike, and the dtype of the machine decides which is first.
    assert "Chad, Government" in [found.passage.title for found in answer.passages[:2]]
    assert answer.text == "N'Djamena"


def test_it_answers_a_question_as_people_type_it(rag: ImpRAG) -> None:
    typed = "  internet domain of estonia\n"
    answer = rag.ask(typed, max_new_tokens=8)
    assert answer.passages[0].passage.title == "Estonia, Communications"
    assert (answer.prompt, answer.text) == (typed, ".ee")
    assert answer.model_prompt == "Q: internet domain of estonia A:"


@pytest.mark.parametrize(
    ("question", "answer"),
    [
        ("What is the currency of Japan?", "yen"),
        ("Who wrote Pride and Prejudice?", "Jane Austen"),
        ("When did Ghana become independent?", "1957"),
        ("What is photosynthesis?", "light"),
    ],
)
def test_it_answers_the_examples_of_the_web_page(rag: ImpRAG, question: str, answer: str) -> None:
    assert question in (PAGE / "index.html").read_text(encoding="utf-8")
    # Three passages are enough to hold the answer; those before are asked with the model's own k.
    assert answer in rag.ask(question, k=3).text
