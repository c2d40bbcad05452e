"""Answers that retrieve again: the same tokens as a plain loop that computes everything anew."""

from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from conftest import tiny_lm, tiny_tokenizer
from imprag.corpus import Corpus, Passage
from imprag.errors import ImpRAGError
from imprag.generation import GenerationBatch, GenerationSettings
from imprag.index.folder import IndexFolder
from imprag.kv_cache import RamStore
from imprag.kv_cache.codecs.base import untrained_codec
from imprag.model import ImpRAGConfig, ImpRAGModel
from imprag.model.hooks import LayerWrapper
from imprag.model.query import queries
from imprag.model.schedule import MOST_RETRIEVALS, ContinuedPrompt, RetrievalSchedule
from imprag.model.text import passage_tokens, prompt_tokens
from imprag.pipeline import Answer, ImpRAG
from imprag.retrieval import RetrievedPassage
from imprag.retrieval.retriever import PromptBatch

PASSAGES = [
    Passage(f"p{n}", f"w{n}", " ".join(f"w{(7 * n + i) % 94}" for i in range(4 + n)))
    for n in range(20)
]
PROMPTS = ["w1 w2 w3", "w9", "w5 w40 w41 w42 w43", "w77 w3"]
NEW = 12
KEPT = ("beside", "instead")


@cache
def rag_of(folder: Path, retrieval: str = "implicit", **settings: Any) -> ImpRAG:
    values = {"b": 1, "t": 3, "k": 2, "max_passage_tokens": 16, "attention_score_bias": 0.5}
    config = ImpRAGConfig(base_model="tiny", **{**values, **settings})
    model = ImpRAGModel(tiny_lm(), config)
    rag = ImpRAG(model, tiny_tokenizer())
    path = folder / f"index-{config.b}"
    if not path.exists():
        corpus = folder / "corpus"
        made = Corpus.open(corpus) if corpus.exists() else Corpus.build(PASSAGES, corpus)
        IndexFolder.build(made, rag.encoder, path, progress=False)
    return ImpRAG(model, rag.tokenizer, IndexFolder.open(path), retrieval=retrieval)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("again")


def found_ids(answer: Answer) -> list[tuple[int, list[str]]]:
    """The ids of what each retrieval found, by the number of tokens before it."""
    return [(one.tokens, [p.passage.id for p in one.passages]) for one in answer.retrievals]


