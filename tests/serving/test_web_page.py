"""The server's web page in a browser, over a tiny model: no other network, no other origin."""

import contextlib
import json
import re
import shutil
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("playwright", reason="drives the browser")
pytest.importorskip("axe_core_python", reason="checks accessibility")

from axe_core_python.sync_playwright import Axe
from fastapi import FastAPI
from playwright.sync_api import Browser, Page, Route, expect, sync_playwright
from tiny_api import running, tiny_app

from conftest import tiny_lm, tiny_tokenizer
from imprag.corpus import Corpus, Passage
from imprag.index.folder import IndexFolder
from imprag.model import ImpRAGConfig, ImpRAGModel
from imprag.pipeline import ImpRAG, make_retriever
from imprag.serving.engine import Engine
from imprag.serving.requests import EngineEvent, EngineRequest, NewText

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
CHROMIUM = next(filter(None, map(shutil.which, BROWSERS)), None)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium: apt install chromium")

CREDIT = "Nobody; public domain"
WAIT = 30_000  # milliseconds, for a busy machine
KEY = "right-key"
QUESTION = "w1 w2 w3"
MARKUP = "<img src=missing onerror=document.title='run'>"
PASSAGES = [
    Passage(f"p{n}", f"w{n}", " ".join(f"w{(7 * n + i) % 94}" for i in range(4 + n)))
    for n in range(11)
] + [Passage("wide", f"{MARKUP} {'wide' * 60}", f"{MARKUP} w1 w2 " + "w3 w4 w5 " * 200)]
FLAGS = [
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-sync"),
    *("--disable-background-networking", "--disable-component-update"),
]


# --- The server and the browser -----------------------------------------------------------------


@pytest.fixture(scope="module")
def rag(tmp_path_factory: pytest.TempPathFactory) -> ImpRAG:
    folder = tmp_path_factory.mktemp("web")
    config = ImpRAGConfig(base_model="tiny", b=1, t=3, k=3, max_passage_tokens=16)
    rag = ImpRAG(ImpRAGModel(tiny_lm(), config), tiny_tokenizer())
    corpus = Corpus.build(PASSAGES, folder / "corpus", source="Counting", credit=CREDIT)
    IndexFolder.build(corpus, rag.encoder, folder / "default", progress=False)
    return ImpRAG(rag.model, rag.tokenizer, IndexFolder.open(folder / "default"))


@pytest.fixture(scope="module")
def app(rag: ImpRAG) -> FastAPI:
    return tiny_app(rag)


@pytest.fixture(scope="module")
def address(app: FastAPI) -> Iterator[str]:
    with running(app) as address:
        yield address


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    expect.set_options(timeout=WAIT)
    with sync_playwright() as program:
        browser = program.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield browser
        browser.close()


@contextlib.contextmanager
def visit(browser: Browser, address: str, **settings: Any) -> Iterator[Page]:
    """The page in a new browser profile; at the end, it has run without a fault.

    It has asked nothing of another origin, and its policy of contents has refused nothing.
    """
    with contextlib.closing(browser.new_context(**settings)) as context:
        page = context.new_page()
        page.set_default_timeout(WAIT)
        asked: list[str] = []
        faults: list[str] = []
        context.on("request", lambda request: asked.append(request.url))
        page.on("pageerror", lambda error: faults.append(str(error)))
        page.on("console", lambda message: faults.append(message.text))
        page.goto(f"{address}/")
        page.wait_for_selector("#loaded:not([hidden]), #key-form:not([hidden])")
        yield page
        assert {url for url in asked if not url.startswith(f"{address}/")} == set()
        # The browser itself notes every response with an error, and requests without a network.
        assert [one for one in faults if not one.startswith("Failed to load resource")] == []


@pytest.fixture
def page(browser: Browser, address: str) -> Iterator[Page]:
    with visit(browser, address) as page:
        yield page


def ask(page: Page, question: str = QUESTION, k: int | None = None) -> None:
    """Ask, and wait for the end of the answer."""
    if k is not None:
        page.get_by_label("Passages").fill(str(k))
    page.get_by_label("Ask a question").fill(question)
    page.keyboard.press("Enter")
    wait_for_end(page, question)


def wait_for_end(page: Page, question: str = QUESTION) -> None:
    ended = page.locator("#current article[aria-busy=false]", has_text=question)
    expect(ended).to_have_count(1)


def titles(page: Page) -> list[str]:
    return [re.sub(r"^\d+", "", text) for text in page.locator("#current h4").all_text_contents()]


