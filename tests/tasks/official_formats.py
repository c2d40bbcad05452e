"""A tiny file of every dataset in its official format, with text made up for the tests.

``FILES`` maps a task to the name and content of its file; ``EXPECTED`` to what its reader must
make of it: input, answers, and the prompt where the paper's template is worth seeing in full.
"""

import csv
import io
import json
from pathlib import Path
from typing import Any


def _page(page: str, title: str, paragraph: int) -> dict[str, Any]:
    return {
        "wikipedia_id": page,
        "title": title,
        "start_paragraph_id": paragraph,
        "start_character": 4,
        "end_paragraph_id": paragraph,
        "end_character": 19,
        "bleu_score": 1.0,
        "section": "Section::::Abstract.",
    }


HOTPOTQA = [
    {
        "id": "5a7a06935542990198eaf050",
        "input": "Which town lies on the river that Ada Lindqvist's mill stood by?",
        "meta": {},
        "output": [
            {
                "answer": "Tarnby",
                "provenance": [_page("101", "Ada Lindqvist", 1), _page("102", "River Tarn", 2)],
            }
        ],
    }
]
TREX = [
    {
        "id": "5ca2fd2a-Q100",
        "input": "Tarnby [SEP] country",
        "meta": {
            "obj_surface": ["Nordland"],
            "sub_surface": ["Tarnby"],
            "subj_aliases": ["Tarnbyen"],
            "template_questions": ["What country is Tarnby in?"],
        },
        "output": [
            {"answer": "Nordland", "provenance": [_page("103", "Tarnby", 1)]},
            {"answer": "Kingdom of Nordland", "provenance": [_page("103", "Tarnby", 1)]},
        ],
    }
]
ZSRE = [
    {**TREX[0], "id": "zs-1", "input": "Ada Lindqvist [SEP] occupation"},
    {**TREX[0], "id": "zs-2", "input": "What did Ada Lindqvist do for a living?"},
]
FEVER_KILT = [
    {
        "id": "33078",
        "input": "Tarnby lies in Nordland.",
        "meta": {"claim_id": "33078"},
        "output": [{"answer": "SUPPORTS", "provenance": [_page("103", "Tarnby", 1)]}],
    },
    {
        "id": "33079",
        "input": "Ada Lindqvist was a sailor.",
        "meta": {"claim_id": "33079"},
        "output": [{"answer": "REFUTES", "provenance": [_page("101", "Ada Lindqvist", 1)]}],
    },
]
AIDA = [
    {
        "id": "1163testb_2:0",
        "input": "MILLS - [START_ENT] LINDQVIST [END_ENT] SELLS TARNBY MILL .",
        "meta": {
            "left_context": "MILLS -",
            "mention": "LINDQVIST",
            "right_context": "SELLS TARNBY MILL .",
        },
        "output": [
            {
                "answer": "Ada Lindqvist",
                "provenance": [{"wikipedia_id": "101", "title": "Ada Lindqvist"}],
            }
        ],
    }
]
NQ_OPEN = [
    {"question": "who built the mill at tarnby", "answer": ["Ada Lindqvist", "Lindqvist"]},
    {"question": "when was the mill at tarnby built", "answer": ["1802"]},
]
SIMPLEQA = [
    ["metadata", "problem", "answer"],
    [
        "{'topic': 'Geography', 'answer_type': 'Place', 'urls': ['https://example.org/tarnby']}",
        'In which town, called "the dry one", did Ada Lindqvist build her mill?',
        "Tarnby, Nordland",
    ],
]
TWO_WIKI = [
    {
        "_id": "8813f87c0bdd11eba7f7acde48001122",
        "type": "compositional",
        "question": "Where was the founder of Lindqvist Mill born?",
        "context": [
            ["Lindqvist Mill", ["Lindqvist Mill is a mill.", " Ada Lindqvist founded it."]],
            ["Ada Lindqvist", ["Ada Lindqvist was a miller.", " She was born in Osby."]],
            ["River Tarn", ["The Tarn is a river."]],
        ],
        "entity_ids": "Q1_Q2",
        "supporting_facts": [["Lindqvist Mill", 1], ["Ada Lindqvist", 0], ["Ada Lindqvist", 1]],
        "evidences": [
            ["Lindqvist Mill", "founded by", "Ada Lindqvist"],
            ["Ada Lindqvist", "place of birth", "Osby"],
        ],
        "answer": "Osby",
        "evidences_id": [["Q1", "P112", "Q2"], ["Q2", "P19", "Q3"]],
        "answer_id": "Q3",
    }
]
FEVER = [
    {
        "id": 75397,
        "verifiable": "VERIFIABLE",
        "label": "SUPPORTS",
        "claim": "The mill at Tarnby is old.",
        "evidence": [
            [[92206, 104971, "Lindqvist_Mill_-LRB-Tarnby-RRB-", 7], [92206, 104971, "Tarnby", 0]],
            [[92207, 104972, "Tarnby", 3]],
        ],
    },
    {
        "id": 75398,
        "verifiable": "NOT VERIFIABLE",
        "label": "NOT ENOUGH INFO",
        "claim": "The mill at Tarnby is haunted.",
        "evidence": [[[15732, None, None, None]]],
    },
]


