"""Who gets in, what a form must carry, what each role may see, and what a page's headers say."""

import json
import re
import socket
import threading
from collections import Counter
from pathlib import Path
from typing import Any

import httpx
import pytest
from click.testing import CliRunner
from review_parts import PASSWORD, Client, make_task

from trueup.cli.main import cli
from trueup.errors import ConfigError, DataError
from trueup.records import Completion, Label, Message, ReviewTask
from trueup.review import people as people_module
from trueup.review.config import ReviewConfig
from trueup.review.people import MOST_FAILURES, People, TooManyAttempts
from trueup.review.serve import listen
from trueup.review.words import MOST_WORDS, differing
from trueup.store import Store

PAGES = ("/", "/mine", "/password", "/team", "/second-look", "/people")
FOR = {"annotator": PAGES[:3], "lead": PAGES[:5], "admin": PAGES}


# --- logging in -----------------------------------------------------------------------------------


def test_pages_are_for_people_who_logged_in(open_review: Any, store: Store) -> None:
    store.add(make_task(1))
    review = open_review()
    with httpx.Client(base_url=review.url) as nobody:
        for path in PAGES:
            answer = nobody.get(path)
            assert (answer.status_code, answer.headers["location"]) == (303, "/login"), path
            assert (
                nobody.get(
                    path if path != "/" else "/index.json", headers={"Accept": "application/json"}
                ).status_code
                == 401
            )
        for path in ("/task/x", "/undo", "/logout", "/team/assign", "/people", "/second-look/x"):
            assert nobody.post(path, data={"choice": "1"}).headers["location"] == "/login", path
        assert nobody.get("/health").json() == {"status": "ok"}
        for path in ("/docs", "/openapi.json", "/static/../app.py", "/static/%2e%2e/app.py"):
            assert nobody.get(path).status_code == 404, path


def test_a_session_cookie_is_for_http_alone_and_kept_as_a_hash(
    open_review: Any, store: Store
) -> None:
    review = open_review(https=True)
    with httpx.Client(base_url=review.url) as http:
        token = http.get("/login.json").json()["csrf"]
        answer = http.post(
            "/login",
            data={"name": "ann", "password": PASSWORD, "csrf": token},
            headers={"Cookie": f"trueup_review_login={token}"},
        )
    cookie = next(c for c in answer.headers.get_list("set-cookie") if "trueup_review=" in c)
    assert "HttpOnly" in cookie and "SameSite=lax" in cookie and "Secure" in cookie
    secret = re.search(r"trueup_review=([\w-]+)", cookie)[1]  # type: ignore[index]
    assert len(secret) >= 43
    for file in store.folder.glob("store.sqlite*"):
        assert secret.encode() not in file.read_bytes()
        assert PASSWORD.encode() not in file.read_bytes()


def test_logging_out_ends_the_session_on_the_server(open_review: Any) -> None:
    ann = open_review().enter("ann")
    cookies = dict(ann.http.cookies)
    assert ann.post("/logout").status_code == 303
    with httpx.Client(base_url=ann.http.base_url, cookies=cookies) as thief:
        assert thief.get("/mine").headers["location"] == "/login"


def test_a_wrong_password_tells_nothing_and_too_many_are_stopped(open_review: Any) -> None:
    review = open_review()
    somebody = Client(review.url)
    said = set()
    for name in ("ann", "nobody-of-this-name"):
        somebody.name = name
        answer = somebody.log_in("wrong password")
        assert answer.status_code == 401
        said.add(re.search(r'role="alert">([^<]*)', answer.text)[1])  # type: ignore[index]
    assert len(said) == 1
    for _ in range(MOST_FAILURES):
        answer = somebody.log_in("wrong password")
    assert answer.status_code == 429 and answer.headers["retry-after"]
    somebody.name = "ann"
    assert somebody.log_in().status_code == 429, "from this address not even the right one"
    assert review.people.log_in("ann", PASSWORD), "from elsewhere it is"


def test_failures_are_counted_by_name_as_well(store: Store) -> None:
    people = People(store)
    people.add("ann", PASSWORD, "annotator")
    for n in range(MOST_FAILURES):
        assert people.log_in("ann", "wrong", address=f"10.0.0.{n}") is None
    with pytest.raises(TooManyAttempts):
        people.log_in("ann", PASSWORD, address="10.1.0.1")


