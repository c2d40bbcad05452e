"""Every block of the serving guide, against a server with a tiny model."""

import contextlib
import io
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from tiny_api import asking_rag, running

from documented import ROOT, Block, blocks, calls
from imprag.cli import app as command_line
from imprag.serving.app import create_app
from imprag.serving.engine import Engine
from imprag.serving.settings import ServerSettings

PAGE = "docs/guides/serving.md"
BLOCKS = [block for block in blocks() if block.document == PAGE]
PYTHON = [block for block in BLOCKS if block.language == "python"]
CURL = [block for block in BLOCKS if block.content.startswith("curl ")]
#: What cannot run here, and what must be true of it.
ONLY_READ = {
    "nginx": "proxy_buffering off",
    "docker run": "OPENAI_API_BASE_URL=http://host.docker.internal:8000/v1",
}
ADDRESS = "http://127.0.0.1:8000"
_NAMES: dict[str, Any] = {}  # each block continues where the one before ended


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    rag = asking_rag(tmp_path_factory.mktemp("guide"))
    with running(create_app(Engine(rag), ServerSettings())) as address:
        yield address


def kind(block: Block) -> str:
    """How a block is tested."""
    if block.language in ("python", "nginx"):
        return block.language
    first = block.content.split(" ")[0]
    return {"curl": "curl", "docker": "docker run"}.get(first, "commands")


def test_every_block_has_a_test() -> None:
    kinds = {kind(block) for block in BLOCKS}
    assert kinds == {"python", "curl", "commands", *ONLY_READ}
    for block in BLOCKS:
        assert ONLY_READ.get(kind(block), "") in block.content


@pytest.mark.parametrize("block", PYTHON, ids=str)
def test_a_recipe_runs(block: Block, url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for package in re.findall(
        r"^from (openai|langchain_openai|llama_index|haystack)", block.content
    ):
        pytest.importorskip(package, reason="the client's package")
    monkeypatch.setenv("HAYSTACK_TELEMETRY_ENABLED", "False")
    assert "client" in block.content or ADDRESS in block.content
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(compile(block.content.replace(ADDRESS, url), str(block), "exec"), _NAMES)
    assert printed.getvalue().strip()


@pytest.mark.parametrize("block", CURL, ids=str)
def test_a_request_is_answered(block: Block, url: str) -> None:
    script = block.content.replace(ADDRESS, url).replace("curl ", "curl -sS --fail-with-body ")
    done = subprocess.run(["bash", "-ec", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count('"finish_reason"') == block.content.count("curl ")


@pytest.mark.parametrize("block", [one for one in BLOCKS if kind(one) == "commands"], ids=str)
def test_a_command_has_known_options(block: Block, tmp_path: Path) -> None:
    for program, *arguments in calls(
        block.content.replace("$(openssl rand -hex 32)", "k"), tmp_path
    ):
        assert program in ("imprag", "pip")
        if program == "imprag":
            command_line.parse_args(arguments, exit_on_error=False, print_error=False)


def test_every_metric_of_the_guide_is_counted(url: str) -> None:
    text = (ROOT / PAGE).read_text(encoding="utf-8")
    named = set(re.findall(r"`(imprag_\w+)`", text))
    assert len(named) >= 12
    assert httpx.post(f"{url}/v1/completions", json={"prompt": "w1"}).status_code == 200
    counted = httpx.get(f"{url}/metrics").text
    families = re.findall(r"^# TYPE (\w+) (\w+)", counted, re.MULTILINE)
    assert named <= {name for name, _ in families}


def test_every_route_of_the_guide_is_there(url: str) -> None:
    text = (ROOT / PAGE).read_text(encoding="utf-8")
    table = "".join(line.split("|")[1] for line in text.splitlines() if line.startswith("| `"))
    named = set(re.findall(r"`(?:GET |POST )?(/[\w/{}]+)`", table))
    paths = {
        path.replace("{store}", "{id}") for path in httpx.get(f"{url}/openapi.json").json()["paths"]
    }
    assert named - {"/rerank", "/mcp"} == paths


def test_the_limits_of_the_guide_are_the_servers() -> None:
    text = " ".join((ROOT / PAGE).read_text(encoding="utf-8").split())
    limits = ServerSettings()
    assert limits.max_body_bytes == 4 * 2**20
    for said in (
        f"at most 4 MiB and {limits.body_seconds:g} seconds to arrive",
        f"a prompt {limits.max_prompt_characters:,} characters",
        f"`max_tokens` is at most {limits.max_tokens:,}",
        f"`n` {limits.max_n}",
        f"texts to embed or rank {limits.max_texts:,}",
    ):
        assert said in text
