"""Recipes: defaults, overrides, paths, and one clear line for each error."""

from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from train import SimilarNames

from imprag.errors import ImpRAGError
from imprag.training.recipe import Recipe
from imprag.training.recipe_file import load_recipe
from imprag.training.sources import SyntheticSource, TaskSource
from imprag.training.trainer_arguments import DEFAULTS, trainer_arguments

ROOT = Path(__file__).parents[2]
CONFIGS = sorted((ROOT / "configs").glob("*.yaml"))
OF_DEFAULT_MODEL = sorted((ROOT / "examples" / "default_model").glob("*.yaml"))
DATA = [
    {"tasks": "bench", "task": "nq", "limit": 5},
    {"synthetic": "corpus_text", "weight": 0.1},
]


def write(path: Path, **content: Any) -> Path:
    file = path / "recipe.yaml"
    file.write_text(yaml.safe_dump({"data": DATA, **content}))
    return file


@pytest.mark.parametrize("path", [*CONFIGS, *OF_DEFAULT_MODEL], ids=lambda path: path.stem)
def test_shipped_recipes_load(path: Path) -> None:
    assert SimilarNames.uses  # its module registers it, for the recipes of the built-in model
    recipe = load_recipe(path)
    again = Recipe.model_validate(yaml.safe_load(recipe.to_yaml()))
    assert again == recipe
    assert again.fingerprint() == recipe.fingerprint()


def test_there_are_recipes() -> None:
    names = [path.stem for path in CONFIGS]
    assert names == ["llama-3.1-8b", "llama-3.2-3b", "qwen3-0.6b", "smollm2-factbook"]
    assert {path.stem for path in OF_DEFAULT_MODEL} == {
        *("smollm2-broad", "smollm2-default", "smollm2-distilled"),
        *("smollm2-marks", "smollm2-reader", "smollm2-answers"),
        *("smollm2-statements", "smollm2-mixed"),
        *("smollm2-two-hop", "smollm2-two-hop-reader"),
    }


@pytest.mark.parametrize(("name", "t"), [("llama-3.2-3b", 19), ("llama-3.1-8b", 23)])
def test_the_llama_recipes_have_the_papers_settings(name: str, t: int) -> None:
    recipe = load_recipe(CONFIGS[0].parent / f"{name}.yaml")
    assert (recipe.model.b, recipe.model.t, recipe.model.k) == (7, t, 10)
    assert recipe.train.epochs == 10
    assert recipe.stages.warmup.fraction == pytest.approx(0.3)
    assert (recipe.batch.positives, recipe.teacher.hard_negatives) == (5, (10, 50))
    assert (recipe.batch.hard_negatives, recipe.batch.candidates) == (10, 10)
    tasks = [source for source in recipe.data if isinstance(source, TaskSource)]
    assert [source.task for source in tasks if source.retrieves] == ["nq", "hotpotqa"]
    instruction = "oasst1 coqa drop newsqa pubmedqa quail squad_v2 cnn_dailymail"
    assert [source.task for source in tasks if not source.retrieves] == instruction.split()
    made = {s.synthetic: s for s in recipe.data if isinstance(s, SyntheticSource)}
    assert set(made) == {"phrase_denoising", "sentence_generation", "corpus_text"}
    assert all(s.limit == 5000 for s in recipe.data if s != made["corpus_text"])
    weights = sum(source.weight for source in recipe.data)
    assert made["corpus_text"].weight / weights == pytest.approx(0.1, abs=1e-4)


def test_defaults_and_model_config(tmp_path: Path) -> None:
    recipe = load_recipe(write(tmp_path))
    assert recipe.train.epochs == 10
    config = recipe.model.to_config()
    assert (config.base_model, config.b, config.t, config.k) == ("smollm2-135m", 7, 20, 3)
    assert config.passage_template == "{title}\n{text}"
    first, second = recipe.data
    assert isinstance(first, TaskSource)
    assert first.retrieves
    assert isinstance(second, SyntheticSource)


