"""Updates of an index folder: what they embed, what they leave, and who may read meanwhile."""

import os
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from imprag.corpus import Corpus, Passage
from imprag.errors import ImpRAGError
from imprag.index.build import shard_content
from imprag.index.fitting import read_cut
from imprag.index.folder import IndexFolder
from imprag.index.states import CORPUS, CUT_TOKENS, INDEX, LEXICAL, POINTER, STATES
from imprag.index.update import Updated, compact, update_index, upsert_and_remove

DIMENSION = 8
PASSAGES = [Passage(f"p{n}", f"Title {n}", f"Text {n}.", {"page": n}) for n in range(300)]
QUERIES = np.random.default_rng(1).standard_normal((20, DIMENSION), np.float32)


class Encoder:
    """Embeds by the text, and notes which passages it has embedded."""

    dimension = DIMENSION

    def __init__(self, name: str = "model-one") -> None:
        self.name = name
        self.embedded: list[str] = []

    def fingerprint(self) -> str:
        return self.name

    def __call__(self, passages: Sequence[Passage]) -> np.ndarray:
        self.embedded += [one.id for one in passages]
        seeds = (list(f"{one.title}\n{one.text}".encode()) for one in passages)
        return np.stack([np.random.default_rng(s).standard_normal(DIMENSION) for s in seeds])


def edited() -> list[Passage]:
    """A tenth changed, some added in the middle, some removed, and one moved to another id."""
    changed = [
        replace(one, text=f"{one.text} Edited.") if n % 10 == 0 else one
        for n, one in enumerate(PASSAGES)
    ]
    new = [Passage(f"new{n}", "New", f"A new text {n}.") for n in range(7)]
    moved = replace(changed[299], id="moved")
    return [*changed[:50], *new, *changed[60:299], moved]


def built(passages: Sequence[Passage], folder: Path, **settings: object) -> IndexFolder:
    corpus = Corpus.build(passages, folder.with_name(f"{folder.name}-{len(passages)}"))
    return IndexFolder.build(corpus, Encoder(), folder, progress=False, **settings)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    built(PASSAGES, tmp_path / "index")
    return tmp_path / "index"


def update(
    path: Path, passages: Sequence[Passage], encoder: Encoder, **settings: object
) -> Updated:
    number = len(list(path.parent.iterdir()))
    corpus = Corpus.build(passages, path.parent / f"edited-{number}")
    return update_index(path, corpus, encoder, progress=False, **settings)


def files(folder: IndexFolder) -> dict[str, bytes]:
    """The contents of an index's files, whose names have their checksums."""
    parts = [folder.root / CORPUS, folder.root / INDEX]
    return {one.name: one.read_bytes() for part in parts for one in part.iterdir()}


@pytest.mark.parametrize("kind", ["flat", "hnsw"])
def test_an_update_embeds_new_texts_only_and_is_a_fresh_build(tmp_path: Path, kind: str) -> None:
    built(PASSAGES, tmp_path / "index", kind=kind)
    encoder = Encoder()
    updated = update(tmp_path / "index", edited(), encoder)
    assert sorted(encoder.embedded) == sorted(
        one.id
        for n, one in enumerate(edited())
        if one.text.startswith("A new") or "Edit" in one.text
    )
    assert (updated.embedded, updated.added, updated.replaced, updated.removed) == (36, 8, 29, 11)
    assert updated.kept + updated.embedded == len(edited())
    fresh = built(edited(), tmp_path / "fresh", kind=kind)
    now = IndexFolder.open(tmp_path / "index")
    assert list(now.corpus) == edited()
    assert files(now) == files(fresh)
    for found, expected in zip(now.search(QUERIES, 10), fresh.search(QUERIES, 10), strict=True):
        np.testing.assert_array_equal(found, expected)
    for words in ({"edited": 1}, {"new": 1, "text": 1}):
        for found, expected in zip(
            now.lexical.search(words, 12), fresh.lexical.search(words, 12), strict=True
        ):
            np.testing.assert_array_equal(found, expected)


