"""Text beyond the model's limit is split where it is a document's, and counted elsewhere."""

import json
from array import array
from collections.abc import Sequence
from pathlib import Path

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from conftest import tiny_lm, tiny_tokenizer
from imprag.corpus import Corpus, Passage, load_corpus
from imprag.index.fitting import CutText, fit_documents, read_cut
from imprag.index.folder import IndexFolder
from imprag.model import ImpRAGConfig, ImpRAGModel, PassageEncoder
from imprag.model.text import cut_tokens, passage_tokens

CONFIG = ImpRAGConfig(base_model="tiny", b=1, t=4, max_passage_tokens=64)


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """Every byte is a token."""
    signs = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={s: n for n, s in enumerate(signs)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer)


class Encoder:
    """Cuts as a model's encoder does."""

    max_passage_tokens = CONFIG.max_passage_tokens
    tokenizer = byte_tokenizer()

    def fingerprint(self) -> str:
        return "tiny"

    def cut_tokens(self, passages: Sequence[Passage]) -> list[int]:
        return cut_tokens(self.tokenizer, CONFIG, passages)


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("IMPRAG_CACHE", str(tmp_path / "cache"))


def test_what_is_cut_of_given_passages_is_counted(tmp_path: Path) -> None:
    rows = [{"text": "short"}, {"text": "filler " * 100 + "zebra"}, {"text": "word " * 50}]
    (tmp_path / "c.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    corpus = load_corpus(tmp_path / "c.jsonl")
    encoder = Encoder()
    fitted, cut = fit_documents(corpus, encoder)
    assert fitted is corpus
    uncut = [len(encoder.tokenizer(f"\n{row['text']}")["input_ids"]) for row in rows]
    lost = [max(0, length - 64) for length in uncut]
    assert cut == CutText(64, array("i", lost))
    assert (cut.passages, cut.tokens) == (2, sum(lost))


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.txt", "Some words of a text. " * 60),
        ("a.txt", "巴黎是法国的首都，也是最大的城市。" * 30),
        ("a.md", "# Title\n\n" + "x" * 700 + "\n\nEnd."),
        ("a.rst", f"{'Long title ' * 30}\n{'=' * 330}\n\n" + "Some words of a text. " * 60),
    ],
)
def test_documents_are_split_until_nothing_is_cut(tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / name).write_text(text, encoding="utf-8")
    corpus = load_corpus(tmp_path / "notes")
    fitted, cut = fit_documents(corpus, Encoder())

    def joined(passages: object) -> str:
        return "".join("".join(p.text.split()) for p in passages)  # type: ignore[attr-defined]

    assert joined(fitted) == joined(corpus)
    texts_cut = cut_tokens(byte_tokenizer(), CONFIG, [Passage("", "", p.text) for p in fitted])
    assert max(texts_cut) == 0
    assert cut.passages == 0 or name == "a.rst"  # of a long title only the title is cut
    assert fit_documents(corpus, Encoder())[0].path == fitted.path


def test_a_long_title_leaves_room_for_the_text() -> None:
    passage = Passage("1", "T" * 2000, "x")
    (row,) = passage_tokens(byte_tokenizer(), CONFIG, [passage])
    assert row == byte_tokenizer()("T" * 32 + "\nx")["input_ids"]
    assert cut_tokens(byte_tokenizer(), CONFIG, [passage]) == [2000 - 32]


def test_what_is_cut_is_counted_without_the_command_line(tmp_path: Path) -> None:
    def cut_of(text: str, **settings: bool) -> dict[str, int] | None:
        name = str(len(list(tmp_path.iterdir())))
        corpus = Corpus.build([Passage("1", "", text)], tmp_path / name)
        config = ImpRAGConfig(base_model="tiny", b=1, t=3, max_passage_tokens=8)
        encoder = PassageEncoder(ImpRAGModel(tiny_lm(), config), tiny_tokenizer())
        made = IndexFolder.build(corpus, encoder, tmp_path / "index", progress=False, **settings)
        return read_cut(made.root)

    assert cut_of("w1 " * 50)["passages"] == 1
    assert cut_of("w1", overwrite=True) == {"max_passage_tokens": 8, "passages": 0, "tokens": 0}
