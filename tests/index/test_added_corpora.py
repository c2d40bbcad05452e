"""Corpora that are added to an index replace passages only by ids that their authors gave."""

import json
from collections.abc import Sequence
from pathlib import Path

import pytest
from test_update import Encoder

from imprag.corpus import Passage, load_corpus
from imprag.errors import ImpRAGError
from imprag.index.folder import IndexFolder
from imprag.index.states import changes
from imprag.index.update import Updated, upsert_and_remove

UPDATE = "run imprag index with all corpora of the index and --update"


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("IMPRAG_CACHE", str(tmp_path / "cache"))
    for name in ("notes/intro.md", "notes/sub/intro.md", "other/intro.md", "other/new.md"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(f"# {name}\n\nThe text of {name}.\n")
    write(tmp_path / "ids.jsonl", [{"id": f"p{n}", "text": f"Text {n}."} for n in range(4)])
    write(tmp_path / "none.jsonl", [{"text": f"Text {n} without an id."} for n in range(4)])
    return tmp_path


def write(path: Path, lines: Sequence[dict[str, str]]) -> None:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))


def build(home: Path, *names: str) -> Path:
    corpus = load_corpus([home / name for name in names])
    return IndexFolder.build(corpus, Encoder(), home / "index", progress=False).path


def add(home: Path, *names: str, remove: Sequence[str] = ()) -> Updated:
    corpus = load_corpus([home / name for name in names])
    return upsert_and_remove(home / "index", Encoder(), corpus, remove, progress=False)


def test_numbers_of_records_replace_nothing(home: Path) -> None:
    path = build(home, "none.jsonl")
    before = list(IndexFolder.open(path).corpus)
    write(home / "more.jsonl", [{"text": "A new one."}, {"id": "x", "text": "Another."}])
    for names, count in ((["more.jsonl"], 1), (["none.jsonl", "ids.jsonl"], 4)):
        with pytest.raises(ImpRAGError, match=f"{count} passages of .* have no id.*or {UPDATE}"):
            add(home, *names)
    assert list(IndexFolder.open(path).corpus) == before
    write(home / "more.jsonl", [{"id": "3", "text": "The third."}, {"id": "x", "text": "New."}])
    assert str(add(home, "more.jsonl")) == ("2 embedded, 3 kept; 1 added, 1 replaced, 0 removed")


@pytest.mark.parametrize(
    ("names", "added"),
    [
        (["notes", "ids.jsonl"], "notes/intro.md"),  # its id was notes/intro.md/1
        (["notes"], "notes/sub/intro.md"),
        (["notes/intro.md"], "notes"),
    ],
)
def test_documents_of_the_corpus_need_an_update(home: Path, names: list[str], added: str) -> None:
    path = build(home, *names)
    before = list(IndexFolder.open(path).corpus)
    with pytest.raises(ImpRAGError, match=f"documents of the corpus that the index .*: {UPDATE}"):
        add(home, added)
    assert list(IndexFolder.open(path).corpus) == before


def test_documents_replace_none_of_another_folder(home: Path) -> None:
    path = build(home, "notes")
    with pytest.raises(ImpRAGError, match=rf"another document intro\.md already.*, or {UPDATE}"):
        add(home, "other/intro.md")
    add(home, "other/new.md")
    assert [one.id for one in IndexFolder.open(path).corpus] == [
        "intro.md/1",
        "sub/intro.md/1",
        "new.md/1",
    ]
    with pytest.raises(ImpRAGError, match="documents of the corpus"):
        add(home, "other/new.md")


def test_the_sources_and_the_changes_of_an_index_are_known(home: Path) -> None:
    path = build(home, "notes")
    add(home, "ids.jsonl")
    add(home, "ids.jsonl", remove=["intro.md/1"])
    folder = IndexFolder.open(path)
    assert folder.corpus.manifest["source"] == f"{home / 'notes'}; {home / 'ids.jsonl'}"
    assert changes(path) == {"added": 4, "removed": 1}
    folder.encoder = Encoder()
    folder.upsert([Passage("p0", "", "another")])
    assert changes(path) == {"added": 4, "replaced": 1, "removed": 1}
    folder.upsert(load_corpus(home / "other" / "new.md"))
    assert changes(path) == {"added": 5, "replaced": 1, "removed": 1}