class PlainLoop:
    """Makes one answer; every token and every query is computed from all tokens before it."""

    def __init__(self, rag: ImpRAG, prompt: str, schedule: RetrievalSchedule, k: int) -> None:
        self.rag, self.prompt, self.schedule, self.k = rag, prompt, schedule, k
        self.ids = prompt_tokens(rag.tokenizer, [prompt], 100)[0]
        self.length = len(self.ids)
        self.found: list[tuple[int, list[RetrievedPassage]]] = []
        self.read: list[tuple[int, dict[str, float]]] = []  # from a token on: biases by passage
        self.shares: list[dict[str, float]] = []  # of each token, by passage
        self._passage = cache(self._encoded)

    def answer(self) -> list[int]:
        self._retrieve(self.prompt)
        while len(self.ids) - self.length < NEW:
            token = int(self._logits().argmax())
            self.ids.append(token)
            if token == 2:
                break
            new = self.ids[self.length :]
            decode = self.rag.tokenizer.decode
            more = len(new) < NEW and len(self.found) < MOST_RETRIEVALS
            if more and self.schedule.due(new, decode):
                self._retrieve(ContinuedPrompt(self.prompt, decode(new), new))
        return self.ids[self.length :]

    def _retrieve(self, text: str) -> None:
        ids = torch.tensor([self.ids])
        query = queries(self.rag.model.decoder, ids, torch.ones_like(ids))
        (found,) = self.rag.retriever.search(PromptBatch([text], ids), query, self.k)
        self.found.append((len(self.ids) - self.length, found))
        best = max(one.score for one in found)
        weight = self.rag.config.attention_score_bias
        new = {one.passage.id: weight * (one.score - best) for one in found}
        former = self.read[-1][1] if self.read and self.schedule.kept == "beside" else {}
        self.read.append((len(self.ids) - 1, {**former, **new}))

    def _logits(self) -> Tensor:
        decoder = self.rag.model.decoder
        self.shares.append({})
        wrappers = {
            layer: LayerWrapper(decoder.layer(layer), attend=self._attend(layer))
            for layer in range(decoder.config.b, decoder.config.t + 1)
        }
        shift = self.rag.config.position_shift(self.k)
        positions = torch.arange(len(self.ids))[None] + shift
        view = decoder.lm_view(wrappers)
        logits: Tensor = view(torch.tensor([self.ids]), position_ids=positions).logits
        return logits[0, -1]

    def _attend(self, layer: int) -> Any:
        def attend(
            module: Any, query: Tensor, key: Tensor, value: Tensor, mask: Any, **kwargs: Any
        ) -> Any:
            outputs = []
            heads, length = query.shape[1] // key.shape[1], query.shape[2]
            # The prompt reads what its last token retrieved.
            starts = [0, *(start for start, _ in self.read[1:]), length]
            for (_, read), first, end in zip(self.read, starts, starts[1:], strict=False):
                states = [self._passage(layer, id) for id in read]
                keys = torch.cat([*(k for k, _ in states), key[0]], dim=1)
                values = torch.cat([*(v for _, v in states), value[0]], dim=1)
                biases = [
                    torch.full((k.shape[1],), x)
                    for (k, _), x in zip(states, read.values(), strict=True)
                ]
                own = torch.full((end - first, length), -torch.inf).triu(first + 1)
                bias = torch.cat([torch.cat(biases).expand(end - first, -1), own], dim=1)
                keys, values = (x.repeat_interleave(heads, dim=0) for x in (keys, values))
                scores = query[0, :, first:end] @ keys.transpose(1, 2) * query.shape[-1] ** -0.5
                weights = (scores + bias).softmax(-1)
                outputs.append(weights @ values)
            self._add_shares(weights[:, -1].mean(0), [k.shape[1] for k, _ in states])
            return torch.cat(outputs, dim=1).transpose(0, 1)[None], None

        return attend

    def _add_shares(self, weights: Tensor, lengths: list[int]) -> None:
        """Add one layer's attention of the last token, over passages and its own text."""
        config, shares = self.rag.config, self.shares[-1]
        masses = weights[: sum(lengths)].split(lengths)
        for id, mass in zip(self.read[-1][1], masses, strict=True):
            shares[id] = shares.get(id, 0.0) + float(mass.sum()) / (config.t - config.b + 1)

    def _encoded(self, layer: int, id: str) -> tuple[Tensor, Tensor]:
        passage = PASSAGES[int(id[1:])]
        tokens = passage_tokens(self.rag.tokenizer, self.rag.config, [passage])
        kv = self.rag.model.encode_passages([tokens])
        return kv.keys[layer][0], kv.values[layer][0]


SCHEDULES = ["every:1", "every:5", "on:w5"]