def test_overrides(tmp_path: Path) -> None:
    path = write(tmp_path, train={"epochs": 3})
    recipe = load_recipe(
        path,
        [
            "model.k=5",
            "data.0.weight=2",
            "data.1.limit=7",
            "trainer.learning_rate=3e-4",
            "train.steps=11",
            "lora.bottom.rank=4",
            "batch.grid=[2, 3]",
            "model.passage_template='{text} = {title}'",
        ],
    )
    assert recipe.model.k == 5
    assert [source.weight for source in recipe.data] == [2, 0.1]
    assert recipe.data[1].limit == 7
    assert recipe.trainer["learning_rate"] == pytest.approx(3e-4)
    assert (recipe.train.steps, recipe.train.epochs) == (11, None)
    assert recipe.lora is not None
    assert recipe.lora.bottom is not None
    assert (recipe.lora.bottom.rank, recipe.lora.reading) == (4, None)
    assert recipe.batch.grid == (2, 3)
    assert recipe.model.passage_template == "{text} = {title}"
    assert load_recipe(path, ["lora.bottom.rank=4", "lora=null"]).lora is None


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("model.kk=3", "unknown key model.kk (value 3); did you mean model.k?"),
        ("learning_rate=3", "did you mean trainer.learning_rate?"),
        ("model.seed=3", "unknown key model.seed (value 3); did you mean trainer.seed?"),
        ("data.0.limits=3", "unknown key data.0.limits (value 3); did you mean data.0.limit?"),
        ("lora.bottem.rank=4", "unknown key lora.bottem"),
        ("xyzzy=4", "unknown key xyzzy (value 4)"),
        ("model.k=many", "model.k is 'many', but should be a valid integer"),
        ("model.k=true", "model.k is True, but should be a valid integer"),
        ("model.k='3'", "model.k is '3', but should be a valid integer"),
        ("model.k=0", "k must be at least 1, not 0"),
        ("model=3", "model is 3, but should be an object"),
        ("model.passage_encoding=both", "model.passage_encoding is 'both', but should be 'indep"),
        ("model.b=20", "need 0 <= b < t, but b=20 and t=20"),
        ("model.t=30", "t=30, but smollm2-135m has 30 layers: t can be 29 at most"),
        ("model.passage_template=hello", "passage_template must hold {text} once"),
        ("data=[]", "data is [], but list should have at least 1 item"),
        ("data=[3]", "data.0 is 3"),
        ("data.0.task=nqq", "data.0: unknown task 'nqq'"),
        ("data.0.weight=0", "data.0.weight is 0, but should be greater than 0"),
        ("data.1.synthetic=poems", "data.1.synthetic is 'poems', but should be 'phrase_denoising'"),
        ("data.2.weight=1", "--set data.2.weight=1: '2' should be a number from 0 to 1 in this"),
        ("data.first.weight=1", "'first' should be a number from 0 to 1 in this list"),
        ("corpus={name: x}", "corpus is {'name': 'x'}, but should be a valid list"),
        ("corpus.name=x", "there is no 'name' in 'default', which has no keys"),
        ("trainer.learning_rate=.nan", "trainer: learning_rate is nan, but should be a finite"),
        ("trainer.learning_rate=-1", "trainer: learning_rate is -1, but must be greater than 0"),
        ("teacher.hard_negatives=[5, 50]", "two ascending ranks after the 5 positives"),
        ("teacher.hard_negatives=[50, 10]", "two ascending ranks after the 5 positives"),
        ("data.1.corpus=wiki10k", "from wiki10k, which is none of the recipe's corpora: default"),
        ("batch.alike_rows=true", "was removed: use batch.sampler: similar_names, which examples/"),
        ("batch.grids=2", "grids is 2, but there is no batch.grid"),
        ("batch.generate=9", "generate is 9, but a batch has 8 prompts"),
        ("batch.passage_tokens=[{after: 0.5, tokens: 64}]", "must begin with after: 0"),
        ("batch.passage_tokens=[{after: 0, tokens: 999}]", "but model.max_passage_tokens is 256"),
        ("stages.bottom.fraction=0.8", "sum to 1.1, over 1"),
        ("model.start_share=0.5", "model.start_share (value 0.5) was removed: interpolate"),
        ("data.0.retrieval=false", "data.0.retrieval (value False) was removed: a task says"),
        ("batch.answer_check=false", "was removed: a passage that contains an answer is never"),
        ("batch.same_passage=2", "was removed: use batch.questions_per_passage"),
        ("batch.about_candidates=2", "was removed: use batch.questions_per_passage"),
        ("batch.kind=grid", "batch.kind (value 'grid') was removed: give batch.grid, such as"),
        ("model.rope=after", "model.rope (value 'after') was removed: embeddings are taken"),
        ("optimizer.schedule=cosine", "was removed: use trainer.lr_scheduler_type (cosine, or"),
        ("optimizer.betas=[0.9, 0.95]", "was removed: use trainer.adam_beta1 and trainer.adam"),
        ("train.precision=fp32", "(value 'fp32') was removed: use trainer.bf16: false for fp32"),
        ("lora.top.targets=[x]", "lora.top.targets (value ['x']) was removed: use lora.targets"),
        ("data.0.verify=true", "was removed: make a file of the task verification by examples/"),
        (
            "stages.self_distillation.score_temperature=0.5",
            "was removed: use stages.self_distillation.objective, {name: self_distillation, score_",
        ),
        (
            "stages.warmup.objective=nse",
            "unknown retrieval objective 'nse'; known are",
        ),
        ("batch.sampler=mixed", "unknown batch sampler 'mixed'; known are mixture"),
        ("trainer.learning_rat=1", "no learning_rat; did you mean learning_rate"),
        ("trainer.learning_rate=fast", "learning_rate is 'fast', but should be a valid number"),
        ("trainer.lr_scheduler_type=cosin", "is 'cosin', but should be one of cosine"),
        ("trainer.output_dir=x", "trainer: output_dir cannot be given here: --out names the run"),
        ("trainer.max_steps=3", "cannot be given here: give train.steps or train.epochs"),
        ("trainer.fsdp=full_shard", "devices are chosen by torchrun or accelerate launch"),
        ("trainer.dataloader_drop_last=true", "ImpRAG makes and counts its batches itself"),
        ("trainer=3", "trainer is 3, but should be an object"),
        ("stages.warmup.score_distillation={}", "was removed: the labels of the teacher's ranks"),
        ("train.freeze_embeddings=true", "give one of steps and epochs, not none"),
        ("train={steps: 3, epochs: 4}", "not both"),
        ("lora={}", "lora adapts no layers"),
        ("lora={top: {trained: false}}", "lora trains no layers"),
        ("lora={top: {}, bottom: {trained: false}}", "lora.bottom: `trained: false` keeps the"),
        ("evaluation.limit=5", "evaluation has no questions; give it data or tasks"),
        ("model.k", "expected key=value"),
        ("model..k=3", "expected key=value"),
        ("model.k=[", "the value is not valid YAML"),
    ],
)
def test_errors_in_overrides_are_one_line(tmp_path: Path, override: str, message: str) -> None:
    path = write(tmp_path, corpus="default")
    with pytest.raises(ImpRAGError) as caught:
        load_recipe(path, [override])
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert str(path) in str(caught.value) or f"--set {override}" in str(caught.value)


