"""Every format gives the same passages; every bad line is reported, or skipped and listed."""

import csv
import gzip
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from imprag.corpus import Corpus, Passage, read_passages
from imprag.corpus.readers import SkippedLines
from imprag.errors import ImpRAGError

ROWS = [
    {"id": "1", "title": "Chad", "text": 'The capital is "N\'Djamena".'},
    {"id": "2", "title": "", "text": "Tabs\tand\nlines stay."},
    {"id": "3", "title": "Zürich", "text": "北京 is far away."},
]
PASSAGES = [Passage(**row) for row in ROWS]


def write_jsonl(path: Path, rows: list[Any] = ROWS) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def write_gzip(path: Path) -> Path:
    path.write_bytes(gzip.compress(write_jsonl(path.with_suffix("")).read_bytes()))
    return path


def write_tsv(path: Path, rows: list[dict[str, str]] = ROWS) -> Path:
    """Write the passages like DPR's psgs_w100.tsv: id, text, title; quoted as in CSV."""
    with open(path, "w", encoding="utf-8", newline="") as stream:
        writer = csv.DictWriter(stream, ["id", "text", "title"], delimiter="\t")
        writer.writeheader()
        writer.writerows(rows)
    return path


def write_parquet(path: Path) -> Path:
    pq.write_table(pa.Table.from_pylist(ROWS), path)
    return path


def write_parquet_folder(path: Path) -> Path:
    path.mkdir()
    pq.write_table(pa.Table.from_pylist(ROWS[2:]), path / "part-1.parquet")
    pq.write_table(pa.Table.from_pylist(ROWS[:2]), path / "part-0.parquet")
    return path


def write_dataset(path: Path) -> Path:
    datasets.Dataset.from_list(ROWS).save_to_disk(str(path))
    return path


FORMATS: dict[str, Callable[[Path], Path]] = {
    "corpus.jsonl": write_jsonl,
    "corpus.jsonl.gz": write_gzip,
    "psgs_w100.tsv": write_tsv,
    "corpus.parquet": write_parquet,
    "shards": write_parquet_folder,
    "dataset": write_dataset,
}


@pytest.mark.parametrize("name", FORMATS)
def test_every_format_gives_the_same_corpus(tmp_path: Path, name: str) -> None:
    reader = read_passages(FORMATS[name](tmp_path / name))
    assert list(reader) == PASSAGES
    assert list(reader) == PASSAGES  # the second iteration reads the file again
    assert reader.skipped == SkippedLines()
    corpus = Corpus.build(reader, tmp_path / "built")
    assert corpus.fingerprint == Corpus.build(PASSAGES, tmp_path / "direct").fingerprint


@given(
    st.lists(
        st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\r\0")).filter(
            str.strip
        ),
        min_size=1,
        max_size=5,
    )
)
@settings(max_examples=30, deadline=None)
def test_any_text_survives_jsonl_and_tsv(
    tmp_path_factory: pytest.TempPathFactory, texts: list[str]
) -> None:
    folder = tmp_path_factory.mktemp("texts")
    rows = [{"id": str(n), "title": text, "text": text} for n, text in enumerate(texts)]
    for path in (write_jsonl(folder / "c.jsonl", rows), write_tsv(folder / "c.tsv", rows)):
        assert [passage.text for passage in read_passages(path)] == texts


def read_rows(tmp_path: Path, *rows: Any, **options: Any) -> list[Passage]:
    return list(read_passages(write_jsonl(tmp_path / "corpus.jsonl", list(rows)), **options))


def test_a_passage_without_an_id_gets_its_number(tmp_path: Path) -> None:
    assert read_rows(tmp_path, {"text": "a"}, {"id": None, "text": "b", "title": None}) == [
        Passage("1", "", "a"),
        Passage("2", "", "b"),
    ]
    table = pa.table({"text": ["a", "b"]})
    for name in ("0.parquet", "1.parquet"):
        pq.write_table(table, tmp_path / name)
    assert [passage.id for passage in read_passages(tmp_path, "parquet")] == ["1", "2", "3", "4"]


def test_field_names_of_other_collections_are_recognised(tmp_path: Path) -> None:
    assert read_rows(tmp_path, {"_id": 7, "title": "T", "contents": "a"}) == [
        Passage("7", "T", "a")
    ]


@pytest.mark.parametrize(
    "source", ['[\n {"text": "one"},\n {"text": "two"}\n]\n', '[{"text":"one"},{"text":"two"}]']
)
@pytest.mark.parametrize("name", ["c.json", "c.jsonl"])
def test_a_json_array_is_read(tmp_path: Path, name: str, source: str) -> None:
    (tmp_path / name).write_text(source)
    assert [passage.text for passage in read_passages(tmp_path / name)] == ["one", "two"]


