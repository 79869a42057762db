"""The page in a real browser: keys, blindness, hostile texts, a phone, names for every control."""

import re
from collections.abc import Callable
from typing import Any

import pytest
from review_parts import Review, make_task

from trueup.label.votes import EDIT, choice_of, is_swapped
from trueup.records import Completion, Label, Message, ReviewTask
from trueup.store import Store

Enter = Callable[..., Any]

HOSTILE = (
    "</div></textarea></template></script><script>alert(1)</script>"
    '<img src=x onerror=alert(2)><svg onload=alert(3)>" onmouseover="alert(4)" '
    "<a href='javascript:alert(5)'>javascript:alert(5)</a> {{7*7}} {% raw %} "
    "\u202eevil\u202c \x00\x07 &lt;b&gt; ${alert(6)} <!-- "
    "<iframe srcdoc='<script>alert(7)</script>'>"
)


def saved(page: Any, text: str = "Saved.") -> None:
    """Wait for the server's word on the last key."""
    page.wait_for_function(
        "text => document.getElementById('notice').textContent === text", arg=text
    )
    page.evaluate("document.getElementById('notice').textContent = ''")


def task_on(page: Any) -> str:
    return page.get_attribute("#work > .card", "data-task")


def newest(store: Store, task_id: str, name: str = "ann") -> str | None:
    votes = store.all(Label, task_id=task_id, annotator=name)
    return choice_of(votes[-1]) if votes else None


def test_the_keys_vote_skip_and_undo(open_review: Any, store: Store, enter: Enter) -> None:
    store.add_all([make_task(n) for n in range(7)])
    page = enter(open_review(), "ann")
    seen = []
    for key in ("1", "2", "t", "b", "s"):
        seen.append(task_on(page))
        page.keyboard.press(key)
        saved(page)
        assert task_on(page) not in seen
        assert page.evaluate("document.activeElement.tagName") == "H1", "a reader starts at the top"
    said = [newest(store, one) for one in seen]
    for at, pick in enumerate(("first", "second")):
        mirror = {"first": "second", "second": "first"}
        assert said[at] == (mirror[pick] if is_swapped(seen[at], "ann") else pick)
    assert said[2:] == ["tie", "both bad", None]

    page.keyboard.press("u")
    saved(page, "Taken back.")
    assert task_on(page) == seen[4], "the skipped one"
    page.keyboard.press("u")
    saved(page, "Taken back.")
    assert task_on(page) == seen[3] and newest(store, seen[3]) == "withdrawn"
    page.keyboard.press("t")
    saved(page)
    assert newest(store, seen[3]) == "tie"
    assert "4 answered by you" in page.inner_text(".status")


def test_the_next_task_is_there_before_the_server_answers(
    open_review: Any, store: Store, enter: Enter
) -> None:
    store.add_all([make_task(n) for n in range(4)])
    page = enter(open_review(), "ann")
    first = task_on(page)
    held: list[Any] = []
    page.route("**/task/*", lambda route: held.append(route))
    page.keyboard.press("1")
    page.locator(f"#work > .card:not([data-task='{first}'])").wait_for()
    assert store.count(Label) == 0, "shown before it is saved"
    page.locator(".comment summary").click()
    page.locator(".comment textarea").fill("typed while it was on its way")
    while not held:
        page.wait_for_timeout(10)  # the card is drawn before the request is handed over
    held[0].continue_()
    saved(page)
    assert newest(store, first)
    assert page.locator(".comment textarea").input_value() == "typed while it was on its way"
    assert "1 answered by you" in page.inner_text(".status")


def test_an_answer_that_is_not_saved_comes_back(
    open_review: Any, store: Store, enter: Enter
) -> None:
    store.add_all([make_task(n) for n in range(3)])
    page = enter(open_review(), "ann")
    first = task_on(page)
    page.locator(".tick").first.click()
    page.route("**/task/*", lambda route: route.abort())
    page.keyboard.press("1")
    page.wait_for_selector("#notice.failed")
    assert "cannot be reached" in page.inner_text("#notice")
    assert task_on(page) == first and page.locator(".tick input").first.is_checked()
    page.unroute("**/task/*")
    page.keyboard.press("1")
    saved(page)
    assert newest(store, first) and task_on(page) != first