@torch.inference_mode()
@pytest.mark.parametrize("kept", KEPT)
@pytest.mark.parametrize("retrieve", SCHEDULES)
@pytest.mark.parametrize("retrieval", ["implicit", "hybrid"])
def test_answers_equal_those_of_the_plain_loop(
    folder: Path, retrieval: str, retrieve: str, kept: Any
) -> None:
    rag = rag_of(folder, retrieval)
    schedule = RetrievalSchedule.parse(retrieve, kept)
    arguments: dict[str, Any] = {"retrieve": retrieve, "passages_kept": kept}
    arguments |= {"max_new_tokens": NEW, "stop": (), "raw": True}
    together = rag.generate(PROMPTS, batch_size=len(PROMPTS), **arguments)
    decode = partial(rag.tokenizer.decode, skip_special_tokens=True)
    numbers = set()
    for prompt, answer in zip(PROMPTS, together, strict=True):
        loop = PlainLoop(rag, prompt, schedule, 2)
        tokens = loop.answer()
        expected = decode(tokens)
        alone = rag.ask(prompt, **arguments)
        assert answer.text == alone.text == expected
        assert "".join(rag.stream(prompt, **arguments)).strip() == expected
        for one in (answer, alone):
            got = found_ids(one)
            assert got == [(n, [p.passage.id for p in found]) for n, found in loop.found]
            assert [r.written for r in one.retrievals] == [decode(tokens[:n]) for n, _ in got]
            read = {id for _, ids in got for id in ids}
            assert {p.passage.id for p in one.passages} == read
            assert len(one.passages) == len(read)
        numbers.add(len(answer.retrievals))
    assert max(numbers) > 1
    once = rag.generate(PROMPTS, **{**arguments, "retrieve": "once", "passages_kept": None})
    assert [a.text for a in once] != [a.text for a in together]


def check_shares(answer: Answer, loop: PlainLoop) -> None:
    """The shares of all passages that were read, in the order in which the answer came to them."""
    ids = list(dict.fromkeys(one.passage.id for _, found in loop.found for one in found))
    assert [one.passage.id for one in answer.passages] == ids
    decode = partial(loop.rag.tokenizer.decode, skip_special_tokens=True)
    tokens = loop.ids[loop.length :]
    expected = [
        [shares.get(id, 0.0) for id in ids]
        for token, shares in zip(tokens, loop.shares, strict=True)
        if decode([token])
    ]
    assert answer.attribution is not None
    given = [one.shares for one in answer.attribution.tokens]
    assert np.allclose(given, expected, rtol=0, atol=1e-5)
    assert np.allclose(answer.attribution.shares, np.mean(expected, axis=0), rtol=0, atol=1e-5)


@torch.inference_mode()
@pytest.mark.parametrize("kept", KEPT)
@pytest.mark.parametrize(
    ("retrieval", "retrieve"),
    [("implicit", "every:1"), ("implicit", "on:w5"), ("hybrid", "every:5")],
)
@pytest.mark.parametrize("bias", [0.5, 1e4])
def test_shares_equal_the_softmax_weights_of_the_plain_loop(
    folder: Path, retrieval: str, retrieve: str, kept: Any, bias: float
) -> None:
    """In a batch of rows with other numbers of retrievals, alone and streamed."""
    rag = rag_of(folder, retrieval, attention_score_bias=bias)
    schedule = RetrievalSchedule.parse(retrieve, kept)
    arguments: dict[str, Any] = {"retrieve": retrieve, "passages_kept": kept, "attribution": True}
    arguments |= {"max_new_tokens": NEW, "stop": (), "raw": True}
    unread = 0
    answers = rag.generate(PROMPTS, **arguments)
    found = sum(len(one.passages) for answer in answers for one in answer.retrievals)
    assert (answers[0].kv_misses < found) == (bias > 1)  # a great bias leaves passages unread
    for prompt, answer in zip(PROMPTS, answers, strict=True):
        loop = PlainLoop(rag, prompt, schedule, 2)
        loop.answer()
        stream = rag.stream(prompt, **arguments)
        assert "".join(stream).strip() == answer.text
        assert stream.answer is not None
        for one in (answer, rag.ask(prompt, **arguments), stream.answer):
            check_shares(one, loop)
        assert answer.attribution is not None
        unread += sum(one.shares.count(0.0) for one in answer.attribution.tokens)
    assert unread > 0