def test_a_json_array_of_any_length_is_streamed(tmp_path: Path) -> None:
    rows = [{"text": "word " * length} for length in (1, 30_000, 2, 60_000, *range(3, 3000))]
    (tmp_path / "c.json").write_text(json.dumps(rows))
    assert [passage.text for passage in read_passages(tmp_path / "c.json")] == [
        row["text"] for row in rows
    ]


@pytest.mark.parametrize(
    ("source", "problem"),
    [
        ('[{"text": "a"}, {"text": ]', "record 2: the array is not valid JSON"),
        ('[{"text": "a"}', "record 2: the array is not valid JSON .the file ends"),
        (
            '[{"text": "a"} {"text": "b"}]',
            "record 1: the array is not valid JSON .expected a comma",
        ),
        ('[{"text": "a"}] x', "more text after the end of the array"),
        ("[" * 5000, "record 1: the array is not valid JSON"),
        ("[5]", "record 1: not a JSON object"),
    ],
)
def test_a_damaged_array_is_refused_without_advice_to_skip_lines(
    tmp_path: Path, source: str, problem: str
) -> None:
    (tmp_path / "c.json").write_text(source)
    with pytest.raises(ImpRAGError, match=problem) as error:
        list(read_passages(tmp_path / "c.json"))
    assert "--skip-bad-lines" not in str(error.value)


TITLES: list[tuple[Any, str]] = [
    *((1984, "1984"), (0, "0"), (7.0, "7"), (2.5, "2.5"), (True, "True"), (None, "")),
    *((float("nan"), ""), ("", ""), ("T", "T")),
]


@pytest.mark.parametrize(("value", "title"), TITLES)
def test_titles_may_be_numbers(tmp_path: Path, value: Any, title: str) -> None:
    assert read_rows(tmp_path, {"text": "a", "title": value})[0].title == title
    table = pa.table({"text": ["a"], "title": [value]})
    pq.write_table(table, tmp_path / "c.parquet")
    datasets.Dataset(table).save_to_disk(str(tmp_path / "dataset"))
    for name in ("c.parquet", "dataset"):
        assert next(iter(read_passages(tmp_path / name))).title == title


def test_ids_stored_as_floats_become_whole_numbers(tmp_path: Path) -> None:
    rows = ({"id": 3.0, "text": "a"}, {"id": float("nan"), "text": "b", "page": float("nan")})
    found = read_rows(tmp_path, *rows)
    assert [(p.id, p.meta) for p in found] == [("3", {}), ("corpus.jsonl#2", {})]


def test_skipping_is_not_advised_if_no_line_is_good(tmp_path: Path) -> None:
    with pytest.raises(ImpRAGError) as error:
        read_rows(tmp_path, {"body": "a"}, {"body": "b"})
    assert "--skip-bad-lines" not in str(error.value)


def test_every_arrow_string_type_is_read(tmp_path: Path) -> None:
    table = pa.table(
        {
            "text": pa.array(["a", "b"], pa.large_string()),
            "title": pa.array(["T", "U"]).dictionary_encode(),
            "id": pa.array([b"x", b"y"], pa.binary()),
            "vector": pa.array([[0.5], [1.5]]),
            "meta": pa.array([{"page": 1}, None]),
        }
    )
    expected = [Passage("x", "T", "a", {"page": 1}), Passage("y", "U", "b")]
    pq.write_table(table, tmp_path / "c.parquet")
    with (
        pa.OSFile(str(tmp_path / "c.arrow"), "wb") as sink,
        pa.ipc.new_file(sink, table.schema) as w,
    ):
        w.write_table(table)
    with (
        pa.OSFile(str(tmp_path / "s.arrow"), "wb") as sink,
        pa.ipc.new_stream(sink, table.schema) as w,
    ):
        w.write_table(table)
    for name in ("c.parquet", "c.arrow", "s.arrow"):
        assert list(read_passages(tmp_path / name)) == expected


def test_other_fields_become_metadata_but_lists_do_not(tmp_path: Path) -> None:
    row = {"id": "a", "text": "b", "meta": {"x": [1]}, "page": 3, "url": "u", "vector": [0.5]}
    expected = {"x": [1], "page": 3, "url": "u"}
    assert read_rows(tmp_path, row)[0].meta == expected
    pq.write_table(pa.Table.from_pylist([row]), tmp_path / "c.parquet")
    assert next(iter(read_passages(tmp_path / "c.parquet"))).meta == expected
    datasets.Dataset.from_list([row]).save_to_disk(str(tmp_path / "dataset"))
    assert next(iter(read_passages(tmp_path / "dataset"))).meta == expected


