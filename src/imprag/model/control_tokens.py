"""Control tokens: texts such as passages and questions never produce one.

A control token is a token that the tokenizer marks as special, such as the end of text, or an added
token that its chat template uses. A passage about language models may spell one; it stays text.
"""

import itertools
import re
import threading
from collections.abc import Sequence
from typing import Any

_PROBE = "a"
# A fast tokenizer keeps `split_special_tokens` as a state of its own: threads with different
# choices would take each other's.
_ENCODING = threading.Lock()


def control_ids(tokenizer: Any) -> frozenset[int]:
    """Ids of the control tokens.

    The token for unknown words, which any text may hold, is none, nor are tokens of one letter or
    white space.
    """
    template = _template_text(tokenizer)
    added = getattr(tokenizer, "added_tokens_decoder", {})
    contents = dict(zip(tokenizer.all_special_ids, tokenizer.all_special_tokens, strict=True))
    contents |= {
        number: token.content
        for number, token in added.items()
        if token.special or token.content in template
    }
    if tokenizer.unk_token_id not in (tokenizer.bos_token_id, tokenizer.eos_token_id):
        contents.pop(tokenizer.unk_token_id, None)
    return frozenset(number for number, content in contents.items() if len(content.strip()) > 1)


def encode_text(tokenizer: Any, texts: Sequence[str]) -> list[list[int]]:
    """Token ids of texts, without any control token."""
    rows: list[list[int]] = _encoded(tokenizer, list(texts), split_special_tokens=True)["input_ids"]
    control = control_ids(tokenizer)
    return [
        row if control.isdisjoint(row) else _without_control(tokenizer, text, control)
        for text, row in zip(texts, rows, strict=True)
    ]


def text_offsets(tokenizer: Any, text: str) -> tuple[list[int], list[tuple[int, int]]]:
    """Token ids of a text without control tokens, and which characters each of them stands for.

    Returns:
        ids, and (start, end) of each; both are empty if the tokenizer does not know.
    """
    if not getattr(tokenizer, "is_fast", False):
        return [], []
    encoded = _encoded(tokenizer, text, split_special_tokens=True, return_offsets_mapping=True)
    return encoded["input_ids"], encoded["offset_mapping"]


def encode_with_control(tokenizer: Any, text: str) -> list[int]:
    """Token ids of a text in which spelled control tokens are control tokens."""
    ids: list[int] = _encoded(tokenizer, text, split_special_tokens=False)["input_ids"]
    return ids


def encode_template(
    tokenizer: Any, literals: Sequence[str], contents: Sequence[str], whole: str | None = None
) -> list[int]:
    """Token ids of a filled template: only the template's own control tokens are control tokens.

    Args:
        tokenizer: the model's tokenizer.
        literals: the template's own text before, between and after the contents.
        contents: the texts that fill it, one fewer than ``literals``.
        whole: the filled template; joined from the parts if not given.
    """
    control = control_ids(tokenizer)
    if all(control.isdisjoint(encode_with_control(tokenizer, text)) for text in contents):
        if whole is None:
            parts = zip(literals, [*contents, ""], strict=True)
            whole = "".join(literal + content for literal, content in parts)
        return encode_with_control(tokenizer, whole)
    ids: list[int] = []
    for literal, content in zip(literals, [*contents, ""], strict=True):
        ids += encode_with_control(tokenizer, literal) + encode_text(tokenizer, [content])[0]
    return ids


def prefix_ids(tokenizer: Any) -> list[int]:
    """Ids of the tokens that the tokenizer puts before every text, such as a start token."""
    full: list[int] = _encoded(tokenizer, _PROBE, add_special_tokens=True)["input_ids"]
    plain: list[int] = _encoded(tokenizer, _PROBE)["input_ids"]
    for start in range(len(full) - len(plain) + 1):
        if full[start : start + len(plain)] == plain:
            return full[:start]
    return []


def _encoded(
    tokenizer: Any, text: str | list[str], *, add_special_tokens: bool = False, **options: Any
) -> Any:
    """What the tokenizer makes of a text or texts; one thread at a time."""
    with _ENCODING:
        return tokenizer(text, add_special_tokens=add_special_tokens, **options)


def _template_text(tokenizer: Any) -> str:
    """The chat template as text; all of them, joined, if there are several."""
    template = getattr(tokenizer, "chat_template", None) or ""
    return template if isinstance(template, str) else "\n".join(map(str, template.values()))


def _without_control(tokenizer: Any, text: str, control: frozenset[int]) -> list[int]:
    """Token ids of a text, encoded in pieces: each spelled control token is cut in its middle.

    The vocabulary itself holds control tokens in some tokenizers (Unigram, whole words), so that
    ``split_special_tokens`` does not keep them out.
    """
    ids: list[int] = []
    rest = [text]
    while rest:
        piece = rest.pop()
        row, cuts = _cuts(tokenizer, piece, control)
        if cuts:
            ends = itertools.pairwise([0, *cuts, len(piece)])
            rest += reversed([piece[start:end] for start, end in ends])
        else:
            ids += [number for number in row if number not in control]
    return ids


def _cuts(tokenizer: Any, text: str, control: frozenset[int]) -> tuple[list[int], list[int]]:
    """Token ids of a text, and the middles of the control tokens that it spells."""
    encoded = _encoded(
        tokenizer, text, split_special_tokens=True, return_offsets_mapping=tokenizer.is_fast
    )
    row: list[int] = encoded["input_ids"]
    if control.isdisjoint(row):
        return row, []
    if tokenizer.is_fast:
        pairs = zip(row, encoded["offset_mapping"], strict=True)
        spans = [span for number, span in pairs if number in control]
    else:
        names = map(re.escape, tokenizer.convert_ids_to_tokens(sorted(control)))
        spans = [found.span() for found in re.finditer("|".join(names), text)]
    return row, sorted({(start + end) // 2 for start, end in spans if end - start > 1})
