"""Settings that, with the weights, determine what an ImpRAG model computes."""

import dataclasses
import logging
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from imprag.errors import ImpRAGError
from imprag.io.files import read_json, write_json
from imprag.model.question import check_question_template
from imprag.model.schedule import PassagesKept, RetrievalSchedule

PassageEncoding = Literal["independent", "segmented", "full"]
FrozenPassages = Literal["none", "hidden_states", "kv"]

CONFIG_NAME = "imprag.json"
FORMAT_VERSION = 2
#: Names of settings in version 1.
RENAMED = {"reading_score_weight": "attention_score_bias"}

FIXED = {"pooling_point": "last", "rope": "before"}
"""Former settings with their only value: a passage is represented by its own last token, and query
and key states are taken before the rotary embedding. Files of earlier versions may state them, and
the fingerprints of indexes include them."""


@dataclass(frozen=True, kw_only=True)
class ImpRAGConfig:
    """Settings of an ImpRAG model, stored with its weights or adapter as ``imprag.json``.

    The same settings serve training, indexing and search. An index records those that its
    embeddings depend on (:meth:`embedding_settings`) and refuses a model with others.

    Attributes:
        base_model: name or path of the language model, as ``load_base_model`` takes it.
        b: layer boundary between the bottom group (layers 0..b) and the middle one (b..t).
            Layer b gives the embeddings and is the first to read passages.
        t: last layer that reads passages; layers above t do not see them.
        k: passages retrieved for each prompt.
        max_passage_tokens: the paper's l_max; longer passages are cut.
        passage_encoding: how the read passages are encoded (paper, Table 6). ``independent``:
            every passage alone, from position 0. ``segmented``: running positions, attention
            between passages blocked. ``full``: one sequence, later passages see earlier ones.
        passage_template: how a passage becomes text; ``{title}`` is optional, ``{text}`` is not.
        question_template: how a plain question becomes a prompt, as in ``Q: {question} A:``. By
            default there is none, and prompts are read as they are.
        frozen_passages: read passages as the base model encodes them, however the model was
            trained (paper, Table 7). ``kv``: its keys and values, so that one stored KV cache
            serves all models trained on the same base. ``hidden_states``: its hidden states, from
            which the trained layers b..t make keys and values. ``none``: all by the trained model.
        score_scale: factor on E_q · E_p in training and search alike; ``None`` means
            1/sqrt(h_k * d_h), which keeps the scores of an untrained model in a softmax's range.
        attention_score_bias: w; answering adds w · (s(q, p) - max s) to the attention logits of
            p's tokens. 0 reads all passages alike (paper). Beyond the paper, and not for passages
            that are encoded as one sequence (``full``).
        gate: weights of hybrid retrieval, for `imprag.retrieval.gate.Gate`; a model without them
            retrieves by its own scores alone.
        confidence: weights of the confidence in an answer, for
            `imprag.model.confidence.Confidence`; a model without them cannot abstain.
        retrieve: when an answer retrieves, unless a call says otherwise: ``once``, at the end of
            the prompt (paper), or also at later tokens, ``every:N`` or ``on:SEPARATOR``. Beyond the
            paper; see `imprag.model.schedule`.
        passages_kept: whether passages of a later retrieval are read ``beside`` the former ones or
            ``instead`` of them.
        base_model_fingerprint: fingerprint of the weights that an adapter belongs to.
        trained: whether the weights were trained to retrieve and read; plain models were not.
    """

    base_model: str
    b: int
    t: int
    k: int = 10
    max_passage_tokens: int = 256
    passage_encoding: PassageEncoding = "independent"
    passage_template: str = "{title}\n{text}"
    question_template: str | None = None
    frozen_passages: FrozenPassages = "none"
    score_scale: float | None = None
    attention_score_bias: float = 0.0
    gate: dict[str, dict[str, float]] | None = None
    confidence: dict[str, float] | None = None
    retrieve: str = "once"
    passages_kept: PassagesKept = "beside"
    base_model_fingerprint: str | None = None
    trained: bool = False
    format_version: int = FORMAT_VERSION

    def __post_init__(self) -> None:
        if not 0 <= self.b < self.t:
            raise ImpRAGError(f"layer boundaries need 0 <= b < t, but b={self.b} and t={self.t}")
        if self.k < 1:
            raise ImpRAGError(f"k must be at least 1, not {self.k}")
        if self.max_passage_tokens < 8:
            raise ImpRAGError(
                f"max_passage_tokens must be at least 8, not {self.max_passage_tokens}"
            )
        if self.passage_template.count("{text}") != 1:
            raise ImpRAGError(
                f"passage_template must hold {{text}} once, but is {self.passage_template!r}"
            )
        if self.question_template is not None:
            check_question_template(self.question_template)
        if self.score_scale is not None and not self.score_scale > 0:
            raise ImpRAGError(f"score_scale must be positive, not {self.score_scale}")
        if not 0 <= self.attention_score_bias < math.inf:
            raise ImpRAGError(
                f"attention_score_bias must not be negative, but is {self.attention_score_bias}"
            )
        if self.attention_score_bias and self.passage_encoding == "full":
            raise ImpRAGError(
                "attention_score_bias weighs single passages, but passage_encoding full makes one "
                "sequence of them: set it to 0, or encode them independently or segmented"
            )
        RetrievalSchedule.parse(self.retrieve, self.passages_kept)
        for name, choices in (
            ("passage_encoding", PassageEncoding),
            ("frozen_passages", FrozenPassages),
        ):
            if getattr(self, name) not in get_args(choices):
                raise ImpRAGError(
                    f"{name} must be one of {', '.join(get_args(choices))}, "
                    f"not {getattr(self, name)!r}"
                )

    def passages_to_read(self, k: int | None, available: int) -> int:
        """How many passages each prompt retrieves.

        Args:
            k: the requested number; None is the configured number, or all passages of a smaller
                corpus.
            available: number of passages in the corpus.

        Raises:
            ImpRAGError: k is negative or larger than the corpus.
        """
        if k is None:
            return min(self.k, available)
        if isinstance(k, bool) or not hasattr(k, "__index__"):  # NumPy's integers have it
            raise ImpRAGError(f"k must be a whole number, not {k!r}")
        if k < 0:
            raise ImpRAGError(f"k must not be negative, but is {k}")
        if k > available:
            raise ImpRAGError(
                f"k is {k}, but the index has {available} passages; lower it (--k {available})"
            )
        return k

    def schedule(
        self,
        retrieve: str | None = None,
        passages_kept: PassagesKept | None = None,
        *,
        retrieves: bool = True,
    ) -> RetrievalSchedule:
        """When answers retrieve, from a call's arguments and these settings.

        Args:
            retrieve, passages_kept: the arguments.
            retrieves: whether its prompts retrieve, so that these settings apply.

        Raises:
            ImpRAGError: the schedule is none, or passages would be kept although none follow.
        """
        own = self.retrieve if retrieves else "once"
        kept = passages_kept or self.passages_kept
        schedule = RetrievalSchedule.parse(own if retrieve is None else retrieve, kept)
        if passages_kept is not None and not schedule.again:
            raise ImpRAGError(
                "passages_kept has no effect, because nothing is retrieved after the prompt: leave "
                "it out, or choose retrieve, such as on:;"
            )
        return schedule

    def position_shift(self, passages: int) -> int:
        """The first position of a prompt that reads a number of passages (paper, section 2).

        It is the paper's k · l_max even if fewer than k passages are read, because reading is
        learned at that distance; more if more are read; 0 if none is.
        """
        return max(passages, self.k) * self.max_passage_tokens if passages else 0

    def layer_groups(self, layers: int) -> dict[str, range]:
        """The layers of each group (paper, section 2); layer b, in two groups, counts as bottom.

        Args:
            layers: number of layers of the model.
        """
        after_b, after_t = self.b + 1, self.t + 1
        return {
            "bottom": range(after_b),
            "reading": range(after_b, after_t),
            "top": range(after_t, layers),
        }

    def embedding_settings(self) -> dict[str, Any]:
        """The settings that passage embeddings depend on."""
        names = ("b", "max_passage_tokens", "passage_template")
        return {name: getattr(self, name) for name in names} | FIXED

    def save(self, folder: Path) -> None:
        """Write ``imprag.json`` into ``folder``."""
        write_json(Path(folder) / CONFIG_NAME, dataclasses.asdict(self))

    @classmethod
    def load(cls, folder: Path) -> "ImpRAGConfig":
        """Read ``imprag.json`` from ``folder``.

        Raises:
            ImpRAGError: the file is missing or broken, has unknown or missing settings, or was
                written by a newer version.
        """
        path = Path(folder) / CONFIG_NAME
        values = read_json(path)
        if not isinstance(values, dict):
            raise ImpRAGError(f"{path} must hold one JSON object")
        if values.get("format_version", 0) > FORMAT_VERSION:
            raise ImpRAGError(f"{path} was written by a newer ImpRAG; update with pip install -U")
        if values.get("format_version") == 1:
            logging.getLogger(__name__).warning(
                "note: %s is of format version 1; it is read as version %d", path, FORMAT_VERSION
            )
            values = {RENAMED.get(name, name): value for name, value in values.items()}
            values["format_version"] = FORMAT_VERSION
        for name, value in FIXED.items():
            if (found := values.pop(name, value)) != value:
                raise ImpRAGError(
                    f"{path}: {name} is {found!r}, but only {value!r} is supported now; train the "
                    "model again"
                )
        known = {field.name for field in dataclasses.fields(cls)}
        if unknown := sorted(values.keys() - known):
            raise ImpRAGError(f"{path} has unknown settings: {', '.join(unknown)}")
        if missing := sorted({"base_model", "b", "t"} - values.keys()):
            raise ImpRAGError(f"{path} lacks {', '.join(missing)}")
        try:
            return cls(**values)
        except (TypeError, ImpRAGError) as error:
            raise ImpRAGError(f"{path}: {error}") from error