def test_removed_keys_with_their_default_are_read(tmp_path: Path) -> None:
    """Run folders of earlier versions state every key."""
    plain = load_recipe(write(tmp_path, corpus="default"))
    former = ["model.start_share=0.0", "data.0.retrieval=null", "batch.answer_check=true"]
    former += ["data.0.verify=false", "stages.self_distillation.target_temperature=1.0"]
    former += ["batch.same_passage=0", "stages.warmup.score_distillation=null"]
    former += ["batch.kind=examples", "batch.grid=[6, 6]", "model.rope=before"]
    former += ["optimizer.weight_decay=0.0", "optimizer.betas=[0.9, 0.999]", "lora=null"]
    former += ["train.epochs=10", "train.precision=bf16", "train.save_steps=500"]
    assert load_recipe(write(tmp_path, corpus="default"), former) == plain


def test_all_removed_keys_are_named_at_once(tmp_path: Path) -> None:
    path = write(tmp_path, optimizer={"learning_rate": 1e-3, "warmup_steps": 3}, lora={"top": {}})
    with pytest.raises(ImpRAGError) as caught:
        load_recipe(path)
    assert str(caught.value) == (
        f"{path}: optimizer.learning_rate (value 0.001) was removed: use trainer.learning_rate; "
        "optimizer.warmup_steps (value 3) was removed: use trainer.warmup_steps"
    )


def test_any_argument_of_transformers_can_be_given(tmp_path: Path) -> None:
    given = {"optim": "adafactor", "adam_epsilon": 1e-6, "lr_scheduler_kwargs": {"num_cycles": 2}}
    given |= {"save_total_limit": None, "warmup_steps": 3, "lr_scheduler_type": "cosine"}
    recipe = load_recipe(write(tmp_path, trainer=given))
    assert recipe.trainer == {**DEFAULTS, **given}
    assert (recipe.seed, recipe.precision, recipe.accumulation) == (0, "bf16", 1)


