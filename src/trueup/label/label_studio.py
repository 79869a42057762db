"""Label Studio as a place where people label: tasks go there, their annotations come back as votes.

    push       waiting tasks  ──►  project, once each      pull, webhook   annotation  ──►  vote

Both ways may be repeated: a task is known by the `task_id` in its data, a vote by its annotation's
id, and what is there already is left alone. An edited annotation is a new vote that replaces the
old, a deleted one withdraws it. People see the two answers in an order drawn for each task, which
is kept in the task's data; gold questions look like all others.
"""

import http.client
import json
import os
import time
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple
from urllib.parse import urlencode

from trueup.errors import ConfigError, TrueupError, UpstreamError
from trueup.label.config import LabelConfig, LabelStudioConfig
from trueup.label.tasks import tasks_of
from trueup.label.votes import Choice, VoteBook, choice_of, is_swapped, mirrored
from trueup.label.weigh import weigh
from trueup.privacy import Scrub, trail
from trueup.records import Label, ReviewTask
from trueup.store import Store
from trueup.store.tables import ERASED

__all__ = [
    "TEMPLATE",
    "LabelStudio",
    "Pulled",
    "Pushed",
    "connect",
    "erase",
    "pull",
    "push",
    "take",
    "withdraw",
]

TEMPLATE = """<View>
  <Style>.two {display: flex; gap: 1em} .two > * {flex: 1} .htx-text {white-space: pre-wrap}</Style>
  <Header value="Which answer is better?"/>
  <Text name="prompt" value="$prompt" valueType="text"/>
  <Pairwise name="pair" toName="answer_1,answer_2"/>
  <View className="two">
    <Text name="answer_1" value="$answer_1" valueType="text"/>
    <Text name="answer_2" value="$answer_2" valueType="text"/>
  </View>
  <Choices name="vote" toName="prompt" choice="single" showInline="true">
    <Choice value="1" hotkey="1"/>
    <Choice value="2" hotkey="2"/>
    <Choice value="tie" hotkey="3"/>
    <Choice value="both bad" hotkey="4"/>
  </Choices>
  <TextArea name="comment" toName="prompt" rows="2" maxSubmissions="1" placeholder="Comment"/>
</View>
"""
"""`Pairwise` knows no tie, so the vote is in the choices; a click on an answer alone counts."""

VIEWER = "label-studio"
SAID: dict[str, Choice] = {"1": "first", "2": "second", "tie": "tie", "both bad": "both bad"}
SIDES: dict[str, Choice] = {"left": "first", "right": "second"}
ACTIONS = ("ANNOTATION_CREATED", "ANNOTATION_UPDATED", "ANNOTATIONS_DELETED")
SECRET_HEADER = "X-Trueup-Secret"
UNKNOWN_USER = "unknown user"
BUSY = {408, 425, 429, 500, 502, 503, 504}
MAX_WAIT_S = 30.0


class Pushed(NamedTuple):
    """What a push did."""

    project: int
    new: int
    known: int
    """Tasks that were there already."""


class Pulled(NamedTuple):
    """What became of the annotations: `seen` is `new` + `known` + everything skipped."""

    seen: int
    new: int
    known: int
    withdrawn: int
    """Votes whose annotation is there no more."""
    skipped: dict[str, int]


def connect(config: LabelConfig) -> "LabelStudio":
    """The server that the settings name."""
    return LabelStudio(config.label_studio)


# --- both ways ------------------------------------------------------------------------------------


def push(store: Store, config: LabelConfig, server: "LabelStudio") -> Pushed:
    """Put every task that wait for votes, and gold questions, into the project.

    Reads:   the same tasks as `tasks export`; the ids of those that are there.
    Writes:  to the server, `batch_size` tasks a request, and a line of the audit trail for each.
    Again:   sends what is not there yet. A request that broke off half-way is looked at first.
    """
    project = server.project()
    asked = weigh(store, config).open_to("")
    there = set(server.task_ids(project))
    new = [one for one in asked if one.id not in there]
    size = server.config.batch_size
    for at in range(0, len(new), size):
        server.add_tasks(project, [_shown(one) for one in new[at : at + size]])
        told = {"what": "tasks", "records": len(new[at : at + size]), "to": server.config.url}
        trail.note(store, "export", told)
    return Pushed(project, len(new), len(asked) - len(new))


