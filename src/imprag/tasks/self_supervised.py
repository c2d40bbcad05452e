"""Self-supervised tasks: prompts with positive passages, made from a corpus (beyond the paper).

A retriever trained only on questions fails on prompts of another form. These tasks make prompts
from the passages of any corpus, and from questions with answers, in many prompt templates, in which
the instruction often comes last. None of the templates belongs to a task of the paper.

An example made from a passage depends on the seed and the passage's id. Mentions and false
statements also depend on the other passages.
"""

import random
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from string import ascii_uppercase

from imprag.corpus.passage import Passage
from imprag.tasks import synthetic
from imprag.tasks.example import Answer, Example
from imprag.tasks.synthetic import example_of, generator_for, split_sentences
from imprag.tasks.task import Task, register_task

CLOZE = register_task(Task("cloze", "Fill in the blank: {input} A:"))
LOOKUP = register_task(Task("lookup", "{input}"))
QUESTION = register_task(Task("question", "{input}"))
ASSERTION = register_task(Task("assertion", "{input}", metric="accuracy", max_new_tokens=8))
KEYWORDS = register_task(Task("keywords", "{input}", metric="f1", max_new_tokens=64))
TITLE = register_task(Task("title", "{input}"))
MENTION = register_task(Task("mention", "{input}", metric="f1"))
STATEMENT = register_task(Task("statement", "{input}", metric="accuracy", max_new_tokens=8))
#: Its examples come from files.
VERIFICATION = register_task(Task("verification", "{input}", metric="accuracy", max_new_tokens=8))

_LOOKUPS = (
    "{entity}, {label}:",
    "{label} of {entity} A:",
    "Entity: {entity}. Attribute: {label}. Value:",
    "{entity} | {label} | Give the missing value. A:",
    "What is noted under {label} for {entity}? A:",
    "{entity}: {label}. Answer with what stands there and nothing else. A:",
    "{entity} / {label} Look up the attribute behind the stroke for what stands before it. A:",
    "Complete the entry: the {label} of {entity} is A:",
    "{label} ({entity}) State the value that belongs to this heading. A:",
    "Fill the table. Row: {entity}. Column: {label}. Cell:",
)
# Many separators, because a model that has seen few takes an unknown one for content.
_SEPARATORS = (
    *("|", "/", "->", "=>", "::", "#", ";", "--", "~", "==", "%", "@", "_", "\\", "<>"),
    *("[OF]", "[FIELD]", "[NEXT]", "[COL]", "[REL]", "[ITEM]", "[TAB]", "[AND]", "[KEY]"),
    *("<of>", "<tab>", "<field>", "</s>", "<|>", "(of)", "(property)", "{key}"),
)
_TASK_MARKS = ("SEP", "START", "END")  # used by the paper's tasks, so never drawn
_INSTRUCTIONS = (
    *("", "A:", "Answer:", "Output:", "Value:"),
    "Give the missing value. A:",
    "Name the value only. A:",
    "Write down what stands there. A:",
    "Reply in a few words. A:",
    "Return the entry that fits. A:",
    "Find what belongs to these two and write it down. A:",
    "Complete the triple. A:",
    "State the fact that is asked for. A:",
    "Use what you read, and say what the second is for the first. A:",
    "What follows {separator} is asked about what precedes {separator}. A:",
    "Behind {separator} stands an attribute, in front of {separator} whose: write its value. A:",
    "{separator} parts a thing and one of its properties; give the property. A:",
    "Read the words on both sides of {separator} as a question and answer it. A:",
    "Tell what the words right of {separator} are for the thing left of {separator}. A:",
)
# In a question the name stands inside the sentence; in a lookup it stands at one end.
_QUESTIONS = (
    "What is the {label} of {entity}?",
    "What is {entity}'s {label}?",
    "What is the {label} in {entity}?",
    "For {entity}, what is the {label}?",
    "Can you tell me the {label} of {entity}?",
    "I would like to know what the {label} of {entity} is.",
    "Which {label} is reported for {entity}?",
    "Regarding {label}, what holds for {entity}?",
    "How much or what is the {label} of {entity}?",
    "When it comes to {entity}, what do we know about {label}?",
    "Who knows the {label} of {entity}?",
    "Look at {entity} and name its {label}.",
    "In {entity}, what is given as {label}?",
    "What does {entity} have as its {label}?",
)
_ASKED = (
    "Q: {question} A:",
    "Q: {question} A:",
    "{question} A:",
    "{question}",
    "Question: {question}\nAnswer:",
    "{question} Answer briefly. A:",
)
_ASSERTIONS = (
    "The {label} of {entity} is {value}.",
    "{entity}'s {label} is {value}.",
    "In {entity}, the {label} is {value}.",
    "{value} is the {label} of {entity}.",
)
_KEYWORDS = (
    "{entity}: {words}",
    "{entity}, {words} What is known about this? A:",
    "Search: {words} {entity} A:",
    "{entity} - {words} Write the sentence about this. A:",
    "Notes: {entity}; {words}. Make a sentence of these notes. A:",
    "Tell me about {words} in connection with {entity}. A:",
)
_TITLES = (
    "{sentence} Which article says this? A:",
    "{sentence} What is this about? Give the name only. A:",
    "Name the subject of this sentence: {sentence} A:",
    "{sentence} Under which heading of an encyclopedia does this belong? A:",
    "Heading for the following text: {sentence} A:",
)
_MARKS = (
    *(("**", "**"), ("_", "_"), (">>", "<<"), ("[[", "]]"), ("{", "}"), ("(( ", " ))")),
    *(("<b>", "</b>"), ("<e>", "</e>"), ("<mark>", "</mark>"), ("<< ", " >>"), ("--> ", " <--")),
    *(("[NAME] ", " [/NAME]"), ("[E1] ", " [/E1]"), ("[OPEN] ", " [CLOSE]"), ("[", "]")),
    *(("[HERE] ", " [THERE]"), ("[FROM] ", " [TO]"), ("@@", "@@"), ("|", "|"), ("# ", " #")),
)
_MENTIONS = (
    'In the text "{text}", what is the name between {begin} and {stop}? A:',
    "{text} Describe what stands between {begin} and {stop}. A:",
    "{text} Explain the marked name in a few words. A:",
    "{text} What is {name}? A:",
    "{text} Say what is marked by {begin} and {stop}. A:",
    "{text} What kind of thing do {begin} and {stop} enclose in this text? A:",
    "Describe what the text marks with {begin} and {stop}: {text} A:",
    "{text} Look the marked entity up and write down the first words about it. A:",
)
# Each template with its answers for a true and for a false statement.
_STATEMENTS = (
    ("{text} True or false? A:", "True", "False"),
    ("Is it true or false that the following holds? {text} A:", "True", "False"),
    ("{text} Say True if this is right and False if it is not. A:", "True", "False"),
    ("Claim: {text} Verdict (True or False):", "True", "False"),
    ("Decide whether this is correct, and answer yes or no: {text} A:", "yes", "no"),
)

