"""What README and docs name exists: files, options, and the classes and functions of the code."""

import ast
import re
from collections.abc import Iterator
from functools import cache
from importlib import import_module
from pathlib import Path

import pytest

from documented import DOCUMENTS, ROOT

SRC = ROOT / "src" / "imprag"
METHOD = ROOT / "docs" / "concepts" / "method.md"
API = ROOT / "docs" / "reference" / "python-api.md"
#: Where a path in the docs may begin.
FOLDERS = (ROOT, SRC, SRC / "benchmarks" / "factbook", ROOT / "examples" / "default_model")
#: Options of other programs: pip, torchrun, and every command's own.
FOREIGN = {"--add-host", "--no-deps", "--help"} | {
    f"--{name}"
    for name in (
        *("nnodes", "nproc-per-node", "max-restarts"),
        *("rdzv-backend", "rdzv-id", "rdzv-endpoint"),
    )
}
#: Classes of other packages that the method's page names.
ELSEWHERE = {"AttentionInterface": "transformers"}


def prose(page: Path) -> str:
    """The page without its fenced blocks."""
    return re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.M | re.S)


def code_spans(page: Path) -> list[str]:
    return re.findall(r"`([^`\n]+)`", prose(page))


# --- Files --------------------------------------------------------------------------------------


def missing_files(page: Path, folders: tuple[Path, ...] = FOLDERS) -> list[str]:
    """The Python files that a page names, but that are in none of the folders."""
    named = [span for span in code_spans(page) if re.fullmatch(r"[\w/.-]+\.py", span)]
    return [name for name in named if not any((folder / name).is_file() for folder in folders)]


@pytest.mark.parametrize("page", DOCUMENTS, ids=lambda page: str(page.relative_to(ROOT)))
def test_a_python_file_that_a_page_names_exists(page: Path) -> None:
    assert missing_files(page) == []


def test_the_method_names_files_of_the_package_only() -> None:
    assert missing_files(METHOD, (SRC,)) == []


# --- Names in the code --------------------------------------------------------------------------


@cache
def members() -> dict[str, set[str]]:
    """The methods and attributes of every class of the package, by its name."""
    found: dict[str, set[str]] = {}
    for file in SRC.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ClassDef):
                found.setdefault(node.name, set()).update(member_names(node))
    return found


def member_names(class_: ast.ClassDef) -> Iterator[str]:
    for node in ast.walk(class_):
        match node:
            case ast.FunctionDef(name=name):
                yield name
            case ast.AnnAssign(target=ast.Name(id=name) | ast.Attribute(attr=name)):
                yield name
            case ast.Assign(targets=[ast.Name(id=name) | ast.Attribute(attr=name)]):
                yield name


def exists(dotted: str) -> bool:
    """Whether ``Class.member``, or ``imprag.module.name``, is in the code."""
    head, _, rest = dotted.partition(".")
    if head == "imprag":
        return _has(*dotted.rsplit(".", 1))
    if head in ELSEWHERE:
        return hasattr(getattr(import_module(ELSEWHERE[head]), head), rest)
    return rest in members().get(head, ())


def _has(module: str, name: str) -> bool:
    """Whether a module, or a package, holds a name."""
    try:
        return hasattr(import_module(module), name) or bool(import_module(f"{module}.{name}"))
    except ModuleNotFoundError:
        return False


def dotted_names(page: Path) -> list[str]:
    """``Class.member`` and ``imprag.module.name`` among a page's code, without their arguments."""
    spans = (span.split("(")[0] for span in code_spans(page))
    pattern = r"(?:imprag(?:\.(?!json)\w+)+|[A-Z]\w+\.\w+)"
    return [span for span in spans if re.fullmatch(pattern, span)]


def test_a_name_of_the_method_s_page_exists() -> None:
    names = dotted_names(METHOD)
    assert len(names) > 8
    assert [name for name in names if not exists(name)] == []


def test_a_word_of_the_method_s_table_in_code_exists() -> None:
    """Names without a dot, such as ``ReadingPass``: a class, a function or a file's content."""
    table = [line.rsplit("|", 2)[1] for line in METHOD.read_text().splitlines() if "|" in line]
    words = [word for cell in table for word in re.findall(r"`(\w+)`", cell)]
    sources = "\n".join(file.read_text() for file in SRC.rglob("*.py"))
    assert len(words) > 3
    assert [word for word in words if not re.search(rf"(class|def) {word}\b", sources)] == []


@pytest.mark.parametrize("page", DOCUMENTS, ids=lambda page: str(page.relative_to(ROOT)))
def test_a_member_of_a_class_that_a_page_names_exists(page: Path) -> None:
    names = [name for name in dotted_names(page) if name.split(".")[0] in {*members(), "imprag"}]
    assert [name for name in names if not exists(name)] == []


def test_the_api_page_names_what_can_be_imported() -> None:
    names = re.findall(r"^::: ([\w.]+)$", API.read_text(), re.MULTILINE)
    assert len(names) > 20
    assert [name for name in names if not _has(*name.rsplit(".", 1))] == []


def test_the_api_page_has_a_row_for_every_kind_of_plug_in() -> None:
    """The row names the registry's entry-point group, its decorator and its test suite."""
    sources = "\n".join(file.read_text(encoding="utf-8") for file in SRC.rglob("*.py"))
    groups = set(re.findall(r'Registry\(\s*"[^"]+",\s*"(imprag\.\w+)"', sources))
    table = re.findall(r"^\|.*\| imprag\.\w+ \|.*$", API.read_text(), re.MULTILINE)
    rows = [[cell.strip() for cell in row.split("|")[1:-1]] for row in table]
    assert len(groups) > 6
    assert {group for _, _, _, group, _ in rows} == groups
    for _, contract, decorator, _, suite in rows:
        assert _class_name(contract) in members()
        if decorator != "none":
            assert exists(decorator.strip("`").split("(")[0])
            assert _class_name(suite) in members()


def _class_name(cell: str) -> str:
    """The first class that a cell of a table names."""
    return re.findall(r"`(\w+)`", cell)[0]


def test_what_does_not_exist_is_noticed(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("`model/none.py` `ImpRAGModel.none` `imprag.model.none` `imprag.model.kv`\n")
    assert missing_files(page) == ["model/none.py"]
    found = [name for name in dotted_names(page) if not exists(name)]
    assert found == ["ImpRAGModel.none", "imprag.model.none"]


# --- Options ------------------------------------------------------------------------------------


@cache
def options() -> set[str]:
    """The options of all commands and scripts."""
    commands = (ROOT / "docs" / "reference" / "cli.md").read_text(encoding="utf-8")
    named = re.findall(r"^\* `([^`]+)`", commands, re.MULTILINE)
    found = {word for names in named for word in re.findall(r"--[a-z][\w-]*", names)}
    for folder in ("benchmarks", "examples"):
        for script in ROOT.glob(f"{folder}/**/*.py"):
            found |= set(re.findall(r'"(--[a-z][\w-]*)"', script.read_text(encoding="utf-8")))
    return found | FOREIGN


def unknown_options(page: Path) -> list[str]:
    text = page.read_text(encoding="utf-8")
    return [name for name in re.findall(r"(?<![\w-])--[a-z][\w-]*", text) if name not in options()]


@pytest.mark.parametrize("page", DOCUMENTS, ids=lambda page: str(page.relative_to(ROOT)))
def test_an_option_that_a_page_names_exists(page: Path) -> None:
    assert unknown_options(page) == []


def test_an_option_that_does_not_exist_is_noticed(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("`imprag ask --model x --modle y`\n")
    assert unknown_options(page) == ["--modle"]
