"""Arguments of ``generate``, default k, lists of prompts and streams that are left."""

import gc
import threading
import time
from typing import Any

import pytest
import torch
from transformers import (
    GenerationConfig,
    LogitsProcessorList,
    MaxTimeCriteria,
    StoppingCriteriaList,
    SuppressTokensLogitsProcessor,
)

from conftest import tiny_lm
from imprag.errors import ImpRAGError
from imprag.pipeline import ImpRAG
from test_pipeline import PASSAGES, PROMPTS, tiny_rag

PROMPT = PROMPTS[2]


@pytest.fixture(scope="module")
def rag(tmp_path_factory: pytest.TempPathFactory) -> ImpRAG:
    return tiny_rag(tmp_path_factory.mktemp("rag") / "index")


def outcome(rag: ImpRAG, **arguments: Any) -> tuple[str, list[str]]:
    answer = rag.ask(PROMPT, **{"max_new_tokens": 6, **arguments})
    return answer.text, [found.passage.id for found in answer.passages]


@pytest.mark.parametrize(
    "arguments",
    [
        {"use_cache": True},
        {"stopping_criteria": StoppingCriteriaList([MaxTimeCriteria(1e6)])},
        {"stopping_criteria": MaxTimeCriteria(1e6)},
        {"logits_processor": LogitsProcessorList()},
        {"num_beams": 1},
        {"repetition_penalty": 1.0},
        {"assistant_model": None},
        {"generation_config": None},
        {"generation_config": GenerationConfig(max_new_tokens=6)},
        {"generation_config": GenerationConfig(max_new_tokens=6), "max_new_tokens": 32},
        {"cache_implementation": "static"},
    ],
)
def test_arguments_that_change_nothing_give_the_same_answer(
    rag: ImpRAG, arguments: dict[str, Any]
) -> None:
    assert outcome(rag, **arguments) == outcome(rag)


def test_a_stopping_criterion_of_the_caller_is_joined_with_the_stop_strings(rag: ImpRAG) -> None:
    def after_two(input_ids: torch.Tensor, scores: Any, **_: Any) -> torch.Tensor:
        seen.append(input_ids.shape[1])
        return torch.full((len(input_ids),), len(seen) == 2)

    seen: list[int] = []
    answer = rag.ask(PROMPT, stop=(), max_new_tokens=6, stopping_criteria=[after_two]).text
    assert len(answer.split()) == 2
    assert rag.ask(PROMPT, stop=(), max_new_tokens=6).text.startswith(answer)
    first = answer.split()[0]
    seen.clear()
    assert rag.ask(PROMPT, stop=first, stopping_criteria=[after_two]).text == ""


def test_a_logits_processor_of_the_caller_works(rag: ImpRAG) -> None:
    first = rag.tokenizer(outcome(rag)[0].split()[0], add_special_tokens=False)["input_ids"][0]
    other = SuppressTokensLogitsProcessor([first])
    assert not outcome(rag, logits_processor=[other])[0].startswith(outcome(rag)[0].split()[0])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"prefill_chunk_size": 2}, "prefill_chunk_size does not work with retrieval"),
        ({"prompt_lookup_num_tokens": 3}, "prompt_lookup_num_tokens does not work"),
        ({"assistant_model": tiny_lm()}, "assistant_model does not work"),
        ({"position_ids": torch.zeros(1, 3)}, "position_ids does not work"),
        ({"inputs_embeds": torch.zeros(1, 3, 48)}, "inputs_embeds does not work"),
        ({"past_key_values": object()}, "past_key_values does not work"),
        ({"cache_implementation": "quantized"}, "cache_implementation does not work"),
        ({"guidance_scale": 1.5}, "guidance_scale does not work"),
        ({"penalty_alpha": 0.6}, "penalty_alpha does not work"),
        ({"custom_generate": "x"}, "custom_generate does not work"),
        ({"temprature": 0.5}, "did you mean temperature?"),
        ({"use_cache": False}, "run the prompt again"),
        ({"return_dict_in_generate": True}, "come with their passages and timings"),
        ({"num_return_sequences": 2}, "one answer for each prompt"),
        ({"streamer": object()}, "use stream"),
        ({"max_length": 40}, "use max_new_tokens"),
        ({"stop_strings": ["x"]}, "use stop"),
        ({"max_new_tokens": 0}, "max_new_tokens must be at least 1, not 0"),
        ({"generation_config": {"top_k": 3}}, "must be a GenerationConfig"),
        (
            {"generation_config": GenerationConfig(prompt_lookup_num_tokens=3)},
            "generation_config: prompt_lookup_num_tokens",
        ),
        ({"generation_config": GenerationConfig(use_cache=False)}, "run the prompt again"),
        ({"stop": ("",)}, "stop must be strings that are not empty"),
    ],
)
def test_arguments_that_would_change_the_answer_are_refused_in_one_line(
    rag: ImpRAG, arguments: dict[str, Any], message: str
) -> None:
    for call in (rag.ask, rag.stream):
        with pytest.raises(ImpRAGError) as caught:
            call(PROMPT, **arguments)
        assert message in str(caught.value)
        assert "\n" not in str(caught.value)


