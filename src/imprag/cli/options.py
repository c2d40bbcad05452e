"""Options that several commands share."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import Parameter

from imprag.errors import ImpRAGError
from imprag.io.file_cache import kv_files

if TYPE_CHECKING:
    from imprag.distributed.ray_data import RayCluster
    from imprag.pipeline import ImpRAG

Flag = Annotated[bool, Parameter(negative="")]
Json = Annotated[bool, Parameter(name="--json", negative="")]
Names = Annotated[list[str] | None, Parameter(consume_multiple=True, negative="")]
Model = Annotated[
    str,
    Parameter(
        help="The model: `default` (the built-in one), a folder, a GGUF file or a Hugging Face id."
    ),
]
Device = Annotated[
    str,
    Parameter(
        help="Where the model runs: `cpu`, `cuda`, `cuda:1` ...; `auto` takes the first GPU, else "
        "the CPU."
    ),
]
Dtype = Annotated[
    str,
    Parameter(
        help="Precision of the model: `float32`, `bfloat16`, `float16`; `auto` takes bfloat16 "
        "where the device multiplies faster in it, else float32. Choose `float32` for figures "
        "that are the same on every machine."
    ),
]

KVCache = Annotated[
    Path | None,
    Parameter(
        help="A KV cache made by `imprag kv build` with the same model and index, to read passages "
        "from. If not given, they are read from a cache on disk, which keeps each in 8 bits when "
        "it is first read; `imprag info` shows it. `none` encodes passages whenever they are read, "
        "without loss."
    ),
]
NO_KV_CACHE = Path("none")

Retrieval = Annotated[
    str | None,
    Parameter(
        help="What retrieves: `implicit`, the model's lower layers; `hybrid`, the lower layers and "
        "the prompt's words, weighed for each prompt; by text `lexical` (BM25) or `dense` "
        "(all-MiniLM-L6-v2); or one that an installed package adds. If not given, `hybrid` for a "
        "model with a gate, such as the default one, and `implicit` for others."
    ),
]
#: The kinds of retrieval that the model does itself, in the prompt's pass.
BY_MODEL = ("implicit", "hybrid")

MinConfidence = Annotated[
    float | None,
    Parameter(
        help="Answer `not found in the corpus` where an answer is less likely right than this, "
        "from 0 to 1. 0 gives every answer and says how likely it is right. For models with a "
        "fitted confidence."
    ),
]
LexicalWeight = Annotated[
    float | None,
    Parameter(
        help="Weight of the words in hybrid retrieval, where the model's own score weighs 1. If "
        "not given, the model's gate weighs them for each prompt."
    ),
]


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class AskingAgain:
    """When an answer retrieves again."""

    retrieve: str | None = None
    """When an answer retrieves: `once`, at the end of the prompt; `every:N`, also after every N new
    tokens; `on:SEPARATOR`, also whenever the answer writes the separator, as in `on:;`. The model's
    own setting if not given."""
    passages_kept: Literal["beside", "instead"] | None = None
    """Whether the passages of a later retrieval are read `beside` the former ones or `instead` of
    them. The model's own setting if not given."""

    def check(self) -> None:
        """Refuse what is no schedule before anything is loaded.

        Raises:
            ImpRAGError: it is none.
        """
        from imprag.model.schedule import RetrievalSchedule

        RetrievalSchedule.parse(self.retrieve or "once")


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class ModelOptions:
    """Which model is loaded, and how."""

    model: Model = "default"
    dtype: Dtype = "auto"
    device: Device = "auto"

    def load(
        self, index: Path | None = None, kv_cache: Path | None = None, **settings: Any
    ) -> "ImpRAG":
        """The model with its index and KV cache; ``settings`` replace those of the model."""
        from imprag.pipeline import ImpRAG

        return ImpRAG.from_pretrained(
            self.model, index, kv_cache, dtype=self.dtype, device=self.device, **settings
        )


DEFAULT_MODEL = ModelOptions()
OWN_SCHEDULE = AskingAgain()


def use_kv_cache(rag: "ImpRAG", kv_cache: Path | None) -> None:
    """Let a pipeline read passages as the option ``--kv-cache`` says.

    Args:
        rag: the pipeline.
        kv_cache: the option's value. If not given, the cache on disk is used, unless its size is 0
            or the model's passages cannot be stored one by one.

    Raises:
        ImpRAGError: the KV cache does not exist or does not belong to the model.
    """
    if kv_cache == NO_KV_CACHE:
        return
    if kv_cache is not None:
        rag.use_kv_cache(kv_cache)
    elif rag.config.passage_encoding == "independent" and kv_files().max_bytes > 0:
        from imprag.kv_cache import DiskCache

        rag.use_kv_cache(DiskCache(rag.model, rag.tokenizer))


def refuse_without_effect(where: str, **values: Any) -> None:
    """Refuse options that were given where they have no effect.

    Args:
        where: they have none, such as "with --retrieval-only".
        **values: the options' values; those that were not given are None or False.

    Raises:
        ImpRAGError: some were given.
    """
    given = [name for name, value in values.items() if value is not None and value is not False]
    if given:
        options = ", ".join("--" + name.replace("_", "-") for name in given)
        have, them = ("has", "it") if len(given) == 1 else ("have", "them")
        raise ImpRAGError(f"{options} {have} no effect {where}: leave {them} out")


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class RayOptions:
    """Where a long job runs: here, or by Ray on many machines."""

    ray: Annotated[
        str | None,
        Parameter(
            help="Let workers of Ray do it: the address of a cluster (`auto`, `ray://head:10001`), "
            "or `local` for workers on this machine. All must see the model and `--out` under the "
            "same paths. If not given, this process does it."
        ),
    ] = None
    workers: Annotated[
        int | None, Parameter(help="Number of Ray's workers, 2 by default; each loads the model.")
    ] = None
    worker_gpus: Annotated[
        float | None,
        Parameter(help="GPUs of each worker, none by default; .5 lets two share one."),
    ] = None

    def __post_init__(self) -> None:
        if self.ray is None:
            self.refuse("without --ray")

    def refuse(self, where: str) -> None:
        """Refuse these options where they have no effect.

        Args:
            where: as for :func:`refuse_without_effect`.
        """
        refuse_without_effect(
            where, ray=self.ray, workers=self.workers, worker_gpus=self.worker_gpus
        )

    def cluster(self) -> "RayCluster | None":
        """Where shards are made; None for this process.

        Raises:
            ImpRAGError: Ray is not installed, or the cluster does not answer.
        """
        if self.ray is None:
            return None
        from imprag.distributed.ray_data import RayCluster

        given = {"workers": self.workers, "worker_gpus": self.worker_gpus}
        set_ones: dict[str, Any] = {name: one for name, one in given.items() if one is not None}
        cluster = RayCluster(self.ray, **set_ones)
        cluster.check()
        return cluster


HERE = RayOptions()
