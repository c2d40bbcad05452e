"""Keys, hosts, and where the server may listen."""

import base64
from pathlib import Path

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from tiny_api import asking_rag, tiny_app

from imprag.errors import ImpRAGError
from imprag.pipeline import ImpRAG
from imprag.serving.gates import LOOPBACK_NAMES, check_exposure

KEY = "sk-secret"


@pytest.fixture(scope="module")
def rag(tmp_path_factory: pytest.TempPathFactory) -> ImpRAG:
    return asking_rag(tmp_path_factory.mktemp("gates"))


@pytest.fixture(scope="module")
def app(rag: ImpRAG) -> FastAPI:
    return tiny_app(rag, api_key=KEY)


def all_paths(app: FastAPI) -> list[tuple[str, str]]:
    """Method and path of every operation, and of the pages that describe them."""
    operations = app.openapi()["paths"]
    described = [(method, path) for path, one in operations.items() for method in one]
    return [*described, ("get", "/docs"), ("get", "/openapi.json"), ("post", "/rerank")]


def test_every_route_but_health_needs_the_key(app: FastAPI) -> None:
    client = TestClient(app)
    paths = all_paths(app)
    assert len(paths) >= 12
    for method, path in paths:
        reply = client.request(method, path.replace("{store}", "index"))
        if path == "/health":
            assert reply.status_code == 200
            continue
        assert reply.status_code == 401, path
        assert reply.json()["error"]["code"] == "invalid_api_key"
        assert reply.headers["WWW-Authenticate"].startswith(("Bearer", "Basic"))


@pytest.mark.parametrize(
    ("header", "passes"),
    [
        (f"Bearer {KEY}", True),
        (f"bearer {KEY}", True),
        ("Basic " + base64.b64encode(f"anyone:{KEY}".encode()).decode(), True),
        ("Basic " + base64.b64encode(f"{KEY}:".encode()).decode(), False),
        ("Basic ###", False),
        (f"Bearer {KEY}x", False),
        (f"Bearer {KEY[:-1]}", False),
        ("Bearer", False),
        (KEY, False),
        ("Bearer sk-secr\u00e9t".encode("latin-1").decode("latin-1"), False),
    ],
)
def test_only_the_key_passes(app: FastAPI, header: str, passes: bool) -> None:
    reply = TestClient(app).get("/v1/models", headers={"Authorization": header.encode("latin-1")})
    assert reply.status_code == (200 if passes else 401)


def test_a_local_server_answers_to_its_own_names_only(rag: ImpRAG) -> None:
    client = TestClient(tiny_app(rag, hosts=LOOPBACK_NAMES))
    for host in ("localhost:8000", "127.0.0.1", "[::1]:8000", "LOCALHOST"):
        assert client.get("/v1/models", headers={"Host": host}).status_code == 200
    for host in ("evil.example", "localhost.evil.example:8000", "[::2]:80", ""):
        reply = client.get("/v1/models", headers={"Host": host})
        assert reply.status_code == 421
        assert "call it" in reply.json()["error"]["message"]


def test_web_pages_of_others_may_not_send_json(app: FastAPI) -> None:
    asked = {"Origin": "https://evil.example", "Access-Control-Request-Method": "POST"}
    reply = TestClient(app).options(
        "/v1/completions", headers={**asked, "Authorization": f"Bearer {KEY}"}
    )
    assert reply.status_code == 405
    assert "access-control-allow-origin" not in reply.headers


def test_other_machines_need_a_key() -> None:
    for host in ("127.0.0.1", "localhost", "::1"):
        check_exposure(host, None)
    check_exposure("0.0.0.0", KEY)
    for host in ("0.0.0.0", "::", "192.0.2.1"):
        with pytest.raises(ImpRAGError, match="set a key by IMPRAG_API_KEY or --api-key"):
            check_exposure(host, None)
    for key in ("", "a b", "schlüssel", "a\n"):
        with pytest.raises(ImpRAGError, match="the API key must consist of"):
            check_exposure("127.0.0.1", key)
    with pytest.raises(ImpRAGError, match="there is no such host"):
        check_exposure("no such host", None)


def test_the_page_is_served_file_by_file(
    rag: ImpRAG, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "index.html").write_text("<h1>page</h1>")
    (tmp_path / "app.js").write_text("1")
    monkeypatch.setattr("imprag.serving.app.PAGE", tmp_path)
    client = TestClient(tiny_app(rag, api_key=KEY))
    page = client.get("/")
    assert page.text == "<h1>page</h1>"
    assert page.headers["X-Frame-Options"] == "DENY"
    assert client.get("/app.js").headers["Content-Type"].startswith("text/javascript")
    assert client.get("/other.js").status_code == 401
    assert client.get("/rerank", headers={"Authorization": f"Bearer {KEY}"}).status_code == 405


def test_without_a_page_there_is_none(
    rag: ImpRAG, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("imprag.serving.app.PAGE", tmp_path / "none")
    app = tiny_app(rag)
    assert TestClient(app).get("/").status_code == 404