def error_of(page: Page) -> str:
    error: str = page.locator("#current .error").inner_text()
    return error


# --- Asking -------------------------------------------------------------------------------------


def test_an_answer_comes_piece_by_piece_with_its_passages_and_timings(
    page: Page, rag: ImpRAG
) -> None:
    page.evaluate(
        """() => {
            window.pieces = 0;
            const count = (changes) => {
                window.pieces += changes.filter(({target}) => target.className === "answer").length;
            };
            new MutationObserver(count).observe(document.getElementById("current"),
                {childList: true, subtree: true});
        }"""
    )
    ask(page)
    expected = rag.ask(QUESTION)
    assert page.locator("#current .question").inner_text() == QUESTION
    assert page.locator("#current .answer").inner_text().strip() == expected.text
    assert page.evaluate("pieces") > 5
    assert titles(page) == [found.passage.title for found in expected.passages]
    scores = page.locator("#current .number").all_inner_texts()
    assert scores == [f"{found.score:.2f}" for found in expected.passages]
    facts = page.locator("#current .facts").inner_text().split("\n")
    assert facts[::2] == ["Search", "First token", "Total", "Tokens", "Retrieval"]
    assert all(re.fullmatch(r"\d+ ms|\d+\.\d\d s", value) for value in facts[1:7:2])
    assert facts[-1] == "implicit"
    assert page.locator("#status").inner_text().startswith(f"Answer: {expected.text}")


def test_what_carried_the_answer_is_named_and_linked(page: Page, rag: ImpRAG) -> None:
    ask(page, k=4)
    expected = rag.ask(QUESTION, 4, attribution=True).attribution
    assert expected is not None
    percents = [f"{100 * share:.1f} %" for share in expected.shares]
    reads = page.locator("#current .read").all_inner_texts()
    assert reads == [f"Read: {percent}" for percent in percents]
    links = page.locator("#current .cited a")
    assert [re.split("[][]", text)[1] for text in links.all_inner_texts()] == [
        str(n + 1) for n in expected.carried_by
    ]
    assert links.first.inner_text().endswith(percents[expected.carried_by[0]])
    links.first.click()
    most_read = page.locator("#current .passages li").nth(expected.carried_by[0])
    expect(most_read).to_be_focused()


def test_bars_run_from_the_lowest_to_the_highest_score(page: Page) -> None:
    ask(page, k=4)
    scores = [float(text) for text in page.locator("#current .number").all_inner_texts()]
    widths = page.locator("#current .bar").evaluate_all(
        "bars => bars.map(bar => parseFloat(getComputedStyle(bar, '::before').width)"
        " / bar.clientWidth)"
    )
    shares = [(score - scores[-1]) / (scores[0] - scores[-1]) for score in scores]
    assert widths == pytest.approx([0.04 + 0.96 * share for share in shares], abs=0.01)


def test_words_of_the_answer_are_marked_in_the_passages(page: Page) -> None:
    ask(page, k=12)
    answer = set(page.locator("#current .answer").inner_text().split())
    marked = " ".join(page.locator("#current .text mark").all_inner_texts()).split()
    texts = [passage.text for passage in PASSAGES]
    assert marked
    assert sorted(marked) == sorted(
        word for text in texts for word in text.split() if word in answer
    )


def test_the_loaded_model_and_corpus_are_shown(page: Page) -> None:
    assert page.locator("#loaded").inner_text().split("\n") == [
        *("Model", "tiny"),
        *("Corpus", "default, 12 passages"),
    ]
    assert page.get_by_label("Passages").get_attribute("placeholder") == "3"
    assert page.locator("#credit").inner_text() == "Passages: Counting. Nobody; public domain"


@pytest.mark.parametrize(("k", "heading"), [(1, "1 passage read"), (5, "5 passages read")])
def test_k_chooses_how_many_passages_are_read(page: Page, k: int, heading: str) -> None:
    ask(page, k=k)
    assert page.locator("#current .passages h3").inner_text().startswith(heading)
    assert page.locator("#current .passages li").count() == k


def test_without_passages_there_is_only_the_answer(page: Page, rag: ImpRAG) -> None:
    ask(page, k=0)
    assert page.locator("#current .answer").inner_text().strip() == rag.ask(QUESTION, k=0).text
    assert not page.locator("#current .passages").is_visible()


