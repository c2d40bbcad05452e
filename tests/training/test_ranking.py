"""Ranking a corpus in one process, and in several that shard the model with FSDP2."""

from pathlib import Path

import numpy as np
import pytest
import torch
from processes import in_group
from tiny_batches import tiny_model
from torch.distributed.fsdp import fully_shard

from conftest import tiny_tokenizer
from imprag.corpus import Corpus, Passage
from imprag.errors import ImpRAGError
from imprag.model import PassageEncoder
from imprag.model.text import prompt_batch
from imprag.training import ranking
from imprag.training.distributed import process_share
from imprag.training.ranking import rank_corpus

BLOCK = 4
SIZES = (1, 7, 30)  # fewer blocks than processes, a block that is not full, uneven shares
PROMPTS = [f"w{n % 90} w{n * 7 % 90}" for n in range(70)]  # more than a batch
DEPTH = 9


@pytest.fixture(scope="module")
def corpora(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Corpora in which every passage but the first comes three times, so that scores tie."""
    folder = tmp_path_factory.mktemp("corpora")
    for size in SIZES:
        texts = [f"w{(n + 2) // 3 % 90} w{(n + 2) // 3 * 5 % 90}" for n in range(size)]
        passages = [Passage(f"p{n}", "w1", text) for n, text in enumerate(texts)]
        Corpus.build(passages, folder / str(size))
    return folder


def rank(number: int, corpora: Path, sharded: bool) -> dict[int, list[np.ndarray]]:
    """Rows and scores of every corpus."""
    model = tiny_model().train()
    if sharded:
        fully_shard(model)
    tokenizer, found = tiny_tokenizer(), {}
    with pytest.MonkeyPatch.context() as patch, model.inference() as whole:
        patch.setattr(ranking, "_PASSAGES", BLOCK)
        assert not whole.training
        assert not any(hasattr(x, "full_tensor") for x in whole.lm.state_dict().values())
        for size in SIZES:
            corpus = Corpus.open(corpora / str(size))
            depth = min(DEPTH, size)
            best = rank_corpus(whole, tokenizer, corpus, PROMPTS, depth, limit=100)
            found[size] = [part.numpy() for part in best]
    assert model.training
    assert sharded == any(hasattr(x, "full_tensor") for x in model.parameters())
    return found


@pytest.mark.parametrize("processes", [2, 3])
def test_sharded_processes_rank_like_one(processes: int, corpora: Path) -> None:
    expected = rank(0, corpora, False)
    for found in in_group(processes, rank, corpora, True):
        for size, (rows, scores) in found.items():
            assert rows.tolist() == expected[size][0].tolist()
            assert scores.tolist() == expected[size][1].tolist()


def test_ranks_are_by_score_and_then_by_row(corpora: Path) -> None:
    model, tokenizer = tiny_model().eval().model, tiny_tokenizer()
    corpus = Corpus.open(corpora / "30")
    with torch.inference_mode():
        queries = model.query_embeddings(
            *prompt_batch(tokenizer, PROMPTS, 100, torch.device("cpu"))
        )
        embeddings = PassageEncoder(model, tokenizer)(list(corpus)).astype(np.float16)
        scores = queries @ torch.from_numpy(embeddings.astype(np.float32)).T
    rows, found = rank_corpus(model, tokenizer, corpus, PROMPTS, DEPTH, limit=100)
    best = scores.sort(dim=1, descending=True).values[:, :DEPTH]
    for expected in (scores.gather(1, rows), best):
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-4)
    tied = found[:, 1:] == found[:, :-1]
    assert tied.sum() > len(PROMPTS)
    assert (rows[:, 1:] > rows[:, :-1])[tied].all()
    assert (found[:, 1:] <= found[:, :-1]).all()


def test_no_prompts_and_embeddings_that_are_not_finite(corpora: Path) -> None:
    model, tokenizer = tiny_model().eval().model, tiny_tokenizer()
    corpus = Corpus.open(corpora / "7")
    rows, scores = rank_corpus(model, tokenizer, corpus, [], 3, limit=100)
    assert rows.shape == scores.shape == (0, 0)
    with torch.no_grad():
        model.lm.get_input_embeddings().weight.fill_(torch.inf)
    with pytest.raises(ImpRAGError, match="not finite"):
        rank_corpus(model, tokenizer, corpus, PROMPTS[:1], 3, limit=100)


def test_a_single_process_has_the_whole_share() -> None:
    assert process_share(10, 4) == range(10)
    assert process_share(0, 4) == range(0)
