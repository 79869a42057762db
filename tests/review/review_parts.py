"""Tasks to answer, and a person who answers them over HTTP."""

import re
from collections.abc import Callable
from typing import NamedTuple

import httpx

from trueup.records import Completion, Label, Message, ReviewTask
from trueup.review.people import People, Role
from trueup.store import Store

PASSWORD = "correct horse battery"


def make_task(number: int, first: str = "", second: str = "", **fields: object) -> ReviewTask:
    """A task whose two answers tell their place in the record by a word."""
    return ReviewTask(
        prompt=(
            Message(role="system", content="You are a support assistant."),
            Message(role="user", content=f"How long does charge {number} take?"),
        ),
        candidates=(
            Completion(
                text=first or f"It takes {number} hours, as the first says.",
                weights="weights_secret1",
            ),
            Completion(
                text=second or f"It takes {number} days, as the second says.",
                weights="weights_secret2",
            ),
        ),
        source=str(fields.pop("source", "loop")),
        **fields,  # type: ignore[arg-type]
    )


class Client:
    """A person with a browser, as far as HTTP goes."""

    def __init__(self, url: str, name: str = "") -> None:
        self.name = name
        self.http = httpx.Client(base_url=url, timeout=30)
        self.csrf = ""
        if name:
            assert self.log_in().status_code == 303
            self.csrf = self.token("/mine")

    def log_in(self, password: str = PASSWORD) -> httpx.Response:
        return self.http.post(
            "/login", data={"name": self.name, "password": password, "csrf": self.token("/login")}
        )

    def token(self, path: str = "/index.json") -> str:
        return self.http.get(path, headers={"Accept": "application/json"}).json()["csrf"]

    def json(self, path: str) -> dict:
        answer = self.http.get(path, headers={"Accept": "application/json"})
        assert answer.status_code == 200, answer.text
        return answer.json()

    def post(self, path: str, **data: object) -> httpx.Response:
        return self.http.post(path, data={"csrf": self.csrf or self.token("/mine"), **data})

    def card(self) -> dict | None:
        return self.json("/index.json")["card"]

    def answer(self, choice: str, **data: object) -> str:
        """Answers the task that is next; its id."""
        card = self.card()
        assert card
        assert self.post(f"/task/{card['task']}", choice=choice, **data).status_code == 303
        return card["task"]


class Review(NamedTuple):
    """A running page and what stands behind it."""

    url: str
    store: Store
    people: People
    enter: Callable[[str], Client]

    def votes(self, **equals: object) -> list[Label]:
        return [one for one in self.store.each(Label, **equals) if one.task_id]

    def let_in(self, name: str, role: Role = "annotator") -> None:
        self.people.add(name, PASSWORD, role)


def hidden_order(html: str) -> list[str]:
    """The records' places of the answers, in the order of the page."""
    return re.findall(r"as the (first|second) says", html)[:2]
