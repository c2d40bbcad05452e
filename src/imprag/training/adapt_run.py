"""A whole adaptation: from a model, an index and questions to the folder of an adapted model."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from imprag.errors import ImpRAGError
from imprag.index.folder import IndexFolder
from imprag.io.locking import new_folder
from imprag.model.adapter import SETTINGS
from imprag.model.compact import can_be_changed, write_changed_adapter
from imprag.model.fitted import write_fitted_index
from imprag.model.load import DEFAULT, DEFAULT_FOLDER, save_pretrained
from imprag.pipeline import ImpRAG
from imprag.tasks import read_tasks
from imprag.training.adapt import (
    FEWEST_PROMPTS,
    SourceRecall,
    adapt,
    held_out_count,
    query_projection,
    usable,
)
from imprag.training.adapt_gate import GateFit, refit_gate
from imprag.training.data import (
    TrainingSource,
    not_held_out,
    retrieval_examples,
    synthetic_examples,
)
from imprag.training.recipe import TeacherSettings
from imprag.training.sources import Synthetic

KINDS: tuple[Synthetic, ...] = (
    *("question", "assertion", "lookup", "keywords"),
    *("title", "mention", "cloze", "statement"),
)
"""The kinds of prompts that passages give."""


@dataclass(frozen=True)
class Adaptation:
    """What an adaptation found on held-back prompts.

    Attributes:
        recalls: implicit retrieval before and after, one for each kind of prompts and task.
        gate: hybrid retrieval of the tasks' questions; None if there are no tasks, or if the model
            has no gate or the index no lexical part.
    """

    recalls: list[SourceRecall]
    gate: GateFit | None


def adapt_model(
    model: str,
    index: Path | None,
    out: Path,
    *,
    kinds: Sequence[Synthetic] | None = None,
    tasks: Sequence[str] = (),
    data: Path | None = None,
    limit: int = 20_000,
    steps: int = 1000,
    wise_ft_alpha: float = 1.0,
    max_rank: int | None = None,
    leave_out: Path | None = None,
    seed: int = 0,
    device: str = "auto",
) -> Adaptation:
    """Fit a model to the corpus of an index and save it with a note of that index.

    The gate of hybrid retrieval is fitted again on held-back questions of ``tasks``, and kept as it
    was where that finds no more.

    The hidden states that enter layer b are kept in a file next to ``out`` until the folder is
    complete, so that the same call reuses them after an interruption.

    Args:
        model: what :meth:`ImpRAG.from_pretrained` takes.
        index: an index folder; if not given, the model's own.
        out: the model folder to make.
        kinds: the kinds of prompts that are made from the passages; every kind that they give, if
            not given.
        tasks: questions with gold passages, as for :func:`imprag.tasks.read_tasks`.
        data: a benchmark folder for ``tasks``.
        limit: the greatest number of prompts of each kind and task.
        steps: optimizer steps of 256 prompts each.
        wise_ft_alpha: weight of the trained projection in the saved one.
        max_rank: for a model that is an adapter: the greatest rank of what is added to it.
        leave_out: a benchmark folder; passages about the subjects that it holds out for dev and
            test are neither positives nor negatives.
        seed: draws prompts.
        device: as for :func:`imprag.model.load_base_model`.

    Returns:
        recall on held-back prompts before and after.

    Raises:
        ImpRAGError: ``out`` is taken, the passages give no prompts, or what
            :func:`imprag.training.adapt.adapt` raises.
    """
    states = out.with_name(f"{out.name}.inputs")
    with new_folder(out):
        adapter = DEFAULT_FOLDER if model == DEFAULT else Path(model)
        is_adapter = (adapter / SETTINGS).is_file() and can_be_changed(adapter)
        if max_rank is not None and not is_adapter:
            print(
                f"note: max_rank has no effect: {model} is no adapter and is saved as a whole",
                file=sys.stderr,
            )
        rag = ImpRAG.from_pretrained(model, index, dtype="float32", device=device)
        folder = rag.index
        keep = not_held_out({} if leave_out is None else {str(leave_out): {"train"}})
        left_out: frozenset[int] = frozenset()
        if leave_out is not None:
            left_out = frozenset(n for n, one in enumerate(folder.corpus) if not keep(one))
        sources = _task_sources(tasks, data, folder, limit, seed)
        asked = len(sources)
        for kind in kinds or KINDS:
            examples = synthetic_examples(kind, folder.corpus, limit=limit, seed=seed, keep=keep)
            source = usable(TrainingSource(kind, examples), left_out)
            if kinds or len(source.examples) >= FEWEST_PROMPTS:
                sources.append(source)
            elif examples:
                print(f"note: {kind} left out: the passages give too few prompts", file=sys.stderr)
        if not sources:
            raise ImpRAGError(
                "the passages give too few prompts; bring some of your own by --tasks"
            )
        name, projection = query_projection(rag.model)
        before = projection.weight.detach().clone()
        recalls = adapt(
            rag.model,
            rag.tokenizer,
            folder.corpus,
            folder.index,
            sources,
            steps=steps,
            wise_ft_alpha=wise_ft_alpha,
            seed=seed,
            left_out=left_out,
            kept=states,
        )
        questions = [_held_back(usable(one, left_out)) for one in sources[:asked]]
        gate = refit_gate(rag, questions, left_out) if questions else None
        config = replace(rag.config, confidence=None)  # it was fitted with other scores
        if gate is not None and gate.gate is not None:
            config = replace(config, gate=gate.gate.to_json())
        if is_adapter:
            change = projection.weight.detach() - before
            write_changed_adapter(adapter, out, name, change.cpu(), max_rank, config)
        else:
            adapted = rag.model.with_settings(gate=config.gate, confidence=None)
            save_pretrained(adapted, rag.tokenizer, out)
        # Without an index, it was the one that the model brings: its own, or the built-in corpus'.
        write_fitted_index(out, index or rag.fitted_index)
        states.unlink(missing_ok=True)
    return Adaptation(recalls, gate)


def _held_back(source: TrainingSource) -> TrainingSource:
    return replace(source, examples=source.examples[: held_out_count(source)])


def _task_sources(
    names: Sequence[str], data: Path | None, folder: IndexFolder, limit: int, seed: int
) -> list[TrainingSource]:
    """The training questions of tasks, with their gold passages as positives."""
    sources = []
    for found in read_tasks(names, data=data, split="train") if names else ():
        drawn = found.draw(limit, seed)
        examples = retrieval_examples(drawn, folder.corpus, None, TeacherSettings(), "gold")
        sources.append(TrainingSource(drawn.task.name, examples))
    return sources
