"""``imprag adapt``."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import Parameter

from imprag.cli.console import print_json
from imprag.errors import ImpRAGError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from imprag.training.adapt import SourceRecall

MEANINGFUL = 50
"""Prompts of a kind, below which its figures are within chance of each other."""

Kind = Literal[
    "question", "assertion", "lookup", "keywords", "title", "mention", "cloze", "statement"
]


def adapt(
    *,
    out: Path,
    model: str = "default",
    index: Path | None = None,
    synthetic: Annotated[list[Kind] | None, Parameter(consume_multiple=True, negative="")] = None,
    tasks: Annotated[list[str] | None, Parameter(consume_multiple=True, negative="")] = None,
    data: Path | None = None,
    split: str = "train",
    leave_out: Path | None = None,
    limit: int = 20_000,
    steps: int = 1000,
    learning_rate: float = 0.01,
    wise_ft_alpha: float = 1.0,
    max_rank: int | None = None,
    seed: int = 0,
    device: str = "auto",
    json: Annotated[bool, Parameter(name="--json", negative="")] = False,
) -> None:
    """Fit a model to a corpus in minutes; its index stays as it is.

    Only what makes the queries of layer b is trained, on prompts that are made from the passages,
    and on your own questions if you have any. A part of the prompts, the first of each kind, is
    held back, and what is found for these before and after is shown. An interrupted call does not
    begin anew with most of the work, what layers 0 to b make of the prompts, when the same command
    is given again.

    Figures of fewer than 50 prompts mean little, and prompts made from passages are easier than
    people's questions: bring some by `--tasks`.

    For example:

    - `imprag adapt --out adapted` fits the default model to its own corpus.
    - `imprag adapt --index my-index --out my-model`
    - `imprag adapt --index my-index --tasks nq=my-questions.jsonl --out my-model`
    - `imprag adapt --data factbook-bench --tasks factbook/qa --leave-out factbook-bench --out run`

    Args:
        out: The model folder to make, for `--model` of every other command.
        model: The model: `default`, a folder, a GGUF file or a Hugging Face id.
        index: An index folder made by `imprag index` with the same model, or with one that this
            command made of it.
        synthetic: What prompts are made from the passages; all of these if not given.
        tasks: Questions with the passages that answer them, as for `imprag eval`.
        data: A benchmark folder for `--tasks`.
        split: Of the benchmark, or of a data set on the hub.
        leave_out: A benchmark folder; passages about what it holds out for dev and test are left
            out altogether, so that its figures stay those of unknown passages.
        limit: At most so many prompts of each kind and task.
        steps: Steps of 256 prompts each.
        learning_rate: At first; it falls to nothing.
        wise_ft_alpha: Saved weights = (1 - alpha) · initial + alpha · trained. .75 costs this
            corpus little, and keeps more for other passages and prompts.
        max_rank: With a model that is an adapter, the rank of what is added to it.
        seed: Draws prompts.
        device: `cpu`, `cuda`, `cuda:1` ...
        json: Print the results as one JSON object.
    """
    from imprag.io.optional import require

    require("training", "train", "pydantic", "accelerate")
    from dataclasses import asdict
    from typing import get_args

    from imprag.evaluation.tables import markdown_table
    from imprag.io.locking import new_folder
    from imprag.model.adapter import SETTINGS
    from imprag.model.compact import can_be_changed, write_changed_adapter
    from imprag.model.fitted import write_fitted_index
    from imprag.model.load import DEFAULT, DEFAULT_FOLDER, save_pretrained
    from imprag.pipeline import ImpRAG
    from imprag.tasks import read_tasks
    from imprag.training.adapt import FEWEST_PROMPTS, query_projection, usable
    from imprag.training.adapt import adapt as run_adaptation
    from imprag.training.data import (
        TrainingSource,
        not_held_out,
        retrieval_examples,
        synthetic_examples,
    )
    from imprag.training.recipe import TeacherSettings

    kept = out.with_name(f"{out.name}.inputs")
    with new_folder(out):
        rag = ImpRAG.from_pretrained(model, index, dtype="float32", device=device)
        folder = rag.index
        corpus = folder.corpus
        keep = not_held_out({} if leave_out is None else {str(leave_out): {"train"}})
        left_out: frozenset[int] = frozenset()
        if leave_out is not None:
            left_out = frozenset(n for n, passage in enumerate(corpus) if not keep(passage))
        sources = []
        for found in read_tasks(tasks, data=data, split=split) if tasks else ():
            found = found.draw(limit, seed)
            examples = retrieval_examples(found, corpus, None, TeacherSettings(), "gold")
            sources.append(TrainingSource(found.task.name, examples))
        for kind in synthetic or get_args(Kind):
            examples = synthetic_examples(kind, corpus, limit=limit, seed=seed, keep=keep)
            source = usable(TrainingSource(kind, examples), left_out)
            if synthetic or len(source.examples) >= FEWEST_PROMPTS:
                sources.append(source)
            elif examples:
                print(f"note: {kind} left out, for want of prompts", file=sys.stderr)
        if not sources:
            raise ImpRAGError(
                "the passages give too few prompts; bring some of your own by --tasks"
            )
        name, projection = query_projection(rag.model)
        before = projection.weight.detach().clone()
        recalls = run_adaptation(
            rag.model,
            rag.tokenizer,
            corpus,
            folder.index,
            sources,
            steps=steps,
            learning_rate=learning_rate,
            wise_ft_alpha=wise_ft_alpha,
            seed=seed,
            left_out=left_out,
            kept=kept,
        )
        adapter = DEFAULT_FOLDER if model == DEFAULT else Path(model)
        if (adapter / SETTINGS).is_file() and can_be_changed(adapter):
            change = projection.weight.detach() - before
            write_changed_adapter(adapter, out, name, change.cpu(), max_rank, rag.config)
        else:
            save_pretrained(rag.model, rag.tokenizer, out)
        # Without an index, it was the one that the model brings: its own, or the built-in corpus'.
        write_fitted_index(out, index or rag.fitted_index)
        kept.unlink(missing_ok=True)
    notes = _notes(recalls, asked=bool(tasks))
    if json:
        recalled = [asdict(one) for one in recalls]
        print_json({"model": str(out), "recall": recalled, "notes": notes})
        return
    print(
        markdown_table(
            ["kind of prompt", "held back", "R@1 before", "after", "R@10 before", "after"],
            [
                [
                    one.source,
                    f"{one.prompts:,}",
                    *(f"{100 * share[n]:.1f}" for n in (0, 1) for share in (one.before, one.after)),
                ]
                for one in recalls
            ],
        ),
        end="",
    )
    for note in notes:
        print(f"note: {note}", file=sys.stderr)
    print(f"model: {out}", file=sys.stderr)


def _notes(recalls: "Sequence[SourceRecall]", *, asked: bool) -> list[str]:
    """What the table does not tell.

    Args:
        recalls: the table.
        asked: whether people's questions are among the prompts.
    """
    notes = []
    if few := [one for one in recalls if one.prompts < MEANINGFUL]:
        counts = ", ".join(f"{one.source} ({one.prompts:,})" for one in few)
        notes.append(
            f"fewer than {MEANINGFUL} prompts were held back of {counts}: these figures mean little"
        )
    if not asked:
        notes.append(
            "all prompts were made from the passages; questions that people ask, given by --tasks, "
            "tell more of what they will find"
        )
    return notes
