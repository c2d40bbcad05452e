"""Packages with entry points, written where Python finds them, and pages whose examples are one."""

import io
import shlex
import sys
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path

import pytest

import documented
from documented import Block, blocks, calls, is_shell
from imprag.cli import main


def write_package(folder: Path, package: str, files: Mapping[str, str], points: str) -> None:
    """Write an installed package: its modules, and a dist-info with entry points.

    Args:
        folder: to put on ``sys.path``.
        package: its name.
        files: the code of each module, by file name.
        points: the content of ``entry_points.txt``.
    """
    info = folder / f"{package}-1.dist-info"
    info.mkdir(parents=True)
    for name, code in files.items():
        (folder / name).write_text(code)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1\n")
    (info / "entry_points.txt").write_text(points)


class ExamplePage:
    """A page of the documentation whose examples make a package.

    Args:
        document: the page.
        plugins: file names of its plug-ins; each has a file of tests.
        others: names of its other files.
    """

    def __init__(self, document: str, plugins: Sequence[str], *others: str) -> None:
        self.plugins = plugins
        self.blocks: list[Block] = [block for block in blocks() if block.document == document]
        #: The page's files: blocks that begin with a file's name.
        self.files: dict[str, str] = {
            block.content.split()[1]: block.content
            for block in self.blocks
            if block.language in ("python", "yaml")
        }
        tests = (f"test_{name}" for name in plugins)
        assert self.files.keys() == {*plugins, *tests, *others}

    @cached_property
    def entry_points(self) -> str:
        """The page's TOML, as an installed package has it."""
        (points,) = [block.content for block in self.blocks if block.language == "toml"]
        return points.replace("project.entry-points.", "").replace('"', "")

    def suites(self) -> dict[str, object]:
        """The names that the page's test files define, for pytest to collect."""
        names: dict[str, object] = {}
        for name in self.plugins:
            exec(compile(self.files[f"test_{name}"], name, "exec"), names)
        return names

    def install(self, folder: Path, patch: pytest.MonkeyPatch) -> None:
        """Write the page's package and put it on ``sys.path``."""
        files = {name: self.files[name] for name in self.plugins}
        write_package(folder, "extensions", files, self.entry_points)
        patch.syspath_prepend(folder)

    def forget(self) -> None:
        """Take the page's modules out of ``sys.modules``."""
        for name in self.plugins:
            sys.modules.pop(name.removesuffix(".py"), None)

    def commands(self) -> list[tuple[Block, str]]:
        """The page's command lines with their blocks."""
        shell = (block for block in self.blocks if is_shell(block))
        return [(block, line) for block in shell for line in block.content.splitlines()]


def make_home(folder: Path, patch: pytest.MonkeyPatch) -> Path:
    """A folder with everything that documents name, and a cache of its own."""
    patch.setenv("IMPRAG_CACHE", str(folder / "cache"))
    documented.make_home(folder / "home")
    return folder / "home"


def run_commands(
    lines: Sequence[str],
    home: Path,
    scratch: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    more: Mapping[str, Sequence[str]] | None = None,
) -> None:
    """Run command lines of ``imprag`` and assert that each succeeds.

    Args:
        lines: as documents show them.
        home: the working folder.
        scratch: for :func:`documented.calls`.
        monkeypatch, capsys: the test's.
        more: further arguments, by the first one.
    """
    monkeypatch.chdir(home)
    monkeypatch.setattr(sys, "stdin", io.StringIO())
    for line in lines:
        ((program, *arguments),) = calls(line, scratch)
        assert program == "imprag"
        arguments += (more or {}).get(arguments[0], ())
        assert main(arguments) == 0, f"{shlex.join(arguments)}\n{capsys.readouterr().err}"
