"""`adapt` trains only the query projection, against the whole corpus."""

import math
from pathlib import Path

import pytest
import torch

from conftest import tiny_lm, tiny_tokenizer
from imprag.corpus import Corpus, Passage
from imprag.errors import ImpRAGError
from imprag.index.folder import IndexFolder
from imprag.model import ImpRAGConfig, ImpRAGModel, PassageEncoder
from imprag.training import adapt as adaptation
from imprag.training.adapt import adapt
from imprag.training.data import TrainingExample, TrainingSource

COUNT = 60


def model_of(family: str = "llama", **settings: object) -> ImpRAGModel:
    return ImpRAGModel(tiny_lm(family), ImpRAGConfig(base_model="tiny", b=2, t=4, **settings))


@pytest.fixture
def folder(tmp_path: Path) -> IndexFolder:
    passages = [Passage(f"p{n}", f"w{n}", f"w{n * 7 % 90} w{n + 20}") for n in range(COUNT)]
    corpus = Corpus.build(passages, tmp_path / "corpus")
    return IndexFolder.build(corpus, PassageEncoder(model_of(), tiny_tokenizer()), tmp_path / "i")


def questions(kind: str = "asked", passages: range = range(COUNT)) -> TrainingSource:
    """Questions that name their passage after two uninformative words."""
    examples = [
        TrainingExample(f"{n} {other}", f"w{90 - other} w{80 + other} w{n}", "w1", (n,))
        for other in range(4)
        for n in passages
    ]
    generator = torch.Generator().manual_seed(0)
    order = torch.randperm(len(examples), generator=generator).tolist()
    return TrainingSource(kind, [examples[n] for n in order])


def run(model: ImpRAGModel, folder: IndexFolder, *sources: TrainingSource, **settings):
    options = {"steps": 150, "prompts": 32, "learning_rate": 0.02, **settings}
    return adapt(model, tiny_tokenizer(), folder.corpus, folder.index, sources, **options)


def test_only_the_query_projection_is_trained(folder: IndexFolder) -> None:
    model = model_of()
    before = {name: x.clone() for name, x in model.lm.state_dict().items()}
    encoder = PassageEncoder(model, tiny_tokenizer())
    fingerprint, embeddings = encoder.fingerprint(), encoder(list(folder.corpus))
    (recall,) = run(model, folder, questions())
    assert recall.prompts == 12
    assert recall.after[1] > recall.before[1] + 0.4
    assert recall.after[1] >= recall.after[0]
    after = model.lm.state_dict()
    changed = [name for name, x in after.items() if not torch.equal(x, before[name])]
    assert changed == ["model.layers.2.self_attn.q_proj.weight"]
    assert encoder.fingerprint() == fingerprint
    assert (encoder(list(folder.corpus)) == embeddings).all()
    assert not any(parameter.requires_grad for parameter in model.parameters())


def test_the_same_seed_gives_the_same_model(folder: IndexFolder) -> None:
    def weight(seed: int) -> torch.Tensor:
        model = model_of()
        run(model, folder, questions(), steps=5, seed=seed)
        return adaptation.query_projection(model)[1].weight.detach()

    assert torch.equal(weight(1), weight(1))
    assert not torch.equal(weight(1), weight(2))


def test_saved_weights_are_interpolated(folder: IndexFolder) -> None:
    def weight(**settings: object) -> torch.Tensor:
        model = model_of()
        run(model, folder, questions(), steps=5, **settings)
        return adaptation.query_projection(model)[1].weight.detach()

    start = adaptation.query_projection(model_of())[1].weight.detach()
    expected = 0.25 * start + 0.75 * weight()
    torch.testing.assert_close(weight(wise_ft_alpha=0.75), expected)
    assert not torch.equal(expected, start)


def test_recall_after_training_is_measured_on_the_interpolated_weights(folder: IndexFolder) -> None:
    (recall,) = run(model_of(), folder, questions(), wise_ft_alpha=0.0001)
    assert recall.after == recall.before


def test_recall_is_measured_separately_for_each_source(folder: IndexFolder) -> None:
    half = TrainingSource("half", questions(passages=range(30)).examples, weight=1e-6)
    recalls = run(model_of(), folder, half, questions("all"), steps=3)
    assert [(one.source, one.prompts) for one in recalls] == [("half", 6), ("all", 12)]


def test_left_out_passages_are_neither_positives_nor_negatives(folder: IndexFolder) -> None:
    left_out = frozenset(range(40, COUNT))
    examples = questions(passages=range(40)).examples
    rows = adaptation._rows(examples[:3], folder.corpus, left_out, 0)
    assert set(rows).isdisjoint(left_out)
    assert len(rows) == 40
    with_others = model_of()
    run(with_others, folder, questions(), left_out=left_out, steps=3)
    alone = model_of()
    others = [one for one in questions().examples if one.positives[0] < 40]
    run(alone, folder, TrainingSource("asked", others), left_out=left_out, steps=3)
    assert torch.equal(
        *(adaptation.query_projection(one)[1].weight for one in (with_others, alone))
    )
    with pytest.raises(ImpRAGError, match="'asked' has too few prompts with a positive"):
        run(model_of(), folder, questions(passages=range(40, 50)), left_out=left_out)


def test_a_large_corpus_is_sampled(folder: IndexFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(adaptation, "_MOST_PASSAGES", 25)
    examples = questions(passages=range(10)).examples
    rows = adaptation._rows(examples, folder.corpus, frozenset(), 0)
    assert set(range(10)) < set(rows)
    assert len(rows) == 25
    (recall,) = run(model_of(), folder, questions(passages=range(10)), steps=3)
    assert recall.prompts == 2


def test_positives_of_one_prompt_are_not_negatives_of_each_other(folder: IndexFolder) -> None:
    """With all passages but one as positives, the loss prefers none of them."""
    rows = tuple(range(COUNT - 1))
    examples = [TrainingExample(f"{n}", f"w{n}", "w1", rows) for n in range(40)]
    (recall,) = run(model_of(), folder, TrainingSource("all", examples), steps=30)
    assert recall.after == (1.0, 1.0)


def test_a_rerun_reuses_the_cached_inputs(
    folder: IndexFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = tmp_path / "inputs"
    first = run(model_of(), folder, questions(), steps=3, kept=kept)
    calls: list[int] = []
    compute = adaptation._inputs

    def counted(*arguments):
        calls.append(1)
        return compute(*arguments)

    monkeypatch.setattr(adaptation, "_inputs", counted)
    assert run(model_of(), folder, questions(), steps=3, kept=kept) == first
    assert not calls
    run(model_of(), folder, questions(passages=range(30)), steps=3, kept=kept)  # other prompts
    assert len(calls) == 1
    kept.write_bytes(b"broken")
    assert run(model_of(), folder, questions(), steps=3, kept=kept) == first
    assert len(calls) == 2


def test_bad_arguments_are_refused(folder: IndexFolder) -> None:
    with pytest.raises(ImpRAGError, match="computes queries and keys with one projection"):
        run(model_of("phi3"), folder, questions())
    with pytest.raises(ImpRAGError, match="steps and prompts must be at least 1, not 0 and 32"):
        run(model_of(), folder, questions(), steps=0)
    for alpha in (0.0, 1.1, math.nan):
        with pytest.raises(ImpRAGError, match="wise_ft_alpha must be above 0 and at most 1"):
            run(model_of(), folder, questions(), wise_ft_alpha=alpha)
    with pytest.raises(ImpRAGError, match="the loss of step 2 is nan; lower the learning rate"):
        run(model_of(), folder, questions(), learning_rate=math.inf)