def test_settings_of_the_models_own_generation_config_cannot_move_the_query(rag: ImpRAG) -> None:
    expected = outcome(rag)
    own = rag.model.lm.generation_config
    try:
        rag.model.lm.generation_config = GenerationConfig(
            prefill_chunk_size=2,
            use_cache=False,
            return_dict_in_generate=True,
            num_return_sequences=1,
        )
        assert outcome(rag) == expected
    finally:
        rag.model.lm.generation_config = own


# The number of passages


def test_a_small_index_is_read_whole_when_nobody_asked_for_k(rag: ImpRAG) -> None:
    large = tiny_rag(rag.index.corpus.path.parent, k=50)
    assert len(large.ask(PROMPT, max_new_tokens=2).passages) == len(PASSAGES)
    assert [len(row) for row in large.retrieve(PROMPTS)] == [len(PASSAGES)] * 3
    assert "".join(large.stream(PROMPT, max_new_tokens=2)) is not None


def test_a_k_that_was_asked_for_is_refused_where_the_index_is_smaller(rag: ImpRAG) -> None:
    for call in (rag.ask, rag.stream, lambda prompt, k: rag.retrieve([prompt], k)):
        with pytest.raises(ImpRAGError, match=r"k is 13, but the index has 12 passages.*--k"):
            call(PROMPT, k=13)
        with pytest.raises(ImpRAGError, match="k must not be negative"):
            call(PROMPT, k=-1)


# Texts and lists


def test_a_text_in_place_of_a_list_is_refused(rag: ImpRAG) -> None:
    for call in (rag.generate, rag.retrieve):
        with pytest.raises(ImpRAGError, match="must be a list of texts"):
            call(PROMPT)
        with pytest.raises(ImpRAGError, match="prompt 2 must be text, but is of type int"):
            call([PROMPT, 3])
    for call in (rag.ask, rag.stream):
        with pytest.raises(ImpRAGError, match="one prompt as a string"):
            call([PROMPT])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"k": "3"}, "k must be a whole number, not '3'"),
        ({"k": 2.0}, "k must be a whole number, not 2.0"),
        ({"k": True}, "k must be a whole number, not True"),
        ({"max_new_tokens": None}, "max_new_tokens must be a whole number, not None"),
        ({"max_new_tokens": 2.5}, "max_new_tokens must be a whole number, not 2.5"),
        ({"passages": [PASSAGES[0]]}, "passages must be RetrievedPassage"),
        ({"batch_size": 0}, "batch_size must be at least 1"),
    ],
)
def test_arguments_of_another_kind_are_refused_in_one_line(
    rag: ImpRAG, arguments: dict[str, Any], message: str
) -> None:
    with pytest.raises(ImpRAGError, match=message):
        rag.ask(PROMPT, **arguments)


def test_prompts_may_come_from_an_iterator(rag: ImpRAG) -> None:
    assert len(rag.retrieve(iter(PROMPTS))) == len(PROMPTS)
    assert [a.prompt for a in rag.generate(iter(PROMPTS), max_new_tokens=1)] == list(PROMPTS)
    for ask in (rag.retrieve, rag.generate):
        with pytest.raises(ImpRAGError, match="must be a list of texts, not NoneType"):
            ask(None)


def test_a_stream_follows_one_answer(rag: ImpRAG, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ImpRAGError, match="num_beams: beam search cannot be streamed"):
        rag.stream(PROMPT, num_beams=2)
    expected = rag.ask(PROMPT, max_new_tokens=6).text
    own = GenerationConfig(num_beams=2, pad_token_id=0)
    monkeypatch.setattr(rag.model.lm, "generation_config", own)
    assert "".join(rag.stream(PROMPT, max_new_tokens=6)).strip() == expected


def test_one_stop_string_may_stand_alone(rag: ImpRAG) -> None:
    assert outcome(rag, stop=None) == outcome(rag, stop=[])
    word = outcome(rag, stop=())[0].split()[1]
    assert outcome(rag, stop=word) == outcome(rag, stop=[word])


# Streams


@pytest.mark.parametrize("leave", ["close", "forget", "raise"])
def test_a_stream_that_is_left_stops_generating(rag: ImpRAG, leave: str) -> None:
    steps: list[int] = []

    def count(input_ids: torch.Tensor, scores: Any, **_: Any) -> torch.Tensor:
        steps.append(1)
        time.sleep(0.005)
        return torch.zeros(len(input_ids), dtype=torch.bool)

    threads = threading.active_count()
    pieces = rag.stream(PROMPT, stop=(), max_new_tokens=150, stopping_criteria=[count])
    next(pieces)
    if leave == "close":
        pieces.close()
    elif leave == "raise":
        with pytest.raises(KeyError):
            pieces.throw(KeyError("the consumer failed"))
    del pieces
    gc.collect()
    assert threading.active_count() == threads
    taken = len(steps)
    assert taken < 100
    time.sleep(0.05)
    assert len(steps) == taken


def test_a_stream_ends_its_thread_at_the_stop_string(rag: ImpRAG) -> None:
    word = outcome(rag, stop=())[0].split()[1]
    threads = threading.active_count()
    assert "".join(rag.stream(PROMPT, stop=word)).strip() == outcome(rag, stop=word)[0]
    assert threading.active_count() == threads
