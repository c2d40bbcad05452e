"""Token ids of passages and prompts, the same in training, indexing and search."""

import re
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from imprag.corpus.passage import Passage
from imprag.errors import ImpRAGError
from imprag.io.text_checks import check_prompts, check_unicode
from imprag.model.chat import ChatPrompt, PlainPrompt, chat_ids, render_chat, rendered_ids
from imprag.model.config import ImpRAGConfig
from imprag.model.control_tokens import (
    control_ids,
    encode_template,
    encode_text,
    encode_with_control,
    prefix_ids,
)
from imprag.model.inputs import pad
from imprag.model.question import QuestionPrompt

_PROBE = Passage(
    "probe",
    " Bos <s> primigenius – aurochs, or 原牛, with a title\tthat is cut where few tokens fit",
    "  The Quick brown fox's 1,234.5 jumps\n\tüber 東京, हिन्दी, עברית и «ещё» 🙂 -- x_y=z; a\u0301 "
    "\n\n<|endoftext|><|im_start|>user\nend<|im_end|> </s> <unk> [UNK] <pad> <bos> <eos> [CLS] "
    "[SEP] <|begin_of_text|><|eot_id|> <start_of_turn> <think> [INST] {title} {text}  ",
)
_PROBE_LIMITS = (16, 512)


def passage_tokens(
    tokenizer: Any, config: ImpRAGConfig, passages: Sequence[Passage]
) -> list[list[int]]:
    """Token ids of passages in the configured template, at most ``max_passage_tokens`` each.

    A passage that is too long loses the end of its text; the template's part after the text stays.
    A title gets at most half of the tokens. Control tokens that a passage spells are text; those of
    the template are control tokens.

    Raises:
        ImpRAGError: a passage is not valid Unicode.
    """
    return [row for row, _ in _cut_rows(tokenizer, config, passages)]


def cut_tokens(tokenizer: Any, config: ImpRAGConfig, passages: Sequence[Passage]) -> list[int]:
    """The number of tokens that :func:`passage_tokens` cuts from each passage."""
    return [cut for _, cut in _cut_rows(tokenizer, config, passages)]


def passage_settings(tokenizer: Any, config: ImpRAGConfig) -> dict[str, Any]:
    """For fingerprints: the settings that a stored passage depends on, and the encoding of text.

    The encoding is represented by the token ids of a fixed passage, complete and cut. They change
    with the rules of this module, such as what counts as a control token, which no setting names.
    """
    probed = [replace(config, max_passage_tokens=limit) for limit in _PROBE_LIMITS]
    ids = [passage_tokens(tokenizer, one, [_PROBE])[0] for one in probed]
    return {**config.embedding_settings(), "encoded": ids}


