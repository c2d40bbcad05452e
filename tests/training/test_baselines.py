"""The paper's baselines against plain Hugging Face code, and whole runs of tiny ones."""

import shutil
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from tiny_runs import FACTS, make_world, recipe, tiny_bert, weights
from torch import Tensor

from conftest import tiny_lm, tiny_tokenizer
from imprag import ImpRAG
from imprag.baselines.folder import Baseline
from imprag.baselines.retriever import (
    EncoderRetriever,
    LayerRetriever,
    RetrieverBatch,
    RetrieverBatches,
    RetrieverLoss,
    make_retriever_trainer,
)
from imprag.baselines.run import first_layers, retriever_recipe, train_baseline
from imprag.cli import main
from imprag.corpus import load_corpus
from imprag.errors import ImpRAGError
from imprag.evaluation.run_folder import RunFolder
from imprag.model import ImpRAGConfig, ImpRAGModel, PassageEncoder, load_base_model
from imprag.retrieval.dense import LayerEncoder, TextEncoder
from imprag.retrieval.implicit import prompt_embeddings
from imprag.training.batches import Batches
from imprag.training.cost import CostEstimate
from imprag.training.data import load_sources
from imprag.training.recipe import Recipe
from imprag.training.run import train, training_time
from imprag.training.samplers import make_sampler
from imprag.training.schedule import Schedule
from imprag.training.step import TrainingBatch, TrainingModel

SYSTEMS = ("ra-it", "ra-dit", "ra-dit-lm")


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = make_world(tmp_path_factory.mktemp("world"))
    tiny_bert(folder / "bert")
    return folder


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("IMPRAG_CACHE", str(tmp_path_factory.getbasetemp() / "baselines-cache"))


def baseline_recipe(world: Path, system: str, **sections: Any) -> Recipe:
    """Four steps, two with the teacher's labels, from the tiny bi-encoder's ranks."""
    given: dict[str, Any] = {
        "system": system,
        "data": [{"tasks": str(world / "nq.jsonl"), "task": "nq"}],
        "teacher": {"retriever": str(world / "bert"), "hard_negatives": [3, 6]},
        "batch": {"examples": 6, "positives": 1, "hard_negatives": 2, "candidates": 3},
        "train": {"steps": 4, "bottom_learning_rate": 1e-3},
        "trainer": {"save_steps": 2},
    }
    for name, section in sections.items():
        known = given.get(name)
        given[name] = {**known, **section} if isinstance(known, dict) else section
    return recipe(world, **given)


def batches_of(
    settings: Recipe, kind: type[Batches] = Batches, **arguments: Any
) -> tuple[Batches, Any]:
    """The batches of a recipe and the language model's tokenizer."""
    corpus = load_corpus(settings.corpus)
    sampler = make_sampler(load_sources(settings, corpus), settings.batch, corpus, settings.seed)
    tokenizer = tiny_tokenizer()
    schedule = Schedule(settings, settings.train.steps or 0)
    return kind(sampler, schedule, corpus, tokenizer, settings, **arguments), tokenizer


# --- RA-IT --------------------------------------------------------------------------------------


def plain_fine_tuning(lm: Any, texts: Sequence[tuple[Sequence[int], Sequence[int]]]) -> Tensor:
    """Hugging Face's own loss of a model on texts, each with a prompt that is not learned."""
    longest = max(len(prompt) + len(response) for prompt, response in texts)
    ids = torch.zeros(len(texts), longest, dtype=torch.long)
    mask, labels = torch.zeros_like(ids), torch.full_like(ids, -100)
    for row, (prompt, response) in enumerate(texts):
        text = torch.tensor([*prompt, *response])
        ids[row, : len(text)], mask[row, : len(text)] = text, 1
        labels[row, len(prompt) : len(text)] = text[len(prompt) :]
    return lm(input_ids=ids, attention_mask=mask, labels=labels).loss


