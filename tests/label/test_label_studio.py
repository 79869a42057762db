"""The connector against what a real Label Studio 1.23.2 answered, and against servers that fail.

`make test-label-studio` runs the same scenarios on the real thing and writes the answers down.
"""

import json
import socket
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from label_studio_live.scenarios import KEY, SCENARIOS, World, choices, said, task
from label_studio_live.wire import RECORDED, Answer, replaying, serving
from trueup.errors import ConfigError, UpstreamError
from trueup.label import LabelConfig, webhook
from trueup.label import label_studio as connector
from trueup.label.label_studio import SECRET_HEADER, LabelStudio, pull, push
from trueup.privacy import PrivacyConfig, Scrubber, erase_user
from trueup.privacy.trail import entries
from trueup.records import Completion, Interaction, Label, ReviewTask
from trueup.store import Store

SECRET = "a secret of the test"
LEGACY = "0" * 40


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    opened = Store(tmp_path)
    yield opened
    opened.close()


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """A token for every test, and no long waits between tries."""
    monkeypatch.setenv(KEY, LEGACY)
    monkeypatch.setattr(connector, "MAX_WAIT_S", 0.01)


def settings(url: str, **more: object) -> LabelConfig:
    studio = {"url": url, "max_retries": 2, "timeout_s": 5, **more}
    return LabelConfig.model_validate({"judge": "people", "label_studio": studio})


def server(url: str, **more: object) -> LabelStudio:
    return LabelStudio(settings(url, **more).label_studio)


# --- what a real one answered ---------------------------------------------------------------------