class CuttingEncoder(Encoder):
    """Cuts what is longer than four words, and notes what it has counted."""

    max_passage_tokens = 4

    def __init__(self) -> None:
        super().__init__()
        self.counted: list[str] = []

    def cut_tokens(self, passages: Sequence[Passage]) -> list[int]:
        self.counted += [one.id for one in passages]
        return [max(0, len(one.text.split()) - 4) for one in passages]


def test_an_update_counts_tokens_of_new_texts_only(tmp_path: Path) -> None:
    def corpus(passages: Sequence[Passage]) -> Corpus:
        return Corpus.build(passages, tmp_path / f"corpus-{len(passages)}")

    path, encoder = tmp_path / "index", CuttingEncoder()
    passages = [Passage(f"p{n}", "", "word " * n) for n in range(1, 9)]
    IndexFolder.build(corpus(passages), encoder, path, progress=False)
    assert read_cut(path) == {"max_passage_tokens": 4, "passages": 4, "tokens": 10}
    encoder.counted.clear()
    new = [replace(passages[0], text="word " * 20), Passage("x", "", "word " * 9)]
    updated = upsert_and_remove(path, encoder, new, ["p8"], progress=False)
    assert encoder.counted == ["p1", "x"]
    assert read_cut(updated.folder.root)["tokens"] == 16 + 1 + 2 + 3 + 5
    # An index of an earlier version has no counts per passage: all are counted again, once.
    (updated.folder.root / CUT_TOKENS).unlink()
    encoder.counted.clear()
    updated = upsert_and_remove(path, encoder, ids=["x"], progress=False)
    assert len(encoder.counted) == 7
    assert read_cut(updated.folder.root)["tokens"] == 16 + 1 + 2 + 3


def test_new_texts_are_embedded_elsewhere(path: Path) -> None:
    """By what makes shards in the place of the encoder, such as Ray; a failure resumes."""
    made: list[str] = []
    fail = [True, False]

    def make_shards(passages: Corpus, batch_size: int, missing: dict, note: Callable) -> Iterator:
        made.extend(one.id for one in passages)
        if fail.pop(0):
            raise ImpRAGError("a worker is lost")
        for number, rows in missing.items():
            arguments = (Encoder(), DIMENSION, "float16", passages, rows, batch_size, note)
            yield number, shard_content(*arguments)

    encoder = Encoder()
    with pytest.raises(ImpRAGError, match="is lost"):
        update(path, edited(), encoder, make_shards=make_shards)
    assert list(IndexFolder.open(path).corpus) == PASSAGES
    made.clear()
    updated = update(path, edited(), encoder, make_shards=make_shards)
    assert (updated.embedded, encoder.embedded) == (36, [])
    new = {one.id for one in edited()} - {one.id for one in PASSAGES} - {"moved"}
    assert {*made} == new | {one.id for one in edited() if "Edited" in one.text}
    fresh = built(edited(), path.with_name("fresh"))
    assert files(IndexFolder.open(path)) == files(fresh)
    assert {one.name for one in updated.folder.root.iterdir()} == {CORPUS, INDEX, LEXICAL}
    # Without new texts there is nothing to embed elsewhere.
    assert update(path, edited()[1:], encoder, make_shards=make_shards).embedded == 0


def test_an_update_of_the_same_passages_does_nothing(path: Path) -> None:
    encoder = Encoder()
    updated = update(path, PASSAGES, encoder)
    assert (updated.embedded, updated.kept, updated.removed) == (0, len(PASSAGES), 0)
    assert not (path / POINTER).exists()


def test_an_update_may_change_the_kind(path: Path) -> None:
    encoder = Encoder()
    assert update(path, PASSAGES, encoder, kind="hnsw").folder.index.manifest.kind == "hnsw"
    assert encoder.embedded == []
    assert update(path, edited(), encoder).folder.index.manifest.kind == "hnsw"