@pytest.mark.parametrize("encoding", ["segmented", "full"])
def test_passages_of_one_sequence_that_are_found_again_have_one_share(
    folder: Path, encoding: Any
) -> None:
    rag = rag_of(folder, passage_encoding=encoding, attention_score_bias=0.0)
    arguments: dict[str, Any] = {"retrieve": "every:2", "max_new_tokens": NEW, "stop": ()}
    answers = rag.generate(PROMPTS, attribution=True, **arguments)
    assert any(sum(len(r.passages) for r in a.retrievals) > len(a.passages) for a in answers)
    for prompt, answer in zip(PROMPTS, answers, strict=True):
        alone = rag.ask(prompt, attribution=True, **arguments)
        assert answer.attribution is not None
        assert alone.attribution is not None
        assert len(answer.attribution.shares) == len(answer.passages)
        assert np.allclose(answer.attribution.shares, alone.attribution.shares, atol=1e-5)
        assert min(answer.attribution.tokens[-1].shares) > 0
        assert sum(answer.attribution.shares) < 1


def test_rows_have_different_numbers_of_retrievals(folder: Path) -> None:
    answers = rag_of(folder).generate(
        PROMPTS, retrieve="on:w5", max_new_tokens=NEW, stop="w7", raw=True
    )
    assert len({len(answer.retrievals) for answer in answers}) > 1


@torch.inference_mode()
@pytest.mark.parametrize("b", [0, 2, 3])
@pytest.mark.parametrize("retrieval", ["implicit", "hybrid"])
def test_any_layer_may_ask(folder: Path, b: int, retrieval: str) -> None:
    rag = rag_of(folder, retrieval, b=b, t=4)
    schedule = RetrievalSchedule.parse("every:5")
    arguments: dict[str, Any] = {"retrieve": "every:5", "max_new_tokens": NEW, "stop": ()}
    for prompt, answer in zip(PROMPTS, rag.generate(PROMPTS, **arguments), strict=True):
        loop = PlainLoop(rag, prompt, schedule, 2)
        assert answer.text == rag.tokenizer.decode(loop.answer(), skip_special_tokens=True)


@pytest.mark.parametrize("encoding", ["independent", "segmented", "full"])
@pytest.mark.parametrize("kept", KEPT)
def test_batches_equal_single_prompts_for_any_encoding(
    folder: Path, encoding: Any, kept: Any
) -> None:
    rag = rag_of(folder, passage_encoding=encoding, attention_score_bias=0.0)
    arguments: dict[str, Any] = {"retrieve": "every:4", "passages_kept": kept}
    arguments |= {"max_new_tokens": NEW, "stop": "w7"}
    together = rag.generate(PROMPTS, batch_size=4, **arguments)
    alone = [rag.ask(prompt, **arguments) for prompt in PROMPTS]
    assert [a.text for a in together] == [a.text for a in alone]
    assert [found_ids(a) for a in together] == [found_ids(a) for a in alone]


def test_sampling_retrieves_again(folder: Path) -> None:
    rag = rag_of(folder)
    arguments: dict[str, Any] = {"retrieve": "every:4", "max_new_tokens": NEW, "stop": ()}
    texts = set()
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        answer = rag.ask(PROMPTS[0], do_sample=True, temperature=0.8, top_k=5, **arguments)
        texts.add(answer.text)
        assert len(answer.retrievals) > 1
    assert len(texts) == 2


def test_a_kv_cache_changes_nothing(folder: Path) -> None:
    plain = rag_of(folder)
    stored = ImpRAG(plain.model, plain.tokenizer, plain.index, retrieval="implicit")
    stored.use_kv_cache(RamStore(untrained_codec("fp32", 16), 10**6))
    arguments: dict[str, Any] = {"retrieve": "every:4", "max_new_tokens": NEW, "stop": ()}
    expected = plain.generate(PROMPTS, **arguments)
    for _ in range(2):
        answers = stored.generate(PROMPTS, **arguments)
        assert [a.text for a in answers] == [a.text for a in expected]
    assert answers[0].kv_misses == 0
    assert answers[0].kv_hits > 2