_SHORTEST_CLAUSE, _LONGEST_CLAUSE = 6, 40  # words
_LONGEST_VALUE = 12
_LONGEST_DESCRIPTION = 20
_MENTIONED_PASSAGES = 5
_POOL = 500  # the number of spans that false statements draw from
_NAME = r"[A-Z](?:[\w'’-]+|\.)"
_NAMES = rf"{_NAME}(?: (?:(?:of|the|and) )*{_NAME})*"
# A blank hides a number of at least two digits, or a name that does not begin the sentence.
# "(2024 est.)" occurs in too many passages to be worth asking for.
_SALIENT = re.compile(rf"(?<![\w(.,])(?:\d[\d.,]*\d|(?<!^){_NAMES})(?!\w)")
_CONTENT_WORD = re.compile(r"\b(?:[A-Za-z][\w'’-]{5,}|\d{4})\b")
_AFTERTHOUGHT = re.compile(r" \([^()]*\)$")


def cloze(passages: Iterable[Passage], seed: int = 0) -> Iterator[Example]:
    """Yield sentences with a name or number blanked out; the answer is in the passage.

    This is salient span masking (Guu et al. 2020, REALM) with spans found by a pattern. A sentence
    that shares no name with the title is preceded by the title, because it would be ambiguous
    otherwise.
    """
    for passage in passages:
        generator = generator_for(seed, passage, CLOZE)
        if found := _salient_spans(passage):
            sentence, (start, end) = generator.choice(found)
            text = _placed(f"{sentence[:start]}____{sentence[end:]}", passage)
            yield example_of(CLOZE, passage, text, sentence[start:end])


def lookup(passages: Iterable[Passage], seed: int = 0) -> Iterator[Example]:
    """Yield requests for fields by label, from passages whose ``meta["fields"]`` lists them."""
    for passage in passages:
        generator = generator_for(seed, passage, LOOKUP)
        entity = passage.subject
        for label, value in _short_fields(passage):
            prompt_template = generator.choice(_LOOKUPS)
            if generator.random() < 0.5:
                separator = generator.choice((generator.choice(_SEPARATORS), _mark(generator)))
                instruction = generator.choice(_INSTRUCTIONS)
                instruction = instruction.replace("{separator}", separator)
                prompt_template = f"{{entity}} {separator} {{label}} {instruction}".rstrip()
            said = label.replace(": ", ", ")
            text = prompt_template.replace("{entity}", entity).replace("{label}", said)
            yield _about_field(LOOKUP, passage, label, text, value)


