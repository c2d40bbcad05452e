"""A corpus folder returns the passages that were written, and damage is refused."""

import json
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from imprag.corpus import Corpus, Passage, store
from imprag.errors import ImpRAGError

TWO = [Passage("a", "Title", "Some text."), Passage("b", "", "Other text.", {"page": 3})]


def numbered(count: int) -> Iterator[Passage]:
    return (Passage(f"p{i}", f"Title {i}", f"Text number {i}.", {"row": i}) for i in range(count))


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    """More passages than fit in two record batches."""
    return Corpus.build(numbered(2 * store.BATCH_ROWS + 5), tmp_path_factory.mktemp("large"))


strings = st.text(st.characters(exclude_categories=["Cs"]))
passage_lists = st.lists(
    st.builds(
        Passage,
        id=strings.filter(bool),
        title=strings,
        text=strings.filter(str.strip),
        meta=st.dictionaries(
            strings, st.integers() | st.none() | strings | st.lists(st.booleans())
        ),
    ),
    min_size=1,
    max_size=6,
    unique_by=lambda passage: passage.id,
)


@given(passage_lists)
@settings(max_examples=40, deadline=None)
def test_passages_round_trip_through_a_corpus(
    tmp_path_factory: pytest.TempPathFactory, passages: list[Passage]
) -> None:
    corpus = Corpus.build(passages, tmp_path_factory.mktemp("corpus"))
    assert list(corpus) == passages
    assert len(corpus) == len(passages)
    assert corpus.rows([p.id for p in passages]) == list(range(len(passages)))
    assert corpus.manifest["words"] == sum(len(p.text.split()) for p in passages)
    assert corpus.manifest["characters"] == sum(len(p.text) for p in passages)
    corpus.verify()


def test_rows_are_read_in_any_order_and_across_batches(large: Corpus) -> None:
    rows = [2050, 0, 1023, 1024, 0, -1]
    expected = list(numbered(len(large)))
    assert large.passages(rows) == [expected[row] for row in rows]
    assert large[1500] == expected[1500]
    assert list(large) == expected


@pytest.mark.parametrize("row", [2053, -2054])
def test_a_row_outside_the_corpus_raises_index_error(large: Corpus, row: int) -> None:
    with pytest.raises(IndexError):
        large[row]


def test_rows_are_returned_in_the_order_of_the_ids(large: Corpus) -> None:
    assert large.rows(["p2000", "p3", "p1024", "p3"]) == [2000, 3, 1024, 3]
    assert large.rows([]) == []


def test_an_unknown_id_is_named(large: Corpus) -> None:
    with pytest.raises(ImpRAGError, match="no passage has the id 'nobody'"):
        large.rows(["p1", "nobody"])
    with pytest.raises(ImpRAGError, match="no passage has the id"):
        large.rows(["\ud800"])


def test_an_opened_corpus_equals_the_built_one(large: Corpus) -> None:
    again = Corpus.open(large.path)
    assert (again.fingerprint, again.manifest) == (large.fingerprint, large.manifest)
    assert again[7] == large[7]


def test_the_fingerprint_covers_content_metadata_and_order(tmp_path: Path) -> None:
    variants = {
        "same": list(TWO),
        "metadata": [TWO[0], Passage("b", "", "Other text.", {"page": 4})],
        "no metadata": [TWO[0], Passage("b", "", "Other text.")],
        "metadata of the other": [
            Passage("a", "Title", "Some text.", {"page": 3}),
            Passage("b", "", "Other text."),
        ],
        "order": TWO[::-1],
        "id": [TWO[0], Passage("c", "", "Other text.")],
        "title": [TWO[0], Passage("b", "O", "ther text.")],
        "text": [TWO[0], Passage("b", "", "Other text")],
    }
    base = Corpus.build(TWO, tmp_path / "base").fingerprint
    prints = {
        name: Corpus.build(passages, tmp_path / name).fingerprint
        for name, passages in variants.items()
    }
    assert prints.pop("same") == base
    assert len({base, *prints.values()}) == len(variants)


def test_the_text_fingerprint_ignores_metadata(tmp_path: Path) -> None:
    bare = [Passage(one.id, one.title, one.text) for one in TWO]
    with_metadata = Corpus.build(TWO, tmp_path / "with")
    without = Corpus.build(bare, tmp_path / "without")
    assert with_metadata.text_fingerprint == without.text_fingerprint
    assert with_metadata.fingerprint != without.fingerprint


