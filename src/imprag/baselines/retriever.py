"""Training of a separate retriever: NCE on the teacher's labels, and the perplexity KL.

The language model only scores passages. It reads each of them in the context, before the prompt,
and is not trained (RA-DIT, arXiv 2310.01352).
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence, Sized
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from imprag.corpus import Passage
from imprag.errors import ImpRAGError
from imprag.io.files import atomic_path
from imprag.model import ImpRAGModel, load_base_model
from imprag.model.base import quiet_transformers
from imprag.model.inputs import batches_by_length, pad
from imprag.retrieval.dense import TextEncoder, passage_text
from imprag.training.batches import Batches, chosen
from imprag.training.objectives import make_objective
from imprag.training.precision import cast_block_inputs
from imprag.training.recipe import LONGEST_TEXT, StageSettings
from imprag.training.run import Run, trainable_model
from imprag.training.step import Encoded, JointLoss, TrainingBatch, TrainingModel
from imprag.training.trainer import ImpRAGTrainer

_Text = TypeVar("_Text", bound=Sized)
_CHARACTERS = 16_384  # of texts that a text encoder embeds at once, padded
_TOKENS = 2048  # of rows that layers embed at once, padded


@dataclass(frozen=True, eq=False)
class RetrieverBatch(TrainingBatch):
    """A batch with the texts of its prompts and passages, for encoders with another tokenizer.

    Attributes:
        query_texts: the prompts, Q.
        passage_texts: the passages, P.
        in_context: tokens of a prompt with a candidate before it, by prompt and passage, where the
            objective needs log-likelihoods.
    """

    query_texts: Sequence[str] = ()
    passage_texts: Sequence[Passage] = ()
    in_context: Mapping[tuple[int, int], Sequence[int]] = field(default_factory=dict)


class SeparateRetriever(nn.Module, ABC):
    """An encoder of prompts and passages in training."""

    @abstractmethod
    def queries(self, batch: RetrieverBatch) -> Tensor:
        """Embeddings of the prompts with gradient, (Q, dimension)."""

    @abstractmethod
    def passages(self, batch: RetrieverBatch) -> Tensor:
        """Embeddings of the passages with gradient, (P, dimension)."""


class LayerRetriever(SeparateRetriever):
    """Layers 0..b of a language model of their own, with ImpRAG's embeddings (RA-DIT-LM).

    Args:
        model: the layers.
    """

    def __init__(self, model: ImpRAGModel) -> None:
        super().__init__()
        cast_block_inputs(model.lm)
        self.model = model

    def queries(self, batch: RetrieverBatch) -> Tensor:
        """E_q of the prompts, the score scale included."""
        return self._embed(batch.prompts, self.model.query_embeddings)

    def passages(self, batch: RetrieverBatch) -> Tensor:
        """E_p of the passages."""
        return self._embed(batch.passages, self.model.passage_embeddings)

    def _embed(
        self, rows: Sequence[Sequence[int]], embed: Callable[[Tensor, Tensor], Tensor]
    ) -> Tensor:
        if not rows:  # DDP needs gradients of the same parameters from all processes
            return embed(*pad([[0]], self.model.device))[:0]
        return _in_groups(rows, _TOKENS, lambda group: embed(*pad(group, self.model.device)))


class EncoderRetriever(SeparateRetriever):
    """A bi-encoder of sentence-transformers (RA-DIT).

    Args:
        encoder: its model.
    """

    def __init__(self, encoder: Any) -> None:
        super().__init__()
        self.encoder = encoder

    def queries(self, batch: RetrieverBatch) -> Tensor:
        """Embeddings of the prompts."""
        return self._embed(batch.query_texts)

    def passages(self, batch: RetrieverBatch) -> Tensor:
        """Embeddings of the passages, as a `TextEncoder` reads them."""
        return self._embed([passage_text(passage) for passage in batch.passage_texts])

    def _embed(self, texts: Sequence[str]) -> Tensor:
        if not texts:  # as for layers
            return self._run(["."])[:0]
        return _in_groups(texts, _CHARACTERS, self._run)

    def _run(self, texts: Sequence[str]) -> Tensor:
        features = self.encoder.preprocess(list(texts))
        device = self.encoder.device
        on_device = {k: v.to(device) if hasattr(v, "to") else v for k, v in features.items()}
        embeddings: Tensor = self.encoder(on_device)["sentence_embedding"]
        return embeddings


def _in_groups(
    texts: Sequence[_Text], size: int, embed: Callable[[Sequence[_Text]], Tensor]
) -> Tensor:
    """Embeddings of texts, which run in groups of similar length so that there is little padding.

    Args:
        texts: texts or their tokens.
        size: greatest size of a group.
        embed: embeds a group.
    """
    groups = batches_by_length(list(map(len, texts)), size)
    parts = [embed([texts[i] for i in group]) for group in groups]
    order = [i for group in groups for i in group]
    return torch.cat(parts)[sorted(range(len(order)), key=order.__getitem__)]


class RetrieverBatches(Batches):
    """The batches that ImpRAG would be trained on, without the prompts that do not retrieve."""

    def __init__(self, *arguments: Any, stages: StageSettings) -> None:
        super().__init__(*arguments)
        objectives = {
            "warmup": stages.warmup.objective,
            "self_distillation": stages.self_distillation.objective,
        }
        self._needs_log_likelihood = {
            stage: make_objective(objective).needs_log_likelihood
            for stage, objective in objectives.items()
        }

    def __getitem__(self, index: int) -> RetrieverBatch:
        step = index // self._per_step
        stage = self.schedule.stage(step)
        batch = self.indices(index)
        retrieves = [bool(self.sampler.examples[n].positives) for n in batch.examples]
        batch = chosen(batch, retrieves)
        examples = [self.sampler.examples[n] for n in batch.examples]
        scored = self._needs_log_likelihood[stage]
        generated = zip(examples, batch.generated, strict=True)
        return RetrieverBatch(
            ids=[example.id for example in examples],
            prompts=[self._prompt(example.prompt, ()) for example in examples],
            responses=[
                self.response(one)[:LONGEST_TEXT] if read else [] for one, read in generated
            ],
            passages=self._passages(batch, step),
            candidates=batch.candidates,
            positive=torch.from_numpy(batch.positive),
            negative=torch.from_numpy(batch.negative),
            first_column=batch.first_column,
            columns=batch.columns,
            cross_batch_memory=batch.cross_batch_memory,
            cross_batch_negative=torch.from_numpy(batch.cross_batch_negative),
            self_distillation=stage == "self_distillation",
            query_texts=[example.prompt for example in examples],
            passage_texts=self._corpus.passages(list(batch.passages)),
            in_context={
                (number, candidate): self.in_context(example.prompt, [batch.passages[candidate]])
                for number, example in enumerate(examples)
                for candidate in batch.candidates[number]
                if scored
            },
        )


class RetrieverLoss(JointLoss):
    """J_ret of a separate retriever; the frozen language model gives log P_LM(r | p, q).

    Args:
        retriever: the retriever that is trained.
        reader: the language model; it is no part of this module, neither trained nor saved.
        stages: the objectives.
    """

    def __init__(
        self, retriever: SeparateRetriever, reader: TrainingModel, stages: StageSettings
    ) -> None:
        super().__init__(stages)
        self.retriever = retriever
        self.reader: TrainingModel
        self.__dict__["reader"] = reader.eval()

    @property
    def model(self) -> ImpRAGModel:
        """The model of a `LayerRetriever`, which the trainer saves."""
        assert isinstance(self.retriever, LayerRetriever)
        return self.retriever.model

    def _encode(self, batch: TrainingBatch) -> Encoded:
        assert isinstance(batch, RetrieverBatch)
        return Encoded(None, {}, self.retriever.passages(batch))

    def _prompts(self, batch: TrainingBatch, passages: Encoded) -> tuple[Tensor, Tensor]:
        assert isinstance(batch, RetrieverBatch)
        queries = self.retriever.queries(batch)
        return queries, queries.new_zeros((), dtype=torch.float32)

    def _pair_likelihoods(
        self, batch: TrainingBatch, passages: Encoded, pairs: Sequence[tuple[int, int]]
    ) -> Tensor:
        assert isinstance(batch, RetrieverBatch)
        return self.reader.response_log_likelihoods(
            [batch.in_context[pair] for pair in pairs],
            [batch.responses[prompt] for prompt, _ in pairs],
        )


class EncoderTrainer(ImpRAGTrainer):
    """Trains and saves a text encoder instead of a language model."""

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        folder = Path(output_dir or self.args.output_dir)
        self._save_encoder(folder)
        self._save_cross_batch_memory(folder)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        saved = TextEncoder(resume_from_checkpoint, "float32", "cpu")
        self._encoder().load_state_dict(saved.module.state_dict())
        self._load_cross_batch_memory(Path(resume_from_checkpoint))

    def save_trained(self, folder: Path) -> None:
        """Write the encoder into a new folder, for `TextEncoder`, unless it is there."""
        if self.is_world_process_zero() and not folder.exists():
            with atomic_path(folder) as temporary:
                self._save_encoder(temporary)

    def _save_encoder(self, folder: Path) -> None:
        with quiet_transformers():
            self._encoder().save_pretrained(str(folder), create_model_card=False)

    def _encoder(self) -> Any:
        loss: Any = self._training_model()
        return loss.retriever.encoder

    def _is_bottom(self, name: str) -> bool:
        return True


def make_retriever_trainer(run: Run, reader_base: str) -> ImpRAGTrainer:
    """The trainer of a baseline's separate retriever.

    Args:
        run: its recipe is :func:`imprag.baselines.run.retriever_recipe`'s.
        reader_base: the language model that scores passages.
    """
    recipe = run.recipe
    dtype = torch.bfloat16 if recipe.precision == "bf16" else torch.float32
    lm, tokenizer = load_base_model(reader_base, dtype)
    config = replace(recipe.model.to_config(), base_model=reader_base)
    reader = TrainingModel(ImpRAGModel(lm, config).requires_grad_(False), recipe.stages)
    batches = RetrieverBatches(
        *(run.sampler, run.schedule, run.corpus, tokenizer, recipe, *run.part),
        stages=recipe.stages,
    )
    retriever: SeparateRetriever
    kind = ImpRAGTrainer
    if recipe.system == "ra-dit":
        kind = EncoderTrainer
        retriever = EncoderRetriever(TextEncoder(recipe.teacher.retriever, "float32").module)
    else:
        model, _ = trainable_model(recipe)
        retriever = LayerRetriever(model)
    loss = RetrieverLoss(retriever, reader, recipe.stages)
    trainer = kind(loss, tokenizer, recipe, batches, run.out)
    if trainer.is_fsdp_enabled:
        raise ImpRAGError(
            f"the retriever of the system {recipe.system} is small and is not sharded: train it "
            "without ACCELERATE_USE_FSDP first, and rerun with it"
        )
    return trainer