def test_ra_it_is_plain_fine_tuning_on_the_concatenated_text(world: Path) -> None:
    settings = baseline_recipe(world, "ra-it")
    batches, tokenizer = batches_of(settings)
    with_passages, _ = batches_of(baseline_recipe(world, "imprag"))
    corpus = load_corpus(settings.corpus)
    for number in range(3):
        batch, rows = batches[number], with_passages.indices(number)
        texts = []
        for n, example in enumerate(rows.examples):
            read = corpus.passages([rows.passages[c] for c in rows.candidates[n]])
            prompt = batches.sampler.examples[example].prompt
            parts = [*(f"{one.text} {one.title}" for one in read), prompt]
            texts.append((tokenizer("\n\n".join(parts))["input_ids"], batch.responses[n]))
        assert len(texts) == 6
        lm = tiny_lm()
        expected = plain_fine_tuning(lm, texts)
        expected.backward()
        wanted = {name: p.grad for name, p in lm.named_parameters()}
        config = settings.model.to_config()
        model = TrainingModel(ImpRAGModel(tiny_lm(), config), settings.stages)
        output = model(batch)
        output.loss.backward()
        assert output.retrieval == 0
        torch.testing.assert_close(output.loss, expected, atol=1e-5, rtol=0)
        for name, parameter in model.model.lm.named_parameters():
            torch.testing.assert_close(parameter.grad, wanted[name], atol=1e-5, rtol=1e-4)


def test_ra_it_trains_on_the_same_answers_as_imprag(world: Path) -> None:
    ours, _ = batches_of(baseline_recipe(world, "imprag"))
    theirs, _ = batches_of(baseline_recipe(world, "ra-it"))
    for number in range(4):
        assert ours[number].ids == theirs[number].ids
        assert ours[number].responses == theirs[number].responses
        assert not theirs[number].passages


# --- The perplexity KL --------------------------------------------------------------------------


def kl_batch(settings: Recipe) -> RetrieverBatch:
    batches, _ = batches_of(settings, RetrieverBatches, stages=settings.stages)
    batch = batches[3]
    assert isinstance(batch, RetrieverBatch)
    assert batch.self_distillation
    return batch


def kl_in_float64(
    settings: Recipe, batch: RetrieverBatch, queries: Tensor, passages: Tensor
) -> Tensor:
    """KL(P_LM ‖ P_R) by a loop in float64, the language model run for each pair alone."""
    lm = tiny_lm().double()
    objective = settings.stages.self_distillation.objective
    assert isinstance(objective, dict)
    terms = []
    for n, candidates in enumerate(batch.candidates):
        log_likelihoods = []
        for candidate in candidates:
            before, response = batch.in_context[n, candidate], batch.responses[n]
            logits = lm(torch.tensor([[*before, *response]])).logits[0].log_softmax(-1)
            tokens = enumerate(response, len(before) - 1)
            log_likelihoods.append(sum(logits[place, token] for place, token in tokens))
        scores = queries[n].double() @ passages[list(candidates)].double().T
        target = (torch.stack(log_likelihoods) / objective["target_temperature"]).softmax(0)
        predicted = (scores / objective["score_temperature"]).softmax(0)
        terms.append((target * (target.log() - predicted.log())).sum())
    return torch.stack(terms).mean()


@pytest.mark.parametrize("system", ["ra-dit", "ra-dit-lm"])
def test_the_kl_of_a_retriever_equals_a_float64_loop(
    system: str, world: Path, tmp_path: Path
) -> None:
    objective = {
        "name": "self_distillation",
        "target_temperature": 2.0,
        "score_temperature": 0.5,
    }
    settings = baseline_recipe(
        world, system, stages={"self_distillation": {"objective": objective}}
    )
    batch = kl_batch(settings)
    config = settings.model.to_config()
    reader = TrainingModel(ImpRAGModel(tiny_lm(), config), settings.stages)
    retriever: EncoderRetriever | LayerRetriever
    if system == "ra-dit":
        retriever = EncoderRetriever(TextEncoder(str(world / "bert"), "float32", "cpu").module)
    else:
        retriever = LayerRetriever(ImpRAGModel(tiny_lm(seed=1), config))
    model = RetrieverLoss(retriever, reader, settings.stages).eval()
    output = model(batch)
    queries, passages = retriever.queries(batch), retriever.passages(batch)
    expected = kl_in_float64(settings, batch, queries, passages)
    assert expected > 1e-4
    assert output.generation == 0
    torch.testing.assert_close(output.retrieval.double(), expected, atol=1e-5, rtol=1e-4)

    output.loss.backward()
    learned = {n: p.grad for n, p in retriever.named_parameters() if p.grad is not None}
    model.zero_grad()
    expected.backward()
    for name, parameter in retriever.named_parameters():
        if name in learned:
            torch.testing.assert_close(parameter.grad, learned[name], atol=1e-5, rtol=1e-3)
    assert not any(name.startswith("reader") for name, _ in model.named_parameters())