def test_a_corpus_of_format_1_can_still_be_read(tmp_path: Path) -> None:
    corpus = Corpus.build(TWO, tmp_path / "corpus")
    manifest = json.loads((corpus.path / store.MANIFEST).read_text())
    old = manifest.pop("text_fingerprint")
    (corpus.path / store.MANIFEST).write_text(
        json.dumps({**manifest, "version": 1, "fingerprint": old})
    )
    again = Corpus.open(corpus.path)
    assert list(again) == TWO
    assert again.fingerprint == again.text_fingerprint == old


def test_the_fingerprint_does_not_depend_on_the_batch_size(
    large: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store, "BATCH_ROWS", 100)
    assert Corpus.build(numbered(len(large)), tmp_path / "other").fingerprint == large.fingerprint


def test_sorting_the_ids_in_ranges_changes_nothing(
    large: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store, "_SORT_ROWS", 300)
    other = Corpus.build(numbered(len(large)), tmp_path / "other")
    for name in (store.ID_HASHES, store.ID_ROWS):
        assert (other.path / name).read_bytes() == (large.path / name).read_bytes()


def test_different_ids_with_one_hash_are_kept_apart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store, "_hash", lambda passage_id: 2**64 - 1)
    corpus = Corpus.build(numbered(5), tmp_path / "corpus")
    assert corpus.rows(["p4", "p0"]) == [4, 0]
    with pytest.raises(ImpRAGError, match="no passage has the id 'p9'"):
        corpus.rows(["p9"])
    with pytest.raises(ImpRAGError, match="'p1' occurs twice, in passage 2 and in passage 4"):
        Corpus.build([*numbered(3), Passage("p1", "", "x")], tmp_path / "twice")


def test_metadata_values_without_a_json_type_become_text(tmp_path: Path) -> None:
    passage = Passage("a", "", "text", {"path": Path("x"), "lone": "\ud800"})
    corpus = Corpus.build([passage], tmp_path / "corpus")
    assert corpus[0].meta == {"path": "x", "lone": "\ud800"}


@pytest.mark.parametrize(
    ("passages", "message"),
    [
        ([], "the corpus is empty: no passage in a test"),
        ([TWO[0], Passage("", "", "x")], "passage 2 has no id"),
        ([Passage("a", "t", " \n")], r"passage 1 \('a'\) has no text"),
        ([Passage("a", "", "\ud800")], r"passage 1 \('a'\) is not valid UTF-8"),
        ([*TWO, TWO[0]], "the id 'a' occurs twice, in passage 1 and in passage 3"),
    ],
)
def test_bad_passages_are_refused_and_leave_no_folder(
    tmp_path: Path, passages: list[Passage], message: str
) -> None:
    with pytest.raises(ImpRAGError, match=message):
        Corpus.build(passages, tmp_path / "corpus", source="a test")
    assert list(tmp_path.iterdir()) == []


def test_build_never_overwrites_a_corpus(tmp_path: Path) -> None:
    Corpus.build(TWO, tmp_path / "corpus")
    with pytest.raises(ImpRAGError, match="exists already"):
        Corpus.build(numbered(3), tmp_path / "corpus")
    assert list(Corpus.open(tmp_path / "corpus")) == TWO


def test_a_build_whose_source_fails_leaves_nothing(tmp_path: Path) -> None:
    def broken() -> Iterator[Passage]:
        yield from TWO
        raise RuntimeError("the source broke")

    with pytest.raises(RuntimeError, match="the source broke"):
        Corpus.build(broken(), tmp_path / "corpus")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", [store.PASSAGES, store.ID_HASHES, store.ID_ROWS])
def test_a_truncated_or_missing_file_is_refused_at_open(tmp_path: Path, name: str) -> None:
    corpus = Corpus.build(TWO, tmp_path / "corpus")
    file = corpus.path / name
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(ImpRAGError, match=rf"{name} is damaged .* build it again"):
        Corpus.open(corpus.path)
    file.unlink()
    with pytest.raises(ImpRAGError, match=rf"{name} is damaged \(it is missing\)"):
        Corpus.open(corpus.path)