def test_many_attempts_at_once_are_no_way_around(store: Store) -> None:
    people = People(store)
    people.add("ann", PASSWORD, "annotator")
    tried, gate = list[str](), threading.Barrier(30)

    def attempt(n: int) -> None:
        gate.wait()
        try:
            assert people.log_in("ann", f"wrong {n}", address=f"10.0.1.{n}") is None
            tried.append("tried")
        except TooManyAttempts:
            tried.append("stopped")

    threads = [threading.Thread(target=attempt, args=(n,)) for n in range(30)]
    for one in threads:
        one.start()
    for one in threads:
        one.join()
    assert Counter(tried) == {"tried": MOST_FAILURES, "stopped": 30 - MOST_FAILURES}


def test_right_passwords_are_no_failures(store: Store) -> None:
    people = People(store)
    people.add("ann", PASSWORD, "annotator")
    for _ in range(2 * MOST_FAILURES):
        assert people.log_in("ann", PASSWORD, address="10.0.0.1")


def test_a_wrong_present_password_is_counted_by_address(open_review: Any) -> None:
    review = open_review()
    ann = review.enter("ann")
    for _ in range(MOST_FAILURES):
        ann.post("/password", old="wrong", new="x" * 12)
    assert review.people.log_in("lea", PASSWORD), "from nowhere in particular"
    assert ann.post("/password", old=PASSWORD, new="x" * 12).status_code == 422


def test_a_password_costs_what_owasp_asks(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(people_module.COST, "n", 2**14)
    monkeypatch.setitem(people_module.COST, "p", 5)
    people = People(store)
    people.add("ann", PASSWORD, "annotator")
    assert people.log_in("ann", PASSWORD) and not people.log_in("ann", PASSWORD + "x")
    assert people.log_in("nobody", PASSWORD) is None


@pytest.mark.parametrize(
    "name", ["", "a b", "<b>", "x" * 65, "a/b", "feedback:edit", "a\n", "..", "bob.json"]
)
def test_odd_names_and_short_passwords_are_refused(store: Store, name: str) -> None:
    with pytest.raises(DataError, match="name"):
        People(store).add(name, PASSWORD, "annotator")
    with pytest.raises(DataError, match="password"):
        People(store).add("ann", "short", "annotator")


def test_a_changed_person_has_to_log_in_again(open_review: Any) -> None:
    review = open_review()
    ann, ada = review.enter("ann"), review.enter("ada")
    assert ada.post("/people/ann", role="lead").status_code == 303
    assert ann.http.get("/team").headers["location"] == "/login"
    assert review.enter("ann").http.get("/team").status_code == 200
    ada.post("/people/ann", active="no")
    ann.name = "ann"
    assert ann.log_in().status_code == 401
    ada.post("/people/ann", active="yes", password="another long password")
    assert ann.log_in().status_code == 401
    assert ann.log_in("another long password").status_code == 303


def test_somebody_can_always_let_people_in(open_review: Any) -> None:
    ada = open_review().enter("ada")
    for change in ({"role": "lead"}, {"active": "no"}):
        answer = ada.post("/people/ada", **change)
        assert answer.status_code == 422 and "Nobody could let people in" in answer.text
    assert ada.http.get("/people").status_code == 200


def test_people_change_their_own_password(open_review: Any) -> None:
    ann = open_review().enter("ann")
    assert ann.post("/password", old="wrong", new="x" * 12).status_code == 422
    assert ann.post("/password", old=PASSWORD, new="short").status_code == 422
    assert ann.post("/password", old=PASSWORD, new="a new long password").status_code == 303
    assert ann.http.get("/mine").headers["location"] == "/login"
    assert ann.log_in("a new long password").status_code == 303


# --- roles and forms ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "role"), [("ann", "annotator"), ("lea", "lead"), ("ada", "admin")]
)
def test_each_role_sees_its_pages(open_review: Any, name: str, role: str) -> None:
    client = open_review().enter(name)
    for path in PAGES:
        wanted = 200 if path in FOR[role] else 403
        assert client.http.get(path).status_code == wanted, path
    posts = {
        "/team/assign": "lead",
        "/second-look/task_x": "lead",
        "/people": "admin",
        "/people/ann": "admin",
    }
    order = ("annotator", "lead", "admin")
    for path, least in posts.items():
        refused = client.post(path, choice="1").status_code == 403
        assert refused == (order.index(role) < order.index(least)), path