def _message(id: str, role: str, text: str, **fields: Any) -> dict[str, Any]:
    return {
        "message_id": id,
        "parent_id": None,
        "user_id": "6ab24d72",
        "text": text,
        "role": role,
        "lang": "en",
        "review_count": 3,
        "review_result": True,
        "deleted": False,
        "rank": None,
        "synthetic": False,
        "model_name": None,
        "emojis": {"+1": 1},
        "replies": [],
        "labels": {"quality": {"value": 0.75, "count": 3}},
        **fields,
    }


OASST1_TREES = [
    {
        "message_tree_id": "p1",
        "tree_state": "ready_for_export",
        "prompt": _message(
            "p1",
            "prompter",
            "How does a mill work?",
            replies=[
                _message("a1", "assistant", "Badly.", rank=1, parent_id="p1"),
                _message(
                    "a2",
                    "assistant",
                    "Water turns a wheel.",
                    rank=0,
                    parent_id="p1",
                    replies=[
                        _message(
                            "p2",
                            "prompter",
                            "And in winter?",
                            parent_id="a2",
                            replies=[
                                _message("a3", "assistant", "It rests.", parent_id="p2"),
                                _message("a4", "assistant", "Spam!", parent_id="p2", deleted=True),
                            ],
                        )
                    ],
                ),
            ],
        ),
    },
    {
        "message_tree_id": "p9",
        "tree_state": "ready_for_export",
        "prompt": _message("p9", "prompter", "A question that nobody answered."),
    },
]


