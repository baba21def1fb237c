"""The chat page in a real browser: it asks, streams, stops, forgets, speaks both languages, and runs no model text."""

import os
import shutil
import sys

import pytest
from serving_world import CONTEXT, LONG, SHORT, chat_model, endless, serving, wait_until

from ncvc.model.assistant import Assistant

pytest.importorskip("fastapi", reason="the server's packages are not installed: pip install -e '.[serve]'")
playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed: pip install playwright")
BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(BROWSER is None, reason="no chromium on this machine: apt-get install chromium"),
]
SECRET = "0123456789abcdef0123"


@pytest.fixture(scope="module")
def assistant():
    return Assistant.load(chat_model())


@pytest.fixture(scope="module")
def browser():
    with playwright.sync_playwright() as started:
        sandbox = [] if sys.platform != "linux" or os.geteuid() else ["--no-sandbox"]  # root has no sandbox
        opened = started.chromium.launch(executable_path=BROWSER, args=sandbox)
        yield opened
        opened.close()


@pytest.fixture
def open_page(browser):
    contexts, problems = [], []

    def opened(server, *, language="ja", expected=(), **options):
        context = browser.new_context(locale=language, **options)
        contexts.append(context)
        context.route("**/*", lambda route: route.continue_() if server.address in route.request.url else route.abort())
        page = context.new_page()
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.on("console", lambda said: problems.append(said.text) if said.type == "error" else None)
        page.on("request", lambda request: problems.append(request.url) if server.address not in request.url else None)
        page.goto(server.address)
        wait_for(page, "document.title !== 'NCVC-slm' || document.querySelector('dialog').open")
        return page

    opened.problems = problems
    yield opened
    for context in contexts:
        context.close()


def wait_for(page, condition):
    """Wait until the expression holds; the page's policy keeps playwright from waiting inside of it."""
    for _ in range(1000):
        if page.evaluate(condition):
            return
        page.wait_for_timeout(10)
    raise AssertionError(f"it never came: {condition}")


def send(page, text):
    page.locator("#question").fill(text)
    page.keyboard.press("Enter")


def last_answer(page):
    page.wait_for_selector("#send:visible")
    return page.locator(".turn.assistant .said").last.inner_text()


def test_a_conversation_is_asked_streamed_and_remembered(open_page, assistant):
    with serving(assistant) as server:
        page = open_page(server)
        assert page.title() == "tiny-chat"
        sent = []
        page.on("request", lambda request: sent.append(request.post_data_json) if request.method == "POST" else None)
        send(page, LONG[0])
        assert last_answer(page) == LONG[1]
        assert "トークン" in page.locator(".turn.assistant .below").inner_text()
        send(page, SHORT[0])
        last_answer(page)
        assert [turn["role"] for turn in sent[1]["messages"]] == ["user", "assistant", "user"]
        assert sent[1]["messages"][1]["content"] == LONG[1]
        page.locator("#fresh").click()
        assert page.locator(".turn").count() == 0
        send(page, SHORT[0])
        assert last_answer(page) == SHORT[1]
        assert len(sent[2]["messages"]) == 1
    assert open_page.problems == []


def test_settings_and_a_system_prompt_reach_the_server(open_page, assistant):
    with serving(assistant) as server:
        page = open_page(server)
        sent = []
        page.on("request", lambda request: sent.append(request.post_data_json) if request.method == "POST" else None)
        page.locator("#tuning").click()
        for field, value in (("system", "簡潔に。"), ("temperature", "0.5"), ("tokens", "3"), ("seed", "7")):
            page.locator(f"#{field}").fill(value)
        send(page, SHORT[0])
        last_answer(page)
        assert sent[0]["messages"][0] == {"role": "system", "content": "簡潔に。"}
        assert (sent[0]["temperature"], sent[0]["max_completion_tokens"], sent[0]["seed"]) == (0.5, 3, 7)
        assert (sent[0]["top_p"], sent[0]["repetition_penalty"]) == (1, 1)
    assert open_page.problems == []


def test_stop_ends_the_answer_on_the_page_and_in_the_server(open_page):
    with serving(endless(), max_tokens=3000) as server:
        page = open_page(server)
        for stop in (lambda: page.locator("#stop").click(), lambda: page.keyboard.press("Escape")):
            send(page, LONG[0])
            wait_for(page, "[...document.querySelectorAll('.said')].at(-1).textContent.length > 20")
            stop()
            assert len(last_answer(page)) > 20
            assert "停止しました" in page.locator(".turn.assistant .below").last.inner_text()
            wait_until(lambda: server.worker.counts()["running"] == 0, seconds=2)


def test_enter_sends_but_not_while_an_input_method_composes(open_page, assistant):
    with serving(assistant) as server:
        page = open_page(server)
        question = page.locator("#question")
        question.fill(SHORT[0])
        for event in ("{isComposing: true}", "{keyCode: 229}", "{shiftKey: true}"):
            question.evaluate(
                f"(e) => e.dispatchEvent(new KeyboardEvent('keydown', {{key: 'Enter', bubbles: true, ...{event}}}))"
            )
            assert page.locator(".turn").count() == 0
        question.press("Shift+Enter")
        assert question.input_value() == SHORT[0] + "\n"
        question.fill(SHORT[0])
        question.press("Enter")
        assert last_answer(page) == SHORT[1]
        question.fill("  \n ")
        question.press("Enter")
        assert page.locator(".turn.user").count() == 1


