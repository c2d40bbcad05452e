"""The evaluation runner: runs a system on all examples of tasks and writes a run folder."""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

from imprag.corpus import Corpus
from imprag.errors import ImpRAGError
from imprag.evaluation.exports import write_kilt, write_trec
from imprag.evaluation.passage_sources import PassageSource, Question, own_retrieval
from imprag.evaluation.report import require_packages, write_report
from imprag.evaluation.run_folder import Prediction, RunFolder
from imprag.evaluation.scoring import (
    RECALL_DEPTHS,
    hit_ranks,
    page_of,
    score_all_retrievals,
    score_answer,
    score_retrieval,
    summarize,
)
from imprag.evaluation.visible import visible_characters
from imprag.io.files import expand_home
from imprag.io.locking import only_builder
from imprag.model.chat import ChatPrompt
from imprag.model.schedule import PassagesKept, RetrievalSchedule
from imprag.retrieval.retriever import LOGITS
from imprag.tasks import TaskExamples

if TYPE_CHECKING:
    from imprag.generation import Answer
    from imprag.pipeline import ImpRAG
    from imprag.retrieval.retriever import RetrievedPassage

FORMAT_VERSION = 1


def evaluate(
    rag: "ImpRAG | None",
    tasks: Sequence[TaskExamples],
    out: Path | str,
    *,
    source: PassageSource | None = None,
    k: int | None = None,
    in_context: bool = False,
    retrieve: str | None = None,
    passages_kept: PassagesKept | None = None,
    chat: bool = False,
    limit: int | None = None,
    seed: int = 0,
    batch_size: int = 8,
    name: str | None = None,
) -> dict[str, Any]:
    """Evaluate a system on tasks; a rerun after an interruption continues where it stopped.

    If a model retrieves or reads, an answer counts as retrieved only in the part of a passage that
    the model sees: its first ``max_passage_tokens`` tokens.

    Retrievers return 100 passages, which recall is measured on, and the first ``k`` are read. So
    layers 0..b run twice if the model itself retrieves; the answers equal those of one pass.

    Args:
        rag: the model that answers; without one, only retrieval is measured.
        tasks: the tasks and examples, from :func:`imprag.tasks.read_tasks`.
        out: the run folder.
        source: the source of passages; by default the model's own retrieval. With
            ``gold_passages`` of `imprag.evaluation.passage_sources`, examples without gold passages
            are left out.
        k: number of passages to read; by default the model's own setting.
        in_context: put the passages' texts before the prompt (in-context RAG), instead of reading
            them in layers b..t.
        retrieve, passages_kept: when answers retrieve again, as in :meth:`ImpRAG.generate`; only
            from the model's own index. After a separator (``on:;``) follows the answer that is
            scored, or the answer to the last hop. Recall over all retrievals of a prompt is
            ``all_passage_recall@d`` for d up to k.
        chat: put each prompt into the model's chat template, as in :meth:`ImpRAG.generate`.
        limit: largest number of examples of each task, sampled by ``seed``; by default all.
        seed: seed of ``limit``.
        batch_size: number of prompts in a batch.
        name: name of the model in the report; by default its base model's.

    Returns:
        the content of ``results.json``: under ``tasks``, for each task, ``n`` and ``metrics``, each
        with ``mean``, ``low`` and ``high`` (95 % bootstrap interval) and ``n``.

    Raises:
        ImpRAGError: the run folder holds another run, a gold passage is not in the corpus, a
            prompt is too long, or the arguments contradict each other.
    """
    require_packages()
    out = expand_home(out)
    for argument, value in (("k", k), ("limit", limit), ("batch_size", batch_size)):
        if value is not None and value < 1:
            raise ImpRAGError(f"{argument} must be at least 1, not {value}")
    check_distinct(tasks)
    if source is None and rag is not None:
        source = own_retrieval(rag)
    if source is None or (rag is None and not source.ranks):
        raise ImpRAGError("there is nothing to measure: give a model, or a retriever that ranks")
    if rag is None and (k is not None or in_context):
        raise ImpRAGError(
            "without a model, only retrieval is measured: leave out k and in_context; recall is "
            f"always measured at {', '.join(map(str, RECALL_DEPTHS))}"
        )
    if chat and rag is None and source.name not in LOGITS:
        raise ImpRAGError("chat is for a model's prompts, but no model retrieves or answers")
    if rag is None or source.corpus is None:
        k = 0  # there is no reader, or nothing to read
    elif k is None:
        k = rag.config.passages_to_read(None, len(source.corpus))
    schedule = RetrievalSchedule()
    if rag is not None:
        asks_again = source.asks_again and not in_context
        schedule = rag.config.schedule(retrieve, passages_kept, retrieves=asks_again)
    if (rag is None and retrieve is not None) or (schedule.again and not source.asks_again):
        raise ImpRAGError(
            "retrieve is for answers of a model that searches its own index: leave it out, or the "
            "other source of passages"
        )
    if schedule.again and in_context:
        raise ImpRAGError("retrieve has no effect with in_context: leave one of them out")
    system = _System(rag, source, k, in_context, schedule)
    # Sampled before examples without gold passages are left out, so that runs can be compared.
    tasks = [item.draw(limit, seed) for item in tasks]
    if source.corpus is not None and not source.ranks:
        tasks = [_with_gold(item) for item in tasks]
    pages = gold_pages(tasks, source.corpus)
    asked = ChatPrompt if chat else str
    questions = [
        [
            Question(item.task, example, asked(item.task.prompt(example)))
            for example in item.examples
        ]
        for item in tasks
    ]
    system.check(questions)
    settings = {
        "tasks": {item.task.name: _task_settings(item) for item in tasks},
        "limit": limit,
        "seed": seed,
        **system.settings(name),
    }
    if chat:
        settings["chat"] = True
    environment: dict[str, Any] = {"batch_size": batch_size}
    if rag is not None:
        environment["device"] = str(rag.model.device)
    with only_builder(out):
        run = RunFolder.start(out, settings, environment)
        batches = [
            group[start : start + batch_size]
            for group in questions
            for start in range(0, len(group), batch_size)
        ]
        finished = run.resume(batches)
        with tqdm(
            desc="evaluating",
            unit=" examples",
            total=sum(map(len, batches)),
            initial=sum(map(len, batches[:finished])),
            disable=None,
        ) as bar:
            for batch in batches[finished:]:
                run.append(system.predict(batch, pages))
                bar.update(len(batch))
        return _conclude(run, source)


