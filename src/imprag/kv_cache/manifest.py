"""``kv_cache.json``: the contents of a KV cache folder, its origin, and checksums of its files."""

from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from imprag.io.building import StoredFile, check_fingerprints, damaged, read_manifest
from imprag.io.files import write_json
from imprag.model.fingerprint import model_fingerprint
from imprag.model.model import ImpRAGModel
from imprag.model.text import passage_settings

FORMAT_VERSION = 5
"""Of KV cache folders and the cache on disk; changes, too, when a codec codes in another way."""
MANIFEST = "kv_cache.json"
SOURCE = "--model MODEL --index INDEX"
"""Stands for the options of ``imprag kv build`` in messages if they are unknown."""


@dataclass(frozen=True)
class Shard:
    """A file of passages.

    Attributes:
        file: the safetensors file.
        count: number of its passages.
        tokens: number of tokens of all its passages.
    """

    file: StoredFile
    count: int
    tokens: int


@dataclass(frozen=True)
class KVCacheManifest:
    """The description of a KV cache.

    Attributes:
        model_fingerprint: fingerprint of the model that made the states and must read them.
        corpus_fingerprint: fingerprint of the corpus whose passages were stored last.
        b, t, key_heads, head_dim: the shape of the states.
        codec: the name of the codec.
        bytes_per_vector: of a coded head vector, in the mean over keys and values.
        kv_keep_ratio: the share of its tokens that each passage keeps.
        count: number of passages.
        tokens: number of stored tokens of all passages.
        shards: the shards in the order in which they were made.
        codec_file: the codec's fitted state, if it has one.
        versions: versions of ImpRAG and of the libraries that wrote the KV cache.
        selection: whether only some passages of the corpus were asked for, as in a cache of those
            that are retrieved most often.
    """

    model_fingerprint: str
    corpus_fingerprint: str
    b: int
    t: int
    key_heads: int
    head_dim: int
    codec: str
    bytes_per_vector: int
    kv_keep_ratio: float
    count: int
    tokens: int
    shards: list[Shard]
    codec_file: StoredFile | None
    versions: dict[str, str]
    selection: bool = False
    format_version: int = FORMAT_VERSION

    @classmethod
    def read(cls, folder: Path) -> "KVCacheManifest":
        """Read the manifest of a KV cache folder and compare the sizes of its files.

        Raises:
            ImpRAGError: there is no finished KV cache, its format is unknown, or a file is missing
                or has another size.
        """

        def parse(content: dict[str, Any]) -> KVCacheManifest:
            shards = [
                Shard(**{**shard, "file": StoredFile(**shard["file"])})
                for shard in content.pop("shards")
            ]
            codec_file = content.pop("codec_file")
            learned = None if codec_file is None else StoredFile(**codec_file)
            return cls(shards=shards, codec_file=learned, **content)

        make = f"imprag kv build {SOURCE}"
        manifest = read_manifest(folder, MANIFEST, "KV cache", make, FORMAT_VERSION, parse)
        for file in manifest.files:
            file.check(folder)
        return manifest

    @property
    def files(self) -> list[StoredFile]:
        """All files but the manifest."""
        learned = [] if self.codec_file is None else [self.codec_file]
        return [*(shard.file for shard in self.shards), *learned]

    def with_shard(self, shard: Shard) -> "KVCacheManifest":
        """The manifest of the KV cache with another shard."""
        return replace(
            self,
            count=self.count + shard.count,
            tokens=self.tokens + shard.tokens,
            shards=[*self.shards, shard],
        )

    def write(self, folder: Path) -> None:
        """Write the manifest."""
        write_json(folder / MANIFEST, asdict(self))

    def summary(self) -> dict[str, Any]:
        """The manifest for people, with sizes in place of the list of files."""
        size = sum(file.bytes for file in self.files)
        facts = {
            **asdict(self),
            "shards": len(self.shards),
            "bytes_per_passage": size // self.count,
        }
        del facts["codec_file"]
        return facts

    def check(
        self,
        folder: Path,
        *,
        model_fingerprint: str,
        source: str = SOURCE,
    ) -> None:
        """Refuse a KV cache made by another model.

        Args:
            folder: the KV cache.
            model_fingerprint: the wanted one.
            source: the options of ``imprag kv build`` that name model and index, for the
                message.

        Raises:
            ImpRAGError: the fingerprint differs from the manifest's.
        """
        check_fingerprints(
            "KV cache",
            f"imprag kv build {source} --out {folder} --overwrite",
            (
                "by another model or version of ImpRAG, or with other b, t or passage settings",
                model_fingerprint,
                self.model_fingerprint,
            ),
        )

    def check_headers(self, folder: Path) -> None:
        """Read the header of every file, which names its tensors and their places.

        Raises:
            ImpRAGError: a file is not a complete safetensors file.
        """
        for file in self.files:
            try:
                with safe_open(folder / file.name, "pt"):
                    pass
            except (OSError, SafetensorError) as error:
                raise damaged(folder / file.name, str(error)) from error

    def verify_files(self, folder: Path) -> None:
        """Compare every file with its checksum.

        Raises:
            ImpRAGError: a file was changed.
        """
        for file in self.files:
            file.verify(folder)


def holds_kv_cache(folder: Path) -> bool:
    """Whether a folder has the manifest of a KV cache."""
    return (folder / MANIFEST).is_file()


def states_fingerprint(model: ImpRAGModel, tokenizer: Any) -> str:
    """Names everything that decides a passage's states: model, tokenizer, settings, encoding.

    Of the model, the weights of layers 0..t and the configuration count. With frozen keys and
    values, the model is the base model.

    Args:
        model: the model.
        tokenizer: its tokenizer.
    """
    model = model.passage_reader
    config = model.config
    settings: dict[str, Any] = {**passage_settings(tokenizer, config), "t": config.t}
    if model.frozen is not None:
        settings["frozen"] = model_fingerprint(model.frozen.lm, tokenizer, config.t + 1)
    return model_fingerprint(model.lm, tokenizer, config.t + 1, settings=settings)
