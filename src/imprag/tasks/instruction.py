"""Instruction-tuning datasets: the prompt contains all texts, and nothing is retrieved."""

import math
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping

from imprag.tasks.example import Example, answers
from imprag.tasks.records import Record
from imprag.tasks.task import Reader, Task, register_task

READING = "{context} Q: {input} A:"
SUMMARY = "{input} Summarize this article:"
DIALOGUE = "{input}"


def _example(
    id: str, text: str, found: Iterable[str], meta: Mapping[str, str]
) -> Iterator[Example]:
    """Yield the example, unless its text or answers are empty, as in some datasets."""
    output = answers(found)
    if text.strip() and output:
        yield Example(id, text, output, meta)


def read_coqa(records: Iterable[Record]) -> Iterator[Example]:
    """CoQA's JSON or its Hugging Face rows, which have no ids.

    A question's context includes the turns before it, because it may refer to them.
    """
    for number, record in enumerate(records, 1):
        id = record.identifier("id") if "id" in record else f"coqa-{number}"
        questions = record.items_of("questions")
        if not all(isinstance(question, str) for question in questions):
            questions = [question.text("input_text") for question in record.records("questions")]
        # The development set has answers by three more people.
        people = [record.records("answers")]
        if record.get("additional_answers"):
            more = record.record("additional_answers")
            people += [more.records(person) for person in more]
        if any(len(replies) != len(questions) for replies in people):
            raise record.error("answers", f"{len(questions)} answers, one for each question")
        context = record.text("story")
        for turn, question in enumerate(questions):
            texts = [replies[turn].text("input_text") for replies in people]
            yield from _example(f"{id}-{turn + 1}", question, texts, {"context": context})
            context += f" Q: {question} A: {texts[0]}"


def read_drop(records: Iterable[Record]) -> Iterator[Example]:
    """DROP's JSON: passages with question-answer pairs; an answer is a number, a date or spans."""
    for record in records:
        context = record.text("passage")
        for pair in record.records("qa_pairs"):
            validated = pair.records("validated_answers") if "validated_answers" in pair else []
            texts = [_drop_answer(answer) for answer in [pair.record("answer"), *validated]]
            id, question = pair.identifier("query_id"), pair.text("question")
            yield from _example(id, question, texts, {"context": context})


def _drop_answer(answer: Record) -> str:
    if answer.get("number") not in (None, ""):
        return answer.identifier("number")
    if answer.get("spans"):
        return ", ".join(answer.texts("spans"))
    date = answer.record("date") if answer.get("date") else {}
    return " ".join(str(date[part]) for part in ("day", "month", "year") if date.get(part))


def read_newsqa(records: Iterable[Record]) -> Iterator[Example]:
    """NewsQA's combined JSON. Questions without a consensus on a span of the story are skipped."""
    for record in records:
        story = record.text("text")
        for number, question in enumerate(record.records("questions"), 1):
            consensus = question.record("consensus")
            if consensus.get("badQuestion") or consensus.get("noAnswer"):
                continue
            answer = story[consensus.integer("s") : consensus.integer("e")].strip()
            id = f"{record.identifier('storyId')}-{number}"
            meta = {"context": story.strip(), "type": record.text("type")}
            yield from _example(id, question.text("q"), [answer], meta)


def read_pubmedqa(records: Iterable[Record]) -> Iterator[Example]:
    """PubMedQA's ``ori_pqal.json``, keyed by PubMed id, or its rows: yes, no or maybe."""
    for record in records:
        if "pubid" in record:
            id, question = record.identifier("pubid"), record.text("question")
            context = record.record("context").texts("contexts")
        else:
            id, question = record.identifier("id"), record.text("QUESTION")
            context = record.texts("CONTEXTS")
        answer = record.text("final_decision")
        yield from _example(id, question, [answer], {"context": " ".join(context)})