def test_texts_of_similar_length_run_together(world: Path) -> None:
    encoder = TextEncoder(str(world / "bert"), "float32", "cpu")
    texts = ["w1 " * (900 if n % 8 == 0 else 10) for n in range(64)]
    expected, ran = encoder.queries(texts), []
    retriever = EncoderRetriever(encoder.module)
    hook = encoder.module.register_forward_pre_hook(
        lambda _, arguments: ran.append(arguments[0]["input_ids"].shape)
    )
    none = torch.empty(0)
    batch = RetrieverBatch([], [], [], [], [], none, none, query_texts=texts)
    found = retriever.queries(batch)
    hook.remove()
    np.testing.assert_allclose(found.detach().numpy(), expected, atol=1e-5)
    tokens = [len(encoder.module.tokenizer(text, truncation=True)["input_ids"]) for text in texts]
    assert sum(rows * longest for rows, longest in ran) == sum(tokens)


def test_the_reader_is_not_scored_where_the_labels_decide(world: Path) -> None:
    settings = baseline_recipe(world, "ra-dit-lm")
    batches, _ = batches_of(settings, RetrieverBatches, stages=settings.stages)
    warmup, later = batches[0], batches[3]
    assert isinstance(warmup, RetrieverBatch)
    assert isinstance(later, RetrieverBatch)
    assert not warmup.self_distillation
    assert not warmup.in_context
    assert len(later.in_context) == 6 * 3


# --- RA-DIT-LM's retriever ----------------------------------------------------------------------


def test_the_layers_of_ra_dit_lm_embed_as_imprag_does(world: Path, tmp_path: Path) -> None:
    settings = baseline_recipe(world, "ra-dit-lm")
    own = retriever_recipe(settings, tmp_path)
    lm, tokenizer = load_base_model(settings.model.base, torch.float32)
    whole = ImpRAGModel(lm, settings.model.to_config())
    part, _ = load_base_model(own.model.base, torch.float32)
    assert len(part.base_model.layers) == settings.model.b + 2 < len(lm.base_model.layers)
    layers = ImpRAGModel(part, own.model.to_config())
    batch = kl_batch(settings)
    passages, prompts = list(batch.passage_texts), list(batch.query_texts)
    expected = (
        PassageEncoder(whole, tokenizer)(passages),
        prompt_embeddings(whole, tokenizer, prompts),
    )
    trained = LayerRetriever(layers)
    torch.testing.assert_close(trained.passages(batch).detach(), torch.tensor(expected[0]))
    torch.testing.assert_close(trained.queries(batch).detach(), torch.tensor(expected[1]))

    ImpRAG(layers, tokenizer).save_pretrained(tmp_path / "saved")
    encoder = LayerEncoder(str(tmp_path / "saved"), "float32", "cpu")
    np.testing.assert_allclose(encoder(passages), expected[0], atol=1e-5)
    np.testing.assert_allclose(encoder.queries(prompts), expected[1], atol=1e-5)


def test_the_first_layers_of_other_families_are_models(tmp_path: Path) -> None:
    tiny_lm("qwen3").save_pretrained(tmp_path / "lm")
    tiny_tokenizer().save_pretrained(tmp_path / "lm")
    first_layers(str(tmp_path / "lm"), 3, tmp_path / "part")
    part, _ = load_base_model(tmp_path / "part", torch.float32)
    config = ImpRAGConfig(base_model="part", b=1, t=2)
    ids = torch.tensor([[5, 6, 7]])
    expected = ImpRAGModel(tiny_lm("qwen3"), config).query_embeddings(ids, torch.ones_like(ids))
    found = ImpRAGModel(part, config).query_embeddings(ids, torch.ones_like(ids))
    torch.testing.assert_close(found, expected)


# --- Whole runs ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def trained(world: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The run folder of each system."""
    folders = {system: tmp_path_factory.mktemp(system) / "run" for system in SYSTEMS}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("IMPRAG_CACHE", str(tmp_path_factory.getbasetemp() / "baselines-cache"))
        for system, folder in folders.items():
            train_baseline(baseline_recipe(world, system), folder)
    return folders


