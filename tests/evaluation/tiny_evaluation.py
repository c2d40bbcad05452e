"""A tiny model, corpus and tasks for evaluations."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from conftest import tiny_lm, tiny_tokenizer
from imprag.corpus import Corpus, Passage
from imprag.evaluation.run_folder import RunFolder
from imprag.evaluation.scoring import summarize
from imprag.index.folder import IndexFolder
from imprag.model import ImpRAGConfig, ImpRAGModel
from imprag.pipeline import ImpRAG
from imprag.tasks import Answer, Example, TaskExamples, load_task

COUNT = 24
# Two passages of every page, so that pages and passages are not the same.
PASSAGES = [
    Passage(f"p {n}", f"page {n // 2}", " ".join(f"w{(5 * n + i) % 94}" for i in range(8)))
    for n in range(COUNT)
]


def make_corpus(folder: Path) -> Corpus:
    return Corpus.build(PASSAGES, folder, source="tiny passages")


def make_rag(corpus: Corpus, folder: Path, seed: int = 0) -> ImpRAG:
    config = ImpRAGConfig(base_model="tiny", b=1, t=3, k=3, max_passage_tokens=16)
    rag = ImpRAG(ImpRAGModel(tiny_lm(seed=seed), config), tiny_tokenizer())
    index = IndexFolder.build(corpus, rag.encoder, folder, progress=False)
    return ImpRAG(rag.model, rag.tokenizer, index)


def example(id: str, text: str, answers: Sequence[str], *gold: str) -> Example:
    first, *others = answers
    proof = [{"passage_id": passage_id} for passage_id in gold]
    return Example(id, text, [Answer(first, proof), *map(Answer, others)])


def make_tasks(rag: ImpRAG) -> list[TaskExamples]:
    """One-hop questions, some of them answered correctly, two-hop questions, statements, and
    questions without gold passages."""
    nq = load_task("nq")
    questions = [
        example(f"q{n}", f"w{n} w{3 * n}", [f"w{n + 40} w{n + 41}", "none"], f"p {n}")
        for n in range(11)
    ]
    answers = rag.generate([nq.prompt(one) for one in questions], max_new_tokens=nq.max_new_tokens)
    for n in range(0, len(questions), 3):
        questions[n] = example(f"q{n}", questions[n].input, [answers[n].text], f"p {n}")
    two_hop = [
        example(f"h{n}", f"w{n + 3} w{n}", [f"w{n + 7}"], f"p {n}", f"p {n + 1}") for n in range(5)
    ]
    statements = [example(f"q{n}", f"w{n + 1}", ["True"], f"p {n}", "p 20") for n in range(3)]
    unlinked = [example(f"s{n}", f"w{n + 9}", [f"w{n + 50}"]) for n in range(3)]
    return [
        TaskExamples(nq, questions, "tiny questions"),
        TaskExamples(load_task("hotpotqa"), two_hop, "tiny two-hop questions"),
        TaskExamples(load_task("fever"), statements, "tiny statements"),
        TaskExamples(load_task("simpleqa"), unlinked, "tiny unlinked questions"),
    ]


def read_predictions(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "predictions.jsonl").read_text().splitlines()]


def write_run(run: Path, predictions: Sequence[dict[str, Any]]) -> RunFolder:
    """A finished run with these predictions, without a model."""
    folder = RunFolder.start(run, {"passages": {"from": "bm25"}}, {})
    defaults = {"prompt": "?", "answers": ["x"], "gold": [], "passages": [], "hit_ranks": {}}
    folder.append([{**defaults, **prediction} for prediction in predictions])
    folder.write_results({"format_version": 1, "tasks": summarize(folder.predictions())})
    return folder