@pytest.mark.parametrize("name", ["hybrid", "lexical"])
def test_the_retrieval_mode_can_be_chosen(page: Page, rag: ImpRAG, name: str) -> None:
    page.get_by_label(name.capitalize()).check()
    ask(page, k=6)
    prompts = rag.asked_prompts([QUESTION])
    [expected] = make_retriever(rag, name, None).retrieve(prompts, 6)
    assert titles(page) == [found.passage.title for found in expected]
    assert page.locator("#current .facts").inner_text().endswith(name)


def test_text_of_passages_is_no_markup(page: Page) -> None:
    ask(page, MARKUP, k=12)
    assert page.locator("#current .question").inner_text() == MARKUP
    [wide] = [one for one in page.locator("#current li").all() if MARKUP in one.inner_text()]
    assert wide.locator(".text").inner_text().startswith(MARKUP)
    assert page.locator("#current img").count() == 0
    assert page.title() == "ImpRAG"


HEIGHT = "element => element.clientHeight"


def test_a_long_passage_is_cut_and_can_be_shown_in_full(page: Page) -> None:
    ask(page, k=12)
    text = page.locator("#current .text.cut")
    height = text.evaluate(HEIGHT)
    page.get_by_role("button", name="Show all").click()
    shown = page.locator("#current li", has_text=MARKUP).locator(".text")
    assert shown.evaluate(HEIGHT) > 2 * height
    page.get_by_role("button", name="Show less").click()
    assert text.evaluate(HEIGHT) == height


def test_an_example_is_asked(page: Page) -> None:
    example = page.locator("#examples button").first
    question = example.inner_text()
    example.click()
    wait_for_end(page, question)
    assert page.locator("#current .question").inner_text() == question
    assert page.evaluate("document.activeElement.id") == "question"


def test_another_corpus_and_retriever_of_the_server(browser: Browser, address: str) -> None:
    with visit(browser, address) as page:
        models = page.request.get(f"{address}/v1/models").json()
        details = models["data"][0]["imprag"]
        details["corpus"]["id"] = "other"
        details["retrieval"] = "hybrid"
        page.route("**/v1/models", lambda route: route.fulfill(json=models))
        page.reload()
        page.get_by_text("other, 12 passages").wait_for()
        assert page.get_by_label("Hybrid").is_checked()
        assert not page.locator("#examples").is_visible()
        details.update(corpus=None, retrieval='its "own"')
        page.reload()
        expect(page.locator("#loaded")).to_contain_text("none")
        assert not page.locator("#examples").is_visible()
        assert not page.locator("#credit").is_visible()
        assert page.get_by_label('its "own"').is_checked()
        assert 'its "own"' in page.locator("#retrieval-help").inner_text()


def test_earlier_questions_stay_for_the_visit(page: Page, rag: ImpRAG) -> None:
    ask(page, "w1", k=2)
    ask(page, "w2", k=3)
    ask(page, "w3", k=3)
    earlier = page.locator("#earlier details")
    assert [text.split("\n")[0] for text in earlier.all_inner_texts()] == ["w2", "w1"]
    assert rag.ask("w1", k=2).text in earlier.last.inner_text()
    earlier.last.locator("summary").click()
    assert earlier.last.locator("li").count() == 2
    assert earlier.last.locator("li").first.is_visible()


# --- Faults -------------------------------------------------------------------------------------


def test_an_error_is_shown_and_the_next_question_answered(page: Page) -> None:
    ask(page, k=1000)
    assert "1000" in error_of(page)
    assert not page.locator("#current .passages").is_visible()
    ask(page, k=2)
    assert error_of(page) == ""
    assert page.locator("#current li").count() == 2


def test_a_k_that_is_no_number_of_passages_is_not_asked(page: Page) -> None:
    page.get_by_label("Passages").fill("-1")
    page.get_by_label("Ask a question").fill(QUESTION)
    page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.id") == "k"
    assert page.locator("#current article").count() == 0


def test_a_server_that_is_gone(page: Page) -> None:
    page.context.set_offline(True)
    ask(page)
    assert error_of(page) == "The server cannot be reached. Is it still running?"
    page.context.set_offline(False)
    ask(page)
    assert error_of(page) == ""


def reply(page: Page, **response: Any) -> None:
    """Let the browser answer the next questions in place of the server."""
    page.route("**/v1/chat/completions", lambda route: route.fulfill(**response))


def test_an_error_without_a_message_shows_its_status(page: Page) -> None:
    reply(page, status=502, body="<h1>Bad gateway</h1>")
    ask(page)
    assert error_of(page) == "The server answered with status 502."