def pull(store: Store, server: "LabelStudio", *, scrub: Scrub | None = None) -> Pulled:
    """Turn every annotation of the project into a vote.

    Writes:  one vote an annotation that is new or was edited, and one that withdraws where an
             annotation was deleted, says nothing any more, or is another annotator's by the
             settings; all in one transaction. Where the task is gone from there, votes stay.
    Skips:   annotations that were skipped there, name no answer or two, belong to tasks that are
             not in the store, or to a user who cannot be named; counted by reason.
    Again:   writes nothing.

    Raises:
        ConfigError: nothing was pushed there.
    """
    project = server.project(make=False)
    book, tasks = VoteBook(store, scrub=scrub), {one.id: one for one in tasks_of(store)}
    there = list(server.answered(project))
    seen = {one.get("task_id") for one, _ in there if isinstance(one, dict)}
    found = [(data, one) for data, annotations in there for one in annotations]
    found.sort(key=lambda one: str(one[1].get("updated_at")))
    made, skipped, whose = list[Label](), Counter[str](), dict[str, str]()
    for data, annotation in found:
        source = _source(project, annotation)
        try:
            who, vote = _vote(book, tasks, data, annotation, project, server)
        except _Bad as bad:
            skipped[str(bad)] += 1
            if str(bad) == UNKNOWN_USER:
                whose[source] = ""
        else:
            whose[source] = who
            made += [vote] if vote else []
    new = len(made)
    gone = [
        one
        for one in book.from_source(f"label-studio:{project}/")
        # a task that is not there may have been moved between two pages, or cleared away
        if one.task_id in seen and whose.get(one.source) not in ("", one.annotator)
    ]
    made += _withdrawn(book, tasks, gone)
    store.add_all(made)
    known = len(found) - new - skipped.total()
    return Pulled(len(found), new, known, len(made) - new, dict(skipped.most_common()))


def take(
    store: Store,
    server: "LabelStudio",
    project: int,
    payload: dict[str, Any],
    *,
    scrub: Scrub | None = None,
) -> str:
    """Write what a webhook brought: an annotation that was made, edited or deleted.

    Returns:
        What became of it, in a word or a few: `new`, `known`, `withdrawn`, or why nothing.
    """
    whose = payload.get("project")
    if not isinstance(whose, dict) or whose.get("id") != project:
        return "another project"
    if payload.get("action") == "ANNOTATIONS_DELETED":
        return withdraw(store, project, payload.get("annotations"), scrub=scrub)
    annotation, task = payload.get("annotation"), payload.get("task")
    if not isinstance(annotation, dict) or not isinstance(task, dict):
        return "no annotation"
    data = task.get("data")
    task_id = str(data.get("task_id")) if isinstance(data, dict) else ""
    tasks = {one.id: one for one in store.get_all(ReviewTask, [task_id])}
    try:
        book = VoteBook(store, task_id if tasks else "none", scrub=scrub)
        _, vote = _vote(book, tasks, data, annotation, project, server)
    except _Bad as bad:
        return str(bad)
    if vote is None:
        return "known"
    store.add(vote)
    return "new"


def withdraw(store: Store, project: int, annotations: Any, *, scrub: Scrub | None = None) -> str:
    """Withdraw the votes of annotations that were deleted."""
    listed = annotations if isinstance(annotations, list) else []
    gone = {_source(project, one) for one in listed if isinstance(one, dict)}
    book = VoteBook(store, scrub=scrub)
    votes = [one for one in book.from_source(f"label-studio:{project}/") if one.source in gone]
    made = _withdrawn(book, {one.id: one for one in tasks_of(store)}, votes)
    store.add_all(made)
    return "withdrawn" if made else "known"


def erase(store: Store, server: "LabelStudio") -> int:
    """Delete tasks whose records were erased, annotations and all; returns how many.

    Reads:   the ids of the project's tasks, and which of them were erased here.
    Writes:  to the server, and a line of the audit trail where there was something to delete.
    Again:   deletes what is left.
    """
    project = server.found()
    there = dict(server.tasks(project)) if project is not None else {}
    with store.reading() as connection:
        gone = store.known(connection, ERASED, list(there.values()))
    deleted = [server.delete_task(number) for number, name in there.items() if name in gone]
    if deleted:
        trail.note(store, "erase", {"tasks_there": len(deleted), "at": server.config.url})
    return len(deleted)


# --- what is shown, and what was said -------------------------------------------------------------


class _Bad(Exception):
    """Why an annotation gives no vote."""