def test_max_words_splits_passages(tmp_path: Path) -> None:
    row = {"id": "a", "title": "T", "text": "One two. Three four. Five.", "page": 1}
    assert read_rows(tmp_path, row, max_words=4) == [
        Passage("a/1", "T", "One two. Three four.", {"page": 1}),
        Passage("a/2", "T", "Five.", {"page": 1}),
    ]


def test_empty_lines_and_a_byte_order_mark_are_skipped(tmp_path: Path) -> None:
    (tmp_path / "c.jsonl").write_bytes(b'\xef\xbb\xbf{"text": "a"}\r\n\n{"text": "b"}\n\n')
    assert [passage.text for passage in read_passages(tmp_path / "c.jsonl")] == ["a", "b"]
    (tmp_path / "c.tsv").write_bytes(b"\xef\xbb\xbftext\tid\r\na\t1\r\n\r\nb\t2\r\n")
    assert [passage.text for passage in read_passages(tmp_path / "c.tsv")] == ["a", "b"]


BAD_JSON_LINES = [
    (b"{", "not valid JSON"),
    (b"[1]", "not a JSON object"),
    (b"[" * 100_000, "not valid JSON"),
    (b'{"id": "x"}', 'no "text"; expected {"text"'),
    (b'{"text": " "}', '"text" is empty'),
    (b'{"text": 5}', '"text" is 5; expected a string'),
    (b'{"text": "a", "title": ["t"]}', '"title" is ["t"]; expected a string'),
    (b'{"text": "a", "id": ""}', '"id" is empty'),
    (b'{"text": "a", "id": true}', '"id" is true; expected a string'),
    (b'{"text": "a\xff"}', '"text" is not valid UTF-8'),
    (b'{"text": "a\\ud800"}', '"text" is not valid UTF-8'),
    (b'{"wikipedia_title": "T", "text": "a"}', "not a KILT page"),
    (b'{"wikipedia_title": "T", "wikipedia_id": "\xff", "text": ["a"]}', '"id" is not valid'),
    (b'{"wikipedia_title": "T", "wikipedia_id": "1", "text": [3]}', '"text" is 3'),
]


@pytest.mark.parametrize(("line", "problem"), BAD_JSON_LINES)
def test_a_bad_json_line_is_named_or_skipped(tmp_path: Path, line: bytes, problem: str) -> None:
    path = tmp_path / "c.jsonl"
    path.write_bytes(b'{"text": "first"}\n' + line + b'\n{"text": "last"}\n')
    passages = iter(read_passages(path))
    assert next(passages).text == "first"  # a stream: nothing is read ahead
    with pytest.raises(ImpRAGError) as error:
        next(passages)
    assert f"{path}, line 2: {problem}" in str(error.value)
    assert "--skip-bad-lines" in str(error.value)
    assert "\n" not in str(error.value)

    reader = read_passages(path, skip_bad_lines=True)
    assert [(passage.id, passage.text) for passage in reader] == [("1", "first"), ("3", "last")]
    assert reader.skipped.count == 1
    assert reader.skipped.first[0].startswith(f"{path}, line 2: {problem}")


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("7\ta b", "2 columns; expected 3: id, text, title"),
        ('7\t"quoted" twice\tT', "not tab-separated values"),
        ("7\t\tT", '"text" is empty'),
    ],
)
def test_a_bad_tsv_line_is_named_or_skipped(tmp_path: Path, line: str, problem: str) -> None:
    path = tmp_path / "c.tsv"
    path.write_text(f'id\ttext\ttitle\n1\t"two\nlines"\tA\n{line}\n3\tlast\tC\n')
    with pytest.raises(ImpRAGError, match="--skip-bad-lines") as error:
        list(read_passages(path))
    assert f"{path}, line 4: {problem}" in str(error.value)
    reader = read_passages(path, skip_bad_lines=True)
    assert [passage.id for passage in reader] == ["1", "3"]
    assert reader.skipped.count == 1


def test_a_tsv_without_a_text_column_is_refused(tmp_path: Path) -> None:
    (tmp_path / "c.tsv").write_text("pid\tpassage\n1\tsome text\n")
    with pytest.raises(ImpRAGError, match=r"c.tsv, line 1: no column text; expected a header"):
        list(read_passages(tmp_path / "c.tsv"))