def question(passages: Iterable[Passage], seed: int = 0) -> Iterator[Example]:
    """Yield requests for the same fields in whole sentences."""
    for passage in passages:
        generator = generator_for(seed, passage, QUESTION)
        for label, value in _short_fields(passage):
            asked = generator.choice(_QUESTIONS).format(
                label=_said(label, generator), entity=passage.subject
            )
            text = generator.choice(_ASKED).format(question=asked)
            yield _about_field(QUESTION, passage, label, text, value)


def assertion(passages: Iterable[Passage], seed: int = 0) -> Iterator[Example]:
    """Yield sentences that state the same fields: true, or false by an earlier passage's value."""
    pools: dict[str, list[str]] = defaultdict(list)
    for passage in passages:
        generator = generator_for(seed, passage, ASSERTION)
        for label, value in _short_fields(passage):
            prompt_template, answer, false = generator.choice(_STATEMENTS)
            pool = pools[label]
            others = [other for other in pool if other != value]
            _remember(value, pool, generator)
            if others and generator.random() < 0.5:
                value, answer = generator.choice(others), false
            said = generator.choice(_ASSERTIONS).format(
                label=_said(label, generator), entity=passage.subject, value=value
            )
            yield _about_field(ASSERTION, passage, label, prompt_template.format(text=said), answer)


def keywords(passages: Iterable[Passage], seed: int = 0) -> Iterator[Example]:
    """Yield a title with one or two words of a sentence; the sentence is the answer."""
    for passage in passages:
        generator = generator_for(seed, passage, KEYWORDS)
        names = _names(passage.title)
        clauses = _clauses(passage.text)
        if not clauses or not passage.title:
            continue
        sentence = generator.choice(clauses)
        words = [word for word in _CONTENT_WORD.findall(sentence) if word not in names]
        if words:
            first = generator.randrange(len(words))
            chosen = " ".join(words[first : first + generator.randint(1, 2)])
            text = generator.choice(_KEYWORDS).format(entity=passage.subject, words=chosen)
            yield example_of(KEYWORDS, passage, text, sentence)


def title(passages: Iterable[Passage], seed: int = 0) -> Iterator[Example]:
    """Yield sentences that share a name with the title; the title is the answer."""
    for passage in passages:
        generator = generator_for(seed, passage, TITLE)
        names = _names(passage.title)
        clauses = [one for one in _clauses(passage.text) if not names.isdisjoint(_names(one))]
        if clauses:
            text = generator.choice(_TITLES).format(sentence=generator.choice(clauses))
            yield example_of(TITLE, passage, text, passage.subject)


def mention(passages: Iterable[Passage], seed: int = 0) -> Iterator[Example]:
    """Yield sentences with a marked name; a passage about that name begins with the answer."""
    passages = list(passages)
    about: dict[str, list[Passage]] = defaultdict(list)
    for passage in passages:
        if len(passage.subject) > 3:
            about[passage.subject].append(passage)
    for passage in passages:
        generator = generator_for(seed, passage, MENTION)
        found = [
            (sentence, match.span(), match.group())
            for sentence in _clauses(passage.text)
            for match in re.finditer(rf"(?<!^)\b{_NAMES}(?!\w)", sentence)
            if match.group() in about and match.group() != passage.subject
        ]
        if found:
            sentence, (start, end), name = generator.choice(found)
            begin, stop = generator.choice(_MARKS)
            if generator.random() < 0.5:
                begin, stop = f"{_mark(generator)} ", f" {_mark(generator)}"
            text = generator.choice(_MENTIONS).format(
                text=f"{sentence[:start]}{begin}{name}{stop}{sentence[end:]}",
                name=name,
                begin=begin.strip(),
                stop=stop.strip(),
            )
            positives = about[name][:_MENTIONED_PASSAGES]
            words = next(iter(split_sentences(positives[0].text))).split()[:_LONGEST_DESCRIPTION]
            yield Example(
                f"mention-{passage.id}",
                text,
                [Answer(" ".join(words), [{"passage_id": one.id} for one in positives])],
                task="mention",
            )