def test_a_form_without_its_token_is_refused(open_review: Any, store: Store) -> None:
    store.add_all([make_task(1), make_task(2)])
    review = open_review()
    ann, ada = review.enter("ann"), review.enter("ada")
    task = ann.card()["task"]
    for token in ("", "x", ada.csrf):
        for path in (f"/task/{task}", "/undo", "/logout", "/password"):
            assert ann.http.post(path, data={"choice": "1", "csrf": token}).status_code == 403, path
        for path in ("/people", "/people/ann", "/team/assign"):
            if token != ada.csrf:
                assert ada.http.post(path, data={"name": "x", "csrf": token}).status_code == 403
    assert store.count(Label) == 0
    elsewhere = {"Origin": "https://evil.example"}
    form = {"choice": "1", "csrf": ann.csrf}
    assert ann.http.post(f"/task/{task}", data=form, headers=elsewhere).status_code == 403
    assert (
        ann.http.post(
            f"/task/{task}", data={"choice": "1"}, headers={"X-CSRF-Token": ann.csrf}
        ).status_code
        == 303
    )
    with httpx.Client(base_url=review.url) as stranger:
        answer = stranger.post("/login", data={"name": "ann", "password": PASSWORD, "csrf": "x"})
        assert answer.status_code == 403 and "trueup_review=" not in str(answer.headers)


def test_every_page_forbids_what_it_does_not_need(open_review: Any, store: Store) -> None:
    store.add(make_task(1))
    ada = open_review().enter("ada")
    for path in (*PAGES, "/login", "/nothing", "/static/review.js", "/health"):
        headers = ada.http.get(path).headers
        policy = headers["content-security-policy"]
        assert "default-src 'none'" in policy and "unsafe" not in policy
        assert "frame-ancestors 'none'" in policy and "form-action 'self'" in policy
        assert headers["x-frame-options"] == "DENY"
        assert headers["x-content-type-options"] == "nosniff"
        assert "server" not in headers
    for path in PAGES:
        page = ada.http.get(path).text
        assert not re.search(r"<script(?![^>]*\bsrc=)|\son\w+=|style=|javascript:", page), path


def test_hostile_words_are_escaped_in_every_page(open_review: Any, store: Store) -> None:
    bad = "</script></textarea><script>x</script><img src=x onerror=y>\u202e&amp;'\""
    for n in range(2):
        store.add(make_task(n, first=bad + "1", second=bad + "2"))
    review = open_review(overlap=2, guidelines=bad, rubric=(bad[:40],))
    ada = review.enter("ada")
    pages = [ada.http.get("/").text]
    ada.answer("1", comment=bad, edit_1=bad + "mended", reasons_1=bad[:40])
    pages += [ada.http.get(path).text for path in (*PAGES, f"/{bad}", "/login")]
    pages.append(ada.post("/people", name=bad, password="y" * 12, role=bad).text)
    for page in pages:
        assert "<script>x" not in page and "<img" not in page
        assert "\u202e" not in re.sub(r"<textarea.*?</textarea>", "", page, flags=re.S)


def test_bodies_that_are_too_large_or_no_form_at_all_are_refused(
    open_review: Any, store: Store
) -> None:
    store.add(make_task(1))
    ann = open_review().enter("ann")
    task = ann.card()["task"]
    assert ann.post(f"/task/{task}", choice="1", comment="x" * 3_000_000).status_code == 413
    assert ann.post(f"/task/{task}", choice="1", comment="x" * 20_001).status_code == 422

    def endless() -> Any:
        for _ in range(400):
            yield b"x" * 10_000

    answer = ann.http.post(
        f"/task/{task}",
        content=endless(),
        headers={"Content-Type": "application/x-www-form-urlencoded"},
    )
    assert answer.status_code in (400, 413)
    for body in (b"\xff\xfe", b"{}", b"choice=%ff&csrf=" + ann.csrf.encode()):
        answer = ann.http.post(
            f"/task/{task}",
            content=body,
            headers={"Content-Type": "application/x-www-form-urlencoded"},
        )
        assert answer.status_code in (403, 422), body
    assert store.count(Label) == 0