def read_quail(records: Iterable[Record]) -> Iterator[Example]:
    """QuAIL's JSONL or its Hugging Face rows. The answer is the text of the correct choice."""
    for record in records:
        choices, right = record.texts("answers"), record.integer("correct_answer_id")
        if right >= len(choices):
            raise record.error("correct_answer_id", f"a number below {len(choices)}")
        id, question = record.identifier("id"), record.text("question")
        yield from _example(id, question, [choices[right]], {"context": record.text("context")})


def read_squad_v2(records: Iterable[Record]) -> Iterator[Example]:
    """SQuAD's JSON or its Hugging Face rows. Questions without an answer are skipped."""
    for record in records:
        if "paragraphs" in record:
            for paragraph in record.records("paragraphs"):
                for question in paragraph.records("qas"):
                    yield from _squad_question(question, paragraph.text("context"))
        else:
            yield from _squad_question(record, record.text("context"))


def _squad_question(record: Record, context: str) -> Iterator[Example]:
    texts = [answer.text("text") for answer in record.records("answers")]
    id, question = record.identifier("id"), record.text("question")
    yield from _example(id, question, texts, {"context": context})


def read_cnn_dailymail(records: Iterable[Record]) -> Iterator[Example]:
    """CNN/DailyMail rows: ``id``, ``article``, ``highlights``."""
    for record in records:
        summary = " ".join(record.text("highlights").split())
        yield from _example(record.identifier("id"), record.text("article"), [summary], {})


def read_oasst1(records: Iterable[Record]) -> Iterator[Example]:
    """oasst1's message trees (``.trees.jsonl.gz``), or flat messages as on Hugging Face.

    Every prompter message with a reply gives an example. Its input is the dialogue up to that
    message, and its answer is the reply that people ranked best.
    """
    replies: dict[str | None, list[Record]] = defaultdict(list)
    for record in records:
        for message in _messages(record) if "prompt" in record else [record]:
            if not message.get("deleted"):
                replies[message.get("parent_id")].append(message)
    open_turns = [(root, root.text("text")) for root in reversed(replies[None])]
    while open_turns:
        message, dialogue = open_turns.pop()
        ranked = sorted(replies.pop(message.text("message_id"), []), key=_rank)
        if ranked and message.text("role") == "prompter":
            id, reply = message.text("message_id"), ranked[0].text("text")
            yield from _example(id, dialogue, [reply], {"lang": message.text("lang")})
        open_turns += [(reply, f"{dialogue} {reply.text('text')}") for reply in reversed(ranked)]


def _messages(tree: Record) -> Iterator[Record]:
    """The messages of a tree, each with its parent's id."""
    pending = [Record({**tree.record("prompt"), "parent_id": None}, f"{tree.place}, prompt")]
    while pending:
        message = pending.pop()
        yield message
        for reply in reversed(message.records("replies") if message.get("replies") else []):
            reply["parent_id"] = message.text("message_id")
            pending.append(reply)


def _rank(reply: Record) -> float:
    """The rank of a reply, 0 being the best. Replies without one come last, in file order."""
    return math.inf if reply.get("rank") is None else reply.integer("rank")


def _register(name: str, template: str, reader: Reader, metric: str, max_new_tokens: int) -> None:
    register_task(
        Task(
            name,
            template,
            reader=reader,
            metric=metric,
            retrieval=False,
            max_new_tokens=max_new_tokens,
        )
    )


_register("oasst1", DIALOGUE, read_oasst1, "f1", 256)
_register("coqa", READING, read_coqa, "f1", 32)
_register("drop", READING, read_drop, "f1", 32)
_register("newsqa", READING, read_newsqa, "f1", 32)
_register("pubmedqa", READING, read_pubmedqa, "accuracy", 8)
_register("quail", READING, read_quail, "exact_match", 32)
_register("squad_v2", READING, read_squad_v2, "f1", 32)
_register("cnn_dailymail", SUMMARY, read_cnn_dailymail, "f1", 128)