def statement(passages: Iterable[Passage], seed: int = 0) -> Iterator[Example]:
    """Yield sentences that are true, or false by a name or number of an earlier passage."""
    pools: dict[bool, list[str]] = {True: [], False: []}
    for passage in passages:
        generator = generator_for(seed, passage, STATEMENT)
        found = _salient_spans(passage)
        if not found:
            continue
        sentence, (start, end) = generator.choice(found)
        span = sentence[start:end]
        pool = pools[span[0].isdigit()]
        others = [other for other in generator.sample(pool, min(len(pool), 8)) if other != span]
        _remember(span, pool, generator)
        prompt_template, true, false = generator.choice(_STATEMENTS)
        answer = true
        if others and generator.random() < 0.5:
            # The candidate of the most similar length.
            other = min(others, key=lambda one: abs(len(one) - len(span)))
            sentence, answer = f"{sentence[:start]}{other}{sentence[end:]}", false
        text = prompt_template.format(text=_placed(sentence, passage))
        yield example_of(STATEMENT, passage, text, answer)


#: Makers of examples from passages, by the names of their tasks.
FROM_PASSAGES: dict[str, Callable[[Iterable[Passage], int], Iterator[Example]]] = {
    "cloze": cloze,
    "lookup": lookup,
    "question": question,
    "assertion": assertion,
    "keywords": keywords,
    "title": title,
    "mention": mention,
    "statement": statement,
}


def maker_of(kind: str) -> Callable[..., Iterator[Example]]:
    """The function that makes the examples of a synthetic task, one of these or the paper's."""
    return FROM_PASSAGES.get(kind) or getattr(synthetic, kind)


def _remember(value: str, pool: list[str], generator: random.Random) -> None:
    """Add a value to a pool; in a full pool it replaces a random value."""
    if len(pool) < _POOL:
        pool.append(value)
    else:
        pool[generator.randrange(_POOL)] = value


def _short_fields(passage: Passage) -> Iterator[tuple[str, str]]:
    """Labels and short values of a passage's fields, without a final parenthesis."""
    known = set(passage.meta.get("fields", ()))
    for label, value in _fields(passage.text).items():
        value = _AFTERTHOUGHT.sub("", value).strip()
        short = 0 < len(value.split()) <= _LONGEST_VALUE
        if short and label in known and not label.endswith("note"):
            yield label, value


def _about_field(task: Task, passage: Passage, label: str, text: str, answer: str) -> Example:
    relation = label.replace(": ", ", ")
    return Example(
        f"{task.name}-{passage.id}/{relation}",
        text,
        [Answer(answer, [{"passage_id": passage.id}])],
        {"group": [passage.subject, relation]},
        task=task.name,
    )


def _said(label: str, generator: random.Random) -> str:
    """A label as part of a sentence: "Area: land" becomes "area land" or "land area"."""
    if generator.random() < 0.6:
        label = label[0].lower() + label[1:]
    parts = label.split(": ")
    return " ".join(reversed(parts) if generator.random() < 0.5 else parts)


def _mark(generator: random.Random) -> str:
    """A random mark: a few letters in brackets, but no mark of the paper's tasks."""
    left, right = generator.choice(("[]", "<>", "()", "{}"))
    while True:
        letters = "".join(generator.choices(ascii_uppercase, k=generator.randint(2, 5)))
        if letters not in _TASK_MARKS:
            return f"{left}{letters}{right}"


def _placed(text: str, passage: Passage) -> str:
    """The text, preceded by the passage's title unless they share a name."""
    title = _names(passage.title)
    return f"{passage.title}: {text}" if title and title.isdisjoint(_names(text)) else text


def _salient_spans(passage: Passage) -> list[tuple[str, tuple[int, int]]]:
    """Clauses, each with the span of a name or number that is not in the title."""
    title = _names(passage.title)
    return [
        (clause, match.span())
        for clause in _clauses(passage.text)
        for match in _SALIENT.finditer(clause)
        if title.isdisjoint(_names(match.group()))
    ]


def _names(text: str) -> set[str]:
    """The words that begin with a capital or a digit."""
    return set(re.findall(r"\b[A-Z0-9]\w*", text))


def _clauses(text: str) -> Sequence[str]:
    """Sentences, and parts of lists separated by semicolons, that are neither short nor long."""
    parts = [
        part
        for line in text.splitlines()
        for sentence in split_sentences(line)
        for part in sentence.split("; ")
    ]
    return [part for part in parts if _SHORTEST_CLAUSE <= len(part.split()) <= _LONGEST_CLAUSE]


def _fields(text: str) -> dict[str, str]:
    """The values by label in lines ``Label: value`` and ``Label: part: value; part: value``."""
    found: dict[str, str] = {}
    for line in text.splitlines():
        label, colon, rest = line.partition(": ")
        for part in rest.split("; ") if colon else ():
            inner, nested, value = part.partition(": ")
            found.setdefault(f"{label}: {inner}" if nested else label, value if nested else part)
    return found