def test_the_model_has_a_default(folder: Path) -> None:
    plain, asking = rag_of(folder), rag_of(folder, retrieve="every:3", passages_kept="instead")
    arguments: dict[str, Any] = {"max_new_tokens": NEW, "stop": ()}
    expected = plain.ask("w9", retrieve="every:3", passages_kept="instead", **arguments)
    answer = asking.ask("w9", **arguments)
    assert (answer.text, answer.retrievals) == (expected.text, expected.retrievals)
    assert len(answer.retrievals) > 1
    once = asking.ask("w9", retrieve="once", **arguments)
    assert once.text == plain.ask("w9", **arguments).text
    assert [one.tokens for one in once.retrievals] == [0]
    given = asking.ask("w9", passages=once.passages, **arguments)
    assert (given.text, given.retrievals) == (once.text, [])
    assert asking.ask("w9", k=0, **arguments).retrievals == []


def test_given_passages_are_read_until_the_first_retrieval(folder: Path) -> None:
    rag = rag_of(folder)
    arguments: dict[str, Any] = {"retrieve": "every:3", "max_new_tokens": NEW, "stop": ()}
    expected = rag.ask("w9", **arguments)
    given = rag.ask("w9", passages=expected.retrievals[0].passages, **arguments)
    assert given.text == expected.text
    assert given.passages == expected.passages
    assert given.retrievals == expected.retrievals[1:]


def test_once_is_the_default_and_the_same(folder: Path) -> None:
    rag = rag_of(folder)
    default = rag.generate(PROMPTS, max_new_tokens=NEW, stop=())
    once = rag.generate(PROMPTS, retrieve="once", max_new_tokens=NEW, stop=())
    assert [(a.text, a.passages) for a in default] == [(a.text, a.passages) for a in once]
    assert all(len(a.retrievals) == 1 for a in default)


def test_text_retrievers_see_what_was_written(folder: Path) -> None:
    rag = rag_of(folder, "lexical")
    answer = rag.ask("w77 w3", retrieve="every:3", max_new_tokens=6, stop=(), raw=True)
    later = answer.retrievals[1]
    assert answer.text.startswith(later.written)
    assert len(later.written.split()) == later.tokens == 3
    (expected,) = rag.retriever.retrieve([f"w77 w3 {later.written}"], 2)
    assert later.passages == expected


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"retrieve": "twice"}, "must be once, every:N"),
        ({"retrieve": "every:0"}, "must be once, every:N"),
        ({"retrieve": "every:²"}, "must be once, every:N"),
        ({"retrieve": "on:"}, "must be once, every:N"),
        ({"retrieve": "on: "}, "that are not all white space"),
        ({"retrieve": 3}, "must be once, every:N"),
        ({"retrieve": f"every:{'9' * 5000}"}, "must be once, every:N"),
        ({"retrieve": "on:" + 65 * ";"}, "of at most 64 characters"),
        ({"passages_kept": "beside"}, "passages_kept has no effect"),
        ({"retrieve": "every:2", "passages_kept": "both"}, "beside or instead"),
        ({"retrieve": "every:2", "num_beams": 2}, "greedy search and sampling"),
        ({"retrieve": "every:2", "k": 0}, "nothing is retrieved"),
    ],
)
def test_bad_settings_say_what_to_do(folder: Path, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ImpRAGError, match=message):
        rag_of(folder).ask("w1", **arguments)


def test_bad_settings_of_a_model_are_refused() -> None:
    with pytest.raises(ImpRAGError, match="once, every:N"):
        ImpRAGConfig(base_model="tiny", b=1, t=3, retrieve="sometimes")
    with pytest.raises(ImpRAGError, match="beside or instead"):
        ImpRAGConfig(base_model="tiny", b=1, t=3, passages_kept="neither")  # type: ignore[arg-type]


def test_the_prompt_begins_after_passages_that_only_later_tokens_bring(folder: Path) -> None:
    rag = rag_of(folder)
    settings = GenerationSettings.of(4, (), {})
    for schedule, shift in (("once", 0), ("every:1", rag.config.position_shift(2))):
        run = GenerationBatch(rag, ["w1"], None, [[]], settings, RetrievalSchedule.parse(schedule))
        assert run.shift.tolist() == [shift]