@pytest.mark.parametrize("system", SYSTEMS)
def test_imprag_eval_reads_in_context_what_the_baseline_retrieves(
    system: str, trained: dict[str, Path], world: Path, tmp_path: Path
) -> None:
    model = tmp_path / "moved"
    shutil.copytree(trained[system] / "model", model)  # needs nothing else of its run
    baseline = Baseline.load(model)
    assert baseline is not None
    assert baseline.system == system
    command = ["eval", "--model", str(model), "--tasks", f"nq={world / 'nq.jsonl'}", "--limit", "4"]
    command += ["--corpus", str(world / "corpus.jsonl"), "--dtype", "float32"]
    assert main([*command, "--out", str(tmp_path / "run")]) == 0
    run = RunFolder.open(tmp_path / "run")
    settings = run.recipe["settings"]
    assert settings["reading"] == {"k": 2, "in_context": True}
    assert settings["passages"]["from"] == system
    corpus = load_corpus(str(world / "corpus.jsonl"))
    retriever = baseline.load_retriever(corpus)
    for prediction in run.predictions():
        rows, _ = retriever.rank([prediction["prompt"]], 5)
        assert [one["id"] for one in prediction["passages"][:5]] == [
            corpus[int(row)].id for row in rows[0]
        ]
    oracle = [*command, "--query-template", "oracle", "--out", str(tmp_path / "oracle")]
    assert main(oracle) == 0
    passages = RunFolder.open(tmp_path / "oracle").recipe["settings"]["passages"]
    assert passages["query_template"] == "oracle"


def test_retrievers_of_their_own_are_trained(trained: dict[str, Path], world: Path) -> None:
    before = TextEncoder(str(world / "bert"), "float32", "cpu")
    after = TextEncoder(str(trained["ra-dit"] / "model" / "retriever"), "float32", "cpu")
    texts = ["w1 w2", "w3 w4"]
    assert abs(before.queries(texts) - after.queries(texts)).max() > 1e-3
    ready_made = Baseline.load(trained["ra-it"] / "model")
    assert ready_made == Baseline("ra-it", str(world / "bert"))


@pytest.mark.parametrize("system", ["ra-dit", "ra-dit-lm"])
def test_a_resumed_baseline_keeps_its_finished_retriever(
    system: str, trained: dict[str, Path], world: Path, tmp_path: Path
) -> None:
    shutil.copytree(trained[system], tmp_path / "run")
    for left_out in ("model", "checkpoint-4"):
        shutil.rmtree(tmp_path / "run" / left_out)
    files = sorted((tmp_path / "run" / "retriever").rglob("*"))
    times = [file.stat().st_mtime_ns for file in files]
    train_baseline(baseline_recipe(world, system), tmp_path / "run", resume=True)
    assert [file.stat().st_mtime_ns for file in files] == times
    before, after = (weights(each / "model") for each in (trained[system], tmp_path / "run"))
    for name, value in before.items():
        torch.testing.assert_close(after[name], value, atol=1e-6, rtol=0)