def test_nothing_on_the_page_says_whose_answer_it_is(
    open_review: Any, store: Store, enter: Enter
) -> None:
    store.add_all(
        [make_task(n, gold=(1.0, 0.0) if n == 1 else None, source="file:gold") for n in range(3)]
    )
    page = enter(open_review(gold_rate=0.9), "ann")
    orders = set()
    for _ in range(2):
        html = page.content()
        assert not re.search(r"weights|secret|logged|gold|champion|file:", html)
        orders.add(tuple(re.findall("as the (first|second) says", page.inner_text(".answers"))))
        page.keyboard.press("t")
        saved(page)
    assert orders <= {("first", "second"), ("second", "first")}


def test_words_that_differ_are_marked_on_demand(
    open_review: Any, store: Store, enter: Enter
) -> None:
    store.add(make_task(1))
    page = enter(open_review(), "ann")
    mark = page.locator("mark").first
    look = "one => getComputedStyle(one).backgroundColor"
    plain = mark.evaluate(look)
    before = page.locator(".answer").first.bounding_box()
    page.keyboard.press("d")
    assert mark.evaluate(look) != plain
    assert sorted(page.locator("mark").all_inner_texts()) == ["days", "first", "hours", "second"]
    assert page.locator(".answer").first.bounding_box() == before, "nothing moves"
    page.reload()
    assert page.locator("#diff").is_checked(), "it is remembered"
    page.keyboard.press("d")
    assert page.locator("mark").first.evaluate(look) == plain


def test_a_mended_answer_becomes_chosen(open_review: Any, store: Store, enter: Enter) -> None:
    store.add_all([make_task(1), make_task(2)])
    page = enter(open_review(), "ann")
    original = page.locator("textarea[name=edit_1]").input_value()
    page.keyboard.press("e")
    box = page.locator("textarea[name=edit_1]")
    assert box.evaluate("one => one === document.activeElement")
    box.fill("Four hours.\n\n1. Not two, t, b or s.")
    assert store.count(Label) == 0, "keys in a box are text"
    page.keyboard.press("Escape")
    page.keyboard.press("1")
    saved(page)
    (edit,) = store.all(Label, source=EDIT)
    assert edit.candidates[0].text == "Four hours.\n\n1. Not two, t, b or s."
    assert edit.candidates[1].text == original and edit.scores == (1.0, 0.0)


def test_hostile_texts_are_shown_and_run_nothing(
    open_review: Any, store: Store, enter: Enter
) -> None:
    prompt = (Message(role=HOSTILE[:60], content=HOSTILE), Message(role="user", content=HOSTILE))
    for n in range(3):
        store.add(
            ReviewTask(
                prompt=prompt,
                candidates=(Completion(text=HOSTILE), Completion(text=f"{HOSTILE} {n}")),
            )
        )
    review: Review = open_review(
        overlap=2, rubric=("<b onclick=alert(8)>Wrong</b>",), guidelines=HOSTILE
    )
    hostile_name = '<img src=x onerror="alert(9)">'
    store.add(  # a vote from elsewhere, under a name that the page itself would not let in
        Label(
            prompt=prompt,
            candidates=store.all(ReviewTask)[0].candidates,
            scores=(1.0, 0.0),
            annotator=hostile_name,
            annotator_kind="human",
            task_id=store.all(ReviewTask)[0].id,
        )
    )
    page = enter(review, "ada")
    assert "<script>alert(1)</script>" in page.inner_text(".answers")
    assert "⟨U+202E⟩evil" in page.inner_text(".answers")
    page.keyboard.press("d")
    for _ in range(2):
        page.keyboard.press("c")
        page.locator(".comment textarea").fill(HOSTILE)
        page.keyboard.press("Escape")
        page.keyboard.press("e")
        page.locator("textarea[name=edit_1]").fill(HOSTILE + " mended")
        page.keyboard.press("Escape")
        page.keyboard.press("t")
        saved(page)
    assert page.locator("img, svg, iframe, .text a, .text script").count() == 0
    for path in ("/mine", "/team", "/second-look", "/people"):
        page.goto(path)
        assert page.locator("main img, main svg, main iframe, main script").count() == 0, path
        page.mouse.move(200, 300)
    page.goto("/second-look")
    assert hostile_name in page.inner_text("main")
    page.locator(".rows a").first.click()
    assert hostile_name in page.inner_text(".votes")
    page.goto(f"/{HOSTILE[:40]}")
    page.wait_for_timeout(100)  # what would run late


PAGES = ("/", "/mine", "/team", "/second-look", "/people", "/password")


