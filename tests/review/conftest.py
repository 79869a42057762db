"""A real review page on a real socket, people who may log in, and tasks to answer."""

import os
import shutil
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest
from review_parts import PASSWORD, Client, Review

from trueup.label.config import LabelConfig
from trueup.review import people as people_module
from trueup.review.config import ReviewConfig
from trueup.review.people import People
from trueup.review.serve import listen, make_server
from trueup.store import Store


@pytest.fixture(autouse=True, scope="session")
def cheap_passwords() -> Iterator[None]:
    """A tenth of a second for each login adds up; `test_people` measures the real cost."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(people_module.COST, "n", 2)
        patch.setitem(people_module.COST, "p", 1)
        yield


@contextmanager
def serving(store: Store, config: ReviewConfig, overlap: int = 1) -> Iterator[str]:
    """The page on a free port, in a thread; its address."""
    listening = listen(store, config)
    server = make_server(store, config, LabelConfig(overlap=overlap))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
    thread.start()
    deadline = time.monotonic() + 30
    while not server.started and thread.is_alive() and time.monotonic() < deadline:
        time.sleep(0.005)
    try:
        yield "http://{}:{}".format(*listening.getsockname())
    finally:
        server.should_exit = True
        thread.join(30)
        assert not thread.is_alive()


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    opened = Store(tmp_path / "store")
    yield opened
    opened.close()


@pytest.fixture
def open_review(store: Store) -> Iterator[Callable[..., Review]]:
    """Opens the page with settings: `open_review(overlap=2)`. ann, bob, lea and ada may log in."""
    with ExitStack() as stack:

        def opened(overlap: int = 1, **settings: object) -> Review:
            config = ReviewConfig(**{"port": 0, "gold_rate": 0.0, **settings})  # type: ignore[arg-type]
            url = stack.enter_context(serving(store, config, overlap))
            people = People(store)
            if not people.all():
                for name, role in (
                    ("ann", "annotator"),
                    ("bob", "annotator"),
                    ("lea", "lead"),
                    ("ada", "admin"),
                ):
                    people.add(name, PASSWORD, role)  # type: ignore[arg-type]

            def enter(name: str) -> Client:
                client = Client(url, name)
                stack.callback(client.http.close)
                return client

            return Review(url, store, people, enter)

        yield opened


# --- a browser ------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def chromium() -> str:
    """Debian's Chromium: found, or installed where we are root."""
    found = shutil.which("chromium") or shutil.which("chromium-browser")
    if found is None and os.geteuid() == 0 and shutil.which("apt-get"):
        wait = ("-o", "DPkg::Lock::Timeout=400")  # another worker may be at it
        for command in (
            ["apt-get", *wait, "update"],
            ["apt-get", *wait, "install", "--yes", "--no-install-recommends", "chromium"],
        ):
            subprocess.run(
                command,
                env={**os.environ, "DEBIAN_FRONTEND": "noninteractive"},
                capture_output=True,
                timeout=500,
            )
        found = shutil.which("chromium")
    if found is None:
        pytest.skip("there is no chromium here, and no root to install Debian's")
    return found


@pytest.fixture(scope="session")
def browser(chromium: str) -> Iterator[Any]:
    """One browser for all tests; each takes a context of its own."""
    api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    with api.sync_playwright() as playwright:
        running = playwright.chromium.launch(
            executable_path=chromium, args=["--no-sandbox", "--disable-dev-shm-usage"]
        )
        yield running
        running.close()


@pytest.fixture
def enter(browser: Any) -> Iterator[Callable[..., Any]]:
    """Opens a page as a person who has logged in by the form. A dialog, an error of a script, a
    breach of the content policy or a request to another host fails the test."""
    contexts, troubles = [], []

    def entered(review: Review, name: str, **context: Any) -> Any:
        made = browser.new_context(base_url=review.url, **context)
        contexts.append(made)
        made.set_default_timeout(20_000)
        page = made.new_page()
        page.on("dialog", lambda one: (troubles.append(f"dialog: {one.message}"), one.dismiss()))
        page.on("pageerror", lambda one: troubles.append(f"script: {one}"))
        page.on(
            "console",
            lambda one: (
                troubles.append(f"console: {one.text}")
                if "Content Security" in one.text or "Refused" in one.text
                else None
            ),
        )
        page.on(
            "request",
            lambda one: (
                None if one.url.startswith(review.url) else troubles.append(f"elsewhere: {one.url}")
            ),
        )
        page.goto("/login")
        page.get_by_label("Name").fill(name)
        page.get_by_label("Password").fill(PASSWORD)
        page.get_by_role("button", name="Log in").click()
        page.wait_for_url("**/")
        return page

    yield entered
    for one in contexts:
        one.close()
    assert troubles == []