def test_marks_ignore_case_and_accents_and_skip_function_words(page: Page) -> None:
    text = "The CAFÉ is in Addis Ababa. It is the third-most visited, 4 km away."
    passage = {"id": "p", "title": "", "url": "https://example.org/", "text": text, "score": 1.5}
    answer = {"index": 0, "delta": {"content": "The café, 4 in Addis Ababa, is the third most"}}
    chunk = {"choices": [answer], "imprag": {"passages": [passage]}}
    body = f"data: {json.dumps(chunk)}\n\ndata: [DONE]\n\n"
    reply(page, content_type="text/event-stream", body=body)
    ask(page)
    marks = page.locator("#current .text mark").all_inner_texts()
    assert marks == ["CAFÉ", "Addis Ababa", "third-most", "4"]
    assert page.locator("#current .text").inner_text() == text
    assert titles(page) == ["p"]
    assert page.locator("#current .source a").get_attribute("href") == "https://example.org/"


@pytest.mark.parametrize(
    ("end", "message"),
    [
        ('data: {"error": {"message": "The model failed."}}\r\n\r\n', "The model failed."),
        ("", "The connection ended before the answer was complete."),
    ],
)
def test_an_answer_that_breaks_off_keeps_its_text(page: Page, end: str, message: str) -> None:
    begin = (
        ': comment\r\n\r\ndata: {"choices": [{"index": 0, "delta": {"content": "half"}}]}\r\n\r\n'
    )
    reply(page, content_type="text/event-stream", body=begin + end)
    ask(page)
    assert page.locator("#current .answer").inner_text() == "half"
    assert error_of(page) == message


def test_a_connection_that_breaks_is_reported(page: Page) -> None:
    page.evaluate(
        """() => {
            const pull = (stream) => stream.error(new TypeError("network error"));
            window.fetch = async () => new Response(new ReadableStream({pull}));
        }"""
    )
    ask(page)
    assert error_of(page) == "The connection ended before the answer was complete."


# --- Keys ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def closed_address(rag: ImpRAG) -> Iterator[str]:
    with running(tiny_app(rag, api_key=KEY)) as address:
        yield address


def test_the_docs_load_nothing_from_elsewhere(browser: Browser, closed_address: str) -> None:
    login = {"username": "anyone", "password": KEY}
    with contextlib.closing(browser.new_context(http_credentials=login)) as context:
        asked: list[str] = []
        context.on("request", lambda request: asked.append(request.url))
        page = context.new_page()
        page.goto(f"{closed_address}/docs")
        expect(page.get_by_role("heading", name="ImpRAG")).to_be_visible(timeout=WAIT)
        expect(page.get_by_text("/v1/chat/completions").first).to_be_visible()
        assert {
            url for url in asked if not url.startswith((f"{closed_address}/", "data:"))
        } == set()


def test_a_key_is_asked_for_and_kept_in_the_tab(browser: Browser, closed_address: str) -> None:
    with visit(browser, closed_address) as page:
        key = page.get_by_label("API key")
        expect(key).to_be_focused()
        assert key.get_attribute("type") == "password"
        for wrong, message in (("wrong", "refused"), ("é", "ASCII")):
            key.fill(wrong)
            page.keyboard.press("Enter")
            expect(page.locator("#key-error")).to_contain_text(message)
        key.fill(f" {KEY} ")
        page.keyboard.press("Enter")
        expect(page.locator("#key-form")).to_be_hidden()
        ask(page)
        page.reload()
        ask(page)
        assert error_of(page) == ""
        assert page.evaluate("[localStorage.length, document.cookie]") == [0, ""]


def test_a_question_waits_for_the_key(browser: Browser, closed_address: str) -> None:
    with visit(browser, closed_address) as page:
        page.get_by_label("Ask a question").fill(QUESTION)
        page.keyboard.press("Enter")
        page.get_by_label("API key").fill(KEY)
        page.get_by_role("button", name="Use key").click()
        expect(page.locator("#current .error")).to_be_empty()  # asked again
        wait_for_end(page)
        assert error_of(page) == ""


def test_a_key_that_has_changed_is_asked_for_again(browser: Browser, closed_address: str) -> None:
    with visit(browser, closed_address) as page:
        page.get_by_label("API key").fill(KEY)
        page.keyboard.press("Enter")
        page.wait_for_selector("#loaded:not([hidden])")
        page.evaluate("sessionStorage.setItem('imprag-api-key', 'old')")
        ask(page)
        assert "key" in error_of(page)
        expect(page.locator("#key-error")).to_contain_text("refused")
        assert page.evaluate("sessionStorage.length") == 0
        page.get_by_label("API key").fill(KEY)
        page.keyboard.press("Enter")
        expect(page.locator("#earlier details")).to_have_count(1)
        wait_for_end(page)
        assert error_of(page) == ""


