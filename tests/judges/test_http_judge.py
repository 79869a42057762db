"""A scorer behind an address: what goes over, and everything a server can do wrong. The servers are
real and local."""

import json
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from trueup.errors import ConfigError, UpstreamError
from trueup.judges import EndpointConfig, resolve
from trueup.judges.http import HTTPJudge
from trueup.records import Completion, Message

PROMPT = (Message(role="user", content="sky?"),)
ANSWERS = [Completion(text="blue."), Completion(text="um blue.")]
ONCE = EndpointConfig(timeout_s=5.0, max_retries=0)


class Server(ThreadingHTTPServer):
    """Says what it is told to; keeps what it was asked."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.replies: list[tuple[int, bytes]] = []
        """(status, body) of the next answers; the last one is repeated."""
        self.raw: bytes | None = None
        """Sent in place of an answer, before the line is cut."""
        self.asked: list[dict[str, Any]] = []
        self.keys: list[str | None] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/score"


class _Handler(BaseHTTPRequestHandler):
    server: Server  # type: ignore[assignment]  # the one that made it

    def do_POST(self) -> None:
        size = int(self.headers["Content-Length"])
        self.server.asked.append(json.loads(self.rfile.read(size)))
        self.server.keys.append(self.headers["Authorization"])
        if self.server.raw is not None:
            self.wfile.write(self.server.raw)
            return
        replies = self.server.replies
        status, body = replies.pop(0) if len(replies) > 1 else replies[0]
        self.send_response(status)
        if status == 302:
            self.send_header("Location", "/elsewhere")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        pass


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as one:
        thread = threading.Thread(target=one.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield one
        one.shutdown()
        thread.join()


def scores(*values: object) -> tuple[int, bytes]:
    return 200, json.dumps({"scores": values}).encode()


def test_texts_go_over_and_scores_come_back(server: Server) -> None:
    server.replies = [scores(0.3, -1)]
    judge = resolve(server.url, endpoint=ONCE)
    assert judge.rank(PROMPT, ANSWERS).scores == (0.3, -1.0)
    assert judge.id == f"http:{server.url}" and judge.is_symmetric
    assert server.asked == [
        {"prompt": [{"role": "user", "content": "sky?"}], "completions": ["blue.", "um blue."]}
    ]
    assert server.keys == [None]


def test_the_key_goes_as_a_bearer_token_and_is_in_no_message(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(ONCE.api_key_env, "hush-hush")
    server.replies = [(200, b"the key hush-hush is wrong")]
    with pytest.raises(UpstreamError) as caught:
        HTTPJudge(server.url, ONCE).rank(PROMPT, ANSWERS)
    assert server.keys == ["Bearer hush-hush"] and "hush-hush" not in str(caught.value)


def test_an_address_with_a_password_is_refused() -> None:
    with pytest.raises(ConfigError, match="holds a password"):
        resolve("http://user:secret@127.0.0.1:1/score")


@pytest.mark.parametrize(
    "said",
    [
        b"",
        b"<html>busy</html>",
        b"[1, 2]",
        b"{}",
        b'{"scores": null}',
        b'{"scores": "12"}',
        b'{"scores": {"1": "blue.", "2": "um blue."}}',
        b'{"scores": [1, "good"]}',
        b'{"scores": [1, NaN]}',
        b'{"scores": [1, Infinity]}',
        b'{"scores": [1, 1' + b"0" * 400 + b"]}",
        b"[" * 100_000,
        b"\xff\xfe",
    ],
)
def test_what_is_not_a_list_of_numbers_is_an_error_by_name(server: Server, said: bytes) -> None:
    server.replies = [(200, said)]
    with pytest.raises(UpstreamError, match=r"gave no scores.*a number an answer"):
        HTTPJudge(server.url, ONCE).rank(PROMPT, ANSWERS)


@pytest.mark.parametrize("count", [1, 3])
def test_another_number_of_scores_is_an_error(server: Server, count: int) -> None:
    server.replies = [scores(*range(count))]
    with pytest.raises(UpstreamError, match=f"{count} scores for 2 answers"):
        HTTPJudge(server.url, ONCE).rank(PROMPT, ANSWERS)


@pytest.mark.parametrize(
    "raw", [b"nonsense\r\n\r\n", b"", b"HTTP/1.0 200 OK\r\nContent-Length: 99\r\n\r\n{"]
)
def test_what_is_not_even_http_is_an_error_by_name(server: Server, raw: bytes) -> None:
    server.raw = raw
    with pytest.raises(UpstreamError, match="gave no scores"):
        HTTPJudge(server.url, ONCE).rank(PROMPT, ANSWERS)


def test_a_server_that_is_down_is_an_error_by_name() -> None:
    with Server() as gone:
        url = gone.url
    with pytest.raises(UpstreamError, match="refused"):
        HTTPJudge(url, ONCE).rank(PROMPT, ANSWERS)


@pytest.mark.parametrize(("status", "tries"), [(503, 3), (429, 3), (401, 1), (302, 1)])
def test_what_may_pass_is_tried_again_and_what_will_not_is_not(
    server: Server, status: int, tries: int
) -> None:
    """A redirect would turn the question into one without words."""
    server.replies = [(status, b"no")]
    judge = HTTPJudge(server.url, EndpointConfig(timeout_s=5.0, max_retries=2))
    with pytest.raises(UpstreamError, match=f"HTTP {status}"):
        judge.rank(PROMPT, ANSWERS)
    assert len(server.asked) == tries


def test_a_second_try_may_succeed(server: Server) -> None:
    server.replies = [(500, b"no"), scores(1, 2)]
    judge = HTTPJudge(server.url, EndpointConfig(timeout_s=5.0, max_retries=1))
    assert judge.rank(PROMPT, ANSWERS).scores == (1.0, 2.0)


def test_a_key_that_is_echoed_across_the_cut_stays_out(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Shortened first, half of it would be left, and half is not found."""
    key = "sk-" + "verysecret" * 5
    monkeypatch.setenv("TRUEUP_JUDGE_API_KEY", key)
    server.replies = [(200, b"x" * 60 + key.encode())]
    with pytest.raises(UpstreamError) as caught:
        HTTPJudge(server.url, ONCE).rank(PROMPT, ANSWERS)
    assert "verysecret" not in str(caught.value) and "sk-" not in str(caught.value)