def _shown(task: ReviewTask) -> dict[str, Any]:
    answers, order = [one.text for one in task.candidates], "12"
    if is_swapped(task.id, VIEWER):
        answers, order = answers[::-1], "21"
    prompt = "\n\n".join(f"{one.role}: {one.content}" for one in task.prompt)
    if len(task.prompt) == 1 and task.prompt[0].role == "user":
        prompt = task.prompt[0].content
    return {
        "task_id": task.id,
        "prompt": prompt,
        "answer_1": answers[0],
        "answer_2": answers[1],
        "order": order,
    }


def _vote(
    book: VoteBook,
    tasks: dict[str, ReviewTask],
    data: Any,
    annotation: dict[str, Any],
    project: int,
    server: "LabelStudio",
) -> tuple[str, Label | None]:
    """Whose an annotation is, and the vote to write; None where it is known."""
    task = tasks.get(str(data.get("task_id"))) if isinstance(data, dict) else None
    if task is None:
        raise _Bad("unknown task")
    if annotation.get("was_cancelled"):
        raise _Bad("skipped by the annotator")
    choice, comment = _said(annotation.get("result"))
    if data.get("order") == "21":
        choice = mirrored(choice)
    who = server.annotator(annotation.get("completed_by"))
    if not who:
        raise _Bad(UNKNOWN_USER)
    vote = book.cast(task, choice, who, source=_source(project, annotation), comment=comment)
    return who, vote


def _said(result: Any) -> tuple[Choice, str]:
    """What the regions of an annotation say, in the order that was shown."""
    votes, comments = set[Choice](), list[str]()
    chosen = set[Choice]()
    for region in result if isinstance(result, list) else ():
        value = region.get("value") if isinstance(region, dict) else None
        if not isinstance(value, dict):
            continue
        if region.get("from_name") == "vote":
            votes |= {SAID[str(one)] for one in _listed(value.get("choices")) if str(one) in SAID}
        elif region.get("from_name") == "pair" and str(value.get("selected")) in SIDES:
            chosen.add(SIDES[str(value["selected"])])
        elif region.get("from_name") == "comment":
            comments += [str(one) for one in _listed(value.get("text"))]
    votes = votes or chosen
    if not votes:
        raise _Bad("no vote")
    if len(votes) > 1 or (chosen and votes < {"first", "second"} and votes != chosen):
        raise _Bad("contradicts itself")
    return votes.pop(), "\n".join(comments)


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def _source(project: int, annotation: dict[str, Any]) -> str:
    return f"label-studio:{project}/{annotation.get('id')}"


def _withdrawn(book: VoteBook, tasks: dict[str, ReviewTask], votes: Iterable[Label]) -> list[Label]:
    """Withdrawals of votes that still count; one that its annotator has changed elsewhere since
    stays."""
    made = []
    for one in votes:
        newest = book.newest(one.task_id, one.annotator)
        if newest is None or newest.id != one.id or choice_of(one) == "withdrawn":
            continue
        if one.task_id not in tasks:
            continue
        gone = book.cast(tasks[one.task_id], "withdrawn", one.annotator, source=one.source)
        made += [gone] if gone else []
    return made


# --- the server -----------------------------------------------------------------------------------


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """A token must not follow a redirect to another host."""

    def redirect_request(self, *_: Any, **__: Any) -> None:
        return None


