"""Finding a corpus by name or path: the built-in corpora, corpus folders, readable files."""

import hashlib
from pathlib import Path

from imprag.corpus.readers import read_passages
from imprag.corpus.store import MANIFEST, Corpus
from imprag.files import cache_dir


def load_corpus(name_or_path: str | Path) -> Corpus:
    """Open a corpus by name or path, building it into the cache folder if need be."""
    path = Path(name_or_path)
    if (path / MANIFEST).is_file():
        return Corpus.open(path)
    reader = read_passages(path)
    stat = path.stat()
    key = hashlib.sha256(f"{path.resolve()} {stat.st_size} {stat.st_mtime_ns}".encode())
    folder = cache_dir() / "corpora" / key.hexdigest()[:16]
    return Corpus.open(folder) if folder.exists() else Corpus.build(reader, folder)