@pytest.mark.parametrize("system", ["ra-dit", "ra-dit-lm"])
def test_a_retriever_in_training_is_resumed(
    system: str,
    trained: dict[str, Path],
    world: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    run, settings = Path("run"), baseline_recipe(world, system)
    make = partial(make_retriever_trainer, reader_base=settings.model.base)
    train(retriever_recipe(settings, run), run / "retriever", make=make)
    for left_out in ("model", "checkpoint-4"):
        shutil.rmtree(run / "retriever" / left_out)
    train_baseline(settings, run, resume=True)
    before, after = (weights(each / "model") for each in (trained[system], run))
    for name, value in before.items():
        torch.testing.assert_close(after[name], value, atol=1e-5, rtol=0)


def test_adapters_of_a_separate_retriever_are_merged(world: Path, tmp_path: Path) -> None:
    lora = {"bottom": {"rank": 2}, "top": {"rank": 2}}
    settings = baseline_recipe(world, "ra-dit-lm", lora=lora)
    train_baseline(settings, tmp_path / "run")
    moved = tmp_path / "moved"
    shutil.move(tmp_path / "run" / "model", moved)
    shutil.rmtree(tmp_path / "run")
    encoder = LayerEncoder(str(moved / "retriever"), "float32", "cpu")
    assert encoder.queries(["w1 w2"]).shape == (1, encoder.dimension)


def test_a_baseline_is_evaluated_during_training(world: Path, tmp_path: Path) -> None:
    tasks = [f"nq={world / 'nq.jsonl'}"]
    settings = baseline_recipe(
        world,
        "ra-it",
        evaluation={"tasks": tasks, "limit": 4},
        trainer={"eval_steps": 2},
    )
    (tmp_path / "recipe.yaml").write_text(settings.to_yaml())
    command = ["train", "--config", str(tmp_path / "recipe.yaml"), "--out", str(tmp_path / "run")]
    assert main(command) == 0
    run = RunFolder.open(tmp_path / "run" / "development" / "step-2")
    assert run.recipe["settings"]["reading"]["in_context"] is True
    assert len(list(run.predictions())) == 4


def test_a_baseline_cannot_be_asked_by_its_layers(
    trained: dict[str, Path], world: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = str(trained["ra-it"] / "model")
    assert main(["search", "w1 w2", "--model", model]) == 2
    assert "is a baseline" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("system", "sections", "message"),
    [
        ("ra-it", {"stages": {"bottom": {"fraction": 0.2}}}, r"leave out stages\.bottom"),
        ("ra-dit-lm", {"stages": {"mine_every": 2}}, r"leave out stages\.mine_every"),
        ("ra-dit", {"model": {"start": "default"}}, r"leave out model\.start"),
        ("ra-dit", {"teacher": {"retriever": "bm25"}}, r"BM25 does not allow"),
        ("ra-dit-lm", {"lora": {"top": {"rank": 2}}}, r"give lora\.bottom"),
        (
            "ra-it",
            {
                "data": [{"tasks": "x", "task": "nq", "positives": "hops"}],
                "model": {"retrieve": "on:;"},
            },
            "positives: hops retrieves at later tokens",
        ),
    ],
)
def test_what_has_no_effect_in_a_baseline_is_refused(
    system: str, sections: dict[str, Any], message: str, world: Path
) -> None:
    with pytest.raises(ValidationError, match=message):
        baseline_recipe(world, system, **sections)


def test_a_separate_retriever_needs_train_baseline(world: Path, tmp_path: Path) -> None:
    with pytest.raises(ImpRAGError, match="train_baseline"):
        train(baseline_recipe(world, "ra-dit"), tmp_path / "run")


def test_all_facts_are_drawn(world: Path) -> None:
    batches, _ = batches_of(baseline_recipe(world, "ra-it"))
    assert len(batches.sampler.examples) == FACTS
    assert isinstance(batches[0], TrainingBatch)


def test_the_log_counts_the_tokens_that_ran(trained: dict[str, Path], world: Path) -> None:
    for system in SYSTEMS:
        batches, _ = batches_of(baseline_recipe(world, system))
        expected = sum(batches[number].tokens for number in range(4))
        run = trained[system]
        if system != "ra-it":  # the labels are those of its own retriever
            assert training_time(run / "retriever")["tokens"] > 0
        else:
            assert training_time(run)["tokens"] == expected


def test_the_dry_run_knows_what_baselines_read(world: Path) -> None:
    costs = {
        system: CostEstimate(baseline_recipe(world, system)) for system in ("imprag", *SYSTEMS)
    }
    in_context, ours = costs["ra-it"].stages, costs["imprag"].stages
    assert "retriever" not in in_context
    for name, (share, step) in in_context.items():
        assert step.read == step.embedded == 0
        assert step.prompts == ours[name][1].prompts + ours[name][1].prefixes
        assert share == 0.5
    assert costs["ra-dit"].stages["retriever"][1].scored > 0
    # A text encoder reads passages whole, whatever the curriculum of lengths says.
    short = {"passage_tokens": [{"after": 0.0, "tokens": 8}], "candidates": 1}
    for system, passage_tokens in (("ra-dit", 100), ("ra-dit-lm", 8)):
        known = costs[system]
        long = replace(known.corpus, passage_tokens=100.0), known.sources
        cost = CostEstimate(baseline_recipe(world, system, batch=short), data=long)
        assert cost.stages["retriever"][1].embedded == 6 * (100 + 2 * passage_tokens)
    assert costs["ra-dit"].step_flops > costs["ra-dit-lm"].step_flops > costs["ra-it"].step_flops