# --- Keyboard, stopping -------------------------------------------------------------------------


def focused(page: Page) -> str:
    """Name of the focused element, which has a visible outline."""
    name, outline = page.evaluate(
        """() => {
            const focused = document.activeElement;
            const shown = focused.type === "radio" ? focused.closest("label") : focused;
            const style = getComputedStyle(shown);
            return [focused.value || focused.id, style.outlineStyle + parseInt(style.outlineWidth)];
        }"""
    )
    assert outline == "solid3", name
    return str(name)


def test_everything_works_by_keyboard_alone(page: Page) -> None:
    keys = page.keyboard
    assert page.evaluate("document.activeElement.id") == "question"
    keys.type("w1")
    keys.press("Shift+Enter")
    keys.type("w2")
    assert page.get_by_label("Ask a question").input_value() == "w1\nw2"
    keys.press("Tab")
    assert focused(page) == "ask"
    keys.press("Tab")
    assert focused(page) == "implicit"
    keys.press("ArrowRight")
    keys.press("ArrowRight")
    assert focused(page) == "lexical"
    assert "words" in page.locator("#retrieval-help").inner_text()
    keys.press("Tab")
    assert focused(page) == "k"
    keys.type("2")
    keys.press("Shift+Tab")
    keys.press("Shift+Tab")
    assert focused(page) == "ask"
    keys.press("Enter")
    wait_for_end(page, "w1\nw2")
    assert page.locator("#current li").count() == 2
    assert page.evaluate("document.activeElement.id") == "question"


