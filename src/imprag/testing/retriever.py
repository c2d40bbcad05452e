"""Tests that every retriever passes."""

import json
import math
from pathlib import Path
from typing import ClassVar

import pytest

from imprag.corpus import Corpus, Passage
from imprag.errors import ImpRAGError
from imprag.retrieval.implicit import ImplicitRetriever
from imprag.retrieval.registry import RETRIEVERS, RetrieverContext
from imprag.retrieval.retriever import Retriever


class RetrieverSuite:
    """Tests of a retriever; inherit them and say its name and the kind of its scores.

    Attributes:
        name: registered, as ``--retrieval`` takes it.
        kind: of the scores.
        texts: title and text of the corpus's passages, six at least.
        prompts: that are asked; none empty.
    """

    name: ClassVar[str]
    kind: ClassVar[str]
    texts: ClassVar[tuple[tuple[str, str], ...]] = (
        ("Chad", "The capital of Chad is N'Djamena, a city on the river Chari."),
        ("Mali", "The capital of Mali is Bamako, a city on the river Niger."),
        ("Peru", "Lima is the capital of Peru. The sol is its currency."),
        ("Norway", "Oslo is the capital of Norway, a country of fjords."),
        ("Vitamin C", "Vitamin C is also known as ascorbic acid."),
        ("The Who", "The Who are an English rock band."),
    )
    prompts: ClassVar[tuple[str, ...]] = (
        "Q: what is the capital of Chad? A:",
        "Q: which river flows through Bamako? A:",
        "vitamin",
    )

    def make(self, corpus: Corpus) -> Retriever:
        """The retriever over a corpus; override it for one that needs a model."""

        def no_model() -> ImplicitRetriever:
            raise NotImplementedError(f"override make: '{self.name}' asks for a model")

        return RETRIEVERS.find(self.name)(RetrieverContext(lambda: corpus, no_model))

    @pytest.fixture
    def corpus(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Corpus:
        """The passages of :attr:`texts`, and a cache folder of the test's own."""
        monkeypatch.setenv("IMPRAG_CACHE", str(tmp_path / "cache"))
        passages = [Passage(f"p{number}", *text) for number, text in enumerate(self.texts)]
        return Corpus.build(passages, tmp_path / "corpus")

    @pytest.fixture
    def retriever(self, corpus: Corpus) -> Retriever:
        return self.make(corpus)

    def test_every_prompt_gets_k_passages_best_first(self, retriever: Retriever) -> None:
        found = retriever.retrieve(self.prompts, 4)
        assert [len(row) for row in found] == [4] * len(self.prompts)
        for row in found:
            scores = [one.score for one in row]
            assert all(math.isfinite(score) for score in scores)
            assert scores == sorted(scores, reverse=True)

    def test_passages_carry_their_row_and_the_kind_of_their_score(
        self, retriever: Retriever
    ) -> None:
        for row in retriever.retrieve(self.prompts, 4):
            assert len({one.row for one in row}) == 4
            for one in row:
                assert one.row is not None
                assert retriever.corpus[one.row] == one.passage
                assert one.kind == self.kind

    def test_a_prompt_alone_finds_the_same(self, retriever: Retriever) -> None:
        together = retriever.retrieve(self.prompts, 3)
        for prompt, row in zip(self.prompts, together, strict=True):
            (alone,) = retriever.retrieve([prompt], 3)
            assert [one.row for one in alone] == [one.row for one in row]
            assert [one.score for one in alone] == pytest.approx(
                [one.score for one in row], rel=1e-4, abs=1e-4
            )

    def test_all_passages_can_be_retrieved(self, retriever: Retriever) -> None:
        (row,) = retriever.retrieve(self.prompts[:1], len(self.texts))
        assert sorted(one.row or 0 for one in row) == list(range(len(self.texts)))

    def test_no_prompt_finds_nothing(self, retriever: Retriever) -> None:
        assert retriever.retrieve([], 2) == []

    def test_more_passages_than_there_are_is_refused(self, retriever: Retriever) -> None:
        with pytest.raises(ImpRAGError):
            retriever.retrieve(self.prompts, len(self.texts) + 1)

    def test_one_text_in_place_of_a_list_is_refused(self, retriever: Retriever) -> None:
        with pytest.raises(ImpRAGError):
            retriever.retrieve(self.prompts[0], 2)

    def test_settings_are_the_same_for_the_same_corpus(
        self, retriever: Retriever, corpus: Corpus
    ) -> None:
        settings = json.dumps(dict(retriever.settings()))
        assert settings == json.dumps(dict(self.make(corpus).settings()))
