"""The tasks of the benchmark, with the paper's prompts.

The first eight stand for the paper's eight tasks. The ninth is for training, so that not all
questions are about countries. Only these nine retrieve passages.
"""

from dataclasses import replace

from imprag.tasks.example import Example
from imprag.tasks.knowledge import MENTION, QUESTION, RELATION, STATEMENT
from imprag.tasks.synthetic import DENOISING, SENTENCE
from imprag.tasks.task import Task


def about_fact(example: Example) -> Example:
    """The example, grouped by the country and the relation that it asks about, if it names them."""
    fact = [example.meta.get(name) for name in ("country", "relation")]
    group = {"group": fact} if all(fact) else {}
    return replace(example, meta={**group, **example.meta})


def about_two_facts(example: Example) -> Example:
    """The example, whose bridge is the country that it describes: the second fact's."""
    example = about_fact(example)
    bridge = example.meta.get("bridge_answer") or example.meta.get("country")
    return replace(example, meta={**example.meta, "bridge_answer": bridge})


QA = Task("factbook/qa", QUESTION, normalize=about_fact)
QA_UNSEEN = Task("factbook/qa_unseen", QUESTION, normalize=about_fact)
TWO_HOP = Task(
    "factbook/two_hop",
    QUESTION,
    joint_evidence=True,
    normalize=about_two_facts,
)
TREX = Task("factbook/trex", RELATION, normalize=about_fact)
ZSRE = Task("factbook/zsre", RELATION, normalize=about_fact)
FEVER = Task("factbook/fever", STATEMENT, metric="accuracy", max_new_tokens=8, normalize=about_fact)
AIDA = Task("factbook/aida", MENTION)
WIKI_AIDA = Task("wiki10k/aida", MENTION)

WIKI_QA = Task("wiki10k/qa", QUESTION)

DENOISE = replace(DENOISING, name="factbook/denoising")
SENTENCES = replace(SENTENCE, name="factbook/next_sentence")
WIKI_DENOISE = replace(DENOISING, name="wiki10k/denoising")
WIKI_SENTENCES = replace(SENTENCE, name="wiki10k/next_sentence")

#: The tasks offered in the entry-point group ``imprag.tasks``.
TASKS = (
    *(QA, QA_UNSEEN, TWO_HOP, TREX, ZSRE, FEVER, AIDA, WIKI_AIDA, WIKI_QA),
    *(DENOISE, SENTENCES, WIKI_DENOISE, WIKI_SENTENCES),
)
