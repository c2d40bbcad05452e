"""The questions that the gate of hybrid retrieval is fitted on."""

from fit_gate import forms

from imprag.tasks import Answer, Example, load_task

TWO_HOPS = Example(
    "1",
    "How high is the country whose capital is Kathmandu?",
    [
        Answer("8,849 m", [{"passage_id": "government"}, {"passage_id": "geography"}]),
        Answer("8849 m", []),
    ],
    {"country": "Nepal", "bridge_answer": "Nepal"},
)
ASKED = "Q: How high is the country whose capital is Kathmandu? A:"


def test_two_hop_questions_are_asked_up_to_the_separator() -> None:
    assert forms(load_task("factbook/two_hop"), [TWO_HOPS], ";") == {
        "factbook/two_hop first hop": [(ASKED, ["government"])],
        "factbook/two_hop second hop": [(f"{ASKED} Nepal ;", ["geography"])],
    }


def test_models_that_retrieve_once_are_asked_for_both_passages() -> None:
    made = forms(load_task("hotpotqa"), [TWO_HOPS], None)
    assert set(made) == {"hotpotqa", "hotpotqa plain"}
    assert made["hotpotqa plain"] == [(TWO_HOPS.input, ["government", "geography"])]
