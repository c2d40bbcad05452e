"""Any file gives passages or a one-line error, and every record is accounted for."""

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from imprag.corpus import read_passages
from imprag.errors import ImpRAGError

NAMES = (
    *("c.jsonl", "c.json", "c.tsv", "c.parquet", "c.arrow", "c.txt", "c.md", "c.rst"),
    *("c.jsonl.gz", "c.md.bz2", "c.txt.xz", "c.tsv.gz"),
)
SEEDS = (
    b'{"text": "a"}\n',
    b'[{"text": "a"}]',
    b'id\ttext\n1\t"a"\n',
    b"# T\n\n[a](b) `c` ![d](e)\n\n- x\n\n|a|b|\n|-|-|\n|1|2|\n",
    b"T\n=\n\n.. note:: a\n\n   `b <c>`_\n\n::\n\n  d\n",
    b"---\ntitle: x\n---\n<h1>y</h1>\n",
    b"\xff\xfea\0\n\0",
    b"PAR1",
)


def mutated() -> st.SearchStrategy[bytes]:
    parts = st.sampled_from(SEEDS) | st.binary(max_size=12)
    return st.lists(parts, max_size=6).map(b"".join) | st.binary(max_size=200)


@pytest.mark.parametrize("name", NAMES)
@given(content=mutated(), skip=st.booleans())
@settings(max_examples=25, deadline=10_000, suppress_health_check=list(HealthCheck))
def test_any_bytes_give_passages_or_a_one_line_error(
    tmp_path: Path, name: str, content: bytes, skip: bool
) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    reader = read_passages(path, skip_bad_lines=skip)
    passages, message = [], ""
    try:
        passages = list(reader)
    except ImpRAGError as error:
        message = str(error)
    assert "\n" not in message
    for passage in passages:
        assert passage.text.strip()
        (passage.id + passage.title + passage.text).encode()


values = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5)
names = st.sampled_from(["id", "_id", "title", "text", "contents", "meta", "page"])
records = st.dictionaries(names, values | st.just("word"), max_size=5)


@given(rows=st.lists(records, max_size=6))
@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
def test_every_json_record_becomes_a_passage_or_is_skipped(
    tmp_path: Path, rows: list[dict[str, Any]]
) -> None:
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    for name, content in {"c.jsonl": lines, "a.json": json.dumps(rows)}.items():
        (tmp_path / name).write_text(content)
        reader = read_passages(tmp_path / name, skip_bad_lines=True)
        assert len(list(reader)) + reader.skipped.count == len(rows)


columns = st.sampled_from(
    [
        st.text(st.characters(codec="utf-8"), max_size=5),
        st.integers(-9, 9),
        st.floats(),
        st.booleans(),
    ]
).flatmap(lambda cells: st.lists(st.none() | cells, min_size=1, max_size=6))


@given(titles=columns)
@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
def test_every_parquet_row_becomes_a_passage_or_is_skipped(
    tmp_path: Path, titles: list[Any]
) -> None:
    texts = ["" if title is None else "word" for title in titles]
    pq.write_table(pa.table({"title": titles, "text": texts}), tmp_path / "c.parquet")
    reader = read_passages(tmp_path / "c.parquet", skip_bad_lines=True)
    assert len(list(reader)) == sum(title is not None for title in titles)
    assert reader.skipped.count == sum(title is None for title in titles)


documents = st.text(st.sampled_from("ab #=-*`[]()<>!|\\:._~\n\t&1é中"), max_size=80)


@given(
    texts=st.lists(documents, min_size=1, max_size=4), suffix=st.sampled_from(["md", "rst", "txt"])
)
@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
def test_every_document_is_read_or_counted_as_empty(
    tmp_path: Path, texts: list[str], suffix: str
) -> None:
    for file in tmp_path.iterdir():
        file.unlink()
    for number, text in enumerate(texts):
        (tmp_path / f"{number}.{suffix}").write_text(text)
    reader = read_passages(tmp_path)
    files = {passage.meta["file"] for passage in reader}
    assert len(files) + reader.skipped.empty == len(texts)