class Brake:
    """Another request in the engine, which lets it make one token at a time."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._tokens = threading.Semaphore(0)
        self._held = threading.Event()
        self._met = False
        request = EngineRequest("w5", max_new_tokens=400, stop=())
        self._ticket = engine.submit(request, self._wait)
        assert self._held.wait(60)

    def _wait(self, event: EngineEvent) -> None:
        if isinstance(event, NewText):
            self._held.set()
            assert self._tokens.acquire(timeout=60)

    def let_one_pass(self) -> None:
        """Let one token pass, once another request has come."""
        self._met = self._met or self._engine.waiting > 0
        if self._met:
            self._tokens.release()

    def release(self) -> None:
        self._ticket.cancel()
        self._tokens.release(400)


@pytest.fixture
def brake(app: FastAPI, address: str) -> Iterator[Brake]:
    brake = Brake(app.state.service.engine)
    yield brake
    brake.release()


@pytest.mark.parametrize("way", ["key", "button"])
def test_stopping_keeps_what_has_come(page: Page, brake: Brake, way: str) -> None:
    page.get_by_label("Ask a question").fill(QUESTION)
    page.get_by_role("button", name="Ask").click()
    assert page.evaluate("document.activeElement.id") == "stop"
    answer = page.locator("#current .answer")
    while not answer.inner_text():
        brake.let_one_pass()
    assert page.locator("#current article").get_attribute("aria-busy") == "true"
    with page.expect_event("requestfailed") as failed:
        page.keyboard.press("Escape" if way == "key" else "Enter")
    assert "ABORTED" in str(failed.value.failure)
    wait_for_end(page)
    assert page.locator("#current .note").inner_text() == "Stopped."
    assert page.locator("#status").inner_text() == "Stopped."
    assert answer.inner_text()
    assert error_of(page) == ""
    assert page.evaluate("document.activeElement.id") == "question"
    assert page.get_by_role("button", name="Ask").is_visible()


def test_a_page_that_should_not_move_does_not_blink(
    browser: Browser, address: str, brake: Brake
) -> None:
    animation = "getComputedStyle(document.querySelector('.answer'), '::after').animationName"
    with visit(browser, address) as page:
        page.get_by_label("Ask a question").fill(QUESTION)
        page.keyboard.press("Enter")
        page.locator("article").wait_for()
        assert page.evaluate(animation) == "blink"
        page.emulate_media(reduced_motion="reduce")
        assert page.evaluate(animation) == "none"


def test_the_enter_that_ends_a_composed_word_does_not_ask(page: Page) -> None:
    box = page.get_by_label("Ask a question")
    box.fill(QUESTION)
    composing = "new KeyboardEvent('keydown', {key: 'Enter', isComposing: true, cancelable: true})"
    assert box.evaluate(f"box => box.dispatchEvent({composing})") is True
    assert page.locator("#current article").count() == 0


def test_a_question_is_asked_once_however_often_enter_is_pressed(page: Page) -> None:
    held: list[Route] = []
    page.route("**/v1/models", lambda route: held.append(route))
    page.reload()
    page.get_by_label("Ask a question").fill(QUESTION)
    page.keyboard.press("Enter")
    page.keyboard.press("Enter")
    while len(held) < 3:
        page.evaluate("0")  # lets the browser's events come
    for route in held:
        route.continue_()
    wait_for_end(page)
    assert page.locator("article").count() == 1


def test_an_empty_question_is_not_asked(page: Page) -> None:
    page.get_by_label("Ask a question").fill(" \n ")
    page.keyboard.press("Enter")
    page.get_by_role("button", name="Ask").click()
    assert page.locator("#current article").count() == 0


# --- Appearance ---------------------------------------------------------------------------------


def overflow(page: Page) -> int:
    """How far the page is wider than its window."""
    return int(page.evaluate("document.documentElement.scrollWidth - innerWidth"))


def test_a_window_of_400_pixels_needs_no_sideways_scrolling(browser: Browser, address: str) -> None:
    with visit(browser, address, viewport={"width": 400, "height": 800}) as page:
        assert overflow(page) == 0
        ask(page, "w" * 300, k=12)
        assert overflow(page) == 0
        ask(page, k=1000)
        page.locator("#earlier summary").click()
        assert overflow(page) == 0
        for control in page.locator("#ask-form button:visible, #ask-form input").all():
            box = control.evaluate("element => element.getBoundingClientRect().toJSON()")
            assert box["left"] >= 0
            assert box["right"] <= 400
            assert box["height"] >= 24


def violations(page: Page) -> list[tuple[str, list[str]]]:
    found = Axe().run(page)
    assert found["passes"]
    return [(one["id"], [node["html"] for node in one["nodes"]]) for one in found["violations"]]


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_no_barrier(
    browser: Browser, address: str, closed_address: str, scheme: str
) -> None:
    with visit(browser, address, color_scheme=scheme) as page:
        assert violations(page) == []
        for k in (12, 1000, 4):
            ask(page, k=k)
        for earlier in page.locator("#earlier summary").all():
            earlier.click()
        assert violations(page) == []
    with visit(browser, closed_address, color_scheme=scheme) as page:
        page.get_by_label("API key").fill("é")
        page.keyboard.press("Enter")
        assert violations(page) == []


def test_dark_mode_follows_the_system(browser: Browser, address: str) -> None:
    ground = "getComputedStyle(document.body).backgroundColor"
    with visit(browser, address, color_scheme="dark") as page:
        dark = page.evaluate(ground)
        page.emulate_media(color_scheme="light")
        assert sum(brightness(page.evaluate(ground))) > 600 > 200 > sum(brightness(dark))


def brightness(color: str) -> list[int]:
    return [int(number) for number in re.findall(r"\d+", color)]


# --- Safety -------------------------------------------------------------------------------------


def test_the_page_can_run_and_reach_nothing_else(browser: Browser, address: str) -> None:
    refused = """async (other) => {
        const script = document.createElement("script");
        script.textContent = "document.title = 'run'";
        document.body.append(script);
        return fetch(other).then(() => false, () => true);
    }"""
    with contextlib.closing(browser.new_context()) as context:
        page = context.new_page()
        page.goto(f"{address}/")
        with socket.create_server(("127.0.0.1", 0)) as other:
            other.setblocking(False)
            assert page.evaluate(refused, f"http://127.0.0.1:{other.getsockname()[1]}/")
            with pytest.raises(BlockingIOError):
                other.accept()
        assert page.title() == "ImpRAG"


def test_the_files_name_no_other_place() -> None:
    folder = Path(__file__).parent.parent.parent / "src" / "imprag" / "serving" / "web"
    files = sorted(folder.iterdir())
    assert [file.name for file in files] == ["app.js", "favicon.svg", "index.html", "style.css"]
    for file in files:
        text = file.read_text().replace("http://www.w3.org/2000/svg", "")
        assert not re.search(r"//[\w.-]+\.\w+/|innerHTML|insertAdjacentHTML|\bon\w+=", text)
