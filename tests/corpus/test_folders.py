"""In real folders every readable file is read, and no other file stops or blocks the reading."""

import bz2
import gzip
import json
import os
import socket
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from imprag.corpus import Passage, load_corpus, read_passages
from imprag.corpus.library import distinct_names
from imprag.errors import ImpRAGError


def texts(path: Path, **options: bool) -> list[str]:
    return [passage.text for passage in read_passages(path, **options)]


def write_parquet(path: Path, *rows: dict[str, object]) -> None:
    pq.write_table(pa.Table.from_pylist(list(rows)), path)


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("IMPRAG_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_files_of_all_formats_in_a_folder_are_read(tmp_path: Path) -> None:
    (tmp_path / "a.md").write_text("Note.")
    (tmp_path / "b.jsonl").write_text('{"text": "line"}\n')
    write_parquet(tmp_path / "c.parquet", {"text": "row"})
    (tmp_path / "d.tsv").write_text("id\ttext\nx\tcell\n")
    (tmp_path / "e.json").write_text('[{"text": "value"}]')
    (tmp_path / "package.json").write_text('{"name": "no passage"}')
    (tmp_path / "image.PNG").write_bytes(b"\x89PNG")
    reader = read_passages(tmp_path)
    assert [(p.id, p.text) for p in reader] == [
        ("a.md/1", "Note."),
        (f"{tmp_path.name}#1", "line"),
        (f"{tmp_path.name}#2", "row"),
        ("x", "cell"),
        (f"{tmp_path.name}#4", "value"),
    ]
    assert reader.skipped.unread == {".json files": 1, ".png files": 1}
    assert texts(tmp_path, skip_bad_lines=False) == ["Note.", "line", "row", "cell", "value"]
    assert [p.text for p in read_passages(tmp_path, "parquet")] == ["row"]


def test_dead_links_and_special_files_are_counted_as_unread(tmp_path: Path) -> None:
    (tmp_path / "guide.md").mkdir()
    (tmp_path / "guide.md" / "deep.md").write_text("deep")
    (tmp_path / "rows.parquet").mkdir()
    (tmp_path / "gone.md").symlink_to("/nowhere")
    (tmp_path / "self.md").symlink_to("self.md")
    (tmp_path / "loop").symlink_to(tmp_path, target_is_directory=True)
    os.mkfifo(tmp_path / "pipe.md")
    with socket.socket(socket.AF_UNIX) as server:
        here = Path.cwd()
        os.chdir(tmp_path)  # a socket's path must be short
        server.bind("socket.md")
        os.chdir(here)
    reader = read_passages(tmp_path)
    assert [passage.text for passage in reader] == ["deep"]
    assert reader.skipped.unread == {"FIFOs, sockets or devices": 2, "dead links": 2}


def test_linked_folders_are_read(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "a.txt").write_text("linked")
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "more").symlink_to(tmp_path / "elsewhere")
    assert texts(tmp_path / "notes") == ["linked"]


def test_hidden_and_system_files_are_skipped(tmp_path: Path) -> None:
    write_parquet(tmp_path / "p.parquet", {"text": "one"})
    for name in ("._p.parquet", ".hidden.parquet", ".DS_Store", "Thumbs.db", "desktop.ini"):
        (tmp_path / name).write_bytes(b"\0\5\x16\7" * 20)
    (tmp_path / "__MACOSX").mkdir()
    (tmp_path / "__MACOSX" / "._a.txt").write_bytes(b"\0\5")
    reader = read_passages(tmp_path)
    assert [passage.text for passage in reader] == ["one"]
    assert reader.skipped.unread == {}


@pytest.mark.parametrize("path", ["pipe.jsonl", "notes"])
def test_a_fifo_as_the_corpus_is_refused_at_once(tmp_path: Path, cache: Path, path: str) -> None:
    os.mkfifo(tmp_path / path)
    with pytest.raises(ImpRAGError, match="neither a file nor a folder"):
        load_corpus(tmp_path / path)


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-32"])
def test_files_are_decoded_by_their_byte_order_mark(tmp_path: Path, encoding: str) -> None:
    (tmp_path / "a.txt").write_bytes("Österreich".encode(encoding))
    (tmp_path / "b.jsonl").write_bytes('{"text": "Über"}\n{"text": "b"}\n'.encode(encoding))
    (tmp_path / "c.tsv").write_bytes("id\ttext\nx\tÄpfel\n".encode(encoding))
    assert texts(tmp_path) == ["Österreich", "Über", "b", "Äpfel"]


@pytest.mark.parametrize("name", ["a.txt", "a.md", "a.rst", "a.jsonl", "a.tsv", "a.json"])
def test_utf_16_without_a_byte_order_mark_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes("Oslo lies in Norway".encode("utf-16-le"))
    with pytest.raises(ImpRAGError, match=rf"{name}.* contains NUL bytes.*UTF-16"):
        texts(tmp_path / name)