def test_bad_rows_are_named_in_parquet_and_datasets(tmp_path: Path) -> None:
    table = pa.table({"id": ["a", "b"], "text": ["x", None]})
    pq.write_table(table, tmp_path / "c.parquet")
    datasets.Dataset.from_dict(table.to_pydict()).save_to_disk(str(tmp_path / "dataset"))
    for name in ("c.parquet", "dataset"):
        with pytest.raises(ImpRAGError, match=f'{name}, row 2: no "text"'):
            list(read_passages(tmp_path / name))


def test_only_the_first_hundred_skipped_lines_are_listed(tmp_path: Path) -> None:
    reader = read_passages(
        write_jsonl(tmp_path / "c.jsonl", [*range(150), ROWS[0]]), skip_bad_lines=True
    )
    assert list(reader) == PASSAGES[:1]
    assert (reader.skipped.count, len(reader.skipped.first)) == (150, 100)


def test_the_manifest_lists_skipped_lines(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "c.jsonl", ["x", ROWS[0]])
    corpus = Corpus.build(read_passages(path, skip_bad_lines=True), tmp_path / "corpus")
    skipped = corpus.manifest["skipped"]
    assert skipped["count"] == 1
    assert skipped["first"][0].startswith(f"{path}, line 1: not a JSON object")


def test_duplicate_ids_are_named_with_file_and_line(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "c.jsonl", ["bad", ROWS[0], ROWS[1], ROWS[0]])
    reader = read_passages(path, skip_bad_lines=True)
    with pytest.raises(ImpRAGError) as error:
        Corpus.build(reader, tmp_path / "corpus")
    assert f"the id '1' occurs twice, in {path}, line 2 and in {path}, line 4" in str(error.value)


def test_a_corpus_of_only_bad_lines_is_refused_as_empty(tmp_path: Path) -> None:
    reader = read_passages(write_jsonl(tmp_path / "c.jsonl", [1, 2]), skip_bad_lines=True)
    with pytest.raises(ImpRAGError, match=r"the corpus is empty: .*2 bad lines skipped"):
        Corpus.build(reader, tmp_path / "corpus")


KILT_PAGE = {
    "_id": "290",
    "wikipedia_id": "290",
    "wikipedia_title": "A",
    "text": [
        "A\n",
        "A is the first letter. It is a vowel.\n",
        "Section::::History.\n",
        "\n",
        "The earliest letter was aleph.\n",
        "Section::::Uses.\n",
        "BULLET::::- in music\n",
        "BULLET::::- in medicine\n",
    ],
    "anchors": [{"paragraph_id": 1}],
}


def test_passages_of_a_kilt_page_keep_page_id_and_paragraph_numbers(tmp_path: Path) -> None:
    passages = read_rows(tmp_path, KILT_PAGE, max_words=9)
    assert [(p.id, p.title, p.text) for p in passages] == [
        ("290/1", "A", "A is the first letter. It is a vowel."),
        ("290/2", "A", "The earliest letter was aleph.\n- in music"),
        ("290/3", "A", "- in medicine"),
    ]
    assert [p.meta for p in passages] == [
        {"wikipedia_id": "290", "start_paragraph_id": 1, "end_paragraph_id": 1},
        {"wikipedia_id": "290", "start_paragraph_id": 4, "end_paragraph_id": 6},
        {"wikipedia_id": "290", "start_paragraph_id": 7, "end_paragraph_id": 7},
    ]


def test_kilt_pages_are_split_at_a_hundred_words(tmp_path: Path) -> None:
    page = KILT_PAGE | {"text": ["A\n", "Word " * 250]}
    path = write_jsonl(
        tmp_path / "kilt_knowledgesource.json", [page, KILT_PAGE | {"text": ["A\n"]}]
    )
    for passages in (list(read_passages(path)), list(read_passages(path, "kilt"))):
        assert [len(passage.text.split()) for passage in passages] == [100, 100, 50]


def test_text_files_of_a_folder_are_read_as_documents(tmp_path: Path) -> None:
    (tmp_path / "guide").mkdir()
    (tmp_path / ".git").mkdir()
    (tmp_path / ".git" / "x.txt").write_text("hidden")
    (tmp_path / "guide" / "start.md").write_text("Preface.\n\n## First *steps* ##\n\nGo.\n")
    (tmp_path / "guide" / "plain.md").write_text("No heading here.")
    (tmp_path / "notes.TXT").write_text("# no heading in text files\n" + "word " * 150)
    (tmp_path / "image.png").write_bytes(b"\x89PNG")
    passages = list(read_passages(tmp_path))
    assert [(passage.id, passage.title) for passage in passages] == [
        ("guide/plain.md/1", "plain"),
        ("guide/start.md/1", "start"),
        ("guide/start.md/2", "start > First steps"),
        ("notes.TXT/1", "notes"),
        ("notes.TXT/2", "notes"),
    ]
    assert [passage.text for passage in passages[1:3]] == ["Preface.", "Go."]
    assert {passage.meta["file"] for passage in passages[1:3]} == {"guide/start.md"}
    alone = read_passages(tmp_path / "guide" / "start.md")
    assert [passage.id for passage in alone] == ["start.md/1", "start.md/2"]


