"""Prompts are read one per line in any usual encoding; bad ones are refused by number."""

import io
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from imprag.corpus.prompt_files import prompts_of_file, prompts_of_standard_input, read_prompts
from imprag.errors import ImpRAGError
from imprag.io.text_checks import check_prompts

TWO = ["Q: item 42? A:", "Q: ümlaut → 7? A:"]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_prompts_are_read_in_any_encoding_and_with_any_line_end(
    tmp_path: Path, encoding: str, end: str
) -> None:
    text = end.join(["", TWO[0], "", " \t", TWO[1], "", ""])
    (tmp_path / "prompts.txt").write_bytes(text.encode(encoding))
    assert prompts_of_file(tmp_path / "prompts.txt") == TWO


def test_byte_order_marks_of_concatenated_files_are_dropped() -> None:
    joined = "".join(f"{prompt}\n" for prompt in TWO).encode("utf-8-sig") * 2
    assert list(read_prompts(io.BytesIO(joined), "x")) == TWO * 2


def test_an_invalid_byte_is_reported_after_the_prompts_before_it() -> None:
    prompts = read_prompts(io.BytesIO(b"Q: ok? A:\n\ncaf\xe9\nmore\n"), "standard input")
    assert next(prompts) == "Q: ok? A:"
    message = r"^prompt 2 is not valid Unicode at character 4 \(line 3 of standard input\)"
    with pytest.raises(ImpRAGError, match=message):
        next(prompts)


def test_lines_that_are_not_utf8_are_read_in_the_consoles_encoding() -> None:
    mixed = "café\n".encode("cp1252") + "→\n".encode()
    assert list(read_prompts(io.BytesIO(mixed), "x", "cp1252")) == ["café", "→"]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ("Q: ok? A:\n".encode("utf-16-le"), "prompt 1 contains a NUL character .line 1 of x."),
        ("Q: ok? A:\n".encode("utf-16")[:-1], "x is not complete UTF-16 text"),
        ("ok \ud83d\n".encode("utf-16", "surrogatepass"), "prompt 1 is not valid Unicode .* 4"),
    ],
)
def test_damaged_text_is_refused(data: bytes, message: str) -> None:
    with pytest.raises(ImpRAGError, match=message):
        list(read_prompts(io.BytesIO(data), "x"))


def test_unreadable_files_are_refused(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "none.txt"):
        with pytest.raises(ImpRAGError, match="cannot read the prompts in"):
            prompts_of_file(path)


def test_standard_input_stays_open(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = io.TextIOWrapper(io.BufferedReader(io.BytesIO(b"one\ntwo\n")), "ascii")
    monkeypatch.setattr(sys, "stdin", stream)
    assert list(prompts_of_standard_input()) == ["one", "two"]
    assert not stream.buffer.closed


@given(
    st.binary(max_size=80)
    | st.text("a\r\n\t \ufeff\ud83dé", max_size=30).map(
        lambda text: text.encode("utf-16", "surrogatepass")
    )
)
def test_any_bytes_give_prompts_or_one_error(data: bytes) -> None:
    try:
        prompts = list(read_prompts(io.BytesIO(data), "x"))
    except ImpRAGError:
        return
    check_prompts(prompts)
    encoding = {b"\xff\xfe": "utf-16", b"\xfe\xff": "utf-16"}.get(data[:2], "utf-8")
    text = data.decode("utf-32" if data[:4] in (b"\xff\xfe\0\0", b"\0\0\xfe\xff") else encoding)
    lines = text.replace("\r\n", "\n").replace("\r", "\n").split("\n")
    blank = sum(not line.removeprefix("\ufeff").strip() for line in lines)
    assert len(prompts) + blank == len(lines)


@pytest.mark.parametrize(
    ("prompts", "message"),
    [
        ("one text", r"pass \[prompt\]"),
        (["a", None], "prompt 2 must be text, but is of type NoneType"),
        (["a", "half a smile: \ud83d"], "prompt 2 is not valid Unicode at character 15"),
        (["\udce9"], "the prompt is not valid Unicode at character 1"),
    ],
)
def test_prompts_of_the_python_interface_are_checked(prompts: list[str], message: str) -> None:
    with pytest.raises(ImpRAGError, match=message):
        check_prompts(prompts)
