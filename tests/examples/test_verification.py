"""Questions whether an answer is right."""

import json
import re
from collections import Counter
from pathlib import Path

import pytest
from verification import main, verification

from imprag.tasks import Answer, Example, load_task, read_examples, write_examples


def test_wrong_answers_are_right_ones_of_the_same_relation() -> None:
    examples = [
        Example(
            f"{relation}{number}",
            f"What is the {relation} of land {number}?",
            [Answer(f"{relation}-{number}", [{"passage_id": f"p{number}"}])],
            {"relation": relation},
        )
        for relation in ("capital", "anthem")
        for number in range(100)
    ]
    verdicts = Counter()
    for example, asked in zip(verification(examples), examples, strict=True):
        assert asked.input in example.input
        named = re.search(r"(?:capital|anthem)-\d+", example.input)
        assert named
        assert named.group().startswith(asked.meta["relation"])
        right = named.group() == asked.answers[0]
        assert right == (example.answers[0] in ("True", "yes"))
        assert example.gold_ids == asked.gold_ids
        verdicts[right] += 1
    assert 0.4 < verdicts[True] / verdicts.total() < 0.6


def test_the_script_writes_examples_that_training_reads(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = [
        Example(f"q{n}", f"Who founded {n}?", [Answer(f"Ada {n}", [{"passage_id": f"p{n}"}])])
        for n in range(9)
    ]
    questions, out = tmp_path / "questions.jsonl", tmp_path / "verification.jsonl"
    write_examples(questions, asked)
    main([str(questions), "--out", str(out)])
    assert json.loads(capsys.readouterr().out) == {"questions": 9}
    task = load_task("verification")
    made = list(task.read(out))
    assert made == list(read_examples(out)) == list(verification(asked))
    assert {task.response(one) for one in made} <= {" True", " False", " yes", " no"}
    with pytest.raises(SystemExit):
        main([str(questions), "--out", str(out)])
    assert "exists already" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main([str(tmp_path / "missing.jsonl"), "--out", str(tmp_path / "other.jsonl")])
    assert "missing.jsonl" in capsys.readouterr().err
