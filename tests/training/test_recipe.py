"""Recipes: defaults, overrides, paths, and one clear line for every mistake."""

from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from imprag.errors import ImpRAGError
from imprag.training.recipe import Recipe, SyntheticSource, TaskSource, load_recipe

CONFIGS = sorted((Path(__file__).parents[2] / "configs").glob("*.yaml"))
DATA = [
    {"tasks": "bench", "task": "nq", "limit": 5},
    {"synthetic": "corpus_text", "weight": 0.1},
]


def write(path: Path, **content: Any) -> Path:
    file = path / "recipe.yaml"
    file.write_text(yaml.safe_dump({"data": DATA, **content}))
    return file


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_shipped_recipes_load(path: Path) -> None:
    recipe = load_recipe(path)
    again = Recipe.model_validate(yaml.safe_load(recipe.to_yaml()))
    assert again == recipe
    assert again.fingerprint() == recipe.fingerprint()


def test_there_are_recipes() -> None:
    names = [path.stem for path in CONFIGS]
    assert names == [
        "llama-3.1-8b",
        "llama-3.2-3b",
        "qwen3-0.6b",
        "smollm2-broad",
        "smollm2-default",
        "smollm2-distilled",
        "smollm2-factbook",
        "smollm2-marks",
        "smollm2-reader",
    ]


@pytest.mark.parametrize(("name", "t"), [("llama-3.2-3b", 19), ("llama-3.1-8b", 23)])
def test_the_papers_settings(name: str, t: int) -> None:
    recipe = load_recipe(CONFIGS[0].parent / f"{name}.yaml")
    assert (recipe.model.b, recipe.model.t, recipe.model.k) == (7, t, 10)
    assert recipe.train.epochs == 10
    assert recipe.stages.warmup.fraction == pytest.approx(0.3)
    assert (recipe.teacher.positives, recipe.teacher.hard_negatives) == (5, (10, 50))
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
            "optimizer.learning_rate=3e-4",
            "train.steps=11",
            "lora.bottom.rank=4",
            "batch.grid=[2, 3]",
            "model.passage_template='{text} = {title}'",
        ],
    )
    assert recipe.model.k == 5
    assert [source.weight for source in recipe.data] == [2, 0.1]
    assert recipe.data[1].limit == 7
    assert recipe.optimizer.learning_rate == pytest.approx(3e-4)
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
        ("learning_rate=3", "did you mean optimizer.learning_rate?"),
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
        ("data.2.weight=1", "--set data.2.weight=1: '2' is no number in a list from 0 to 1"),
        ("data.first.weight=1", "'first' is no number in a list"),
        ("corpus={name: x}", "corpus is {'name': 'x'}, but should be a valid list"),
        ("corpus.name=x", "'name' is looked for in 'default', which has no keys"),
        ("optimizer.learning_rate=.nan", "optimizer.learning_rate is nan"),
        ("optimizer.learning_rate=.inf", "optimizer.learning_rate is inf"),
        ("teacher.hard_negatives=[5, 50]", "two ranks behind the 5 positives"),
        ("teacher.hard_negatives=[50, 10]", "two ranks behind the 5 positives"),
        ("data.1.corpus=wiki10k", "from wiki10k, which is none of the recipe's corpora: default"),
        ("batch.alike_rows=true", "alike_rows is for grids, but batch.kind is examples"),
        ("batch.grids=2", "grids is 2, but batch.kind is examples"),
        ("batch.generate=9", "generate is 9, but a batch has 8 prompts"),
        ("batch.passage_tokens=[{after: 0.5, tokens: 64}]", "must begin with after: 0"),
        ("batch.passage_tokens=[{after: 0, tokens: 999}]", "but model.max_passage_tokens is 256"),
        ("stages.bottom.fraction=0.8", "sum to 1.1, over 1"),
        ("model.start_share=0.5", "start_share needs model.start"),
        ("train.seed=1", "give one of steps and epochs, not none"),
        ("train={steps: 3, epochs: 4}", "not both"),
        ("lora={}", "lora adapts no layers"),
        ("evaluation.steps=5", "evaluation has nothing to ask"),
        ("model.k", "expected key=value"),
        ("model..k=3", "expected key=value"),
        ("model.k=[", "the value is no YAML"),
    ],
)
def test_mistakes_give_one_line(tmp_path: Path, override: str, message: str) -> None:
    path = write(tmp_path, corpus="default")
    with pytest.raises(ImpRAGError) as caught:
        load_recipe(path, [override])
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert str(path) in str(caught.value) or f"--set {override}" in str(caught.value)


def test_bm25_has_no_scores_to_learn_from(tmp_path: Path) -> None:
    overrides = ["teacher.retriever=bm25", "stages.warmup.score_distillation={}"]
    with pytest.raises(ImpRAGError, match="needs the scores of a bi-encoder"):
        load_recipe(write(tmp_path, corpus="default"), overrides)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("model: [", "is no YAML"),
        ("- 1", "is no recipe"),
        ("", "is no recipe"),
        ("model: {k: 1}\nmodel: {k: 2}", "the key 'model' stands twice"),
        ("model: {k: 3}", "data is missing"),
        ("a: !!python/object/apply:os.getcwd []", "is no YAML"),
    ],
)
def test_files_that_are_no_recipe(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(text)
    with pytest.raises(ImpRAGError, match="recipe.yaml") as caught:
        load_recipe(path)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(ImpRAGError, match="cannot read the recipe .*missing.yaml: No such file"):
        load_recipe(tmp_path / "missing.yaml")


def test_paths_are_seen_from_the_recipe_first(
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


def test_layers_of_a_model_folder(tmp_path: Path) -> None:
    (tmp_path / "lm").mkdir()
    (tmp_path / "lm" / "config.json").write_text('{"num_hidden_layers": 6}')
    path = write(tmp_path, model={"base": "lm", "b": 1, "t": 5})
    assert load_recipe(path).model.base == str(tmp_path / "lm")
    with pytest.raises(ImpRAGError, match="has 6 layers: t can be 5 at most"):
        load_recipe(path, ["model.t=6"])


def test_the_fingerprint_names_what_decides_the_training(tmp_path: Path) -> None:
    path = write(tmp_path)
    recipe = load_recipe(path)
    same = [
        "train.save_steps=7",
        "train.logging_steps=3",
        "evaluation.tasks=[nq]",
        "train.epochs=10",
    ]
    other = load_recipe(path, same)
    assert other != recipe
    assert other.fingerprint() == recipe.fingerprint()
    assert recipe.differences(other) == []
    for override in (
        "train.seed=1",
        "model.k=4",
        "data.1.weight=0.2",
        "optimizer.betas=[0.9,0.95]",
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
            "optimizer": {"learning_rate": rate},
            "train": {"steps": steps},
            "model": {"passage_template": template},
        }
    )
    assert Recipe.model_validate(yaml.safe_load(recipe.to_yaml())) == recipe