@pytest.mark.parametrize("name", [store.PASSAGES, store.ID_HASHES, store.ID_ROWS])
def test_verify_finds_a_changed_byte(tmp_path: Path, name: str) -> None:
    corpus = Corpus.build(TWO, tmp_path / "corpus")
    corpus.verify()
    content = bytearray((corpus.path / name).read_bytes())
    content[len(content) // 2] ^= 1
    (corpus.path / name).write_bytes(content)
    with pytest.raises(ImpRAGError, match=rf"{name} is damaged \(its checksum differs\)"):
        corpus.verify()


@pytest.mark.parametrize("name", [store.PASSAGES, store.ID_ROWS, store.ID_HASHES])
def test_garbage_of_the_right_size_is_refused_at_open(tmp_path: Path, name: str) -> None:
    Corpus.build(numbered(3000), tmp_path / "c")
    file = tmp_path / "c" / name
    file.write_bytes(b"\xff" * file.stat().st_size)
    with pytest.raises(ImpRAGError, match=rf"{name} is damaged \(its checksum differs\)"):
        Corpus.open(tmp_path / "c")


@pytest.mark.parametrize("name", [store.PASSAGES, store.ID_ROWS])
def test_garbage_in_a_large_file_is_refused_when_it_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setattr(store, "_CHECKED_BYTES", 0)
    Corpus.build(numbered(3000), tmp_path / "c")
    file = tmp_path / "c" / name
    content = bytearray(file.read_bytes())
    middle = slice(
        len(content) // 20, len(content) * 9 // 10
    )  # Arrow reads the file's end when it opens it
    content[middle] = b"\xff" * len(content[middle])
    file.write_bytes(content)
    corpus = Corpus.open(tmp_path / "c")
    with pytest.raises(ImpRAGError, match=rf"{name} is damaged .* build it again"):
        corpus.rows([f"p{n}" for n in range(3000)])


def test_open_refuses_a_folder_without_a_corpus(tmp_path: Path) -> None:
    with pytest.raises(ImpRAGError, match="is not a corpus folder"):
        Corpus.open(tmp_path)
    entry = {"bytes": 1, "sha256": ""}
    files = dict.fromkeys((store.PASSAGES, store.ID_HASHES, store.ID_ROWS), entry)
    others = [{}, [], files, {**files, store.PASSAGES: []}, {**files, store.PASSAGES: {}}]
    wrong = [{"version": 2, "files": other} for other in others]
    for manifest in ([], {"version": 99}, {"version": 1, "files": {}}, *wrong):
        (tmp_path / store.MANIFEST).write_text(json.dumps(manifest))
        with pytest.raises(ImpRAGError, match="not in corpus format 2"):
            Corpus.open(tmp_path)
    (tmp_path / store.MANIFEST).write_text("{")
    with pytest.raises(ImpRAGError, match="not valid JSON"):
        Corpus.open(tmp_path)


def test_a_full_disk_gives_one_clear_error(tmp_path: Path) -> None:
    """A limit on the file size simulates a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, hard))
    try:
        with pytest.raises(ImpRAGError, match=r"cannot write .*corpus: .*free some space"):
            Corpus.build(numbered(5000), tmp_path / "corpus")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert list(tmp_path.iterdir()) == []


ENDLESS = """
import itertools, sys
from pathlib import Path
from imprag.corpus import Corpus, Passage
Corpus.build((Passage(f"p{i}", "", "text") for i in itertools.count()), Path(sys.argv[1]))
"""


def test_a_killed_build_leaves_no_corpus(tmp_path: Path) -> None:
    build = subprocess.Popen([sys.executable, "-c", ENDLESS, str(tmp_path / "corpus")])
    while not any(file.stat().st_size > 100_000 for file in tmp_path.rglob(store.PASSAGES)):
        assert build.poll() is None
        time.sleep(0.02)
    build.send_signal(signal.SIGKILL)
    build.wait()
    with pytest.raises(ImpRAGError, match="is not a corpus folder"):
        Corpus.open(tmp_path / "corpus")
    assert list(Corpus.build(TWO, tmp_path / "corpus")) == TWO


MEASURED = """
import resource, sys
from pathlib import Path
from imprag.corpus import Corpus, Passage
count = int(sys.argv[1])
Corpus.build((Passage(f"p{i}", "Title", "word " * 50) for i in range(count)), Path(sys.argv[2]))
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


def test_memory_does_not_grow_with_the_corpus(tmp_path: Path) -> None:
    def peak_kilobytes(count: int) -> int:
        command = [sys.executable, "-c", MEASURED, str(count), str(tmp_path / str(count))]
        return int(subprocess.run(command, capture_output=True, check=True).stdout)

    small, big = peak_kilobytes(5_000), peak_kilobytes(200_000)
    written = (tmp_path / "200000" / store.PASSAGES).stat().st_size / 1024
    assert big - small < written / 3