@pytest.mark.parametrize("name", SCENARIOS)
def test_scenario(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with replaying(name) as url:
        SCENARIOS[name](World(url, LEGACY, "1" * 40, "e.y.J", tmp_path, monkeypatch))


def post(address: str, body: bytes, secret: str = SECRET) -> tuple[int, str]:
    headers = {SECRET_HEADER: secret, "Content-Type": "application/json"}
    asked = urllib.request.Request(f"{address}/label-studio", body, headers)
    try:
        with urllib.request.urlopen(asked) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def users(method: str, path: str, *_: object) -> Answer:
    """Bob is the second account of the recorded server."""
    people = [{"id": 1, "email": "ann@example.org"}, {"id": 2, "email": "bob@example.org"}]
    return Answer(200, json.dumps(people).encode())


def test_what_a_real_server_sends_to_a_webhook_becomes_votes(store: Store) -> None:
    """Made, edited, deleted, each sent twice; then one with a wrong secret."""
    store.add(task(0))
    sent = json.loads((RECORDED / "webhooks.json").read_text())
    bodies = [json.dumps(one["request"]).encode() for one in sent if one["status"] == 200]
    assert [one["request"]["action"] for one in sent if one["status"] == 200] == [
        "ANNOTATION_CREATED",
        "ANNOTATION_UPDATED",
        "ANNOTATIONS_DELETED",
    ]
    project = sent[0]["request"]["project"]["id"]
    with serving(users) as url, webhook.running(store, server(url), project, SECRET) as address:
        found = []
        for body in bodies:
            assert post(address, body, "another secret of the test")[0] == 401
            assert [post(address, body)[1] for _ in range(2)][1] == '{"became": "known"}'
            found.append(said(store))
    bob = ("0", "bob@example.org")
    assert found == [{bob: "first"}, {bob: "tie"}, {}]
    assert store.count(Label) == 3


@pytest.mark.parametrize(
    ("body", "status", "became"),
    [
        (b"{", 400, "not a JSON object"),
        (b"[]", 400, "not a JSON object"),
        (b"[" * 100_000, 400, "not a JSON object"),
        (b"{}", 200, "another project"),
        (b'{"project": {"id": 7}}', 200, "no annotation"),
        (b'{"project": {"id": 7}, "action": "ANNOTATIONS_DELETED"}', 200, "known"),
        (b'{"project": {"id": 7}, "annotation": {}, "task": {"data": 3}}', 200, "unknown task"),
        (b"x" * (1 << 23), 413, ""),
    ],
    ids=range(8),
)
def test_nonsense_at_the_webhook_writes_nothing(
    store: Store, body: bytes, status: int, became: str
) -> None:
    with webhook.running(store, server("http://127.0.0.1:9"), 7, SECRET) as address:
        try:
            got = post(address, body)
        except urllib.error.URLError:  # a server may hang up on a body that is too large
            got = (413, "")
    assert got[0] == status
    assert became in got[1]
    assert store.count(Label) == 0


def test_a_secret_that_is_no_text_is_refused(store: Store) -> None:
    with webhook.running(store, server("http://127.0.0.1:9"), 7, SECRET) as address:
        host, port = address.removeprefix("http://").split(":")
        with socket.create_connection((host, int(port)), timeout=10) as line:
            line.sendall(
                b"POST /label-studio HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n"
                b"X-Trueup-Secret: \xff\xfe\r\nConnection: close\r\n\r\n{}"
            )
            assert b" 401 " in line.recv(1000).split(b"\r\n")[0]


# --- what is there, and what is there no more -----------------------------------------------------


class Studio:
    """A project of a server as far as `pull` asks, whose tasks and annotations can be changed."""

    def __init__(self, tasks: list[ReviewTask]) -> None:
        self.tasks = [{"id": n, "data": connector._shown(one)} for n, one in enumerate(tasks)]
        self.said: dict[int, list[dict[str, object]]] = {n: [] for n in range(len(tasks))}
        self.has_project, self.made = True, 0

    def annotate(self, task: int, number: int, said: str, user: int = 1) -> None:
        result = [choices(said)] if said else []
        one = {"id": number, "completed_by": user, "result": result, "updated_at": str(number)}
        kept = [other for other in self.said[task] if other["id"] != number]
        self.said[task] = [*kept, one]

    def __call__(self, method: str, path: str, *_: object) -> Answer:
        if method == "POST":
            self.made += 1
            return Answer(201, b'{"id": 1}')
        if path.startswith("/api/users"):
            return users(method, path)
        if path.startswith("/api/projects"):
            project = {"id": 1, "title": "trueup", "label_config": connector.TEMPLATE}
            return Answer(200, json.dumps({"results": [project] * self.has_project}).encode())
        shown = [{**one, "annotations": self.said[int(one["id"])]} for one in self.tasks]
        return Answer(200, json.dumps({"tasks": shown, "total": len(shown)}).encode())


def test_a_task_that_is_gone_from_there_keeps_its_votes(store: Store) -> None:
    """It was cleared away, or moved between two pages while they were read."""
    tasks = [task(n) for n in range(3)]
    store.add_all(tasks)
    studio = Studio(tasks)
    for n in range(3):
        studio.annotate(n, n, "tie")
    with serving(studio) as url:
        assert pull(store, server(url)).new == 3
        studio.tasks = studio.tasks[1:]
        studio.said[1] = []
        done = pull(store, server(url))
    assert (done.new, done.withdrawn) == (0, 1)
    assert set(said(store)) == {("0", "ann@example.org"), ("2", "ann@example.org")}


def test_an_annotation_that_says_nothing_any_more_withdraws_its_vote(store: Store) -> None:
    store.add(task(0))
    studio = Studio([task(0)])
    studio.annotate(0, 5, "tie")
    with serving(studio) as url:
        pull(store, server(url))
        studio.annotate(0, 5, "")
        done = pull(store, server(url))
        assert (done.new, done.withdrawn, done.skipped) == (0, 1, {"no vote": 1})
        assert said(store) == {}
        studio.annotate(0, 5, "both bad")
        assert pull(store, server(url)).new == 1
        studio.annotate(0, 5, "both bad", user=99)
        assert pull(store, server(url))[1:4] == (0, 0, 0), "an account that was deleted"
    assert said(store) == {("0", "ann@example.org"): "both bad"}


def test_an_account_that_gets_another_name_votes_once(store: Store) -> None:
    store.add(task(0))
    studio = Studio([task(0)])
    studio.annotate(0, 5, "tie")
    with serving(studio) as url:
        pull(store, server(url))
        named = {"annotators": {"ann@example.org": "Ann"}}
        assert pull(store, server(url, **named))[1:4] == (1, 0, 1)
        assert said(store) == {("0", "Ann"): "tie"}
        assert pull(store, server(url, **named))[1:4] == (0, 1, 0)


def test_to_pull_makes_no_project(store: Store) -> None:
    """A wrong address would have nobody's annotations, and look like everybody's deletions."""
    studio = Studio([])
    studio.has_project = False
    with serving(studio) as url, pytest.raises(ConfigError, match=r"no such project.*push"):
        pull(store, server(url))
    assert studio.made == 0


def test_what_people_write_there_is_scrubbed_before_it_is_kept(store: Store) -> None:
    """By the webhook and by pulling alike, so that one finds what the other has written."""
    store.add(task(0))
    shown = {"task_id": task(0).id, "order": "12"}
    comment = {"from_name": "comment", "value": {"text": ["as ann@example.com says"]}}
    vote = {"from_name": "vote", "value": {"choices": ["1"]}}
    annotation = {"id": 5, "completed_by": 2, "result": [vote, comment]}
    scrub = Scrubber(PrivacyConfig(), store)

    def answering(method: str, path: str, *more: object) -> Answer:
        if path.startswith("/api/users"):
            return users(method, path)
        tasks = {"total": 1, "tasks": [{"id": 1, "data": shown, "annotations": [annotation]}]}
        return Answer(200, json.dumps(tasks if path.startswith("/api/tasks") else PROJECT).encode())

    with serving(answering) as url:
        sent = {"project": {"id": 3}, "annotation": annotation, "task": {"data": shown}}
        with webhook.running(store, server(url), 3, SECRET, scrub) as address:
            assert post(address, json.dumps(sent).encode())[1] == '{"became": "new"}'
        done = connector.pull(store, server(url), scrub=scrub)
    assert (done.new, done.known) == (0, 1)
    assert [one.comment for one in store.all(Label)] == ["as <EMAIL_1> says"]


def test_tasks_that_were_erased_are_deleted_there_and_others_stay(store: Store) -> None:
    one = Interaction(
        prompt=task(0).prompt, completion=Completion(text="x"), source="gateway", user="ann"
    )
    gone = task(0).model_copy(update={"interaction_id": one.id, "id": ""})
    gone = ReviewTask.model_validate(gone.model_dump())
    store.add(one, gone, task(1))
    left = {11: gone.id, 12: task(1).id, 13: "task_of_somebody_else"}
    deleted, refuses = list[int](), [True]

    def answering(method: str, path: str, *more: object) -> Answer:
        if method == "DELETE":
            number = int(path.split("/")[3])
            deleted.append(number)
            if refuses.pop() if refuses else False:
                left.pop(number, None)  # heard, and the answer lost
                return Answer(503, b"")
            return Answer(204 if left.pop(number, None) else 404, b"")
        if path.startswith("/api/projects"):
            return Answer(200, json.dumps(PROJECT).encode())
        tasks = [{"id": number, "data": {"task_id": name}} for number, name in left.items()]
        return Answer(200, json.dumps({"total": len(tasks), "tasks": tasks}).encode())

    with serving(answering) as url:
        assert connector.erase(store, server(url)) == 0 and deleted == []
        erase_user(store, "ann")
        assert connector.erase(store, server(url)) == 1
        assert deleted == [11, 11] and list(left) == [12, 13]
        assert connector.erase(store, server(url)) == 0
    trail = entries(store)
    assert trail[-1].action == "erase" and trail[-1].details["tasks_there"] == 1


def test_where_no_project_is_nothing_is_made_to_erase(store: Store) -> None:
    asked = []

    def empty(method: str, path: str, *more: object) -> Answer:
        asked.append(method)
        return Answer(200, b'{"results": []}')

    with serving(empty) as url:
        assert connector.erase(store, server(url)) == 0
    assert asked == ["GET"]


# --- servers that fail ----------------------------------------------------------------------------

PROJECT = {"results": [{"id": 3, "title": "trueup", "label_config": '"vote" $answer_1 $answer_2'}]}


def test_a_busy_server_is_asked_again(store: Store) -> None:
    asked = []

    def busy(method: str, path: str, *_: object) -> Answer:
        asked.append(path)
        if len(asked) < 3:
            return Answer((429, 503)[len(asked) % 2], b"", {"Retry-After": "0"})
        return Answer(200, json.dumps(PROJECT).encode())

    with serving(busy) as url:
        assert server(url).project() == 3
    assert len(asked) == 3


@pytest.mark.parametrize(
    ("status", "body", "error", "says"),
    [
        (503, b"<html>busy</html>", UpstreamError, "503: a page in place of JSON"),
        (500, b'{"detail": "boom"}', UpstreamError, "500: boom"),
        (200, b"<html>", UpstreamError, "did not answer"),
        (404, b'{"detail": "Not found."}', UpstreamError, "404: Not found."),
        (401, b'{"detail": "Invalid token."}', ConfigError, "401: Invalid token."),
        (403, b"no", ConfigError, "403: no"),
    ],
)
def test_what_went_wrong_is_said_without_the_token(
    status: int, body: bytes, error: type[Exception], says: str
) -> None:
    with serving(lambda *_: Answer(status, body)) as url, pytest.raises(error) as found:
        server(url).project()
    assert says in str(found.value)
    assert "Next: " in str(found.value)
    assert LEGACY not in str(found.value)


@pytest.mark.parametrize(
    "said",
    [
        b"SSH-2.0-OpenSSH_9.6\r\n",
        b'HTTP/1.1 200 OK\r\nContent-Length: 900\r\n\r\n{"results"',
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"HTTP/1.1 200 OK\r\n\r\n[]",
        b'HTTP/1.1 200 OK\r\n\r\n"x"',
    ],
)
def test_a_server_that_is_another_or_breaks_off_is_said(said: bytes) -> None:
    listening = socket.create_server(("127.0.0.1", 0))
    asked = []

    def answer() -> None:
        for _ in range(2):
            connection, _ = listening.accept()
            asked.append(connection.recv(65536))
            connection.sendall(said)
            connection.close()

    thread = threading.Thread(target=answer, daemon=True)
    thread.start()
    with pytest.raises(UpstreamError, match="did not answer GET /api/projects/"):
        server(f"http://127.0.0.1:{listening.getsockname()[1]}", max_retries=1).project()
    thread.join(10)
    listening.close()
    assert len(asked) == 2, "it is asked again"


def test_a_server_out_of_reach_is_said() -> None:
    with pytest.raises(UpstreamError, match=r"did not answer GET /api/projects/.*label_studio.url"):
        server("http://127.0.0.1:9").project()


def test_the_token_does_not_follow_a_redirect() -> None:
    seen = []

    def thief(*asked: object) -> Answer:
        seen.append(asked)
        return Answer(200, json.dumps(PROJECT).encode())

    with serving(thief) as other:
        moved = Answer(302, b"", {"Location": other + "/api/projects/"})
        with serving(lambda *_: moved) as url, pytest.raises(UpstreamError, match="302"):
            server(url).project()
    assert seen == []


def test_without_a_token_nothing_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(KEY)
    with pytest.raises(ConfigError, match="no LABEL_STUDIO_API_KEY in the environment"):
        server("http://127.0.0.1:9")


def test_a_batch_whose_answer_was_lost_is_not_sent_twice(store: Store) -> None:
    """The server takes the tasks and then breaks; what is there is looked at before sending on."""
    store.add_all(task(n) for n in range(5))
    there: list[dict] = []

    def forgetful(method: str, path: str, body: bytes, _: object) -> Answer:
        if "/import" in path:
            sent = json.loads(body)
            there.extend(sent[: len(sent) - 1] if len(there) < 2 else sent)
            return Answer(502, b"") if len(there) < 4 else Answer(201, b"{}")
        if "/api/tasks" in path:
            page = int(path.partition("page=")[2].partition("&")[0]) - 1
            size = int(path.partition("page_size=")[2].partition("&")[0])
            some = there[page * size : (page + 1) * size]
            return Answer(200, json.dumps({"tasks": some, "total": len(there)}).encode())
        return Answer(200, json.dumps(PROJECT).encode())

    with serving(forgetful) as url:
        config = settings(url, batch_size=3)
        assert push(store, config, LabelStudio(config.label_studio)).new == 5
        assert push(store, config, LabelStudio(config.label_studio)).new == 0
    ids = [one["data"]["task_id"] for one in there]
    assert sorted(ids) == sorted(task(n).id for n in range(5))