def test_empty_documents_are_counted(tmp_path: Path) -> None:
    for name, content in {"a.md": "", "b.txt": " \n", "c.md": "![](x.png)", "d.txt": "hi"}.items():
        (tmp_path / name).write_text(content)
    (tmp_path / "e.txt").write_text("\x01\x02\u200b")
    reader = read_passages(tmp_path)
    assert [passage.text for passage in reader] == ["hi"]
    assert (reader.skipped.count, reader.skipped.empty) == (0, 4)


def test_upper_case_suffixes_and_compressed_files_are_read(tmp_path: Path) -> None:
    (tmp_path / "A.JSONL.GZ").write_bytes(gzip.compress(b'{"id": "a", "text": "one"}\n'))
    (tmp_path / "b.txt.gz").write_bytes(gzip.compress(b"two"))
    (tmp_path / "C.Md.BZ2").write_bytes(bz2.compress(b"# Title\n\nthree"))
    (tmp_path / "D.TSV").write_text("id\ttext\nd\tfour\n")
    assert texts(tmp_path) == ["one", "three", "four", "two"]
    assert [p.title for p in read_passages(tmp_path / "C.Md.BZ2")] == ["Title"]
    assert texts(tmp_path / "A.JSONL.GZ") == ["one"]


def test_a_file_that_cannot_be_opened_is_named_or_skipped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(path: Path) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    (tmp_path / "a.txt").write_text("secret")
    (tmp_path / "b.jsonl").write_text('{"text": "open"}\n')
    monkeypatch.setattr("imprag.corpus.documents.open_text", refuse)
    with pytest.raises(ImpRAGError, match=r"a.txt: cannot be read \(.*Permission denied"):
        texts(tmp_path)
    assert texts(tmp_path, skip_bad_lines=True) == ["open"]


def test_a_long_name_fits_into_the_cache(tmp_path: Path, cache: Path) -> None:
    path = tmp_path / ("文" * 78 + ".txt")
    path.write_text("hi there")
    assert load_corpus(path)[0].text == "hi there"


@pytest.mark.parametrize("name", ["x" * 300, "no/such", "a\0b"])
def test_names_without_a_corpus_are_refused(cache: Path, name: str) -> None:
    with pytest.raises(ImpRAGError):
        load_corpus(name)


def test_generated_ids_differ_from_given_ones(tmp_path: Path) -> None:
    path = tmp_path / "m.jsonl"
    rows = [{"id": "2", "text": "a"}, {"text": "b"}, {"id": "m.jsonl#2", "text": "c"}]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert [p.id for p in read_passages(path)] == ["2", "m.jsonl##2", "m.jsonl#2"]


def test_joined_files_and_folders_get_distinct_ids(tmp_path: Path, cache: Path) -> None:
    for name in ("d1", "d2"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "README.md").write_text(f"Guide {name}.")
        (tmp_path / name / "x.jsonl").write_text(f'{{"text": "{name}"}}\n')
    assert [p.id for p in load_corpus([tmp_path / "d1", tmp_path / "d2"])] == [
        *("d1/README.md/1", "d1/1", "d2/README.md/1", "d2/1"),
    ]
    files = [tmp_path / "d1" / "x.jsonl", tmp_path / "d2" / "x.jsonl"]
    joined = load_corpus(files)
    assert list(joined) == [Passage("d1/x.jsonl/1", "", "d1"), Passage("d2/x.jsonl/1", "", "d2")]
    with pytest.raises(ImpRAGError, match="given twice"):
        load_corpus([files[0], tmp_path / "d2" / ".." / "d1" / "x.jsonl"])


def test_an_id_given_in_two_joined_files_is_refused(tmp_path: Path, cache: Path) -> None:
    for name in ("x.jsonl", "y.jsonl"):
        (tmp_path / name).write_text('{"id": "a", "text": "t"}\n')
    with pytest.raises(ImpRAGError, match=r"'a' occurs twice, in .*x.jsonl, line 1 and in .*y.js"):
        load_corpus([tmp_path / "x.jsonl", tmp_path / "y.jsonl"])


def test_distinct_names_are_the_shortest_that_differ() -> None:
    paths = [Path("/a/b/x"), Path("/a/c/x"), Path("/d/c/x")]
    assert distinct_names(paths) == ["a/b/x", "a/c/x", "d/c/x"]
    assert distinct_names([Path("/a/x"), Path("/a/y")]) == ["x", "y"]


def test_joined_corpora_report_what_was_skipped(tmp_path: Path, cache: Path) -> None:
    for name in ("d1", "d2"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "empty.md").touch()
        (tmp_path / name / "a.md").write_text("Text.")
        (tmp_path / name / "a.pdf").touch()
    skipped = load_corpus([tmp_path / "d1", tmp_path / "d2"]).manifest["skipped"]
    assert (skipped["empty"], skipped["unread"]) == (2, {".pdf files": 2})
