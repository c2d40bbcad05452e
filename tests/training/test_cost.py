"""The cost estimate against real models and data, and against the docs."""

import json
import math
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

from conftest import tiny_lm, tiny_tokenizer
from imprag.corpus import Passage
from imprag.errors import ImpRAGError
from imprag.index.build import IndexPrediction, predict_index
from imprag.io.building import readable_size
from imprag.tasks.self_supervised import FROM_PASSAGES
from imprag.training.architecture import model_config
from imprag.training.cost import CostEstimate
from imprag.training.recipe import Recipe
from imprag.training.recipe_file import load_recipe
from imprag.training.sources import Synthetic

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model folder, a corpus and a file of questions."""
    path = tmp_path_factory.mktemp("estimate")
    tiny_lm().save_pretrained(path / "lm")
    tiny_tokenizer().save_pretrained(path / "lm")
    passages = [{"id": f"p{n}", "title": "w1", "text": "w2 w3 w4 w5"} for n in range(6)]
    (path / "corpus.jsonl").write_text("".join(json.dumps(p) + "\n" for p in passages))
    output = [{"answer": "w9", "provenance": [{"passage_id": "p0"}]}]
    questions = [{"id": str(n), "input": f"w{n} w7", "output": output} for n in range(10)]
    (path / "nq.jsonl").write_text("".join(json.dumps(q) + "\n" for q in questions))
    return path


def recipe(home: Path, **content: Any) -> Recipe:
    model = {"base": str(home / "lm"), "b": 1, "t": 3, "max_passage_tokens": 16}
    data = [{"tasks": str(home / "nq.jsonl"), "task": "nq"}]
    corpus = str(home / "corpus.jsonl")
    return Recipe.model_validate({"model": model, "corpus": corpus, "data": data, **content})


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("meta-llama/Llama-3.2-3B", 3_212_749_824),
        ("meta-llama/Llama-3.1-8B-Instruct", 8_030_261_248),
        ("Qwen/Qwen3-0.6B-Base", 596_049_920),
        ("smollm2-135m", 134_515_008),
    ],
)
def test_published_configurations_have_the_published_number_of_parameters(
    name: str, parameters: int
) -> None:
    with torch.device("meta"):
        lm = AutoModelForCausalLM.from_config(model_config(name))
    assert sum(parameter.numel() for parameter in lm.parameters()) == parameters


def test_local_data_and_models_are_measured(home: Path) -> None:
    estimate = CostEstimate(recipe(home, train={"steps": 3}))
    (source,) = estimate.sources
    assert (source.state, source.examples, source.share, source.positives) == ("found", 10, 1, 5)
    assert (source.prompt_tokens, source.response_tokens) == (4, 1)  # "Q: w0 w7 A:", " w9"
    assert (estimate.corpus.state, estimate.corpus.passages) == ("found", 6)
    assert estimate.corpus.passage_tokens == 5
    parameters = estimate.to_dict()["parameters"]
    lm = tiny_lm()
    assert parameters["total"] == parameters["trained"] == sum(p.numel() for p in lm.parameters())
    layers = [sum(p.numel() for p in layer.parameters()) for layer in lm.model.layers]
    assert parameters["bottom"] == sum(layers[:2])
    assert parameters["reading"] == sum(layers[2:4])
    assert parameters["top"] == sum(layers[4:])
    assert sum(parameters[part] for part in ("bottom", "reading", "top", "other")) == sum(
        p.numel() for p in lm.parameters()
    )


def test_tokens_and_flops_of_a_batch(home: Path) -> None:
    batch = {"examples": 8, "hard_negatives": 2, "candidates": 4, "generate": 2}
    estimate = CostEstimate(recipe(home, batch=batch, train={"steps": 3}), flops=1e9)
    share, step = estimate.stages["warmup"]
    assert share == pytest.approx(0.3)
    assert step.prompts == 2 * (4 + 1)
    assert step.queries == 6 * 4
    assert step.read == 2 * 4 * 5
    assert step.embedded == (8 * (5 + 2) - 8) * 5
    assert step.scored == 0
    layer_tokens = 10 * 6 + 40 * 4 + (24 + 240) * 1
    assert step.layer_tokens(estimate.model) == layer_tokens
    head = 97 * 48
    expected = 6 * layer_tokens * estimate.model.layer_parameters + 6 * 2 * head
    assert step.flops(estimate.model, checkpointing=False) == expected
    share, distilled = estimate.stages["self_distillation"]
    assert share == pytest.approx(0.7)
    assert distilled.scored == 2 * 4 * 5
    assert distilled.embedded == step.embedded
    with_scores = distilled.flops(estimate.model, checkpointing=False)
    without = (
        6 * distilled.layer_tokens(estimate.model) * estimate.model.layer_parameters + 12 * head
    )
    assert with_scores - without == 2 * 40 * 6 * estimate.model.layer_parameters
    mean = 0.3 * expected + 0.7 * with_scores
    assert estimate.step_flops == pytest.approx(mean)
    assert estimate.hours == pytest.approx(3 * mean / 1e9 / 3600)


def test_a_grid_reads_its_own_passages(home: Path) -> None:
    data = [
        {"tasks": str(home / "nq.jsonl"), "task": "nq", "positives": "gold"},
        {"synthetic": "corpus_text", "weight": 7},
    ]
    batch = {"grid": [3, 2], "others": 2, "candidates": 4, "generate": 1}
    batch["hard_negatives"] = 0
    stages = {"bottom": {"fraction": 0.5, "generate_every": 5}, "warmup": {"fraction": 0.5}}
    estimate = CostEstimate(recipe(home, data=data, batch=batch, stages=stages))
    assert [source.share for source in estimate.sources] == pytest.approx([6 / 8, 2 / 8])
    shares = {name: share for name, (share, _) in estimate.stages.items()}
    assert shares == pytest.approx({"bottom": 0.4, "bottom, generating": 0.1, "warmup": 0.5})
    step = estimate.stages["warmup"][1]
    assert step.prompts == pytest.approx(5 + 2 * 4)
    assert step.read == pytest.approx(4 * 5)
    assert step.read + step.embedded == pytest.approx(6 * 5)
    bottom = estimate.stages["bottom"][1]
    assert (bottom.prompts, bottom.read) == (0, 0)
    assert bottom.queries == pytest.approx(6 * 4)


def test_extra_questions_cost_prompts_but_no_passages(home: Path) -> None:
    data = [{"tasks": str(home / "nq.jsonl"), "task": "nq", "positives": "gold"}]
    batch: dict[str, Any] = {"grid": [3, 4], "candidates": 3, "generate": 6}
    batch["hard_negatives"] = 0
    stages = {"bottom": {"fraction": 0.5}, "warmup": {"fraction": 0.5}}
    alone = CostEstimate(recipe(home, data=data, batch=batch, stages=stages)).stages
    batch["questions_per_passage"] = 1
    several = CostEstimate(recipe(home, data=data, batch=batch, stages=stages)).stages
    for name, more in (("warmup", 1 + 3), ("bottom", 1)):
        assert several[name][1].read == alone[name][1].read
        assert several[name][1].prompts == pytest.approx(more * alone[name][1].prompts)
    assert alone["warmup"][1].read == pytest.approx(6 * 5)
    assert alone["warmup"][1].prompts == pytest.approx(6 * 5)
    assert several["warmup"][1].prefixes == pytest.approx(6 * (1 + 3) * 3 * 5)
    assert alone["bottom"][1].queries == pytest.approx(12 * 4)
    assert several["bottom"][1].queries == pytest.approx((12 + 6 * 3) * 4)
    assert several["warmup"][1].queries == alone["warmup"][1].queries == pytest.approx(6 * 4)


def test_mined_candidates_are_read_and_have_extra_questions(home: Path) -> None:
    data = [{"tasks": str(home / "nq.jsonl"), "task": "nq", "positives": "gold"}]
    batch = {"examples": 2, "candidates": 4, "hard_negatives": 0, "questions_per_passage": 3}
    stages = {"bottom": {"fraction": 0.5}, "warmup": {"fraction": 0.5}, "mine_every": 10}
    estimate = CostEstimate(recipe(home, data=data, batch=batch, stages=stages)).stages
    warmup, bottom = estimate["warmup"][1], estimate["bottom"][1]
    assert warmup.read == pytest.approx(2 * 4 * 5)
    assert warmup.embedded == pytest.approx(2 * 5)
    assert warmup.prompts == pytest.approx(2 * (1 + 3 * 4) * 5)
    assert bottom.queries == pytest.approx(2 * (1 + 3 * 4) * 4)
    assert bottom.read + bottom.embedded == pytest.approx(2 * 5)


def test_a_length_curriculum_shortens_passages_that_are_only_embedded(
    home: Path, tmp_path: Path
) -> None:
    text = " ".join(f"w{n}" for n in range(11))
    corpus = tmp_path / "corpus.jsonl"
    corpus.write_text(json.dumps({"id": "p", "title": "w1", "text": text}) + "\n")
    curriculum = [{"after": 0.0, "tokens": 8}, {"after": 0.4, "tokens": 10}]
    curriculum.append({"after": 0.9, "tokens": 16})  # more than the passage has
    batch = {"hard_negatives": 2, "candidates": 4, "generate": 2, "passage_tokens": curriculum}
    stages = {"bottom": {"fraction": 0.5, "generate_every": 5}, "warmup": {"fraction": 0.2}}
    estimate = CostEstimate(recipe(home, corpus=str(corpus), batch=batch, stages=stages))
    batch["passage_tokens"] = []
    whole = CostEstimate(recipe(home, corpus=str(corpus), batch=batch, stages=stages))
    assert whole.corpus.passage_tokens == 12
    means = {"bottom": 0.8 * 8 + 0.2 * 10, "warmup": 10, "self_distillation": (2 * 10 + 12) / 3}
    means["bottom, generating"] = means["bottom"]
    assert estimate.stages.keys() == means.keys()
    for name, (_, step) in estimate.stages.items():
        uncut = whole.stages[name][1]
        assert uncut.embedded > 0
        assert step.embedded == pytest.approx(uncut.embedded * means[name] / 12)
        assert step.read == uncut.read
    assert estimate.hours < whole.hours


def test_steps_follow_from_steps_or_epochs(home: Path) -> None:
    def steps(accumulation: int = 1, **train: Any) -> int:
        trainer = {"gradient_accumulation_steps": accumulation}
        return CostEstimate(recipe(home, train=train, trainer=trainer), flops=1e9).steps

    assert steps(steps=7) == 7
    assert steps(epochs=4) == 5  # 4 · 10 examples by 8
    assert steps(epochs=4, accumulation=2) == 3


@pytest.mark.parametrize("precision", ["bf16", "fp32"])
def test_activation_bytes_equal_those_that_autograd_saves(home: Path, precision: str) -> None:
    more, less = (_saved_bytes(layers, precision) for layers in (3, 2))
    model = CostEstimate(recipe(home)).model
    assert (more - less) / (2 * 33) == model.activation_bytes(precision)


def _saved_bytes(layers: int, precision: str) -> int:
    """Bytes saved for the backward pass of 2 × 33 tokens, without weights and their copies."""
    lm = tiny_lm(layers=layers)
    weights = {shape for p in lm.parameters() for shape in (p.shape, p.shape[::-1])}
    kept: dict[int, torch.Tensor] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.shape not in weights:
            kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with (
        torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor),
        torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"),
    ):
        lm(input_ids=torch.zeros(2, 33, dtype=torch.long), use_cache=False)
    return sum(tensor.untyped_storage().nbytes() for tensor in kept.values())


def test_memory_of_ddp_fsdp_and_checkpointing(home: Path) -> None:
    once, exact = {"steps": 1}, {"bf16": False}
    full = CostEstimate(recipe(home, train=once, trainer=exact)).memory()
    assert full["weights in bfloat16"] == 0
    assert full["optimizer"] == 2 * full["gradients"] == 2 * full["weights"]
    # A single device shards nothing, but still holds gathered weights and gradients.
    gathered = full["weights"] + full["gradients"]
    assert full["total, sharded (FSDP2)"] == full["total, replicated (DDP)"] + gathered
    checkpointing = {**exact, "gradient_checkpointing": True}
    lean = CostEstimate(recipe(home, train=once, trainer=checkpointing)).memory()
    assert lean["activations"] < full["activations"] / 3
    many = CostEstimate(recipe(home, train={"steps": 1}), devices=4).memory()
    states = many["weights"] + many["gradients"] + many["optimizer"]
    saved = many["total, replicated (DDP)"] - many["total, sharded (FSDP2)"]
    assert saved == pytest.approx(states * 3 / 4 - many["gradients"] / 2)  # whole, in bfloat16


def test_a_frozen_base_model_takes_memory(home: Path) -> None:
    plain, frozen = (
        CostEstimate(
            recipe(home, model={"base": str(home / "lm"), "b": 1, "t": 3, "frozen_passages": kind})
        ).memory()
        for kind in ("none", "kv")
    )
    more = frozen["total, replicated (DDP)"] - plain["total, replicated (DDP)"]
    assert more == frozen["frozen base model"] == frozen["weights"]


def test_lora_parameters_equal_those_of_peft(home: Path) -> None:
    group, targets = {"rank": 4}, ["q_proj", "down_proj"]
    both = {"bottom": group, "top": group, "targets": targets}
    trained = CostEstimate(recipe(home, lora=both)).model.trained
    adapted = get_peft_model(
        tiny_lm(),
        LoraConfig(r=4, target_modules=targets, layers_to_transform=[0, 1, 4, 5]),
    )
    assert trained == adapted.get_nb_trainable_parameters()[0]
    held = {**both, "bottom": {**group, "trained": False}}
    model = recipe(home).model.model_copy(update={"start": "default"})
    started = Recipe.model_validate({**recipe(home).model_dump(), "model": model, "lora": held})
    assert 0 < CostEstimate(started).model.trained < trained
    norms = CostEstimate(recipe(home, lora={**both, "norms": True})).model.trained - trained
    assert norms == 4 * 2 * 48 + 48  # two of each layer, and the last
    with pytest.raises(ImpRAGError, match=r"lora.targets: .* 'query'; they have .*q_proj"):
        CostEstimate(recipe(home, lora={"top": {}, "targets": ["query"]}))
    to_the_end = {**recipe(home).model_dump(), "lora": {"top": {}}}
    to_the_end["model"]["t"] = tiny_lm().config.num_hidden_layers - 1
    with pytest.raises(ImpRAGError, match=r"lora\.top: there are no such layers with b"):
        CostEstimate(Recipe.model_validate(to_the_end))


def test_storage_of_index_and_kv(home: Path) -> None:
    estimate = CostEstimate(recipe(home))
    assert estimate.model.dimension == 32
    assert estimate.model.kv_bytes == 2 * 3 * 32 * 2
    sizes = estimate.storage(1000)
    assert sizes == {
        "flat float32": 128_000,
        "flat float16": 64_000,
        "PQ64": 64_000,
        "stored KV": 1000 * 5 * 384,
    }
    assert set(estimate.to_dict()["storage"]) == {"corpus", "37M passages"}


def test_prompts_are_measured_with_their_templates(home: Path) -> None:
    source = {"tasks": str(home / "nq.jsonl"), "task": "nq"}
    longer = {**source, "prompt_templates": ["{input} w3 w4 w5 w6 w7 w8"]}
    one, other = CostEstimate(recipe(home, data=[source, longer])).sources
    assert one.prompt_tokens == 4 < other.prompt_tokens < 8


def test_missing_data_is_listed_with_assumed_sizes(home: Path) -> None:
    data = [
        {"tasks": "nowhere.jsonl", "task": "nq", "limit": 12},
        {"tasks": "facebook/kilt_tasks:hotpotqa", "task": "hotpotqa"},
        {"synthetic": "corpus_text"},
    ]
    estimate = CostEstimate(recipe(home, corpus="nowhere", data=data))
    assert [source.state for source in estimate.sources] == ["missing", "on the hub", "missing"]
    assert [source.examples for source in estimate.sources] == [12, 5000, 5000]
    assert estimate.corpus.state == "missing"
    assert set(estimate.to_dict()["storage"]) == {"37M passages"}
    joined = CostEstimate(recipe(home, corpus=(str(home / "corpus.jsonl"), "nowhere")))
    assert joined.corpus.state == "missing"
    assert joined.corpus.place.endswith("corpus.jsonl, nowhere")


def test_synthetic_examples_are_measured(home: Path) -> None:
    estimate = CostEstimate(recipe(home, data=[{"synthetic": "corpus_text"}]))
    (source,) = estimate.sources
    assert (source.state, source.examples, source.retrieves) == ("found", 6, False)
    assert (source.prompt_tokens, source.response_tokens) == (1, 3)
    assert estimate.stages["warmup"][1].read == 0


@pytest.mark.parametrize("corpus", ["corpus.jsonl", "nowhere"])
@pytest.mark.parametrize("kind", get_args(Synthetic))
def test_each_kind_of_synthetic_examples_has_a_cost(home: Path, kind: str, corpus: str) -> None:
    """The sample of the corpus may give no example of a kind."""
    estimate = CostEstimate(recipe(home, corpus=str(home / corpus), data=[{"synthetic": kind}]))
    (source,) = estimate.sources
    assert source.state == ("missing" if corpus == "nowhere" else "found")
    assert source.retrieves == (kind in FROM_PASSAGES)
    assert source.response_tokens > 0


def test_unknown_models_bad_devices_and_broken_data_are_refused(home: Path) -> None:
    with pytest.raises(ImpRAGError, match="no model 'no/model'"):
        CostEstimate(recipe(home, model={"base": "no/model"}))
    with pytest.raises(ImpRAGError, match="devices"):
        CostEstimate(recipe(home), devices=0)
    bad = home / "bad.jsonl"
    bad.write_text('{"question": 3}\n')
    with pytest.raises(ImpRAGError, match="bad.jsonl, line 1"):
        CostEstimate(recipe(home, data=[{"tasks": str(bad), "task": "nq"}]))


@given(
    examples=st.integers(1, 64),
    hard=st.integers(0, 12),
    candidates=st.integers(1, 12),
    weight=st.floats(0.1, 0.9),
)
def test_passages_of_a_batch_are_read_or_embedded(
    home: Path, examples: int, hard: int, candidates: int, weight: float
) -> None:
    data = [
        {"tasks": "a.jsonl", "task": "nq", "weight": weight},
        {"tasks": "b.jsonl", "task": "coqa", "weight": 1 - weight},
    ]
    batch = {"examples": examples, "hard_negatives": hard, "candidates": candidates}
    estimate = CostEstimate(recipe(home, corpus="nowhere", data=data, batch=batch))
    step = estimate.stages["warmup"][1]
    passages = (step.read + step.embedded) / estimate.corpus.passage_tokens
    assert passages == pytest.approx(examples * weight * (5 + hard))
    assert 0 <= step.responses <= step.prompts
    assert step.read <= step.prefixes * (1 + 1e-9)


def test_the_memory_of_whole_weights_in_the_docs_is_that_of_the_estimate(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    text = (ROOT / "docs" / "guides" / "scale.md").read_text()
    rows: dict[str, list[str]] = {}
    for name in ("llama-3.2-3b", "llama-3.1-8b"):
        recipe = load_recipe(ROOT / "configs" / f"{name}.yaml")
        on = {n: CostEstimate(recipe, devices=n).memory() for n in (2, 4, 8)}
        total = {n: memory["total, sharded (FSDP2)"] / 1e9 for n, memory in on.items()}
        whole = (on[2]["weights"] + on[2]["gradients"]) / 2e9  # in bfloat16
        figures = whole, total[2], total[2] - whole, total[8] - whole
        for row, figure in zip(
            (
                "whole weights and gradients, 2 P + 2 T",
                "total on 2 devices",
                "total on 2 devices, without them",
                "total on 8 devices, without them",
            ),
            figures,
            strict=True,
        ):
            rows.setdefault(row, []).append(f"{figure:.2f}")
    for row, cells in rows.items():
        assert f"| {row} | {' | '.join(cells)} |" in text
    assert f"needs 4 ({total[4]:.1f} GB)" in text


@pytest.fixture
def estimates(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    names = ("llama-3.2-3b", "llama-3.1-8b")
    monkeypatch.chdir(tmp_path)  # where none of the data is
    recipes = [load_recipe(ROOT / "configs" / f"{name}.yaml") for name in names]
    return [CostEstimate(recipe, devices=8).to_dict() for recipe in recipes]


def test_the_figures_of_the_docs_are_those_of_the_estimate(estimates: list[dict[str, Any]]) -> None:
    text = (ROOT / "docs" / "guides" / "scale.md").read_text()

    def row(name: str, *figures: str) -> None:
        assert f"| {name} | {' | '.join(figures)} |" in text

    for name, part in [
        ("parameters", "total"),
        ("layers 0..b", "bottom"),
        ("layers above b, up to t", "reading"),
        ("layers above t", "top"),
        ("embedding, norm, head", "other"),
    ]:
        row(name, *(f"{estimate['parameters'][part]:,}" for estimate in estimates))
    for name, part in [
        ("prompts and responses | all N", "prompts"),
        ("passages that are read | 0..t", "read"),
        ("passages that are only embedded | 0..b−1", "embedded"),
        ("prompts scored again for each candidate, without gradient | all N", "scored"),
    ]:
        stages = estimates[0]["stages"]
        row(name, *(f"{stages[stage][part]:,}" for stage in ("warmup", "self_distillation")))
        assert stages == estimates[1]["stages"]
    training = [estimate["training"] for estimate in estimates]
    row("FLOPs of a step, mean over both stages", *(f"{t['flops_per_step']:.3g}" for t in training))
    row("steps", *(f"{t['steps']:,}" for t in training))
    row("tokens", *(f"{t['tokens']:,}" for t in training))
    row("FLOPs", *(f"{t['flops']:.3g}" for t in training))
    row("hours on 8 devices at 4e14 FLOP/s", *(f"{t['hours']:.2f}" for t in training))
    row("device hours", *(f"{t['device_hours']:.1f}" for t in training))
    for part in estimates[0]["memory"]:
        row(part, *(f"{estimate['memory'][part] / 1e9:.2f}" for estimate in estimates))
    warmup = estimates[0]["stages"]["warmup"]
    assert f"{warmup['responses']:,} response tokens" in text
    kv = "{:,} bytes in the 3B and {:,} bytes in the 8B model"
    assert kv.format(*(estimate["kv_bytes_per_token"] for estimate in estimates)) in text


class ManyPassages:
    """In the place of a corpus of any size, with ids of eight digits."""

    fingerprint = "many"

    def __init__(self, count: int) -> None:
        self._count = count

    def __len__(self) -> int:
        return self._count

    def passages(self, rows: Sequence[int]) -> list[Passage]:
        return [Passage(f"{row:08}", "", "text") for row in rows]


def test_the_figures_for_many_passages_are_those_of_the_dry_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = (ROOT / "docs" / "guides" / "scale.md").read_text()
    sizes = [37_000_000, 10**9]
    monkeypatch.chdir(tmp_path)
    small, large = (
        load_recipe(ROOT / "configs" / f"{name}.yaml") for name in ("llama-3.2-3b", "llama-3.1-8b")
    )

    def row(name: str, figure: Callable[[int], str]) -> None:
        expected = f"| {name} | {figure(sizes[0])} | {figure(sizes[1])} |"
        assert expected in text, expected

    @cache
    def predicted(kind: str, count: int) -> IndexPrediction:
        dimension = CostEstimate(small).model.dimension
        assert dimension == CostEstimate(large).model.dimension == 1024
        return predict_index(ManyPassages(count), dimension=dimension, kind=kind)

    def of(kind: str, what: str) -> Callable[[int], str]:
        return lambda count: readable_size(getattr(predicted(kind, count), what))

    storage = CostEstimate(small).storage
    row("embeddings, float16", lambda n: readable_size(storage(n)["flat float16"]))
    row("`flat`: disk", of("flat", "disk"))
    row("`ivfpq`: disk", of("ivfpq", "disk"))
    row("`ivfpq`: memory while building", of("ivfpq", "memory"))
    codes = "`ivfpq`: memory that a search reads"
    row(codes, lambda n: readable_size(predicted("ivfpq", n).disk - predicted("flat", n).disk))
    row("`hnsw`: disk, and memory that a search reads", of("hnsw", "disk"))
    row("`hnsw`: memory while building", of("hnsw", "memory"))
    row("`milvus` (HNSW): server", of("milvus", "server"))
    row("`milvus-ivf`: server", of("milvus-ivf", "server"))
    row("`pgvector` (HNSW, `halfvec`): server", of("pgvector", "server"))
    machines = "Milvus machines with 256 GB of memory"
    row(machines, lambda n: str(math.ceil(predicted("milvus", n).server / 200e9)))
    cpu = CostEstimate(small, flops=3.05e11)
    row("embedding, 3B, two CPU cores, hours", lambda n: f"{cpu.embedding_hours(n):,.0f}")
    for what, recipe, devices in (
        ("3B, one GPU", small, 1),
        ("3B, eight GPUs", small, 8),
        ("8B, eight GPUs", large, 8),
    ):
        hours = CostEstimate(recipe, devices=devices).embedding_hours
        row(f"embedding, {what}, hours", lambda n, hours=hours: _three_digits(hours(n)))
    for name, recipe in (("3B", small), ("8B", large)):
        stored = CostEstimate(recipe).storage
        row(
            f"stored KV at layers b..t, {name}, `bf16`",
            lambda n, stored=stored: readable_size(stored(n)["stored KV"]),
        )


def _three_digits(number: float) -> str:
    return f"{number:.2f}" if number < 10 else f"{number:.3g}"