def test_default_trainer_arguments_are_accepted() -> None:
    assert trainer_arguments(DEFAULTS) == DEFAULTS


# --- extends ------------------------------------------------------------------------------------


def write_named(path: Path, name: str, **content: Any) -> Path:
    file = path / name
    file.parent.mkdir(exist_ok=True)
    file.write_text(yaml.safe_dump(content))
    return file


def test_a_recipe_extends_others(tmp_path: Path) -> None:
    write_named(
        tmp_path,
        "common/first.yaml",
        data=DATA,
        model={"k": 9, "t": 12},
        batch={"grid": [2, 3], "candidates": 4},
        lora={"top": {"rank": 2}},
        train={"epochs": 3, "freeze_embeddings": True},
        trainer={"seed": 4, "warmup_steps": 7},
    )
    write_named(tmp_path, "common/second.yaml", extends="first.yaml", model={"k": 8}, lora=None)
    last = write_named(
        tmp_path,
        "last.yaml",
        extends="common/second.yaml",
        data=DATA[1:],
        batch={"grid": [4, 4]},
        train={"steps": 5},
        trainer={"seed": 6},
    )
    recipe = load_recipe(last, ["model.t=13", "trainer.warmup_steps=8"])
    assert (recipe.model.k, recipe.model.t) == (8, 13)
    assert len(recipe.data) == 1
    assert (recipe.batch.grid, recipe.batch.candidates) == ((4, 4), 4)
    assert recipe.lora is None
    assert (recipe.train.steps, recipe.train.epochs) == (5, None)
    assert recipe.train.freeze_embeddings
    assert (recipe.seed, recipe.trainer["warmup_steps"]) == (6, 8)
    # A run folder's recipe states all of it and extends nothing.
    resolved = tmp_path / "resolved.yaml"
    resolved.write_text(recipe.to_yaml())
    assert "extends" not in resolved.read_text()
    assert load_recipe(resolved) == recipe


def test_paths_are_looked_up_in_the_folders_of_extended_recipes(tmp_path: Path) -> None:
    data = [{"tasks": name, "task": "nq"} for name in ("both.jsonl", "base.jsonl")]
    write_named(tmp_path, "base/base.yaml", data=data)
    for place in ("both.jsonl", "base/both.jsonl", "base/base.jsonl"):
        (tmp_path / place).touch()
    recipe = load_recipe(write_named(tmp_path, "top.yaml", extends="base/base.yaml"))
    places = [source.tasks for source in recipe.data if isinstance(source, TaskSource)]
    assert places == [str(tmp_path / "both.jsonl"), str(tmp_path / "base/base.jsonl")]


def test_circular_missing_and_malformed_extends_are_refused(tmp_path: Path) -> None:
    first = write_named(tmp_path, "first.yaml", extends="second.yaml")
    second = write_named(tmp_path, "second.yaml", extends="first.yaml")
    with pytest.raises(ImpRAGError) as caught:
        load_recipe(first)
    circle = " extends ".join(str(each) for each in (first, second, first))
    assert str(caught.value) == f"recipes extend each other in a circle: {circle}"
    with pytest.raises(ImpRAGError, match="cannot read the recipe .*none.yaml: No such file"):
        load_recipe(write(tmp_path, extends="none.yaml"))
    with pytest.raises(ImpRAGError, match="extends is 3, but should be a recipe's path"):
        load_recipe(write(tmp_path, extends=3))
    write_named(tmp_path, "second.yaml", train={"precision": "fp32"})
    with pytest.raises(ImpRAGError, match="second.yaml: train.precision .* use trainer.bf16"):
        load_recipe(first)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("model: [", "is not valid YAML"),
        ("- 1", "is not a recipe"),
        ("", "is not a recipe"),
        ("model: {k: 1}\nmodel: {k: 2}", "the key 'model' is given twice"),
        ("model: {k: 3}", "data is missing"),
        ("a: !!python/object/apply:os.getcwd []", "is not valid YAML"),
    ],
)
def test_files_that_are_not_recipes_are_refused(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(text)
    with pytest.raises(ImpRAGError, match="recipe.yaml") as caught:
        load_recipe(path)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_recipe_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ImpRAGError, match="cannot read the recipe .*missing.yaml: No such file"):
        load_recipe(tmp_path / "missing.yaml")