def test_a_form_in_an_odd_encoding_is_an_answer_or_none_and_no_fault(
    open_review: Any, store: Store
) -> None:
    store.add(make_task(1))
    ann = open_review().enter("ann")
    path = f"/task/{ann.card()['task']}"

    def send(**fields: str) -> int:
        parts = "".join(
            f'--x\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n{value}\r\n'
            for name, value in fields.items()
        )
        kind = "multipart/form-data; boundary=x; charset=unicode_escape"
        body = (parts + "--x--\r\n").encode()
        return ann.http.post(path, content=body, headers={"Content-Type": kind}).status_code

    assert send(csrf="\\ud800", choice="tie") == 403
    assert send(csrf=ann.csrf, choice="tie", comment="half \\ud83d") == 422
    assert send(csrf=ann.csrf, choice="tie", edit_1="half \\ud83d") == 303
    assert "half ?" in [one.candidates[0].text for one in store.each(Label)]


@pytest.mark.parametrize("text", ["a \0 b", "a \r b \r\n c\n", "\n\nb", "\x0b\x0c\x85 b"])
def test_what_a_browser_makes_of_an_odd_answer_is_no_edit(
    open_review: Any, store: Store, text: str
) -> None:
    store.add(make_task(1, first=text))
    ann = open_review().enter("ann")
    card = ann.card()
    assert card
    sent = {
        f"edit_{one['number']}": re.sub("\r\n?|\n", "\r\n", one["original"].replace("\0", "\ufffd"))
        for one in card["answers"]
    }
    ann.answer("tie", **sent)
    assert [one.task_id for one in store.each(Label)] == [card["task"]]


def test_the_longest_answers_can_be_voted_on(open_review: Any, store: Store) -> None:
    """Every form carries both answers, and a form has its limits."""
    longest = "\U0001f642" * 100_000
    ideographs = "\u5145" * 100_000
    store.add(make_task(1, first=longest, second=ideographs))
    store.add(make_task(2, first=ideographs, second=ideographs + "x"))
    ann = open_review().enter("ann")
    for _ in range(2):
        card = ann.card()
        assert card
        boxes = {
            f"edit_{one['number']}": one["original"] for one in card["answers"] if one["may_edit"]
        }
        ann.answer("tie", comment="\u5145" * 10_000, **boxes)
    lines = "\r\n".join(["x"] * 5_000)  # 9,999 characters in the box
    task = ann.json("/mine.json")["deeds"][0]["task"]
    assert ann.post(f"/task/{task}", choice="tie", comment=lines).status_code == 303
    assert store.count(Label) == 3


def test_of_an_endless_conversation_the_end_is_shown(open_review: Any, store: Store) -> None:
    turns = [Message(role="user", content=f"turn {n} " + "\u5145" * 90_000) for n in range(100)]
    task = make_task(1)
    store.add(ReviewTask(prompt=(*turns, *task.prompt), candidates=task.candidates))
    ann = open_review().enter("ann")
    card = ann.card()
    assert card and card["prompt"][-1]["text"] == task.prompt[-1].content
    assert card["turns_left_out"] + len(card["prompt"]) == 102
    assert len(card["prompt"]) == 6
    page = ann.http.get("/").text
    assert len(page) < 1_000_000 and "96 earlier turns are not shown" in page


def test_no_redirect_goes_where_the_host_header_says(open_review: Any) -> None:
    lea = open_review().enter("lea")
    answer = lea.http.get("/team/", headers={"Host": "evil.example"})
    assert answer.status_code == 404 and "location" not in answer.headers


def test_every_page_has_a_twin_in_json(open_review: Any, store: Store) -> None:
    store.add_all([make_task(n) for n in range(3)])
    ada = open_review(overlap=2).enter("ada")
    task = ada.answer("1")
    for path in (*PAGES[1:], f"/task/{task}", f"/second-look/{task}", "/index"):
        twin = ada.http.get(f"{path}.json")
        assert twin.status_code == 200 and twin.headers["content-type"] == "application/json", path
        asked = ada.http.get(
            path if path != "/index" else "/", headers={"Accept": "application/json"}
        )
        assert asked.json() == twin.json() and isinstance(twin.json(), dict)
    html = ada.http.get("/mine", headers={"Accept": "text/html,application/json;q=0.9"})
    assert html.headers["content-type"].startswith("text/html")
    answer = ada.http.post(f"/task/{task}.json", data={"choice": "2", "csrf": ada.csrf})
    assert answer.json() == {"task": task, "choice": "2", "next": "/"}


