"""The built-in retrievers pass the suite that plug-ins pass; names and kinds of score."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from conftest import tiny_lm, tiny_tokenizer
from imprag.corpus import Corpus, Passage
from imprag.errors import ImpRAGError
from imprag.index.folder import IndexFolder
from imprag.io.text_checks import check_several
from imprag.model import ImpRAGConfig, ImpRAGModel
from imprag.model.passage_encoder import PassageEncoder
from imprag.retrieval import Retriever, register_retriever
from imprag.retrieval.dense import DenseRetriever
from imprag.retrieval.gate import Gate
from imprag.retrieval.hybrid import HybridRetriever
from imprag.retrieval.implicit import ImplicitRetriever
from imprag.retrieval.registry import RETRIEVERS
from imprag.testing.retriever import RetrieverSuite

WORDS = tuple((f"w{n}", f"w{n + 10} w{n + 20} w{2 * n}") for n in range(6))


class TestLexical(RetrieverSuite):
    name, kind = "lexical", "lexical"


class Letters:
    """In the place of a text encoder: embeds a text by how often it has each letter."""

    name, dimension = "letters", 26

    def fingerprint(self) -> str:
        return "letters"

    def queries(self, texts: Sequence[str]) -> np.ndarray:
        check_several(texts)
        counts = [[text.lower().count(chr(97 + n)) for n in range(26)] for text in texts]
        return np.array(counts, np.float32).reshape(len(texts), 26)

    def __call__(self, passages: Sequence[Passage]) -> np.ndarray:
        return self.queries([passage.text for passage in passages])


class TestDense(RetrieverSuite):
    name, kind = "dense", "dense"

    def make(self, corpus: Corpus) -> Retriever:
        return DenseRetriever(corpus, Letters())  # type: ignore[arg-type]


class TestImplicit(RetrieverSuite):
    name, kind = "implicit", "implicit"
    texts = WORDS
    prompts = ("w3 w13 w4", "w1", "w2 w22 w7 w9 w11")

    def make(self, corpus: Corpus) -> Retriever:
        config = ImpRAGConfig(base_model="tiny", b=1, t=3, k=2, max_passage_tokens=16)
        model, tokenizer = ImpRAGModel(tiny_lm(), config), tiny_tokenizer()
        encoder = PassageEncoder(model, tokenizer)
        index = IndexFolder.build(corpus, encoder, corpus.path.parent / "index", progress=False)
        return ImplicitRetriever(model, tokenizer, index)


class TestHybrid(TestImplicit):
    name, kind = "hybrid", "hybrid"

    def make(self, corpus: Corpus) -> Retriever:
        implicit = super().make(corpus)
        assert isinstance(implicit, ImplicitRetriever)
        return HybridRetriever(implicit, implicit.index.lexical, Gate.fixed(0.5))


def test_a_name_is_registered_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(RETRIEVERS, "_registered", {})

    @register_retriever("mine")
    def mine(context: object) -> None: ...

    assert RETRIEVERS.find("mine") is mine
    register_retriever("mine")(mine)  # its module runs again
    for name in ("mine", "lexical"):
        with pytest.raises(ImpRAGError, match=f"there are two retrievers named '{name}'"):
            register_retriever(name)(lambda context: None)


def test_a_package_cannot_take_the_name_of_a_built_in_retriever(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    info = tmp_path / "mine-1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: mine\nVersion: 1\n")
    (info / "entry_points.txt").write_text("[imprag.retrievers]\nlexical = json:loads\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ImpRAGError, match="there are two retrievers named 'lexical'"):
        RETRIEVERS.find("lexical")