def test_passages_are_upserted_in_their_places_and_removed(path: Path) -> None:
    encoder = Encoder()
    changes = [Passage("p7", "", "seven"), Passage("x", "", "a new one")]
    updated = upsert_and_remove(path, encoder, changes, ["p0", "p9"], progress=False)
    assert encoder.embedded == ["p7", "x"]
    expected = [*PASSAGES[1:7], changes[0], PASSAGES[8], *PASSAGES[10:], changes[1]]
    assert list(updated.folder.corpus) == expected
    assert list(IndexFolder.open(path).corpus) == expected
    assert (updated.added, updated.replaced, updated.removed) == (1, 1, 2)


def test_parts_of_a_document_replace_all_its_parts(tmp_path: Path) -> None:
    def parts(file: str, count: int) -> list[Passage]:
        return [
            Passage(f"{file}/{n}", file, f"{file} {n} {count}", {"file": file})
            for n in range(count)
        ]

    built([*parts("a.md", 4), *parts("b.md", 2)], tmp_path / "index")
    upsert_and_remove(tmp_path / "index", Encoder(), parts("a.md", 2), progress=False)
    assert list(IndexFolder.open(tmp_path / "index").corpus) == [
        *parts("a.md", 2),
        *parts("b.md", 2),
    ]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"ids": ["nobody"]}, "no passage has the id 'nobody'"),
        ({"passages": [PASSAGES[0], PASSAGES[0]]}, "'p0' is given twice"),
        ({"passages": [PASSAGES[0]], "ids": ["p0"]}, "'p0' is to be added and to be removed"),
        ({"passages": [Passage("e", "", " ")]}, "has no text"),
        ({"ids": [one.id for one in PASSAGES]}, "an index cannot be empty: leave some, add others"),
    ],
)
def test_bad_changes_leave_the_old_state(path: Path, changes: dict, words: str) -> None:
    with pytest.raises(ImpRAGError, match=words):
        upsert_and_remove(path, Encoder(), progress=False, **changes)
    assert list(IndexFolder.open(path).corpus) == PASSAGES
    assert {one.name for one in path.iterdir()} == {CORPUS, INDEX, LEXICAL}


def test_another_model_is_refused(path: Path) -> None:
    with pytest.raises(ImpRAGError, match="made by another model"):
        upsert_and_remove(path, Encoder("model-two"), PASSAGES[:1], progress=False)
    with pytest.raises(ImpRAGError, match="is no index folder"):
        upsert_and_remove(path / "elsewhere", Encoder(), PASSAGES[:1], progress=False)


def test_readers_keep_their_state_and_see_when_it_is_old(path: Path) -> None:
    before = IndexFolder.open(path)
    scores = before.search(QUERIES, 10)[1]
    texts = ["one", "two", "three"]
    for text in texts:
        upsert_and_remove(path, Encoder(), [Passage("p0", "", text)], progress=False)
        np.testing.assert_array_equal(before.search(QUERIES, 10)[1], scores)
        assert (before.corpus[0], before.is_current) == (PASSAGES[0], False)
        now = IndexFolder.open(path)
        assert (now.corpus[0].text, now.is_current, now.path) == (text, True, path)
    # The valid state and the one before it are on disk.
    assert sorted(one.name for one in path.iterdir()) == [POINTER, STATES]
    assert sorted(one.name for one in (path / STATES).iterdir()) == ["000002", "000003"]
    compact(path)
    assert [one.name for one in (path / STATES).iterdir()] == ["000003"]
    assert IndexFolder.open(path).corpus[0].text == "three"


def test_a_damaged_pointer_is_said(path: Path) -> None:
    for content in ("", "[]", '{"state": "x"}', '{"state": 0}'):
        (path / POINTER).write_text(content)
        with pytest.raises(ImpRAGError, match=r"state\.json"):
            IndexFolder.open(path)


@pytest.mark.parametrize("updates", [0, 1, 2])
def test_overwriting_takes_a_damaged_pointer_for_none(path: Path, updates: int) -> None:
    for n in range(updates):
        upsert_and_remove(path, Encoder(), [Passage("p0", "", f"text {n}")], progress=False)
    (path / POINTER).write_text('{"state": "x"}')
    corpus = Corpus.build(PASSAGES[:5], path.parent / "other")
    with pytest.raises(ImpRAGError, match=r"state\.json is damaged.*--overwrite"):
        IndexFolder.build(corpus, Encoder(), path, progress=False)
    IndexFolder.build(corpus, Encoder(), path, overwrite=True, progress=False)
    assert list(IndexFolder.open(path).corpus) == PASSAGES[:5]
    assert {one.name for one in path.iterdir()} == {POINTER, STATES}
    assert len(list((path / STATES).iterdir())) == 1


