"""Whole training runs of a tiny random model: learning, interruption, refusals."""

import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate.utils import FullyShardedDataParallelPlugin
from peft import PeftModel
from peft.tuners.lora import LoraLayer
from safetensors.torch import load_file, save_file
from tiny_runs import FACTS, logged, make_world, recipe, weights

from conftest import tiny_lm
from imprag import ImpRAG
from imprag.cli import main
from imprag.corpus import load_corpus
from imprag.errors import ImpRAGError
from imprag.index.folder import IndexFolder
from imprag.index.stored_embeddings import StoredEmbeddings
from imprag.io.locking import only_builder
from imprag.model import ImpRAGConfig, load_pretrained
from imprag.model.base import load_base_model
from imprag.model.load import EMBEDDINGS
from imprag.training.export import export
from imprag.training.lora import add_adapters, begin_with, halve_frozen, hold_untrained
from imprag.training.lora_settings import LoraGroup, LoraSettings
from imprag.training.run import check_fsdp, train, training_time


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_world(tmp_path_factory.mktemp("world"))


def test_a_tiny_model_learns_to_retrieve_and_to_read(world: Path, tmp_path: Path) -> None:
    settings = recipe(
        world,
        # Memorized answers are as likely with any passage, so self-distillation would unlearn.
        stages={"warmup": {"fraction": 1.0}},
        train={"steps": 200},
        trainer={"save_steps": 200},
    )
    done = train(settings, tmp_path / "run")
    rag = ImpRAG.from_pretrained(done["model"], dtype="float32")
    corpus = load_corpus(settings.corpus)
    IndexFolder.build(corpus, rag.encoder, tmp_path / "index")
    rag = ImpRAG.from_pretrained(done["model"], tmp_path / "index", dtype="float32")
    assert rag.config.trained
    questions = [json.loads(line) for line in (world / "nq.jsonl").read_text().splitlines()]
    prompts = [f"Q: {question['input']} A:" for question in questions]
    found = rag.retrieve(prompts, k=1)
    first = [passages[0].passage.id for passages in found]
    assert first == [f"p{number}" for number in range(FACTS)]
    answers = [answer.text for answer in rag.generate(prompts, max_new_tokens=3)]
    assert answers == [question["output"][0]["answer"] for question in questions]


def test_a_folder_of_beir_trains_retrieval_alone(world: Path, tmp_path: Path) -> None:
    folder = tmp_path / "beir"
    (folder / "qrels").mkdir(parents=True)
    queries = [{"_id": f"q{n}", "text": f"w{10 + n // 8} w{20 + n % 8}"} for n in range(FACTS)]
    lines = [f"q{n}\tp{n}\t1" for n in range(FACTS)]
    (folder / "queries.jsonl").write_text("".join(json.dumps(one) + "\n" for one in queries))
    (folder / "qrels" / "train.tsv").write_text("query-id\tcorpus-id\tscore\n" + "\n".join(lines))
    data = [{"tasks": str(folder), "task": "beir", "positives": "gold"}]
    with pytest.raises(ImpRAGError, match=r"no example .* stages\.warmup\.fraction to 1"):
        train(recipe(world, data=data), tmp_path / "refused")
    mined = recipe(world, data=data, stages={"warmup": {"fraction": 1.0}, "mine_every": 2})
    with pytest.raises(ImpRAGError, match=r"no example .* stages\.mine_every mines"):
        train(mined, tmp_path / "mined")
    settings = recipe(world, data=data, stages={"warmup": {"fraction": 1.0}}, train={"steps": 20})
    train(settings, tmp_path / "run")
    losses = [one for one in logged(tmp_path / "run") if "retrieval_loss" in one]
    assert {one["generation_loss"] for one in losses} == {0}
    assert losses[-1]["retrieval_loss"] < 0.7 * losses[0]["retrieval_loss"]


