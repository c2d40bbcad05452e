"""The layout of the package: which layer imports which, and how long things may get."""

import ast
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parent.parent
SRC = ROOT / "src" / "imprag"
FILES = sorted(SRC.rglob("*.py"))

#: Imports point downwards in this list only.
LAYERS = (
    *("cli", "testing", "serving", "integrations", "benchmarks", "reproduce", "evaluation"),
    "baselines",
    *("training", "distributed", "pipeline", "generation", "kv_cache", "retrieval", "index"),
    *("model", "tasks", "corpus", "io"),
)
#: The layers of modules that have another name than their layer.
LAYER_OF = {
    **dict.fromkeys(("__init__", "__main__"), "cli"),
    "errors": "io",
}
LONGEST_FILE = 500
LONGEST_CLASS = 300
LONGEST_COPY = 5

# What breaks a rule today, and why. An entry that no longer does fails a test: delete it.
UPWARD_IMPORTS: dict[str, str] = {}
LONG_FILES: dict[str, str] = {}
LONG_CLASSES: dict[str, str] = {}
COPIES: dict[str, str] = {}


@cache
def read(file: Path) -> str:
    return file.read_text(encoding="utf-8")


@cache
def parsed(file: Path) -> ast.Module:
    return ast.parse(read(file))


# --- Imports ------------------------------------------------------------------------------------


def imported_modules(tree: ast.AST) -> Iterator[str]:
    """The modules that a file imports, in functions too, but not for type checkers alone.

    ``from a import b`` gives ``a.b``, because ``b`` may be a module.
    """
    match tree:
        case ast.Import(names=names):
            yield from (name.name for name in names)
        case ast.ImportFrom(module=module, names=names):
            assert tree.level == 0, f"line {tree.lineno}: imports are absolute"
            yield from (f"{module}.{name.name}" for name in names)
        case ast.If(test=test, orelse=nodes) if "TYPE_CHECKING" in ast.unparse(test):
            yield from (name for node in nodes for name in imported_modules(node))
        case _:
            for node in ast.iter_child_nodes(tree):
                yield from imported_modules(node)


def layer(module: str) -> int:
    """Where a module of the package stands in the list of layers."""
    part = module.removeprefix("imprag.").partition(".")[0]
    name = LAYER_OF.get(part, part)
    assert name in LAYERS, f"imprag.{part} is in no layer: put it into one, or into LAYER_OF"
    return LAYERS.index(name)


def module_of(file: Path, root: Path = SRC) -> str:
    return ".".join(("imprag", *file.relative_to(root).with_suffix("").parts))


def upward_imports(module: str, tree: ast.AST) -> list[str]:
    """The imports of a module that point upwards in the list of layers."""
    return [
        f"{module} imports {other}"
        for other in imported_modules(tree)
        if other.startswith("imprag.") and layer(other) < layer(module)
    ]


def test_imports_point_downwards() -> None:
    found = [one for file in FILES for one in upward_imports(module_of(file), parsed(file))]
    assert sorted(found) == sorted(UPWARD_IMPORTS)


def test_the_readme_lists_the_layers_in_their_order() -> None:
    block = (SRC.parents[1] / "README.md").read_text().partition("src/imprag/\n")[2]
    listed = re.findall(r"^  (\w+)(?:/|\.py) ", block.partition("```")[0], re.MULTILINE)
    assert tuple(listed) == (*LAYERS, "default")


def test_the_core_imports_neither_benchmarks_nor_examples() -> None:
    core = LAYERS[LAYERS.index("benchmarks") + 1 :]
    for file in FILES:
        imported = list(imported_modules(parsed(file)))
        assert not [name for name in imported if name.split(".")[0] == "examples"], file
        if LAYERS[layer(module_of(file))] in core:
            assert not [name for name in imported if name.startswith("imprag.benchmarks")], file


def test_the_core_names_no_benchmark_of_the_package() -> None:
    """Not even in a text: it learns of a benchmark through entry points and manifests alone.

    The built-in corpora are named like the benchmark that is made of them.
    """
    corpora = ("corpus/__init__.py", "corpus/factbook.py", "corpus/library.py")
    core = LAYERS[LAYERS.index("benchmarks") + 1 :]
    names = [file.parent.name for file in (SRC / "benchmarks").glob("*/__init__.py")]
    assert "factbook" in names
    for file in FILES:
        if LAYERS[layer(module_of(file))] in core and relative(file) not in corpora:
            assert not [name for name in names if name in read(file)], relative(file)