def fill(store: Store, review: Review) -> None:
    """A project in which every page has something to show."""
    store.add_all([make_task(n, second="A longer one. " * 30) for n in range(12)])
    for name, pick in ("ann", "1"), ("bob", "tie"):
        client = review.enter(name)
        for _ in range(3):
            client.answer(pick, comment="a word that goes on for a while" * 4)


def test_it_works_on_a_phone(open_review: Any, store: Store, enter: Enter) -> None:
    review = open_review(overlap=2)
    fill(store, review)
    review.let_in("w" * 64)  # no name is longer
    page = enter(review, "ada", viewport={"width": 390, "height": 844}, has_touch=True)
    page.get_by_role("button", name="Tie").tap()
    saved(page)
    for path in PAGES:
        page.goto(path)
        size = page.evaluate("[document.documentElement.scrollWidth, innerWidth]")
        assert size[0] <= size[1], f"{path} scrolls sideways"
        small = page.evaluate(
            """() => [...document.querySelectorAll(
                    'a, button, input:not([type=hidden]), select, summary, textarea')]
                .filter(one => one.checkVisibility() && !one.classList.contains('skip-link'))
                .map(one => {
                    const target = one.closest('label.tick, label.switch') || one;
                    const box = target.getBoundingClientRect();
                    return [one.outerHTML.slice(0, 80), box.width, box.height];
                })
                .filter(([, width, height]) => width < 44 || height < 44)
                .filter(([html]) => !html.startsWith('<a href="/">'))"""
        )
        assert small == [], path
    page.goto("/")
    bar = page.locator(".bar").bounding_box()
    assert bar["y"] + bar["height"] <= 844 + 1 and bar["height"] < 150


def test_every_control_has_a_name_and_a_place_in_the_order(
    open_review: Any, store: Store, enter: Enter
) -> None:
    review = open_review(overlap=2)
    fill(store, review)
    page = enter(review, "ada")
    for path in PAGES:
        page.goto(path)
        for tree in page.locator("body").aria_snapshot().splitlines():
            control = re.match(
                r"\s*- (button|link|checkbox|textbox|combobox|spinbutton|progressbar)(.*)", tree
            )
            assert not control or control[2].strip(" :"), f"{path}: {tree}"
        assert page.locator("h1").count() == 1, path
        assert page.evaluate(
            """() => {
                const ids = [...document.querySelectorAll('[id]')].map(one => one.id);
                const odd = '[tabindex]:not([tabindex="0"]):not([tabindex="-1"])';
                return ids.length === new Set(ids).size && !document.querySelector(odd);
            }"""
        ), path
    page.goto("/")
    order = []
    for _ in range(40):
        page.keyboard.press("Tab")
        order.append(
            page.evaluate(
                """() => {
                    const one = document.activeElement;
                    return (one.innerText || one.name || '').trim().split('\\n')[0];
                }"""
            )
        )
        ring = page.evaluate(
            """() => {
                const style = getComputedStyle(document.activeElement);
                return style.outlineStyle + style.outlineWidth;
            }"""
        )
        assert ring == "solid3px" or page.evaluate("document.activeElement === document.body"), (
            order
        )
    assert order[0] == "Skip to content"
    places = [
        order.index(one)
        for one in ("Review", "Mend answer 1", "Mend answer 2", "Comment", "Answer 1", "Undo")
    ]
    assert places == sorted(places), order