def test_text_is_shown_as_text(open_page, assistant):
    with serving(assistant, max_tokens=20) as server:
        page = open_page(server)
        hostile = "<img src=x onerror=\"document.title='taken'\"><script>document.title='taken'</script><b>太字</b>"
        for place in (0, 1):  # once from the user, once as if the model had said it
            if place:
                page.evaluate("(text) => show('assistant', text)", hostile)
            else:
                send(page, hostile)
                last_answer(page)
        assert page.locator(".said").first.inner_text() == page.locator(".said").last.inner_text() == hostile
        assert page.locator(".said img, .said script, .said b").count() == 0
        assert page.title() == "tiny-chat"


def test_what_the_policy_forbids_does_not_run(open_page, assistant):
    with serving(assistant) as server:
        page = open_page(server)
        page.evaluate(
            "() => { const s = document.createElement('script'); s.textContent = 'document.title = \"taken\"';"
            " document.body.append(s); }"
        )
        assert page.title() == "tiny-chat"
        assert page.evaluate("() => fetch('http://127.0.0.1:9/').then(() => 'reached', () => 'refused')") == "refused"
        assert any("Content Security Policy" in problem for problem in open_page.problems)


def test_a_token_is_asked_for_and_kept_only_in_the_page(open_page, assistant):
    with serving(assistant, token=SECRET) as server:
        page = open_page(server)
        for given in ("wrong", SECRET):
            page.wait_for_selector("#door[open]")
            page.locator("#token").fill(given)
            page.keyboard.press("Enter")
        wait_for(page, "document.title === 'tiny-chat'")
        send(page, SHORT[0])
        assert last_answer(page) == SHORT[1]
        kept = page.evaluate("() => JSON.stringify([{...localStorage}, {...sessionStorage}, document.cookie])")
        assert kept == '[{},{},""]'
        page.reload()
        page.wait_for_selector("#door[open]")


def test_older_turns_are_left_out_with_a_note_when_the_context_is_full(open_page, assistant):
    with serving(assistant, max_tokens=4) as server:
        page = open_page(server)
        half = "発熱。" * (CONTEXT // 5)
        for _ in range(3):
            send(page, half)
            last_answer(page)
        assert page.locator("#forgot").count() == 1
        assert page.locator(".turn.assistant").count() == 3
        assert page.locator(".alarm").count() == 0
        send(page, half * 4)
        page.wait_for_selector(".alarm")
        assert "4096" in page.locator(".alarm").inner_text()
        send(page, SHORT[0])  # the question that did not fit is replaced
        assert last_answer(page)
        assert page.locator(".alarm").count() == 0


def test_an_answer_can_be_asked_for_again(open_page, assistant):
    with serving(assistant) as server:
        page = open_page(server)
        send(page, SHORT[0])
        last_answer(page)
        page.locator(".again").click()
        assert last_answer(page) == SHORT[1]
        assert (page.locator(".turn.user").count(), page.locator(".turn.assistant").count()) == (1, 1)


def test_the_page_tells_when_the_server_has_gone(open_page, assistant):
    with serving(assistant) as server:
        page = open_page(server)
    send(page, SHORT[0])
    page.wait_for_selector(".alarm")
    assert "接続できません" in page.locator(".alarm").inner_text()


@pytest.mark.parametrize(("language", "word", "other"), [("ja", "送信", "Send"), ("en-US", "Send", "送信")])
def test_both_languages_are_spoken_and_every_control_has_a_name(open_page, assistant, language, word, other):
    with serving(assistant) as server:
        page = open_page(server, language=language)
        assert page.locator("#send").inner_text() == word
        page.locator("#tuning").click()
        unnamed = page.evaluate(
            "() => [...document.querySelectorAll('button, input, textarea')].filter((e) =>"
            " !(e.textContent.trim() && e.tagName === 'BUTTON') && !e.ariaLabel && !(e.labels && e.labels.length &&"
            " e.labels[0].textContent.trim())).map((e) => e.id)"
        )
        assert unnamed == []
        page.locator("#language").click()
        assert page.locator("#send").inner_text() == other
        assert page.evaluate("document.documentElement.lang") == ("en" if language == "ja" else "ja")


@pytest.mark.parametrize("width", [320, 390, 1280])
def test_nothing_is_cut_off_at_any_width(open_page, assistant, width):
    with serving(assistant) as server:
        page = open_page(server, viewport={"width": width, "height": 700})
        send(page, "とても長い語" * 60)
        last_answer(page)
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        for control in ("#fresh", "#tuning", "#language", "#send", "#question"):
            box = page.locator(control).bounding_box()
            assert box["x"] >= 0
            assert box["x"] + box["width"] <= width