@pytest.mark.parametrize(
    ("module", "code", "upwards"),
    [
        ("imprag.corpus.text", "from imprag.tasks import Task", True),
        ("imprag.corpus.text", "def f():\n    from imprag import tasks", True),
        ("imprag.io.files", "try:\n    import imprag.corpus.text\nexcept OSError:\n    pass", True),
        ("imprag.kv_cache.build", "from imprag.pipeline import ImpRAG", True),
        ("imprag.tasks.task", "from imprag.benchmarks.factbook import tasks", True),
        ("imprag.tasks.task", "from imprag.corpus import Passage\nimport json", False),
        ("imprag.tasks.task", "from imprag.tasks import kilt", False),
        ("imprag.index", "if TYPE_CHECKING:\n    from imprag.pipeline import ImpRAG", False),
        ("imprag.index", "if TYPE_CHECKING:\n    x = 1\nelse:\n    import imprag.pipeline", True),
    ],
)
def test_an_upward_import_is_found(module: str, code: str, upwards: bool) -> None:
    assert bool(upward_imports(module, ast.parse(code))) is upwards


def test_a_module_without_a_layer_is_noticed() -> None:
    with pytest.raises(AssertionError, match=r"imprag\.gadgets is in no layer"):
        layer("imprag.gadgets.one")


# --- Sizes --------------------------------------------------------------------------------------


def relative(file: Path) -> str:
    return file.relative_to(SRC).as_posix()


def class_lengths(tree: ast.AST) -> dict[str, int]:
    """The lines of every class, by its name."""
    return {
        node.name: (node.end_lineno or 0) - node.lineno + 1
        for node in ast.walk(tree)
        if isinstance(node, ast.ClassDef)
    }


def test_no_file_is_too_long() -> None:
    long = {relative(file) for file in FILES if len(read(file).splitlines()) > LONGEST_FILE}
    assert long == LONG_FILES.keys()


def test_no_class_is_too_long() -> None:
    long = {
        f"{relative(file)} {name}"
        for file in FILES
        for name, lines in class_lengths(parsed(file)).items()
        if lines > LONGEST_CLASS
    }
    assert long == LONG_CLASSES.keys()


def test_the_length_of_a_class_is_found() -> None:
    code = "x = 1\nclass A:\n    y = 2\n\n    class B:\n        z = 3\n"
    assert class_lengths(ast.parse(code)) == {"A": 5, "B": 2}


# --- Copies -------------------------------------------------------------------------------------


class Line(NamedTuple):
    """A line of code: where it stands, and without the spaces around it."""

    file: str
    number: int
    text: str


def code_lines(name: str, code: str) -> list[Line]:
    """The lines of a file that are neither blank, nor comments, nor part of an import."""
    imports = {
        number
        for node in ast.walk(ast.parse(code))
        if isinstance(node, ast.Import | ast.ImportFrom)
        for number in range(node.lineno, (node.end_lineno or 0) + 1)
    }
    stripped = ((number, line.strip()) for number, line in enumerate(code.splitlines(), 1))
    return [
        Line(name, number, text)
        for number, text in stripped
        if text and not text.startswith("#") and number not in imports
    ]


def copies(files: Mapping[str, str], longest: int = LONGEST_COPY) -> dict[str, list[str]]:
    """Runs of more than ``longest`` lines that stand at an earlier place, too.

    Returns:
        by "FILE repeats FILE", where the runs stand.
    """
    first_places: dict[tuple[str, ...], Line] = {}
    found: dict[str, list[str]] = defaultdict(list)
    for name, code in files.items():
        lines = code_lines(name, code)
        for start, line in enumerate(lines[: len(lines) - longest]):
            run = tuple(one.text for one in lines[start : start + longest + 1])
            first = first_places.setdefault(run, line)
            if first is not line:
                place = f"line {line.number} is line {first.number}"
                found[f"{name} repeats {first.file}"].append(place)
    return found


def test_no_run_of_lines_stands_twice() -> None:
    found = copies({relative(file): read(file) for file in FILES})
    assert found.keys() == COPIES.keys(), dict(found)


def test_a_copy_is_found_whatever_its_indentation_comments_and_blank_lines() -> None:
    lines = [f"x{number} = {number}" for number in range(6)]
    copied = ["def f():", *(f"    {line}\n\n    # note" for line in lines)]
    first, second = "\n".join(["import os", *lines]), "\n".join(copied)
    found = copies({"a.py": first, "b.py": second})
    assert found == {"b.py repeats a.py": ["line 2 is line 2"]}
    assert copies({"a.py": first, "b.py": second.replace("x3", "y3")}) == {}
    assert copies({"a.py": "\n".join(lines * 2)}).keys() == {"a.py repeats a.py"}
    imports = "\n".join(f"import m{number}" for number in range(9))
    assert copies({"a.py": imports, "b.py": imports}) == {}