@pytest.mark.parametrize(
    "sections",
    [
        {"batch": {"cross_batch_memory": 2}, "stages": {"mine_every": 2}},
        {"lora": {"bottom": {"rank": 4}, "reading": {"rank": 2}, "norms": True}},
    ],
    ids=["full", "lora"],
)
def test_killed_and_resumed_is_the_same_run(
    world: Path, tmp_path: Path, sections: dict[str, Any]
) -> None:
    settings = recipe(world, **sections)
    whole = tmp_path / "whole"
    train(settings, whole)
    killed = tmp_path / "killed"
    program = (
        "import sys; from imprag.training.recipe_file import load_recipe\n"
        "from imprag.training.run import train\n"
        "train(load_recipe(sys.argv[1]), sys.argv[2])"
    )
    file = tmp_path / "recipe.yaml"
    file.write_text(settings.to_yaml())
    process = subprocess.Popen(
        [sys.executable, "-c", program, str(file), str(killed)], stderr=subprocess.DEVNULL
    )
    step = random.Random(len(sections)).randrange(4, 7)
    while process.poll() is None and len(_lines(killed / "metrics.jsonl")) < step:
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert not (killed / "model").exists()
    assert (killed / "checkpoint-3").exists()
    train(settings, killed, resume=True)

    assert logged(killed)[:-1] == logged(whole)[:-1]  # the last line is the mean over this call
    name = "adapter_model.safetensors" if settings.lora else "model.safetensors"
    expected, actual = (load_file(run / "model" / name) for run in (whole, killed))
    assert expected.keys() == actual.keys()
    for key, value in expected.items():
        torch.testing.assert_close(actual[key], value, rtol=0, atol=1e-6)


@pytest.mark.parametrize("room", ["no weights", "no optimizer"])
def test_an_incomplete_checkpoint_is_deleted(world: Path, tmp_path: Path, room: str) -> None:
    """A limit on file size stands in for a full disk."""
    size = sum(x.nbytes for x in tiny_lm().state_dict().values())
    limit = size // 2 if room == "no weights" else 3 * size // 2
    settings, out = recipe(world, train={"steps": 4}, trainer={"save_steps": 2}), "run"
    (tmp_path / "recipe.yaml").write_text(settings.to_yaml())
    program = (
        "import resource, sys; from imprag.training.recipe_file import load_recipe\n"
        "from imprag.training.run import train\n"
        "limit = int(sys.argv[1]); resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))\n"
        "train(load_recipe('recipe.yaml'), 'run')"
    )
    run = subprocess.run(
        [sys.executable, "-c", program, str(limit)], cwd=tmp_path, capture_output=True, text=True
    )
    assert "ImpRAGError: the checkpoint of step 2 cannot be written" in run.stderr
    assert not list((tmp_path / out).glob("checkpoint-*"))
    done = train(settings, tmp_path / out, resume=True)
    assert done["steps"] == 4


def test_a_resumed_run_may_save_at_other_steps(world: Path, tmp_path: Path) -> None:
    whole, again = tmp_path / "whole", tmp_path / "again"
    train(recipe(world), whole)
    shutil.copytree(whole / "checkpoint-6", again / "checkpoint-6")
    shutil.copy(whole / "recipe.yaml", again)
    train(recipe(world, trainer={"save_steps": 7}), again, resume=True)
    assert (again / "checkpoint-7").is_dir()
    assert weights(again / "model").keys() == weights(whole / "model").keys()
    for name, tensor in weights(again / "model").items():
        assert tensor.equal(weights(whole / "model")[name])


