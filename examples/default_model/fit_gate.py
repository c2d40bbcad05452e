"""Fits the gate of hybrid retrieval on several corpora, and says what it finds on prompts left out.

    python examples/default_model/fit_gate.py gate.yaml --model default --out gate.json

The file names the corpora. Some should be texts that the model was trained on, some should not:

    factbook:
      data: factbook-bench
      split: dev
      tasks: [factbook/qa, factbook/aida]
    wiki:
      index: wiki-index
      tasks: [squad=squad-dev.jsonl, nq=nq-dev.jsonl]

Questions are asked in their task's template and as they are; two-hop questions of a model that
retrieves at a separator in the template, and then up to the separator. ``--out`` gets the gate, to
be copied into ``imprag.json`` as "gate".
"""

import argparse
import json
import random
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from imprag import ImpRAG
from imprag.errors import ImpRAGError
from imprag.retrieval.gate import Gate
from imprag.retrieval.hybrid import HybridRetriever
from imprag.tasks import Example, Task, read_tasks
from imprag.training.gate import GateExample, fit_gate, hits

PLAIN = ("squad", "nq", "popqa", "hotpotqa", "factbook/qa", "factbook/qa_unseen", "wiki10k/qa")
# Counted words weigh a million times more than the model's own score.
WORDS = Gate(implicit={"bias": -14}, lexical={"bias": 0})
Examples = dict[str, list[GateExample]]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("corpora", type=Path)
    parser.add_argument("--model", default="default")
    parser.add_argument("--limit", type=int, default=100, help="prompts of each task")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    if options.out.exists():
        parser.error(f"{options.out} exists already; delete it or choose another name")
    try:
        named = yaml.safe_load(options.corpora.read_text())
        if not isinstance(named, dict) or not all(isinstance(one, dict) for one in named.values()):
            parser.error(f"{options.corpora} maps no names to corpora, as above")
        options.out.parent.mkdir(parents=True, exist_ok=True)
        corpora = {
            name: collect(options.model, corpus, options.limit) for name, corpus in named.items()
        }
    except (ImpRAGError, OSError, yaml.YAMLError) as error:
        parser.error(str(error))
    print(f"{'':28}{'implicit':>14}{'lexical':>14}{'fixed 0.5':>14}{'gate':>14}   recall@1/@10")
    halves = [half(corpora, 0), half(corpora, 1)]
    gates = [fit_gate(halves[1]), fit_gate(halves[0])]  # each half is measured by the other's gate
    for name, tasks in corpora.items():
        for task in tasks:
            report(f"{name} {task}", [h[name][task] for h in halves], gates)
    for name in corpora:
        others = {other: tasks for other, tasks in corpora.items() if other != name}
        if others:
            left_out = [one for task in corpora[name].values() for one in task]
            report(f"{name}, fitted on the others", [left_out], [fit_gate(others)])
    options.out.write_text(json.dumps(fit_gate(corpora).to_json(), indent=2) + "\n")


def collect(model: str, corpus: dict[str, Any], limit: int) -> Examples:
    """The examples of a corpus by task."""
    index = corpus.get("index")
    rag = ImpRAG.from_pretrained(
        model, index, retrieval="hybrid", lexical_weight=1, dtype="float32"
    )
    retriever = rag.retriever
    assert isinstance(retriever, HybridRetriever)
    data = None if "data" not in corpus else Path(corpus["data"])
    found: Examples = {}
    for tasks in read_tasks(corpus["tasks"], data=data, split=corpus.get("split")):
        drawn = [one for one in tasks.draw(limit, seed=0).examples if one.gold_ids]
        separator = rag.config.schedule().separator
        for name, questions in forms(tasks.task, drawn, separator).items():
            candidates = retriever.candidates([prompt for prompt, _ in questions])
            gold = [frozenset(rag.corpus.rows(ids)) for _, ids in questions]
            found[name] = [GateExample(*pair) for pair in zip(candidates, gold, strict=True)]
            print(f"{name}: {len(questions)} prompts", flush=True)
    return found


def forms(
    task: Task, examples: Sequence[Example], separator: str | None
) -> dict[str, list[tuple[str, list[str]]]]:
    """Prompts with their gold passages, by the name of the form in which they ask.

    Args:
        task: of all examples.
        examples: each with a gold passage.
        separator: where the model retrieves the second passage of a two-hop question, if it does.
    """
    made: dict[str, list[tuple[str, list[str]]]] = defaultdict(list)
    for one in examples:
        prompt, hops = task.prompt(one), one.hops
        if separator is None or hops is None:
            made[task.name].append((prompt, list(one.gold_ids)))
            if task.name in PLAIN:
                made[f"{task.name} plain"].append((one.input, list(one.gold_ids)))
            continue
        made[f"{task.name} first hop"].append((prompt, list(hops.first)))
        second = (hops.named(prompt, separator), list(hops.second))
        made[f"{task.name} second hop"].append(second)
    return made


def half(corpora: dict[str, Examples], which: int) -> dict[str, Examples]:
    def chosen(examples: list[GateExample]) -> list[GateExample]:
        order = random.Random(0).sample(range(len(examples)), len(examples))
        return [examples[n] for n in order[which::2]]

    return {name: {t: chosen(e) for t, e in tasks.items()} for name, tasks in corpora.items()}


def report(name: str, parts: list[list[GateExample]], gates: list[Gate]) -> None:
    cells = []
    for choice in ([Gate()] * 2, [WORDS] * 2, [Gate.fixed(0.5)] * 2, gates):
        found = [hits(one, choice[n]) for n, part in enumerate(parts) for one in part]
        cells.append("{:>8.3f}/{:.3f}".format(*np.mean(found, axis=0)))
    print(f"{name:28}" + "".join(f"{cell:>14}" for cell in cells), flush=True)


if __name__ == "__main__":
    main()