def test_an_answer_that_drips_is_given_up_in_time() -> None:
    """Each byte in time, the whole never: a socket's own limit would not end it."""

    class Dripping(_Handler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            self.send_response(200)
            self.end_headers()
            for _ in range(100):
                self.wfile.write(b" ")
                self.wfile.flush()
                time.sleep(0.1)

    with ThreadingHTTPServer(("127.0.0.1", 0), Dripping) as server:
        server.daemon_threads = True
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        patience = EndpointConfig(timeout_s=0.5, max_retries=0)
        started = time.monotonic()
        with pytest.raises(UpstreamError, match="in time"):
            HTTPJudge(f"http://127.0.0.1:{server.server_address[1]}", patience).rank(
                PROMPT, ANSWERS
            )
        assert time.monotonic() - started < 5
        server.shutdown()
        thread.join()


def test_an_address_with_a_query_is_refused() -> None:
    with pytest.raises(ConfigError, match="query"):
        resolve("http://127.0.0.1:1/score?token=secret")


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("http://host/score", "http://host/score/"),
        ("http://host/score", "http://HOST:80/score"),
        ("https://host:443/s", "https://host/s"),
    ],
)
def test_two_spellings_of_an_address_are_one_scorer(one: str, other: str) -> None:
    assert HTTPJudge(one, ONCE).id == HTTPJudge(other, ONCE).id


def test_another_port_or_path_is_another_scorer() -> None:
    ids = {HTTPJudge(f"http://host{rest}", ONCE).id for rest in ("/a", "/b", ":81/a", "")}
    assert len(ids) == 4