def flat_messages(trees: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """oasst1 as on Hugging Face: one message per row, without its replies."""
    rows = []
    pending = [(tree["message_tree_id"], tree["prompt"]) for tree in trees]
    while pending:
        tree_id, message = pending.pop(0)
        rows.append({k: v for k, v in message.items() if k != "replies"})
        rows[-1]["message_tree_id"] = tree_id
        pending += [(tree_id, reply) for reply in message["replies"]]
    return rows


COQA = {
    "version": "1.0",
    "data": [
        {
            "source": "wikipedia",
            "id": "3zotghdk5ibi9cex97fepx7jetpso7",
            "filename": "Tarnby.txt",
            "story": "Ada built a mill. It stands in Tarnby.",
            "questions": [
                {"input_text": "Who built it?", "turn_id": 1},
                {"input_text": "Where?", "turn_id": 2},
            ],
            "answers": [
                {
                    "span_start": 0,
                    "span_end": 17,
                    "span_text": "Ada built a mill.",
                    "input_text": "Ada",
                    "turn_id": 1,
                },
                {
                    "span_start": 18,
                    "span_end": 38,
                    "span_text": "It stands in Tarnby.",
                    "input_text": "In Tarnby",
                    "turn_id": 2,
                },
            ],
            "additional_answers": {
                "0": [
                    {"span_start": 0, "span_text": "Ada", "input_text": "Ada did", "turn_id": 1},
                    {"span_start": 31, "span_text": "Tarnby", "input_text": "Tarnby", "turn_id": 2},
                ]
            },
            "name": "Tarnby.txt",
        }
    ],
}


def _drop_answer(number: str = "", spans: tuple[str, ...] = (), **date: str) -> dict[str, Any]:
    return {
        "number": number,
        "date": {"day": "", "month": "", "year": "", **date},
        "spans": list(spans),
        "worker_id": "",
        "hit_id": "",
    }


DROP = {
    "history_1": {
        "passage": "The mill burned on 4 May 1810. Ada and Bo rebuilt it with 3 wheels.",
        "qa_pairs": [
            {
                "question": "How many wheels did the new mill have?",
                "answer": _drop_answer(number="3"),
                "query_id": "q-1",
                "validated_answers": [_drop_answer(spans=("3 wheels",)), _drop_answer(number="3")],
            },
            {
                "question": "When did the mill burn?",
                "answer": _drop_answer(day="4", month="May", year="1810"),
                "query_id": "q-2",
            },
            {
                "question": "Who rebuilt the mill?",
                "answer": _drop_answer(spans=("Ada", "Bo")),
                "query_id": "q-3",
            },
            {
                "question": "Which date has the set left empty?",
                "answer": _drop_answer(),
                "query_id": "q-4",
            },
        ],
        "wiki_url": "https://en.wikipedia.org/wiki/Mill",
    }
}
NEWSQA = {
    "data": [
        {
            "storyId": "./cnn/stories/0a1b.story",
            "text": "TARNBY (Wire) -- The old mill opened again on Sunday.\n\n",
            "type": "train",
            "questions": [
                {
                    "q": "What opened?",
                    "consensus": {"s": 17, "e": 30},
                    "isAnswerAbsent": 0.0,
                    "isQuestionBad": 0.0,
                    "answers": [{"sourcerAnswers": [{"s": 17, "e": 30}]}],
                    "validatedAnswers": [{"s": 17, "e": 30, "count": 2}],
                },
                {
                    "q": "Who paid?",
                    "consensus": {"noAnswer": True},
                    "isAnswerAbsent": 1.0,
                    "isQuestionBad": 0.0,
                    "answers": [{"sourcerAnswers": [{"noAnswer": True}]}],
                },
                {
                    "q": "Mill the is?",
                    "consensus": {"badQuestion": True},
                    "isAnswerAbsent": 0.0,
                    "isQuestionBad": 1.0,
                    "answers": [{"sourcerAnswers": [{"noAnswer": True}]}],
                },
            ],
        }
    ],
    "version": "1",
}
PUBMEDQA = {
    "21645374": {
        "QUESTION": "Does flour dust harm millers?",
        "CONTEXTS": ["We asked forty millers.", "Ten of them coughed."],
        "LABELS": ["METHODS", "RESULTS"],
        "MESHES": ["Flour", "Humans"],
        "YEAR": "2011",
        "reasoning_required_pred": "yes",
        "reasoning_free_pred": "yes",
        "final_decision": "maybe",
        "LONG_ANSWER": "Flour dust may harm some millers.",
    }
}
QUAIL = [
    {
        "id": "f001_0",
        "question_type": "Factual",
        "question": "What did Bo carry?",
        "answers": ["a lamp", "not enough information", "a sack", "a wheel"],
        "correct_answer_id": "2",
        "metadata": {"author": "A. Writer", "title": "The Mill", "url": "http://example.org/mill"},
        "domain": "fiction",
        "context_id": "f001",
        "context": "Bo carried a sack up the stairs.\nThe lamp was out.",
    }
]
SQUAD_V2 = {
    "version": "v2.0",
    "data": [
        {
            "title": "Tarnby",
            "paragraphs": [
                {
                    "qas": [
                        {
                            "question": "How many mills does Tarnby have?",
                            "id": "56be85543aeaaa14008c9063",
                            "answers": [
                                {"text": "two mills", "answer_start": 11},
                                {"text": "two", "answer_start": 11},
                                {"text": "two mills", "answer_start": 11},
                            ],
                            "is_impossible": False,
                        },
                        {
                            "plausible_answers": [{"text": "two", "answer_start": 11}],
                            "question": "How many mills does Osby have?",
                            "id": "5a8d7bf7df8bba001a0f9ab1",
                            "answers": [],
                            "is_impossible": True,
                        },
                    ],
                    "context": "Tarnby has two mills.",
                }
            ],
        }
    ],
}
CNN_DAILYMAIL = [
    {
        "article": "TARNBY -- The old mill opened again on Sunday. Hundreds came.",
        "highlights": "Old mill opened again .\nHundreds of people came .",
        "id": "00027e965c8264c35cc1bc55556db388da82b07f",
    }
]

FILES: dict[str, tuple[str, Any]] = {
    "nq": ("NQ-open.dev.jsonl", NQ_OPEN),
    "simpleqa": ("simple_qa_test_set.csv", SIMPLEQA),
    "hotpotqa": ("hotpotqa-dev-kilt.jsonl", HOTPOTQA),
    "2wiki": ("dev.json", TWO_WIKI),
    "trex": ("trex-dev-kilt.jsonl", TREX),
    "zsre": ("structured_zeroshot-dev-kilt.jsonl", ZSRE),
    "fever": ("fever-dev-kilt.jsonl", FEVER_KILT),
    "aida": ("aidayago2-dev-kilt.jsonl", AIDA),
    "oasst1": ("2023-04-12_oasst_ready.trees.jsonl", OASST1_TREES),
    "coqa": ("coqa-dev-v1.0.json", COQA),
    "drop": ("drop_dataset_dev.json", DROP),
    "newsqa": ("combined-newsqa-data-v1.json", NEWSQA),
    "pubmedqa": ("ori_pqal.json", PUBMEDQA),
    "quail": ("quail_v1.3_dev.jsonl", QUAIL),
    "squad_v2": ("dev-v2.0.json", SQUAD_V2),
    "cnn_dailymail": ("cnn_dailymail.jsonl", CNN_DAILYMAIL),
}

EXPECTED: dict[str, list[tuple[str, list[str]]]] = {
    "nq": [
        ("Q: who built the mill at tarnby A:", ["Ada Lindqvist", "Lindqvist"]),
        ("Q: when was the mill at tarnby built A:", ["1802"]),
    ],
    "simpleqa": [
        (
            'Q: In which town, called "the dry one", did Ada Lindqvist build her mill? A:',
            ["Tarnby, Nordland"],
        )
    ],
    "hotpotqa": [
        ("Q: Which town lies on the river that Ada Lindqvist's mill stood by? A:", ["Tarnby"])
    ],
    "2wiki": [("Q: Where was the founder of Lindqvist Mill born? A:", ["Osby"])],
    "trex": [
        (
            "Tarnby [SEP] country Provide the answer corresponding to the relation specified after "
            "[SEP] for the entity mentioned before [SEP] A:",
            ["Nordland", "Kingdom of Nordland"],
        )
    ],
    "zsre": [
        (
            "Ada Lindqvist [SEP] occupation Provide the answer corresponding to the relation "
            "specified after [SEP] for the entity mentioned before [SEP] A:",
            ["Nordland", "Kingdom of Nordland"],
        ),
        ("Q: What did Ada Lindqvist do for a living? A:", ["Nordland", "Kingdom of Nordland"]),
    ],
    "fever": [
        ("Is this statement true? Tarnby lies in Nordland. A:", ["True"]),
        ("Is this statement true? Ada Lindqvist was a sailor. A:", ["False"]),
    ],
    "aida": [
        (
            "MILLS - [START] LINDQVIST [END] SELLS TARNBY MILL . Output the Wikipedia page title "
            "of the entity mentioned between [START] and [END] in the given text A:",
            ["Ada Lindqvist"],
        )
    ],
    "oasst1": [
        ("How does a mill work?", ["Water turns a wheel."]),
        ("How does a mill work? Water turns a wheel. And in winter?", ["It rests."]),
    ],
    "coqa": [
        ("Ada built a mill. It stands in Tarnby. Q: Who built it? A:", ["Ada", "Ada did"]),
        (
            "Ada built a mill. It stands in Tarnby. Q: Who built it? A: Ada Q: Where? A:",
            ["In Tarnby", "Tarnby"],
        ),
    ],
    "drop": [
        (
            "The mill burned on 4 May 1810. Ada and Bo rebuilt it with 3 wheels. "
            "Q: How many wheels did the new mill have? A:",
            ["3", "3 wheels"],
        ),
        (
            "The mill burned on 4 May 1810. Ada and Bo rebuilt it with 3 wheels. "
            "Q: When did the mill burn? A:",
            ["4 May 1810"],
        ),
        (
            "The mill burned on 4 May 1810. Ada and Bo rebuilt it with 3 wheels. "
            "Q: Who rebuilt the mill? A:",
            ["Ada, Bo"],
        ),
    ],
    "newsqa": [
        (
            "TARNBY (Wire) -- The old mill opened again on Sunday. Q: What opened? A:",
            ["The old mill"],
        )
    ],
    "pubmedqa": [
        (
            "We asked forty millers. Ten of them coughed. Q: Does flour dust harm millers? A:",
            ["maybe"],
        )
    ],
    "quail": [
        (
            "Bo carried a sack up the stairs.\nThe lamp was out. Q: What did Bo carry? A:",
            ["a sack"],
        )
    ],
    "squad_v2": [
        ("Tarnby has two mills. Q: How many mills does Tarnby have? A:", ["two mills", "two"])
    ],
    "cnn_dailymail": [
        (
            "TARNBY -- The old mill opened again on Sunday. Hundreds came. Summarize this article:",
            ["Old mill opened again . Hundreds of people came ."],
        )
    ],
}


def write(folder: Path, task: str) -> Path:
    """Write the official file of a task."""
    name, content = FILES[task]
    return write_content(folder / name, content)


def write_content(path: Path, content: Any) -> Path:
    if path.suffix == ".csv":
        buffer = io.StringIO()
        csv.writer(buffer).writerows(content)
        text = buffer.getvalue()
    elif path.suffix == ".jsonl":
        text = "".join(json.dumps(row) + "\n" for row in content)
    else:
        text = json.dumps(content)
    path.write_text(text, encoding="utf-8")
    return path