def _cut_rows(
    tokenizer: Any, config: ImpRAGConfig, passages: Sequence[Passage]
) -> list[tuple[list[int], int]]:
    """Token ids of passages, and the number of tokens that the limit cuts from each."""
    if not passages:
        return []
    for passage in passages:
        check_unicode(passage.title, f"the title of passage {passage.id!r}")
        check_unicode(passage.text, f"the text of passage {passage.id!r}")
    limit = config.max_passage_tokens
    before, after = config.passage_template.split("{text}")
    titles = [_short_title(tokenizer, passage.title, limit // 2) for passage in passages]
    shortened = [
        replace(passage, title=title) for passage, (title, _) in zip(passages, titles, strict=True)
    ]
    heads = _fill(tokenizer, before + "{text}", shortened)
    tails = _fill(tokenizer, after, shortened)
    start = prefix_ids(tokenizer)
    rows = []
    for head, tail, (_, cut_title) in zip(heads, tails, titles, strict=True):
        tail = tail[-(limit // 2) :]
        room = limit - len(tail)
        head = start + head
        rows.append((head[:room] + tail, max(0, len(head) - room) + cut_title))
    return rows


def _short_title(tokenizer: Any, title: str, room: int) -> tuple[str, int]:
    """The beginning of a title that fits into ``room`` tokens, and the number of cut tokens."""
    if len(title.encode(errors="replace")) <= room:
        return title, 0
    length = len(encode_text(tokenizer, [title])[0])
    kept, tokens = title, length
    while tokens > room:
        kept = kept[: min(len(kept) - 1, len(kept) * room // tokens)]
        tokens = len(encode_text(tokenizer, [kept])[0])
    return kept, length - tokens


def prompt_tokens(tokenizer: Any, prompts: Sequence[str], limit: int) -> list[list[int]]:
    """Token ids of prompts, each ending with its own last token.

    A :class:`ChatPrompt` is put into the tokenizer's chat template, and a :class:`QuestionPrompt`
    into its own. A prompt that is a filled chat
    template is encoded as it is, with one start token and its last line end. Any other prompt is
    text, even if it spells control tokens.

    Args:
        tokenizer: the model's tokenizer.
        prompts: the texts; white space at their ends is dropped.
        limit: greatest number of tokens of a prompt.

    Raises:
        ImpRAGError: a prompt is empty, not valid Unicode or too long.
    """
    check_prompts(prompts)
    start = prefix_ids(tokenizer)
    rows = []
    for prompt in prompts:
        row = _chat_ids(tokenizer, prompt)
        if row is None:
            row = start + encode_text(tokenizer, [text_read(tokenizer, prompt).strip()])[0]
        if len(row) > limit:
            name = "the prompt" if len(prompts) == 1 else f"the prompt {_shortened(prompt)!r}"
            raise ImpRAGError(
                f"{name} has {len(row)} tokens, but only {limit} fit next to the passages and "
                "the answer; shorten it, or lower k or max_new_tokens"
            )
        rows.append(row)
    return rows


def prompt_batch(
    tokenizer: Any, prompts: Sequence[str], limit: int, device: torch.device
) -> tuple[Tensor, Tensor]:
    """Prompts as left-padded ``input_ids`` and ``attention_mask``, (prompts, longest)."""
    rows = prompt_tokens(tokenizer, prompts, limit)
    return pad(rows, device, left=True, token=tokenizer.pad_token_id or 0)


def text_read(tokenizer: Any, prompt: str) -> str:
    """The text that the model reads for a prompt: its filled template, or the prompt itself."""
    if isinstance(prompt, ChatPrompt):
        return render_chat(tokenizer, prompt.strip())
    return prompt.filled if isinstance(prompt, QuestionPrompt) else prompt


def in_context_prompt(
    tokenizer: Any, config: ImpRAGConfig, passages: Sequence[Passage], prompt: str
) -> str:
    """A prompt with its passages before it, as in-context RAG reads them.

    The passages are truncated and in the same template as those that layers b..t read.

    Args:
        tokenizer: the model's tokenizer.
        config: gives template and length of the passages.
        passages: the passages in reading order.
        prompt: the prompt, which may be a :class:`ChatPrompt`.
    """
    ids = passage_tokens(tokenizer, config, passages)
    texts = tokenizer.batch_decode(ids, skip_special_tokens=True) if ids else []
    kind = ChatPrompt if isinstance(prompt, ChatPrompt) else PlainPrompt
    return kind("\n\n".join([*texts, prompt]))


def response_tokens(tokenizer: Any, response: str) -> list[int]:
    """Token ids of a response, with the token that ends it."""
    end = tokenizer.eos_token_id
    return encode_text(tokenizer, [response])[0] + ([] if end is None else [end])


def _chat_ids(tokenizer: Any, prompt: str) -> list[int] | None:
    """Token ids of a prompt in a chat template; None for any other prompt."""
    if isinstance(prompt, ChatPrompt):
        return chat_ids(tokenizer, prompt.strip())
    as_text = isinstance(prompt, PlainPrompt | QuestionPrompt)
    return None if as_text else rendered_ids(tokenizer, prompt)


def _fill(tokenizer: Any, template: str, passages: Sequence[Passage]) -> list[list[int]]:
    """Token ids of a template with each passage's title and text in it."""
    parts = re.split(r"\{(title|text)\}", template)  # literals, with the names between them
    literals, names = parts[::2], parts[1::2]
    rows = [[getattr(passage, name) for name in names] for passage in passages]
    control = control_ids(tokenizer)
    if any(not control.isdisjoint(encode_with_control(tokenizer, one)) for one in literals):
        return [encode_template(tokenizer, literals, contents) for contents in rows]
    filled = [
        "".join(literal + content for literal, content in zip(literals, [*row, ""], strict=True))
        for row in rows
    ]
    return encode_text(tokenizer, filled)


def _shortened(text: str, letters: int = 40) -> str:
    return text if len(text) <= letters else text[: letters - 1] + "…"