class _System:
    """The evaluated system: a source of passages and optionally a model that reads k of them."""

    def __init__(
        self,
        rag: "ImpRAG | None",
        source: PassageSource,
        k: int,
        in_context: bool,
        schedule: RetrievalSchedule,
    ) -> None:
        self.rag = rag
        self.source = source
        self.k = k
        self.in_context = in_context
        self.schedule = schedule
        self.separated = schedule
        if rag is not None and schedule.separator is None:
            self.separated = rag.config.schedule()
        self.depth = k
        self.visible = source.visible
        if rag is not None and self.visible is None:
            self.visible = visible_characters(rag)
        if source.ranks and source.corpus is not None:
            self.depth = min(max(k, *RECALL_DEPTHS), len(source.corpus))
            if k > self.depth:
                raise ImpRAGError(f"k is {k}, but the corpus has only {self.depth} passages")

    def check(self, questions: Sequence[Sequence[Question]]) -> None:
        """Raise early the errors that would stop the run in the middle."""
        if self.rag is None:
            for task, *_ in (group[0] for group in questions):
                if not task.retrieval:
                    raise ImpRAGError(f"task '{task.name}' retrieves nothing; it needs a model")
            return
        from imprag.model.text import prompt_tokens

        positions = self.rag.model.positions_limit
        passages = self.rag.config.position_shift(self.k)
        for task, example, prompt in (question for group in questions for question in group):
            try:
                prompt_tokens(
                    self.rag.tokenizer, [prompt], positions - passages - task.max_new_tokens
                )
            except ImpRAGError as error:
                raise ImpRAGError(f"task '{task.name}', example '{example.id}': {error}") from error

    def settings(self, name: str | None) -> dict[str, Any]:
        """The system's settings for the run's recipe.

        Args:
            name: the model's name.
        """
        passages = {"from": self.source.name, **self.source.details}
        if self.source.ranks:
            passages["depth"] = self.depth
            seen = "what the model sees" if self.visible else "whole passages"
            passages["answers_looked_for_in"] = seen
        if (corpus := self.source.corpus) is not None:
            passages["corpus"] = {
                "source": corpus.manifest["source"],
                "passages": len(corpus),
                "fingerprint": corpus.fingerprint[:16],
            }
        if self.rag is None:
            return {"passages": passages}
        from imprag.model.fingerprint import model_fingerprint

        lm, config = self.rag.model.lm, dataclasses.asdict(self.rag.config)
        for other in (
            "base_model",
            "base_model_fingerprint",
            "format_version",
            "k",
            "question_template",
            "retrieve",
            "passages_kept",
        ):
            del config[other]
        model = {
            "source": name or self.rag.config.base_model,
            "weights": model_fingerprint(lm, self.rag.tokenizer),
            "dtype": str(lm.dtype).removeprefix("torch."),
            **config,
        }
        reading: dict[str, Any] = {"k": self.k, "in_context": self.in_context}
        if self.schedule.again:
            reading["retrieve"] = str(self.schedule)
            reading["passages_kept"] = self.schedule.kept
        if self.separated.separator is not None:
            reading["answer_after"] = self.separated.separator
        if (store := self.rag.kv_cache.store) is not None:
            reading["kv_cache"] = {"codec": store.codec.name, "kv_keep_ratio": store.kv_keep_ratio}
        return {"passages": passages, "reading": reading, "model": model}

    def predict(self, batch: Sequence[Question], pages: Mapping[str, str]) -> list[Prediction]:
        """The predictions for a batch of questions of one task, with their scores."""
        task = batch[0].task
        found = self.source.find(batch, self.depth) if task.retrieval else [[] for _ in batch]
        predictions = []
        for question, passages in zip(batch, found, strict=True):
            example = question.example
            evidence = example.evidence_sets(joint=task.joint_evidence) if task.retrieval else []
            prediction: Prediction = {
                "task": task.name,
                "id": example.id,
                "prompt": question.prompt,
                "answers": example.answers,
                "gold": [sorted(ids) for ids in evidence],
                "relevance": example.relevance if evidence else {},
                "passages": [self._found(item) for item in passages],
                "hit_ranks": {},
                "metrics": {},
            }
            if self.source.ranks and task.retrieval:
                texts = [
                    item.passage.text[: entry.get("visible")]
                    for item, entry in zip(passages, prediction["passages"], strict=True)
                ]
                prediction["hit_ranks"] = hit_ranks(task, example, passages, texts)
                prediction["metrics"] = score_retrieval(task, example, passages, pages, texts)
            predictions.append(prediction)
        if self.rag is not None:
            answers = self._answers(self.rag, batch, [passages[: self.k] for passages in found])
            for question, prediction, answer in zip(batch, predictions, answers, strict=True):
                prediction["answer"] = answer.text
                last = self.separated.last_part(answer.text)
                prediction["metrics"] |= score_answer(task, question.example, last)
                if answer.confidence is not None and answer.evidence is not None:
                    prediction["confidence"] = round(answer.confidence, 6)
                    prediction["evidence"] = {
                        name: round(value, 6) for name, value in answer.evidence.items()
                    }
                if self.schedule.again and task.retrieval:
                    self._note_retrievals(question, prediction, answer)
        return predictions

    def _note_retrievals(
        self, question: Question, prediction: Prediction, answer: "Answer"
    ) -> None:
        """Add what later tokens retrieved, and the recall of all retrievals."""
        prediction["retrievals"] = [
            {
                "tokens": one.tokens,
                "written": one.written,
                "passages": [self._found(item) for item in one.passages],
            }
            for one in answer.retrievals
        ]
        first = answer.passages[: self.k]
        found = [first, *(one.passages for one in answer.retrievals)]
        scores = score_all_retrievals(question.task, question.example, found, self.k)
        prediction["metrics"] |= scores

    def _found(self, item: "RetrievedPassage") -> dict[str, Any]:
        """A passage in a prediction, with its number of ``visible`` characters if truncated."""
        entry: dict[str, Any] = {"id": item.passage.id, "score": round(item.score, 6)}
        if self.visible is not None:
            characters = self.visible(item.passage)
            if characters < len(item.passage.text):
                entry["visible"] = characters
        return entry

    def _answers(
        self, rag: "ImpRAG", batch: Sequence[Question], read: "list[list[RetrievedPassage]]"
    ) -> "list[Answer]":
        prompts = [question.prompt for question in batch]
        if self.in_context:
            from imprag.model.text import in_context_prompt

            prompts = [
                in_context_prompt(rag.tokenizer, rag.config, [one.passage for one in row], prompt)
                for row, prompt in zip(read, prompts, strict=True)
            ]
            read = [[] for _ in batch]
        # What was read is not known of a prompt that holds the passages.
        judged = rag.config.confidence is not None and not self.in_context
        again: dict[str, Any] = {}
        if self.schedule.again and batch[0].task.retrieval:
            kept = self.schedule.kept
            again = {"k": self.k, "retrieve": str(self.schedule), "passages_kept": kept}
        return rag.generate(
            prompts,
            passages=read,
            **again,
            max_new_tokens=batch[0].task.max_new_tokens,
            batch_size=len(batch),
            raw=True,
            min_confidence=0.0 if judged else None,
        )