CONTRAST = """() => {
    const light = ([r, g, b]) => {
        const [x, y, z] = [r, g, b].map(v => v / 255).map(
            v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
        return 0.2126 * x + 0.7152 * y + 0.0722 * z;
    };
    const rgba = text => {
        const n = text.match(/[\\d.]+/g).map(Number);
        return [n.slice(0, 3), n[3] ?? 1];
    };
    const behind = one => {
        for (; one; one = one.parentElement) {
            const [colour, alpha] = rgba(getComputedStyle(one).backgroundColor);
            if (alpha === 1) return colour;
        }
        return [255, 255, 255];
    };
    const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT), poor = [];
    for (let node; node = walker.nextNode();) {
        const one = node.parentElement;
        if (!node.textContent.trim() || one.closest('template, .sr')) continue;
        if (!one.checkVisibility({checkOpacity: true})) continue;
        const ink = light(rgba(getComputedStyle(one).color)[0]);
        const [a, b] = [ink, light(behind(one))].sort((x, y) => y - x);
        const ratio = (a + 0.05) / (b + 0.05);
        if (ratio < 4.5) poor.push([node.textContent.trim().slice(0, 40), ratio.toFixed(2)]);
    }
    return poor;
}"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_stands_out_from_its_ground(
    open_review: Any, store: Store, enter: Enter, scheme: str
) -> None:
    review = open_review(overlap=2)
    fill(store, review)
    page = enter(review, "ada", color_scheme=scheme)
    ground = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (int(re.findall(r"\d+", ground)[0]) < 60) == (scheme == "dark")
    page.keyboard.press("d")
    assert page.evaluate(CONTRAST) == []
    page.keyboard.press("?")
    assert page.evaluate(CONTRAST) == []
    for path in PAGES[1:]:
        page.goto(path)
        assert page.evaluate(CONTRAST) == [], path


def test_a_long_conversation_opens_at_the_question(
    open_review: Any, store: Store, enter: Enter
) -> None:
    for n in range(2):
        turns = [
            Message(role="assistant" if at % 2 else "user", content=f"Turn {at}. " + "More. " * 99)
            for at in range(20)
        ]
        prompt = (*turns, Message(role="user", content=f"So what now, {n}?"))
        store.add(make_task(n).model_copy(update={"prompt": prompt, "id": f"task_{n}"}))
    page = enter(open_review(), "ann", viewport={"width": 390, "height": 844})
    shown = r"""() => {
        const box = document.querySelector('#work .turns').getBoundingClientRect();
        const last = document.querySelector('#work .turn.last').getBoundingClientRect();
        return last.top >= box.top - 1 && last.bottom <= box.bottom + 1;
    }"""
    assert page.evaluate(shown)
    page.get_by_role("button", name="Tie").click()
    page.wait_for_function("() => document.querySelector('#notice.shown')")
    assert "now, 1" in page.locator(".turn.last").text_content()
    assert page.evaluate(shown)


def test_every_page_is_in_reach_on_a_phone(open_review: Any, store: Store, enter: Enter) -> None:
    page = enter(open_review(), "ada", viewport={"width": 360, "height": 740})
    for link in page.get_by_role("navigation").get_by_role("link").all():
        place = link.bounding_box()
        assert place and place["x"] >= 0 and place["x"] + place["width"] <= 360, link.text_content()
        assert place["height"] >= 44


def test_it_works_without_scripts(open_review: Any, store: Store, enter: Enter) -> None:
    store.add_all([make_task(1), make_task(2)])
    page = enter(open_review(), "ann", java_script_enabled=False)
    first = task_on(page)
    page.get_by_label("Wrong").first.check()
    page.get_by_role("button", name="Both bad").click()
    assert newest(store, first) == "both bad"
    assert task_on(page) != first
    page.get_by_role("button", name="Undo").click()
    assert task_on(page) == first and newest(store, first) == "withdrawn"
    page.locator(".edit summary").first.click()
    page.locator("textarea[name=edit_1]").fill("Mended.")
    page.get_by_role("button", name="Tie").click()
    assert [one.candidates[0].text for one in store.all(Label, source=EDIT)] == ["Mended."]


def test_enter_in_a_tick_does_not_vote_and_keys_can_be_turned_off(
    open_review: Any, store: Store, enter: Enter
) -> None:
    store.add_all([make_task(1), make_task(2)])
    page = enter(open_review(), "ann")
    page.locator(".tick input").first.focus()
    page.keyboard.press("Enter")
    page.keyboard.press("?")
    assert page.locator("#help").is_visible()
    page.keyboard.press("1")
    page.get_by_label("Keys are on").uncheck()
    page.get_by_role("button", name="Close").click()
    page.keyboard.press("1")
    page.keyboard.press("t")
    page.wait_for_timeout(100)
    assert store.count(Label) == 0
    page.get_by_role("button", name="Tie").click()
    saved(page)
    assert store.count(Label) == 1


def test_the_teams_figures_follow_by_themselves(
    open_review: Any, store: Store, enter: Enter
) -> None:
    store.add_all([make_task(n) for n in range(3)])
    review = open_review()
    page = enter(review, "lea")
    page.goto("/team")
    assert "0 of 3" in page.inner_text("#figures")
    review.enter("ann").answer("1")
    page.evaluate("htmx.trigger('#figures', 'refresh')")
    page.locator("#figures", has_text="1 of 3").wait_for()