def test_bad_text_files_are_named(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"caf\xe9")
    (tmp_path / "b.txt").write_text("\n")
    (tmp_path / "c.txt").write_text("good")
    with pytest.raises(ImpRAGError, match=r'a\.txt: "text" is not valid UTF-8 at character 3'):
        list(read_passages(tmp_path))
    reader = read_passages(tmp_path, skip_bad_lines=True)
    assert [passage.text for passage in reader] == ["good"]
    assert (reader.skipped.count, reader.skipped.empty) == (1, 1)


def test_missing_paths_and_unknown_formats_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ImpRAGError, match=r"nothing.jsonl does not exist"):
        read_passages(tmp_path / "nothing.jsonl")
    (tmp_path / "c.pdf").write_text("x")
    with pytest.raises(ImpRAGError, match=r"cannot tell the format of .*c.pdf; known are .jsonl"):
        read_passages(tmp_path / "c.pdf")
    with pytest.raises(ImpRAGError, match="unknown corpus format 'pdf'; choose one of jsonl, kilt"):
        read_passages(tmp_path / "c.pdf", "pdf")
    with pytest.raises(ImpRAGError, match="holds no file in a known format"):
        list(read_passages(tmp_path))
    with pytest.raises(ImpRAGError, match="at least one word"):
        list(read_passages(write_jsonl(tmp_path / "c.jsonl"), max_words=0))


def test_a_folder_of_several_datasets_is_refused(tmp_path: Path) -> None:
    split = datasets.Dataset.from_list(ROWS)
    datasets.DatasetDict(train=split, test=split).save_to_disk(str(tmp_path / "dataset"))
    with pytest.raises(ImpRAGError, match="several datasets; choose one: test, train"):
        read_passages(tmp_path / "dataset")
    assert list(read_passages(tmp_path / "dataset" / "train")) == PASSAGES


def test_broken_files_are_named(tmp_path: Path) -> None:
    compressed = write_gzip(tmp_path / "c.jsonl.gz")
    compressed.write_bytes(compressed.read_bytes()[:-12])
    table = write_parquet(tmp_path / "c.parquet")
    table.write_bytes(table.read_bytes()[:-12])
    dataset = write_dataset(tmp_path / "dataset")
    (dataset / "state.json").unlink()
    (tmp_path / "plain.jsonl.gz").write_text('{"text": "not compressed"}')
    for path in (compressed, table, dataset, tmp_path / "plain.jsonl.gz"):
        with pytest.raises(ImpRAGError, match=path.name):
            Corpus.build(read_passages(path, skip_bad_lines=True), tmp_path / "corpus")


def test_every_damaged_table_is_refused_in_one_line(tmp_path: Path) -> None:
    table = pa.table({"text": ["word"] * 3})
    with (
        pa.OSFile(str(tmp_path / "c.arrow"), "wb") as sink,
        pa.ipc.new_file(sink, table.schema) as w,
    ):
        w.write_table(table)
    pq.write_table(table, tmp_path / "c.parquet")
    for name in ("c.arrow", "c.parquet"):
        whole = (tmp_path / name).read_bytes()
        for position in range(4, len(whole), 7):
            (tmp_path / name).write_bytes(
                whole[:position] + bytes([whole[position] ^ 0xFF]) + whole[position + 1 :]
            )
            try:
                passages = list(read_passages(tmp_path / name, skip_bad_lines=True))
            except ImpRAGError as error:
                assert name in str(error) and "\n" not in str(error)  # noqa: PT017, PT018
            else:
                assert len(passages) <= 3


def test_a_dataset_without_the_library_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_dataset(tmp_path / "dataset")
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(ImpRAGError, match=r'needs datasets; run: pip install "imprag\[eval\]"'):
        list(read_passages(path))


def test_kilt_pages_without_text_are_counted(tmp_path: Path) -> None:
    page = {"wikipedia_id": "1", "wikipedia_title": "T", "text": ["T\n"]}
    (tmp_path / "k.jsonl").write_text(json.dumps(page) + "\n" + json.dumps(page))
    reader = read_passages(tmp_path / "k.jsonl")
    assert list(reader) == []
    assert reader.skipped.summary() == ["documents without text, skipped: 2"]