def _conclude(run: RunFolder, source: PassageSource) -> dict[str, Any]:
    """Write results, exports and the report of a run with all its predictions."""
    results = {"format_version": FORMAT_VERSION, "tasks": summarize(run.predictions())}
    run.write_results(results)

    @cache
    def page(passage_id: str) -> str:
        assert source.corpus is not None  # a passage was found
        return page_of(source.corpus[source.corpus.rows([passage_id])[0]])

    write_kilt(run, page)
    if source.ranks:
        write_trec(run, source.name)
    write_report(run, source.corpus)
    return results


def check_distinct(tasks: Sequence[TaskExamples]) -> None:
    """Raise an ImpRAGError if a task is given twice."""
    sources: dict[str, str] = {}
    for item in tasks:
        if item.task.name in sources:
            raise ImpRAGError(
                f"task '{item.task.name}' is given twice, by {sources[item.task.name]} and by "
                f"{item.source}; evaluate them one after the other"
            )
        sources[item.task.name] = item.source


def _with_gold(item: TaskExamples) -> TaskExamples:
    if not item.task.retrieval:
        return item
    joint = item.task.joint_evidence
    examples = [example for example in item.examples if example.evidence_sets(joint=joint)]
    if not examples:
        raise ImpRAGError(
            f"task '{item.task.name}': no example in {item.source} names its gold passages; "
            "leave the task out"
        )
    return replace(item, examples=examples)


def gold_pages(tasks: Sequence[TaskExamples], corpus: Corpus | None) -> dict[str, str]:
    """The page of each gold passage.

    Raises:
        ImpRAGError: a gold passage is not in the corpus.
    """
    if corpus is None:
        return {}
    row_of = {
        passage_id: row
        for item in tasks
        for example, rows in zip(item.examples, item.gold_rows(corpus), strict=True)
        for passage_id, row in zip(example.gold_ids, rows, strict=True)
    }
    return {passage_id: page_of(corpus[row]) for passage_id, row in row_of.items()}


def _task_settings(item: TaskExamples) -> dict[str, Any]:
    return {
        "source": item.source,
        "examples": len(item.examples),
        "fingerprint": item.fingerprint(),
        "max_new_tokens": item.task.max_new_tokens,
    }