def test_paths_are_looked_up_in_the_recipes_folder_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home, work = tmp_path / "home", tmp_path / "work"
    for folder in (home, work):
        folder.mkdir()
        (folder / "both.jsonl").touch()
    (work / "only.jsonl").touch()
    (home / "factbook").mkdir()  # no corpus: a built-in name keeps its meaning
    monkeypatch.chdir(work)
    path = write(
        home,
        corpus="factbook",
        data=[{"tasks": name, "task": "nq"} for name in ("both.jsonl", "only.jsonl", "org/set")],
        evaluation={"tasks": ["nq=both.jsonl", "only.jsonl"]},
    )
    recipe = load_recipe(path)
    places = [source.tasks for source in recipe.data if isinstance(source, TaskSource)]
    assert places == [str(home / "both.jsonl"), str(work / "only.jsonl"), "org/set"]
    assert recipe.corpus == ("factbook",)
    assert recipe.evaluation is not None
    assert recipe.evaluation.tasks == (f"nq={home / 'both.jsonl'}", str(work / "only.jsonl"))


def test_a_tilde_in_any_path_is_the_home_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("c.jsonl", "q.jsonl", "recipe.yaml"):
        (tmp_path / name).touch()
    (tmp_path / "recipe.yaml").write_text(
        "{model: {base: ~/lm, start: ~/lm}, corpus: [~/c.jsonl, ~/gone], "
        "data: [{tasks: ~/q.jsonl, task: nq}, {synthetic: cloze, corpus: ~/c.jsonl}], "
        "teacher: {retriever: ~/t}, evaluation: {data: ~/b, tasks: [nq=~/q.jsonl], corpus: ~/e}}"
    )
    recipe = load_recipe("~/recipe.yaml")
    assert "~" not in recipe.to_yaml()
    assert recipe.corpus == (str(tmp_path / "c.jsonl"), str(tmp_path / "gone"))
    assert recipe.evaluation is not None
    assert recipe.evaluation.tasks == (f"nq={tmp_path}/q.jsonl",)


def test_t_must_be_a_layer_of_the_model_folder(tmp_path: Path) -> None:
    (tmp_path / "lm").mkdir()
    (tmp_path / "lm" / "config.json").write_text('{"num_hidden_layers": 6}')
    path = write(tmp_path, model={"base": "lm", "b": 1, "t": 5})
    assert load_recipe(path).model.base == str(tmp_path / "lm")
    with pytest.raises(ImpRAGError, match="has 6 layers: t can be 5 at most"):
        load_recipe(path, ["model.t=6"])


def test_the_fingerprint_depends_on_keys_that_affect_the_weights(tmp_path: Path) -> None:
    path = write(tmp_path)
    recipe = load_recipe(path)
    same = [
        "trainer.save_steps=7",
        "trainer.logging_steps=3",
        "evaluation.tasks=[nq]",
        "train.epochs=10",
    ]
    other = load_recipe(path, same)
    assert other != recipe
    assert other.fingerprint() == recipe.fingerprint()
    assert recipe.differences(other) == []
    for override in (
        "trainer.seed=1",
        "model.k=4",
        "data.1.weight=0.2",
        "trainer.adam_beta2=0.95",
    ):
        other = load_recipe(path, [override, "train.epochs=10"])
        assert other.fingerprint() != recipe.fingerprint()
        (difference,) = recipe.differences(other)
        assert difference.startswith(override.split("=")[0])
    assert load_recipe(path, ["model.k=4"]).differences(recipe) == ["model.k: 4, not 3"]


@given(
    st.floats(1e-8, 1, allow_nan=False),
    st.integers(1, 10**6),
    st.sampled_from(["a: b {text}", "{title}: {text}", "#{text}", "{text}\n\té'\""]),
)
def test_every_recipe_survives_its_yaml(rate: float, steps: int, template: str) -> None:
    recipe = Recipe.model_validate(
        {
            "data": DATA,
            "trainer": {"learning_rate": rate},
            "train": {"steps": steps},
            "model": {"passage_template": template},
        }
    )
    assert Recipe.model_validate(yaml.safe_load(recipe.to_yaml())) == recipe