def test_long_and_odd_texts_are_shown_as_they_are(open_review: Any, store: Store) -> None:
    long = "wörd 🙂 " * 40_000
    prompt = make_task(1).prompt
    store.add(ReviewTask(prompt=prompt, candidates=(Completion(text=long), Completion(text=""))))
    ann = open_review().enter("ann")
    page = ann.http.get("/").text
    assert "more characters are not shown" in page and "The answer is empty" in page
    assert len(page) < 2_000_000
    ann.answer("1")
    assert store.all(Label)[0].candidates[0].text in (long, "")


# --- words that differ ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("first", "second", "only_first", "only_second"),
    [
        ("It takes 4 hours.", "It takes 90 minutes.", ["4 hours"], ["90 minutes"]),
        ("same", "same", [], []),
        ("a  b\nc", "a b c", [], []),
        ("", "new words", [], ["new words"]),
        ("Hold it, then wait.", "Hold it, please, then wait.", [], [", please"]),
    ],
)
def test_words_that_one_text_lacks_are_marked(
    first: str, second: str, only_first: list[str], only_second: list[str]
) -> None:
    parts = differing(first, second)
    assert parts
    for text, found, wanted in (first, parts[0], only_first), (second, parts[1], only_second):
        assert "".join(one.text for one in found) == text
        assert [one.text.strip() for one in found if one.is_only_here] == wanted


def test_texts_too_long_to_compare_are_not_compared() -> None:
    assert differing("a " * MOST_WORDS, "b") is None
    hostile = "a b " * (MOST_WORDS // 5)
    assert differing(hostile, "b a " * (MOST_WORDS // 5 - 1)) is not None


# --- the command ----------------------------------------------------------------------------------


def test_people_are_let_in_and_changed_from_the_terminal(tmp_path: Path) -> None:
    (tmp_path / "trueup.toml").write_text("")

    def run(*words: str, **options: Any) -> Any:
        environment = {"TRUEUP_REVIEW_PASSWORD": PASSWORD}
        return CliRunner().invoke(
            cli, ["-p", str(tmp_path), "review", "user", *words], env=environment, **options
        )

    assert json.loads(run("add", "ada", "--role", "admin", "--json").output)["role"] == "admin"
    assert run("add", "ann").exit_code == 0
    assert isinstance(run("add", "ann").exception, DataError), "the name is taken"
    assert run("change", "ann", "--role", "lead", "--locked").exit_code == 0
    listed = json.loads(run("list", "--json").output)
    assert [(one["name"], one["role"], one["is_active"]) for one in listed] == [
        ("ada", "admin", True),
        ("ann", "lead", False),
    ]
    assert PASSWORD not in run("list").output and "locked out" in run("list").output
    assert isinstance(run("change", "ann").exception, ConfigError)
    assert isinstance(run("change", "bob", "--locked").exception, DataError)


@pytest.mark.parametrize("word", ["withdrawn", "both bad"])
def test_a_tick_may_not_mean_what_a_vote_says(word: str) -> None:
    with pytest.raises(ValueError, match="means something else"):
        ReviewConfig(rubric=("Wrong", word))


def test_beyond_loopback_only_once_somebody_can_log_in(store: Store) -> None:
    open_to_all = ReviewConfig(host="0.0.0.0", port=0)
    with pytest.raises(ConfigError, match="before anybody can log in"):
        listen(store, open_to_all)
    People(store).add("ada", PASSWORD, "admin")
    listen(store, open_to_all).close()
    assert ReviewConfig().host == "127.0.0.1"


def test_a_taken_port_says_so(store: Store) -> None:
    taken = socket.create_server(("127.0.0.1", 0))
    with taken, pytest.raises(ConfigError, match="cannot listen"):
        listen(store, ReviewConfig(port=taken.getsockname()[1]))
