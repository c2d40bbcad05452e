"""The knowledge-intensive tasks: passages are retrieved, and the answer is short.

The paper trains on NQ and HotpotQA and tests on NQ, SimpleQA, HotpotQA, 2WikiMultiHopQA, T-REx,
zsRE, FEVER and AIDA. PopQA, SQuAD without its paragraphs, FewRel's relation extraction and other
entity linking datasets use the same prompts.
"""

import re
from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Any

from imprag.tasks.example import Answer, Example, answers
from imprag.tasks.records import Record
from imprag.tasks.task import Task, register_task

QUESTION = "Q: {input} A:"
RELATION = (
    "{input} Provide the answer corresponding to the relation specified after [SEP] "
    "for the entity mentioned before [SEP] A:"
)
STATEMENT = "Is this statement true? {input} A:"
MENTION = (
    "{input} Output the Wikipedia page title of the entity mentioned between [START] and [END] "
    "in the given text A:"
)

_LABELS = {"SUPPORTS": "True", "REFUTES": "False"}
# FEVER writes page titles as the Penn Treebank writes brackets, with underscores for spaces.
_ESCAPES = {"-LRB-": "(", "-RRB-": ")", "-LSB-": "[", "-RSB-": "]", "-COLON-": ":", "_": " "}
_ESCAPE = re.compile("|".join(_ESCAPES))


def read_nq_open(records: Iterable[Record]) -> Iterator[Example]:
    """NQ-open's JSONL: ``question``, ``answer`` (a list). Ids are made from line numbers."""
    for number, record in enumerate(records, 1):
        yield Example(f"nq-{number}", record.text("question"), answers(record.texts("answer")))


def read_simpleqa(records: Iterable[Record]) -> Iterator[Example]:
    """SimpleQA's CSV: ``metadata``, ``problem``, ``answer``. Ids are made from row numbers."""
    for number, record in enumerate(records, 1):
        answer = Answer(record.text("answer"))
        meta = {"metadata": record.text("metadata")}
        yield Example(f"simpleqa-{number}", record.text("problem"), [answer], meta)


def read_2wiki(records: Iterable[Record]) -> Iterator[Example]:
    """2WikiMultiHopQA's JSON. The provenance holds the titles of the supporting facts."""
    for record in records:
        facts: Any = record.get("supporting_facts")
        if isinstance(facts, dict):  # as Hugging Face stores it
            titles = record.record("supporting_facts").texts("title")
        elif isinstance(facts, list) and all(isinstance(f, list) and len(f) == 2 for f in facts):
            titles = [str(title) for title, _ in facts]
        else:
            raise record.error("supporting_facts", "a list of pairs [title, sentence number]")
        provenance = [{"title": title} for title in dict.fromkeys(titles)]
        yield Example(
            record.identifier("_id"),
            record.text("question"),
            [Answer(record.text("answer"), provenance)],
            {"type": record.text("type")},
        )


def read_fever(records: Iterable[Record]) -> Iterator[Example]:
    """FEVER's own JSONL. The sentences of an evidence group prove the label together.

    KILT drops claims without enough information; here their label is their answer.
    """
    for record in records:
        label = record.text("label")
        groups = record.items_of("evidence")
        output = []
        for group in groups:
            if not isinstance(group, list) or not all(_is_evidence(item) for item in group):
                raise record.error(
                    "evidence", "lists of [annotation, evidence, page title, sentence number]"
                )
            provenance = [
                {
                    "title": _ESCAPE.sub(lambda match: _ESCAPES[match[0]], page),
                    "sentence_id": number,
                }
                for _, _, page, number in group
                if page is not None
            ]
            output.append(Answer(label, provenance))
        yield Example(
            record.identifier("id"),
            record.text("claim"),
            output or [Answer(label)],
            {"label": label},
        )


def _is_evidence(item: Any) -> bool:
    return isinstance(item, list) and len(item) == 4 and isinstance(item[2], str | None)


def _true_or_false(example: Example) -> Example:
    output = [
        replace(item, answer=_LABELS.get(item.answer, item.answer)) for item in example.output
    ]
    return replace(example, output=output)


def _paper_markers(example: Example) -> Example:
    """Replace KILT's mention marks [START_ENT] and [END_ENT] by the paper's [START] and [END]."""
    text = example.input.replace("[START_ENT]", "[START]").replace("[END_ENT]", "[END]")
    return replace(example, input=text)


register_task(Task("nq", QUESTION, reader=read_nq_open))
register_task(Task("simpleqa", QUESTION, reader=read_simpleqa))
register_task(Task("popqa", QUESTION))
register_task(Task("squad", QUESTION))
register_task(Task("hotpotqa", QUESTION, joint_evidence=True))
register_task(Task("2wiki", QUESTION, reader=read_2wiki, joint_evidence=True))
register_task(Task("trex", RELATION))
register_task(Task("relation_extraction", RELATION))
# Some of zsRE's inputs are plain questions, for which an instruction about [SEP] would mislead.
register_task(Task("zsre", RELATION, plain_template=QUESTION))
register_task(
    Task(
        "fever",
        STATEMENT,
        reader=read_fever,
        metric="accuracy",
        max_new_tokens=8,
        normalize=_true_or_false,
    )
)
register_task(Task("aida", MENTION, normalize=_paper_markers))
register_task(Task("beir", "{input}"))
register_task(Task("entity_linking", MENTION, normalize=_paper_markers))