class LabelStudio:
    """A Label Studio server by its HTTP API.

    A personal access token is a refresh token: it is traded for access tokens, which last for five
    minutes. A legacy token is sent as it is.

    Raises (all methods):
        ConfigError: no token, or one that is refused.
        UpstreamError: the server is out of reach, busy for too long, or answers nonsense.
    """

    def __init__(self, config: LabelStudioConfig) -> None:
        self.config = config
        self._token = os.environ.get(config.api_key_env, "").strip()
        if not self._token:
            raise ConfigError(
                "Label Studio needs a token",
                got=f"no {config.api_key_env} in the environment",
                expected="a personal access token, or a legacy one",
                next=f"make one under Account & Settings there, and export {config.api_key_env}",
            )
        self._access = ""
        self._users: dict[int, str] = {}
        self._open = urllib.request.build_opener(_NoRedirect()).open

    def project(self, *, make: bool = True) -> int:
        """The id of the project with our title; it is made where there is none, if it may be."""
        title = self.config.project
        found = self._project(title)
        if found is None and not make:
            raise ConfigError(
                "There is no such project in Label Studio",
                got=f"{title} at {self.config.url}",
                expected="the project that tasks were pushed to",
                next="run 'trueup label-studio push', or mend label.label_studio.project",
            )
        if found is None:
            try:
                body = {"title": title, "label_config": TEMPLATE, "show_skip_button": True}
                return int(self._call("POST", "/api/projects/", body, again=False)["id"])
            except UpstreamError:
                found = self._project(title)  # an answer that was lost, perhaps
                if found is None:
                    raise
        config = str(found.get("label_config"))
        if '"vote"' not in config or "$answer_1" not in config or "$answer_2" not in config:
            raise ConfigError(
                "This Label Studio project is not one that trueup made",
                got=title,
                expected="choices named 'vote' and the answers $answer_1 and $answer_2",
                next="name another in label.label_studio.project",
            )
        return int(found["id"])

    def _project(self, title: str) -> dict[str, Any] | None:
        """The oldest project of exactly this title."""
        query = urlencode({"title": title, "page_size": 100})
        found = self._call("GET", f"/api/projects/?{query}").get("results", ())
        exact = [one for one in found if one.get("title") == title]
        return min(exact, key=lambda one: one["id"], default=None)

    def found(self) -> int | None:
        """The id of the project with our title, if there is one."""
        found = self._project(self.config.project)
        return None if found is None else int(found["id"])

    def task_ids(self, project: int) -> Iterator[str]:
        """Our ids of the tasks that are there."""
        yield from (name for _, name in self.tasks(project))

    def tasks(self, project: int) -> Iterator[tuple[int, str]]:
        """The tasks that are there: the server's number of each, and our id."""
        for task in self._tasks(project, "task_only"):
            data = task.get("data")
            if isinstance(data, dict) and "task_id" in data:
                yield int(task.get("id") or 0), str(data["task_id"])

    def delete_task(self, number: int) -> None:
        """Delete a task by the server's number, if it is still there."""
        try:
            self._call("DELETE", f"/api/tasks/{number}/")
        except UpstreamError as error:
            if not str(error.got).startswith("404"):
                raise

    def answered(self, project: int) -> Iterator[tuple[Any, list[dict[str, Any]]]]:
        """The data of every task, with its annotations."""
        for task in self._tasks(project, "all"):
            found = task.get("annotations") or ()
            yield task.get("data"), [one for one in found if isinstance(one, dict)]

    def _tasks(self, project: int, fields: str) -> Iterator[dict[str, Any]]:
        size, page, seen = self.config.batch_size, 1, 0
        while True:
            query = {"project": project, "page": page, "page_size": size, "fields": fields}
            answer = self._call("GET", f"/api/tasks?{urlencode(query)}")
            tasks = answer.get("tasks", ())
            yield from tasks
            seen, page = seen + len(tasks), page + 1
            if not tasks or seen >= int(answer.get("total", 0)):
                return

    def add_tasks(self, project: int, data: list[dict[str, Any]]) -> None:
        """Put tasks into the project. A request without an answer may have been heard, so what is
        there is looked at before it is made again."""
        for tries in range(self.config.max_retries + 1):
            try:
                body = [{"data": one} for one in data]
                self._call("POST", f"/api/projects/{project}/import", body, again=False)
                return
            except UpstreamError:
                if tries == self.config.max_retries:
                    raise
            time.sleep(min(MAX_WAIT_S, 0.25 * 2**tries))
            there = set(self.task_ids(project))
            data = [one for one in data if one["task_id"] not in there]
            if not data:
                return

    def annotator(self, user: Any) -> str:
        """The name of an account: what the settings call it, or its address; empty for nobody."""
        if isinstance(user, dict):
            user = user.get("id")
        if not isinstance(user, int):
            return ""
        if user not in self._users:
            found = self._call("GET", "/api/users/", kind=list)
            self._users = {one["id"]: str(one["email"]) for one in found}
        email = self._users.get(user, "")
        return self.config.annotators.get(email, email)

    def register(self, project: int, url: str, secret: str) -> None:
        """Have the server call this address whenever an annotation changes; once."""
        body = {
            "url": url,
            "project": project,
            "send_payload": True,
            "send_for_all_actions": False,
            "is_active": True,
            "headers": {SECRET_HEADER: secret},
            "actions": list(ACTIONS),
        }
        path = f"/api/webhooks/?{urlencode({'project': project})}"
        hooks = self._call("GET", path, kind=list)
        same = next((one for one in hooks if one.get("url") == url), None)
        if same is None:
            self._call("POST", "/api/webhooks/", body, again=False)
        else:
            self._call("PATCH", f"/api/webhooks/{same['id']}/", body)

    # --- one request ------------------------------------------------------------------------------

    def _call(
        self, method: str, path: str, body: Any = None, *, again: bool = True, kind: type = dict
    ) -> Any:
        """The JSON that the server answers.

        Args:
            again: False where asking twice could do a thing twice.
            kind: what it must be, or it is some other server's.
        """
        may_refresh = "." in self._token
        for tries in range(self.config.max_retries + 1):
            is_last = not again or tries == self.config.max_retries
            try:
                return self._once(method, path, body, self._authorization(), kind)
            except urllib.error.HTTPError as error:
                said = error.read(2000).decode(errors="replace")
                if error.code == 401 and may_refresh and self._access:
                    self._access, may_refresh = "", False  # five minutes are over
                    if not again:
                        return self._call(method, path, body, again=False, kind=kind)
                    continue
                if error.code not in BUSY or is_last:
                    raise self._refused(method, path, error.code, said) from None
                wait = _seconds(error.headers.get("Retry-After"), 0.25 * 2**tries)
            except TrueupError:
                raise
            # out of reach, broken off, or no such JSON
            except (OSError, ValueError, http.client.HTTPException) as error:
                if is_last:
                    raise self._away(method, path, error) from error
                wait = 0.25 * 2**tries
            time.sleep(min(MAX_WAIT_S, wait))
        raise self._away(method, path, "no answer")

    def _authorization(self) -> str:
        if self._token.count(".") != 2:
            return f"Token {self._token}"
        if not self._access:
            try:
                body = {"refresh": self._token}
                found = self._once("POST", "/api/token/refresh", body, "", dict)
            except urllib.error.HTTPError as error:
                if error.code in BUSY:
                    raise
                said = error.read(2000).decode(errors="replace")
                raise self._refused("POST", "/api/token/refresh", error.code, said) from None
            if "access" not in found:
                raise ValueError("no access token for this one")
            self._access = str(found["access"])
        return f"Bearer {self._access}"

    def _once(self, method: str, path: str, body: Any, authorization: str, kind: type) -> Any:
        headers = {"Content-Type": "application/json", "Accept": "application/json"}
        if authorization:
            headers["Authorization"] = authorization
        data = None if body is None else json.dumps(body).encode()
        url = self.config.url.rstrip("/") + path
        request = urllib.request.Request(url, data, headers, method=method)
        with self._open(request, timeout=self.config.timeout_s) as answer:
            text = answer.read()
        found = json.loads(text) if text else {}
        if not isinstance(found, kind):
            raise ValueError(f"{str(found)[:100]!r} in place of a {kind.__name__}")
        return found

    def _refused(self, method: str, path: str, status: int, said: str) -> Exception:
        what = f"Label Studio at {self.config.url} refused {method} {path.partition('?')[0]}"
        got = f"{status}: {_detail(said)}"
        if status in (401, 403):
            return ConfigError(
                what,
                got=got,
                expected=f"a token in {self.config.api_key_env} that is still good",
                next="make a new one under Account & Settings; legacy tokens are off there unless "
                "an administrator allows them",
            )
        return UpstreamError(
            what,
            got=got,
            expected="Label Studio 1.23 or later",
            next="look at the server's log; what was sent before is kept, so run it again",
        )

    def _away(self, method: str, path: str, why: object) -> UpstreamError:
        return UpstreamError(
            f"Label Studio at {self.config.url} did not answer {method} {path.partition('?')[0]}",
            got=str(getattr(why, "reason", why)),
            expected="a Label Studio server",
            next="start it, or mend label.label_studio.url; what was sent before is kept",
        )


def _seconds(said: str | None, otherwise: float) -> float:
    """What `Retry-After` asks for, where it is a number."""
    try:
        return max(0.0, float(said or ""))
    except ValueError:
        return otherwise


def _detail(said: str) -> str:
    """The server's own words, without a page around them."""
    try:
        found = json.loads(said)
        return str(found.get("validation_errors") or found.get("detail"))[:300]
    except (ValueError, AttributeError):
        return "a page in place of JSON" if "<html" in said.lower() else said[:300]
