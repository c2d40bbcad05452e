"""Whether a tab-separated file is quoted as in CSV is decided for the whole file."""

import csv
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from imprag.corpus import Passage, read_passages
from imprag.errors import ImpRAGError


def read(tmp_path: Path, content: str, **options: bool) -> list[tuple[str, str]]:
    (tmp_path / "c.tsv").write_text(content)
    return [(p.id, p.text) for p in read_passages(tmp_path / "c.tsv", **options)]


HEADER = "id\ttext\ttitle\n"


@pytest.mark.parametrize(
    "rows",
    [
        '1\t"We open with it\tOne\n2\tsecond\tTwo\n3\the said: stop"\tThree\n4\tfourth\tD\n',
        '1\t"Heroes" is an album.\tHeroes\n2\tplain\tLow\n',
        '1\t"a" and "b"\t"T\n2\t"\tU\n3\tit ends"\tV\n',
        '1\tfirst\t"A\n2\tsecond\t"B\n',
        'doc 1\t"opens\tOne\ndoc 2\tsecond\tTwo\ndoc 3\tcloses"\tThree\n',
    ],
)
def test_quotation_marks_of_unquoted_text_swallow_no_row(tmp_path: Path, rows: str) -> None:
    expected = [tuple(line.split("\t")[:2]) for line in rows.splitlines()]
    assert read(tmp_path, HEADER + rows) == expected


def test_a_quoted_file_is_unquoted(tmp_path: Path) -> None:
    rows = '1\t"Aaron, ""the"" priest."\tAaron\n2\tplain\t"B"\n3\t"two\n\nlines\twith tabs"\tC\n'
    assert read(tmp_path, HEADER + rows) == [
        ("1", 'Aaron, "the" priest.'),
        ("2", "plain"),
        ("3", "two\n\nlines\twith tabs"),
    ]


def test_an_unclosed_quotation_mark_loses_only_its_own_line(tmp_path: Path) -> None:
    good = [f'{n}\t"a ""quoted"" text"\t"T"\n' for n in range(1, 6)]
    content = HEADER + "".join([*good[:2], '7\t"not closed\tT\n', *good[2:]])
    with pytest.raises(ImpRAGError, match="line 4: a quotation mark opens a field"):
        read(tmp_path, content)
    found = read(tmp_path, content, skip_bad_lines=True)
    assert [identifier for identifier, _ in found] == ["1", "2", "3", "4", "5"]


def test_a_short_row_between_quotation_marks_is_refused(tmp_path: Path) -> None:
    content = HEADER + '1\t"opens\tOne\n2\tno title\n3\tcloses"\tThree\n'
    with pytest.raises(ImpRAGError, match="line 3: 2 columns; expected 3"):
        read(tmp_path, content)
    assert read(tmp_path, content, skip_bad_lines=True) == [("1", '"opens'), ("3", 'closes"')]


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("0\tfirst\n1\tsecond\n", [Passage("0", "", "first"), Passage("1", "", "second")]),
        ("D1\tfirst\tOne\n", [Passage("D1", "One", "first")]),
        ('"id"\t"text"\n1\tfirst\n', [Passage("1", "", "first")]),
        ("ID\tText\tTitle\r\n1\tfirst\tOne\r\n", [Passage("1", "One", "first")]),
    ],
)
def test_headers_are_optional(tmp_path: Path, content: str, expected: list[Passage]) -> None:
    (tmp_path / "c.tsv").write_text(content, newline="")
    assert list(read_passages(tmp_path / "c.tsv")) == expected


def test_a_row_with_an_extra_tab_does_not_swallow_the_next(tmp_path: Path) -> None:
    content = HEADER + '1\t"opens\tx\tOne\n2\tcloses"\tTwo\n3\tthird\tThree\n'
    with pytest.raises(ImpRAGError, match="line 2: a quotation mark opens a field"):
        read(tmp_path, content)
    assert read(tmp_path, content, skip_bad_lines=True) == [("2", 'closes"'), ("3", "third")]


def test_a_first_row_that_contains_a_column_name_is_not_a_header(tmp_path: Path) -> None:
    assert read(tmp_path, "1\tcontents\n2\tsecond\n") == [("1", "contents"), ("2", "second")]


def test_lines_that_end_with_carriage_returns_alone_are_refused(tmp_path: Path) -> None:
    (tmp_path / "c.tsv").write_text("id\ttext\r1\tfirst\r2\tsecond\r", newline="")
    with pytest.raises(ImpRAGError, match="CR alone"):
        list(read_passages(tmp_path / "c.tsv"))


def test_a_row_of_one_column_that_would_span_lines_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ImpRAGError, match="line 2: a quotation mark opens"):
        read(tmp_path, 'text\n"one\ntwo"\nthree\n')


def test_two_columns_of_the_same_name_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ImpRAGError, match="two columns are called 'text'"):
        read(tmp_path, "id\ttext\ttext\n1\ta\tb\n")


def test_fields_of_any_length_are_read(tmp_path: Path) -> None:
    long = "word " * 60_000
    assert read(tmp_path, f'{HEADER}1\t{long}\tA\n2\t"{long}"\tB\n') == [("1", long), ("2", long)]


@pytest.mark.parametrize("row", ['"a\n', '"\ta\tb\n', '1\t"a\tb\n', '""a\tb\tc\n', 'a\t""\t"\n'])
def test_files_full_of_quotation_marks_take_linear_time(tmp_path: Path, row: str) -> None:
    (tmp_path / "c.tsv").write_text(HEADER + row * (30_000 // len(row)))
    start = time.process_time()
    list(read_passages(tmp_path / "c.tsv", skip_bad_lines=True))
    assert time.process_time() - start < 3


@given(st.lists(st.text(st.sampled_from('a" '), max_size=6), min_size=2, max_size=12))
@settings(max_examples=40, deadline=None)
def test_every_unquoted_row_is_a_passage_or_skipped(
    tmp_path_factory: pytest.TempPathFactory, cells: list[str]
) -> None:
    path = tmp_path_factory.mktemp("tsv") / "c.tsv"
    rows = [f"i{n}\t{text}\t{cells[0]}\n" for n, text in enumerate(cells)]
    path.write_text(HEADER + "".join(rows))
    reader = read_passages(path, skip_bad_lines=True)
    assert len(list(reader)) + reader.skipped.count == len(rows)


fields = st.text(st.sampled_from('a"\t\n '), max_size=6)


@given(st.lists(fields, min_size=1, max_size=6))
@settings(max_examples=40, deadline=None)
def test_quoted_texts_are_read_complete_or_refused(
    tmp_path_factory: pytest.TempPathFactory, texts: list[str]
) -> None:
    path = tmp_path_factory.mktemp("tsv") / "c.tsv"
    with open(path, "w", newline="") as stream:
        stream.write(HEADER)
        writer = csv.writer(stream, delimiter="\t", quoting=csv.QUOTE_ALL)
        writer.writerows([f"i{n}", f"x{text}", "title"] for n, text in enumerate(texts))
    reader = read_passages(path, skip_bad_lines=True)
    passages = list(reader)
    if not reader.skipped.count:
        assert [passage.text for passage in passages] == [f"x{text}" for text in texts]