def test_a_run_with_edited_data_is_not_resumed(
    world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    own, run = tmp_path / "world", tmp_path / "run"
    shutil.copytree(world, own)
    settings = recipe(own, train={"steps": 2}, trainer={"save_steps": 1})
    train(settings, run)
    for path in (run / "model", run / "checkpoint-2"):  # as if it had been killed before
        shutil.rmtree(path)
    edits = {
        "corpus": ("corpus.jsonl", '"text": "w20 ', '"text": "w21 '),
        "data.0 (nq)": ("nq.jsonl", "w10 w20", "w10 w21"),
    }
    for name, (file, old, new) in edits.items():
        content = (own / file).read_text()
        (own / file).write_text(content.replace(old, new))
        with pytest.raises(ImpRAGError) as error:
            train(settings, run, resume=True)
        assert str(error.value).startswith(f"{name} changed since the run in {run} began; restore")
        (own / file).write_text(content)
    assert not (run / "model").exists()
    (run / "inputs.json").unlink()  # as in a folder of an earlier version
    assert "note" not in capsys.readouterr().err
    assert train(settings, run, resume=True)["steps"] == 2
    assert "is from an earlier version, which did not store" in capsys.readouterr().err


def test_a_run_whose_start_was_replaced_is_not_resumed(world: Path, tmp_path: Path) -> None:
    start, run = tmp_path / "start", tmp_path / "run"
    shutil.copytree(world / "lm", start)
    settings = recipe(world, train={"steps": 1}, model={"start": str(start)})
    train(settings, run)
    shutil.rmtree(run / "model")
    weights_file = start / "model.safetensors"
    save_file({name: 2 * tensor for name, tensor in load_file(weights_file).items()}, weights_file)
    with pytest.raises(ImpRAGError, match=r"model\.start changed since the run in .* began"):
        train(settings, run, resume=True)


def test_a_second_run_in_the_same_folder_waits_and_is_refused(
    world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, errors = tmp_path / "run", []

    def second() -> None:
        with pytest.raises(ImpRAGError) as error:
            train(recipe(world), out)
        errors.append(str(error.value))

    with only_builder(out):
        thread = threading.Thread(target=second)
        thread.start()
        while f"another process is building {out}" not in capsys.readouterr().err:
            assert thread.is_alive()
            time.sleep(0.01)
        out.mkdir()
        (out / "recipe.yaml").write_text(recipe(world).to_yaml())
    thread.join()
    assert errors == [f"{out} holds a run already; continue it with --resume"]


def test_a_checkpoint_holds_the_cross_batch_memory(world: Path, tmp_path: Path) -> None:
    settings = recipe(world, batch={"cross_batch_memory": 2, "examples": 4})
    train(settings, tmp_path / "run")
    saved = load_file(tmp_path / "run" / "checkpoint-6" / "cross_batch_memory.safetensors")
    assert len(saved["rows"]) == len(saved["embeddings"]) > 4


def test_a_checkpoint_with_the_old_name_of_the_cross_batch_memory_is_resumed(
    world: Path, tmp_path: Path
) -> None:
    warmup = {"warmup": {"fraction": 1.0}}  # its negatives are the memory's passages, too
    settings = recipe(world, batch={"cross_batch_memory": 2, "examples": 4}, stages=warmup)
    whole, old = tmp_path / "whole", tmp_path / "old"
    train(settings, whole)
    shutil.copytree(whole, old)
    for made in ("model", "checkpoint-8"):
        shutil.rmtree(old / made)
    checkpoint = old / "checkpoint-6"
    (checkpoint / "cross_batch_memory.safetensors").rename(checkpoint / "memory.safetensors")
    train(settings, old, resume=True)
    assert logged(old)[:-1] == logged(whole)[:-1]


def test_data_loader_workers_give_the_same_run(world: Path, tmp_path: Path) -> None:
    train(recipe(world), tmp_path / "alone")
    train(recipe(world, trainer={"dataloader_num_workers": 2}), tmp_path / "workers")
    assert logged(tmp_path / "workers") == logged(tmp_path / "alone")


def _lines(path: Path) -> list[str]:
    return path.read_text().splitlines() if path.exists() else []


def test_fsdp_refuses_other_versions_wraps_and_checkpoints() -> None:
    fits = {
        "fsdp_version": 2,
        "auto_wrap_policy": "NO_WRAP",
        "state_dict_type": "FULL_STATE_DICT",
    }
    check_fsdp(FullyShardedDataParallelPlugin(**fits))
    for name, value, message in (
        ("fsdp_version", 1, "FSDP_VERSION=2"),
        ("auto_wrap_policy", "SIZE_BASED_WRAP", "FSDP_AUTO_WRAP_POLICY=NO_WRAP"),
        ("state_dict_type", "SHARDED_STATE_DICT", "FSDP_STATE_DICT_TYPE=FULL_STATE_DICT"),
    ):
        with pytest.raises(ImpRAGError, match=message):
            check_fsdp(FullyShardedDataParallelPlugin(**{**fits, name: value}))


def test_another_optimizer_of_transformers_trains(world: Path, tmp_path: Path) -> None:
    done = train(recipe(world, trainer={"optim": "adafactor"}), tmp_path / "run")
    lines = [line["loss"] for line in logged(tmp_path / "run") if "loss" in line]
    assert lines[-1] < lines[0]
    state = torch.load(tmp_path / "run" / "checkpoint-6" / "optimizer.pt")["state"]
    assert any("exp_avg_sq_row" in moments for moments in state.values())
    assert done["steps"] == 8


@pytest.mark.parametrize(
    ("trainer", "message"),
    [
        ({"optim": "adamw_bnb_8bit"}, "trainer: .*bitsandbytes"),
        ({"report_to": "nowhere"}, "trainer: .*nowhere"),
        ({"lr_scheduler_type": "polynomial", "lr_scheduler_kwargs": {"lr_end": 1.0}}, "lr_end"),
    ],
)
def test_trainer_arguments_that_transformers_refuses(
    world: Path, tmp_path: Path, trainer: dict[str, Any], message: str
) -> None:
    with pytest.raises(ImpRAGError, match=message) as caught:
        train(recipe(world, trainer=trainer), tmp_path / "run")
    assert "\n" not in str(caught.value)


def test_adapters_train_their_layers_only(world: Path, tmp_path: Path) -> None:
    settings = recipe(world, lora={"reading": {"rank": 2}, "targets": ["q_proj"]})
    done = train(settings, tmp_path / "run")
    base, _ = load_base_model(settings.model.base, torch.float32)
    before = {name: value.clone() for name, value in base.state_dict().items()}
    merged = PeftModel.from_pretrained(base, done["model"]).merge_and_unload().state_dict()
    changed = {name for name, value in merged.items() if not torch.equal(value, before[name])}
    assert changed == {f"model.layers.{layer}.self_attn.q_proj.weight" for layer in (3, 4)}
    rag = ImpRAG.from_pretrained(done["model"])  # the base model's fingerprint fits
    assert rag.config.question_template == "Q: {question} A:"  # as the questions of its data


def test_an_adapter_that_is_not_trained_stays(world: Path, tmp_path: Path) -> None:
    """The reading layers can be trained above a fixed retriever."""
    model = {"bottom": {"rank": 2}, "top": {"rank": 2}, "norms": True}
    first = train(recipe(world, lora={**model, "reading": {"rank": 2}}), tmp_path / "first")
    held = {**model, "bottom": {"rank": 1, "trained": False}, "reading": {"rank": 2}}
    config = ImpRAGConfig.load(Path(first["model"]))
    replace(config, question_template="{question} =").save(Path(first["model"]))
    done = train(recipe(world, model={"start": first["model"]}, lora=held), tmp_path / "second")
    assert ImpRAGConfig.load(Path(done["model"])).question_template == "{question} ="
    before, after = (load_pretrained(run["model"], "float32")[0].lm for run in (first, done))
    for layer, (old, new) in enumerate(zip(before.model.layers, after.model.layers, strict=True)):
        changes = [(x - y).norm() for x, y in zip(old.parameters(), new.parameters(), strict=True)]
        assert (max(changes) > 1e-3) == (layer > 2)
        assert layer > 2 or max(changes) < 1e-6, "at the start's rank, not at the recipe's"


def test_training_starts_from_another_model(world: Path, tmp_path: Path) -> None:
    """Adapters of full rank start at that model, smaller ones near it."""
    group = {"rank": 48}
    still = {"learning_rate": 1e-12, "warmup_steps": 0}
    train_once = {"steps": 1, "freeze_embeddings": True}
    first = train(recipe(world, train={**train_once, "steps": 8}), tmp_path / "first")
    ids = torch.arange(5, 25).view(2, 10)

    def states(folder: str) -> torch.Tensor:  # the tiny model's head is not adapted
        with torch.no_grad():
            return load_pretrained(folder, "float32")[0].lm.base_model(ids).last_hidden_state

    wanted, before = states(first["model"]), states(str(world / "lm"))
    distances, norms = {}, {"norms": True}
    for name, lora in (
        ("all weights", None),
        ("full rank", dict.fromkeys(("bottom", "reading", "top"), group) | norms),
        ("rank 8", {p: {**group, "rank": 8} for p in ("bottom", "reading", "top")} | norms),
    ):
        sections = {} if lora is None else {"lora": lora}
        settings = recipe(world, train=train_once, trainer=still, **sections)
        settings = settings.model_copy(
            update={"model": settings.model.model_copy(update={"start": first["model"]})}
        )
        done = train(settings, tmp_path / name)
        distances[name] = (states(done["model"]) - wanted).norm() / (before - wanted).norm()
    assert distances["all weights"] < 1e-5
    assert distances["full rank"] < 1e-3
    assert 0.01 < distances["rank 8"] < 0.9


def test_training_time_sums_all_finished_calls(tmp_path: Path) -> None:
    """A finished run can be resumed, which logs another, short time."""
    lines = ({"step": 7, "loss": 1.0}, {"step": 8, "train_runtime": 720})
    again = {"step": 8, "train_runtime": 36}
    (tmp_path / "metrics.jsonl").write_text(
        "".join(json.dumps(line) + "\n" for line in (*lines, again))
    )
    assert training_time(tmp_path) == {"steps": 8, "hours": 0.21, "tokens": 0}


def test_a_trained_adapter_is_exported(world: Path, tmp_path: Path) -> None:
    model = {part: {"rank": 2} for part in ("bottom", "reading")}
    done = train(recipe(world, lora={**model, "norms": True}), tmp_path / "run")
    corpus, out = world / "corpus.jsonl", tmp_path / "small"
    export(tmp_path / "run", out, str(corpus), "float32")
    made = json.loads((out / "provenance.json").read_text())
    assert made["steps"] == 8
    assert (out / "recipe.yaml").read_text() == (tmp_path / "run" / "recipe.yaml").read_text()
    small, large = (ImpRAG.from_pretrained(path, dtype="float32") for path in (out, done["model"]))
    assert small.config == large.config
    passages = list(load_corpus(corpus))
    stored = StoredEmbeddings(out / EMBEDDINGS, load_corpus(corpus), small.encoder.fingerprint())
    expected = large.encoder(passages)
    assert abs(stored(passages) - expected).max() < 0.05 * abs(expected).max()


def test_a_run_without_an_adapter_is_not_exported(
    world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = recipe(world, train={"steps": 1})
    train(settings, tmp_path / "run")
    assert main(["export", str(tmp_path / "run"), "--out", str(tmp_path / "small")]) == 2
    assert "holds no adapter" in capsys.readouterr().err
    assert not (tmp_path / "small").exists()


def test_a_start_with_fewer_layers_is_refused() -> None:
    with pytest.raises(ImpRAGError, match=r"cannot start from this model: .*layers.5"):
        begin_with(tiny_lm(layers=6), tiny_lm(layers=5))


@pytest.mark.parametrize(
    ("changed", "lora"),
    [
        ("model.layers.0.self_attn.q_proj", {"reading": {}}),
        ("model.layers.3.self_attn.k_proj", {"reading": {}, "targets": ["q_proj"]}),
        ("model.layers.3.input_layernorm", {"reading": {}}),
        ("model.norm", {"reading": {}, "norms": True}),
    ],
)
def test_a_start_that_would_lose_weights_is_refused(changed: str, lora: dict[str, Any]) -> None:
    lm, start = tiny_lm(), tiny_lm()
    with torch.no_grad():
        start.get_submodule(changed).weight += 0.1
    config = ImpRAGConfig(base_model="tiny", b=2, t=4)
    add_adapters(lm, LoraSettings.model_validate(lora), config, start)
    with pytest.raises(ImpRAGError, match=rf"has another {changed}.weight than model.base"):
        begin_with(lm, start)


@pytest.mark.parametrize(
    ("family", "changed"),
    [("llama", "lm_head.weight"), ("qwen2", "model.layers.1.self_attn.q_proj.bias")],
)
def test_what_adapters_cannot_hold_of_a_start_is_named_in_a_warning(
    family: str, changed: str, caplog: pytest.LogCaptureFixture
) -> None:
    lm, start = tiny_lm(family), tiny_lm(family)
    with torch.no_grad():
        start.get_parameter(changed).add_(0.1)
    config = ImpRAGConfig(base_model="tiny", b=2, t=4)
    add_adapters(lm, LoraSettings(bottom=LoraGroup()), config, start)
    begin_with(lm, start)
    assert f"model.start has another {changed} than model.base" in caplog.text


def test_a_start_of_another_base_is_refused() -> None:
    with pytest.raises(ImpRAGError, match=r"model.base has no model\.layers\.6\."):
        begin_with(tiny_lm(), tiny_lm(layers=8))
    tied, start = tiny_lm(), tiny_lm()
    tied.lm_head.weight = tied.model.embed_tokens.weight
    with pytest.raises(ImpRAGError, match=r"model.base ties lm_head\.weight"):
        begin_with(tied, start)


def test_the_last_norm_belongs_to_the_last_group_with_layers() -> None:
    lm, start = tiny_lm(), tiny_lm()
    with torch.no_grad():
        start.model.norm.weight += 0.1
    config = ImpRAGConfig(base_model="tiny", b=2, t=5)
    settings = LoraSettings(reading=LoraGroup(), norms=True)
    add_adapters(lm, settings, config, start)
    begin_with(lm, start)
    assert torch.equal(lm.model.norm.weight, start.model.norm.weight)
    with pytest.raises(ImpRAGError, match=r"lora\.top: there are no such layers with b = 2 and t"):
        add_adapters(tiny_lm(), LoraSettings(top=LoraGroup()), config)


def test_groups_that_are_not_trained_keep_all_of_the_start() -> None:
    lm, start = tiny_lm(), tiny_lm()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for rank, layer in enumerate(start.model.layers[:3], 1):  # each layer by its own rank
            for module in layer.modules():
                if isinstance(module, torch.nn.Linear):
                    rows, columns = module.weight.shape
                    left = torch.randn(rows, rank, generator=generator)
                    module.weight += 0.01 * left @ torch.randn(rank, columns, generator=generator)
        start.model.norm.weight += 0.1
    held = {"bottom": {"trained": False}, "reading": {}, "top": {"trained": False}, "norms": True}
    settings = LoraSettings.model_validate(held)
    config = ImpRAGConfig(base_model="tiny", b=2, t=4)
    add_adapters(lm, settings, config, start)
    begin_with(lm, start)
    hold_untrained(lm, settings, config)
    trained = [name for name, parameter in lm.named_parameters() if parameter.requires_grad]
    assert [name for name in trained if not re.search(r"layers\.[34]\.", name)] == []
    for name, module in lm.named_modules():
        if isinstance(module, LoraLayer):
            layer = int(name.split(".")[2])
            if layer < 3:
                assert module.r["default"] == layer + 1
            weight = module.get_base_layer().weight + module.get_delta_weight("default")
            assert torch.allclose(weight, start.get_submodule(name).weight, rtol=0, atol=1e-6)


def test_frozen_projections_are_halved() -> None:
    lm = tiny_lm()
    settings = LoraSettings(bottom=LoraGroup(rank=2), targets=("q_proj",))
    add_adapters(lm, settings, ImpRAGConfig(base_model="tiny", b=2, t=4))
    halve_frozen(lm)
    dtypes = {name: parameter.dtype for name, parameter in lm.named_parameters()}
    assert dtypes["model.layers.0.self_attn.q_proj.base_layer.weight"] == torch.bfloat16
    assert dtypes["model.layers.5.mlp.up_proj.weight"] == torch.bfloat16
    kept = [name for name, dtype in dtypes.items() if dtype == torch.float32]
    others = ("lora_", "norm", "embed", "lm_head")
    assert all(any(other in name for other in others) for name in kept)


def test_the_best_evaluated_model_is_kept(world: Path, tmp_path: Path) -> None:
    figures = {2: 0.1, 4: 0.5, 6: 0.3, 8: 0.2}
    steps: list[int] = []

    def evaluator(corpus: Any, folder: Path) -> Any:
        def evaluate(model: Any, tokenizer: Any, step: int) -> dict[str, float]:
            steps.append(step)
            return {"exact_match": figures[step]}

        return evaluate

    section = {"tasks": ["nq"], "patience": 2}
    settings = recipe(
        world,
        evaluation=section,
        train={"steps": 10},
        trainer={"save_steps": 3, "save_total_limit": 1, "eval_steps": 2},
    )
    done = train(settings, tmp_path / "run", evaluator=evaluator)
    assert steps == [2, 4, 6, 8]  # none after two that were no better
    expected = weights(tmp_path / "run" / "checkpoint-4")
    for name, value in weights(Path(done["model"])).items():
        assert torch.equal(value, expected[name])
    assert [
        line["eval_exact_match"] for line in logged(tmp_path / "run") if "eval_exact_match" in line
    ] == [0.1, 0.5, 0.3, 0.2]


def test_frozen_embeddings_stay(world: Path, tmp_path: Path) -> None:
    settings = recipe(world, train={"steps": 3, "freeze_embeddings": True})
    done = train(settings, tmp_path / "run")
    before, after = weights(world / "lm"), weights(Path(done["model"]))
    same = {name for name, value in before.items() if torch.equal(value, after[name])}
    assert "model.embed_tokens.weight" in same
    assert not any("proj" in name for name in same)


@pytest.mark.parametrize("kind", ["hidden_states", "kv"])
def test_frozen_passages_are_read_as_the_base_model_encodes_them(
    world: Path, tmp_path: Path, kind: str
) -> None:
    settings = recipe(world, train={"steps": 3}, model={"frozen_passages": kind})
    trained, _ = load_pretrained(train(settings, tmp_path / "run")["model"], "float32")
    assert trained.config.frozen_passages == kind
    before, after = weights(world / "lm"), dict(trained.lm.named_parameters())
    assert not torch.equal(
        after["model.layers.3.self_attn.k_proj.weight"],
        before["model.layers.3.self_attn.k_proj.weight"],
    )
    for name, value in trained.frozen.lm.named_parameters():
        assert torch.equal(value, before[name])


def test_a_loss_that_is_not_finite_stops_the_run(world: Path, tmp_path: Path) -> None:
    settings = recipe(world, trainer={"learning_rate": 1e30, "max_grad_norm": 1e30})
    with pytest.raises(ImpRAGError, match=r"the loss of step \d is \w+, with the examples q\d+, q"):
        train(settings, tmp_path / "run")
    assert not (tmp_path / "run" / "model").exists()


def test_other_finished_and_unknown_run_folders_are_refused(world: Path, tmp_path: Path) -> None:
    settings = recipe(world, train={"steps": 1})
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "todo.txt").write_text("-")
    with pytest.raises(ImpRAGError, match="is not empty and not a run folder"):
        train(settings, tmp_path / "notes")
    train(settings, tmp_path / "run")
    for resume in (False, True):
        with pytest.raises(ImpRAGError, match="is finished; its model is"):
            train(settings, tmp_path / "run", resume=resume)
    other = recipe(world, train={"steps": 2})
    with pytest.raises(ImpRAGError, match=r"another recipe \(train.steps: 1, not 2\)"):
        train(other, tmp_path / "run", resume=True)