def test_overwriting_deletes_nothing_of_another_program(tmp_path: Path) -> None:
    names = [POINTER, f"{STATES}/000001/data", f"{INDEX}/page.html", f"{CORPUS}/letters.txt"]
    for name in names:
        (tmp_path / "theirs" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "theirs" / name).write_text('{"version": 3}')
    with pytest.raises(ImpRAGError, match="is in the way"):
        built(PASSAGES, tmp_path / "theirs", overwrite=True)
    there = [one for one in (tmp_path / "theirs").rglob("*") if one.is_file()]
    assert {one.relative_to(tmp_path / "theirs").as_posix() for one in there} == set(names)


def test_a_refused_build_leaves_the_index_that_it_should_replace(path: Path) -> None:
    with pytest.raises(ImpRAGError, match="needs at least"):
        built(PASSAGES[:5], path, overwrite=True, kind="ivfpq")
    with pytest.raises(ImpRAGError, match="leave --uri out"):
        built(PASSAGES[:6], path, overwrite=True, location="http://127.0.0.1:1")
    assert list(IndexFolder.open(path).corpus) == PASSAGES


def test_a_build_after_updates(path: Path) -> None:
    """The same passages are there already; others need --update, or --overwrite from nothing."""
    update(path, edited(), Encoder())
    same = Corpus.build(edited(), path.parent / "same")
    encoder = Encoder()
    assert IndexFolder.build(same, encoder, path, progress=False).root == path / STATES / "000001"
    assert encoder.embedded == []
    other = Corpus.build(PASSAGES[:5], path.parent / "other")
    with pytest.raises(ImpRAGError, match="--update"):
        IndexFolder.build(other, encoder, path, progress=False)
    assert len(IndexFolder.open(path).corpus) == len(edited())
    IndexFolder.build(other, encoder, path, overwrite=True, progress=False)
    assert list(IndexFolder.open(path).corpus) == PASSAGES[:5]
    assert [one.name for one in (path / STATES).iterdir()] == ["000002"]


def test_two_writers_at_once_both_succeed(path: Path) -> None:
    def write(name: str) -> None:
        upsert_and_remove(path, Encoder(), [Passage(name, "", name)], progress=False)

    threads = [threading.Thread(target=write, args=(f"writer {n}",)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    there = IndexFolder.open(path).corpus
    assert len(there) == len(PASSAGES) + 4
    assert {one.id for one in list(there)[-4:]} == {f"writer {n}" for n in range(4)}


def test_a_reader_never_fails_during_updates(path: Path) -> None:
    done = threading.Event()
    seen: list[str] = []
    failures: list[Exception] = []

    def read() -> None:
        while not done.is_set():
            try:
                folder = IndexFolder.open(path)
                folder.search(QUERIES, 10)
                seen.append(folder.corpus[0].text)
            except Exception as error:
                failures.append(error)

    reader = threading.Thread(target=read)
    reader.start()
    for n in range(12):
        upsert_and_remove(path, Encoder(), [Passage("p0", "", f"text {n}")], progress=False)
    done.set()
    reader.join()
    assert failures == []
    assert seen == sorted(seen, key=lambda text: -1 if text == "Text 0." else int(text.split()[1]))


@pytest.mark.skipif(os.name == "nt", reason="needs POSIX")
def test_an_interrupted_update_goes_on(path: Path) -> None:
    class Failing(Encoder):
        def __call__(self, passages: Sequence[Passage]) -> np.ndarray:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        update(path, edited(), Failing())
    assert list(IndexFolder.open(path).corpus) == PASSAGES
    assert update(path, edited(), Encoder()).embedded == 36
    assert sorted(one.name for one in path.iterdir()) == [CORPUS, INDEX, LEXICAL, POINTER, STATES]
