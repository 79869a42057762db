"""What goes wrong on either side of the gateway, with real sockets."""

import asyncio
import contextlib
import gzip
import json
import re
import socket
import struct
import threading
import time

import aiohttp
import httpx
import pytest

from trueup.capture import CaptureConfig, Recorder
from trueup.gateway.config import ServeConfig
from trueup.gateway.proxy import Proxy
from trueup.records import Interaction

HELLO = {"model": "m", "messages": [{"role": "user", "content": "Hello?"}]}
CHAT = "/v1/chat/completions"
EVENT = b'data: {"id": "u", "choices": [{"index": 0, "delta": {"content": "%s"}}]}\n\n'
SSE = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%s\r\n" % (len(data), data)


def whole(text: str = "Hi.") -> bytes:
    choice = {"index": 0, "message": {"content": text}, "finish_reason": "stop"}
    body = json.dumps({"id": "u", "choices": [choice]}).encode()
    head = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n"
    return head % len(body) + body


def reset(caller: socket.socket) -> None:
    """Not a goodbye but a slammed door: RST."""
    caller.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    caller.close()


@pytest.fixture
def behind(open_gateway, raw_server):
    """A gateway in front of a raw server."""
    from contextlib import contextmanager

    @contextmanager
    def made(answer, **serve):
        with raw_server(answer) as up, open_gateway(None, upstream=up, **serve) as gateway:
            yield gateway

    return made


def post(gateway, **more) -> httpx.Response:
    return gateway.http.post(CHAT, json={**HELLO, **more})


def one_kept(gateway):
    deadline = time.monotonic() + 30
    while not (kept := gateway.interactions()) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert len(kept) == 1
    return kept[0]


# --- the upstream ---------------------------------------------------------------------------------


def test_an_upstream_that_hangs_before_a_word(behind) -> None:
    with behind(lambda caller, _: time.sleep(5), upstream_timeout_s=0.3) as gateway:
        answer = post(gateway)
        assert answer.status_code == 504 and one_kept(gateway).error == "timeout"


def test_an_upstream_that_resets_in_the_middle_of_a_stream(behind) -> None:
    def answer(caller: socket.socket, _: bytes) -> None:
        caller.sendall(SSE + chunk(EVENT % b"Half") + b"40\r\ndata: {")
        time.sleep(0.2)
        reset(caller)

    with behind(answer) as gateway:
        said = post(gateway, stream=True)
        events = [line[6:] for line in said.text.splitlines() if line.startswith("data: ")]
        assert json.loads(events[0])["choices"] and json.loads(events[-1])["error"]
        kept = one_kept(gateway)
        assert (kept.completion.text, kept.error) == ("Half", "upstream broke off")


def test_an_upstream_that_resets_in_the_middle_of_a_whole_answer(behind) -> None:
    def answer(caller: socket.socket, _: bytes) -> None:
        caller.sendall(whole()[:-5])
        time.sleep(0.1)
        reset(caller)

    with behind(answer) as gateway:
        assert post(gateway).status_code == 502
        assert one_kept(gateway).error == "upstream unreachable"


def test_an_upstream_that_speaks_no_http(behind) -> None:
    with behind(lambda caller, _: caller.sendall(b"SSH-2.0-OpenSSH\r\n\r\n")) as gateway:
        assert post(gateway).status_code == 502


@pytest.mark.parametrize(
    ("events", "text", "error"),
    [
        (b"data: {]\n\ndata: \xff\xfe\n\nhm\n\n" + EVENT % b"On", "On", "unreadable answer"),
        (EVENT % b"\xff\xfe!" + b"data: [DONE]\n\n", "\ufffd\ufffd!", ""),
        (EVENT % b"cut" + b"data: {", "cut", "unreadable answer"),
        (EVENT % (b"long" * 700_000) + b"data: [DONE]\n\n", "long" * 700_000, ""),
    ],
)
def test_events_that_are_none_pass_byte_for_byte(behind, events, text, error) -> None:
    def answer(caller: socket.socket, _: bytes) -> None:
        caller.sendall(SSE)
        for at in range(0, len(events), 100_000):
            caller.sendall(chunk(events[at : at + 100_000]))
        caller.sendall(b"0\r\n\r\n")

    with behind(answer) as gateway:
        assert post(gateway, stream=True).content == events
        kept = one_kept(gateway)
        assert (kept.completion.text, kept.error) == (text, error)


def test_an_upstream_that_packs_although_it_was_asked_not_to(behind) -> None:
    body = gzip.compress(whole().partition(b"\r\n\r\n")[2])
    head = b"HTTP/1.1 200 OK\r\ncontent-encoding: gzip\r\ncontent-length: %d\r\n\r\n" % len(body)
    requests: list[bytes] = []

    def answer(caller: socket.socket, request: bytes) -> None:
        requests.append(request)
        caller.sendall(head + body)

    with behind(answer) as gateway:
        assert post(gateway).json()["choices"][0]["message"]["content"] == "Hi."
        assert one_kept(gateway).completion.text == "Hi."
    assert b"accept-encoding: identity" in requests[0].lower()


def test_a_stream_that_ends_its_lines_with_returns_is_not_held_back(behind) -> None:
    heard = threading.Event()
    line = EVENT.replace(b"\n", b"\r")

    def answer(caller: socket.socket, _: bytes) -> None:
        caller.sendall(SSE + chunk(line % b"One "))
        assert heard.wait(20)
        caller.sendall(chunk(line % b"two" + b"data: [DO"))
        time.sleep(0.1)
        reset(caller)

    with behind(answer) as gateway:
        with gateway.http.stream("POST", CHAT, json={**HELLO, "stream": True}) as said:
            parts = said.iter_bytes()
            first = next(parts)
            heard.set()
            rest = b"".join(parts)
        assert first + rest.partition(b"\n")[0] == line % b"One " + line % b"two"
        events = re.split(r"(?:\r\n|\n|\r){2}", (first + rest).decode())
        assert json.loads(events[2].strip().removeprefix("data: "))["error"]
        kept = one_kept(gateway)
        assert (kept.completion.text, kept.error) == ("One two", "upstream broke off")


@pytest.mark.parametrize("why", ["gateway stopped", "gateway error"])
def test_what_ends_an_answer_on_our_side_is_told_apart(raw_server, store, why) -> None:
    """Stopped in the middle of a stream; or a fault of ours, which is no stop."""

    def answer(caller: socket.socket, _: bytes) -> None:
        caller.sendall(SSE + chunk(EVENT % b"Half"))
        caller.settimeout(20)
        caller.recv(1)

    async def run(up: str) -> None:
        recorder = Recorder(store, CaptureConfig())
        proxy = Proxy(ServeConfig(upstream=up), recorder)
        await proxy.upstreams.open()
        begun = asyncio.Event()
        body = [{"type": "http.request", "body": json.dumps({**HELLO, "stream": True}).encode()}]

        async def receive():
            return body.pop() if body else await asyncio.sleep(60)

        async def send(message) -> None:
            if message["type"] == "http.response.body":
                if why == "gateway error":
                    raise RuntimeError("a fault")
                begun.set()

        scope = {"type": "http", "method": "POST", "path": CHAT, "query_string": b"", "headers": []}
        task = asyncio.create_task(proxy(scope, receive, send))
        if why == "gateway stopped":
            await begun.wait()
            task.cancel()
        with pytest.raises((asyncio.CancelledError, RuntimeError)):
            await task
        await proxy.upstreams.close()
        await asyncio.to_thread(recorder.close)

    with raw_server(answer) as up:
        asyncio.run(run(up))
    [kept] = store.all(Interaction)
    assert (kept.completion.text, kept.error) == ("Half", why)


# --- the client -----------------------------------------------------------------------------------


def test_ten_megabytes_pass_and_more_is_refused(behind) -> None:
    sizes: list[int] = []

    def answer(caller: socket.socket, request: bytes) -> None:
        sizes.append(len(request.partition(b"\r\n\r\n")[2]))
        caller.sendall(whole())

    with behind(answer) as gateway:
        frame = len(json.dumps({"messages": [{"role": "user", "content": ""}]}))
        for over in (0, 1):
            content = "x" * (10 * 1024 * 1024 - frame + over)
            body = json.dumps({"messages": [{"role": "user", "content": content}]}).encode()
            said = gateway.http.post(CHAT, content=body)
            assert said.status_code == (413 if over else 200)
        error = said.json()["error"]
        assert error["type"] == "invalid_request_error" and error["code"] == "request_too_large"
        assert sizes == [10 * 1024 * 1024]
        assert len(one_kept(gateway).prompt[0].content) == 10 * 1024 * 1024 - frame


def test_a_packed_request_is_passed_packed_and_read_for_the_record(behind) -> None:
    packed = gzip.compress(json.dumps(HELLO).encode())
    bodies: list[bytes] = []

    def answer(caller: socket.socket, request: bytes) -> None:
        bodies.append(request.partition(b"\r\n\r\n")[2])
        caller.sendall(whole())

    with behind(answer, max_body_mb=1) as gateway:
        headers = {"content-encoding": "gzip"}
        assert gateway.http.post(CHAT, content=packed, headers=headers).status_code == 200
        assert bodies == [packed] and one_kept(gateway).prompt[0].content == "Hello?"
        bomb = gzip.compress(b" " * 50_000_000)
        assert gateway.http.post(CHAT, content=bomb, headers=headers).status_code == 413
        odd = gateway.http.post(CHAT, content=b"x", headers={"content-encoding": "br"})
        assert odd.status_code == 415 and len(bodies) == 1
        for damaged in (b"\x1f\x8b no gzip", b"plain", packed[:10] + b"\xff" * 20):
            said = gateway.http.post(CHAT, content=damaged, headers=headers)
            assert said.status_code == 415 and len(bodies) == 1


@pytest.mark.parametrize("body", [b"\xff\xfe{}", b'{"messages": "\xff"}', b"", b"[]", b"[" * 99999])
def test_requests_that_are_no_json_object_are_a_400(behind, body) -> None:
    with behind(lambda caller, _: caller.sendall(whole())) as gateway:
        said = gateway.http.post(CHAT, content=body)
        assert said.status_code == 400 and said.json()["error"]["message"]
        assert gateway.interactions() == []


def connect(gateway) -> socket.socket:
    caller = socket.create_connection(("127.0.0.1", int(gateway.url.rpartition(":")[2])))
    caller.settimeout(20)
    return caller


def test_clients_that_take_their_time_are_let_go(behind) -> None:
    """Slow loris: a request line now, a header some day."""
    with behind(lambda caller, _: caller.sendall(whole()), client_timeout_s=0.5) as gateway:
        silent, slow, stalled = connect(gateway), connect(gateway), connect(gateway)
        slow.sendall(b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\n")
        stalled.sendall(
            b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 99\r\n\r\n{"
        )
        started = time.monotonic()
        with pytest.raises((ConnectionError, BrokenPipeError)):
            while time.monotonic() - started < 10:
                slow.sendall(b"X-A: b\r\n")  # a sign of life is not enough
                time.sleep(0.05)
            pytest.fail("the slow one was kept")
        assert time.monotonic() - started < 5
        assert stalled.recv(65536).startswith(b"HTTP/1.1 408")
        assert ended(silent)
        assert post(gateway).status_code == 200


def test_headers_without_end_are_cut_off(behind) -> None:
    with behind(lambda caller, _: caller.sendall(whole())) as gateway:
        caller = connect(gateway)
        with pytest.raises((ConnectionError, BrokenPipeError)):
            caller.sendall(b"GET /health HTTP/1.1\r\n")
            for _ in range(1000):
                caller.sendall(b"X-Long: " + b"a" * 1000 + b"\r\n")
                time.sleep(0.001)
        assert gateway.http.get("/health").status_code == 200


def ended(caller: socket.socket) -> bool:
    try:
        return caller.recv(1) == b""
    except ConnectionError:
        return True


def test_a_client_that_does_not_read_its_stream_is_let_go(behind) -> None:
    def answer(caller: socket.socket, _: bytes) -> None:
        caller.sendall(SSE)
        for _ in range(4000):
            caller.sendall(chunk(EVENT % (b"word " * 2000)))

    with behind(answer, client_timeout_s=0.5) as gateway:
        caller = connect(gateway)
        body = json.dumps({**HELLO, "stream": True}).encode()
        head = b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n"
        caller.sendall(head % len(body) + body)
        kept = one_kept(gateway)
        assert kept.error == "client left" and kept.completion.text.startswith("word ")
        caller.close()


def test_a_client_that_leaves_before_the_answer_ends_the_upstreams_work(behind) -> None:
    ends: list[float] = []

    def answer(caller: socket.socket, _: bytes) -> None:
        caller.settimeout(20)
        caller.recv(1)  # until we are hung up on
        ends.append(time.monotonic())

    with behind(answer) as gateway:
        with pytest.raises(httpx.ReadTimeout):
            gateway.http.post(CHAT, json=HELLO, timeout=0.3)
        assert one_kept(gateway).error == "client left"
        deadline = time.monotonic() + 10
        while not ends and time.monotonic() < deadline:
            time.sleep(0.02)
        assert ends


def test_an_upload_that_is_left_half_way_does_not_hurt(behind) -> None:
    with behind(lambda caller, _: caller.sendall(whole())) as gateway:
        caller = connect(gateway)
        caller.sendall(b"POST /v1/files HTTP/1.1\r\nHost: x\r\nContent-Length: 99\r\n\r\nhalf")
        time.sleep(0.2)
        caller.close()
        assert post(gateway).status_code == 200


def upload(size: int, begin: bytes) -> bytes:
    return b"POST /v1/files HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n%s" % (size, begin)


def test_uploads_that_stall_or_are_left_are_no_failure_of_the_upstream(behind) -> None:
    with behind(lambda caller, _: caller.sendall(whole()), client_timeout_s=0.5) as gateway:
        slow, gone = connect(gateway), connect(gateway)
        for caller in (slow, gone):
            caller.sendall(upload(99, b"half"))
        time.sleep(0.1)
        gone.close()
        said = slow.recv(65536)
        assert said.startswith(b"HTTP/1.1 408") and b"request_timeout" in said
        assert post(gateway).status_code == 200
        (told,) = gateway.http.get("/health").json()["upstreams"]
        assert told["is_up"] and told["failures"] == 0 and not told["last_error"]


def test_an_answer_may_begin_before_the_upload_ends(open_gateway) -> None:
    """What comes of it after that is not swallowed, and who leaves then is no failure either."""
    listening = socket.create_server(("127.0.0.1", 0))
    received: list[int] = []

    def serve() -> None:
        for _ in range(2):
            caller, _ = listening.accept()
            caller.settimeout(10)
            body = b""
            while b"aaa" not in body:
                body += caller.recv(65536)
            body = body.partition(b"\r\n\r\n")[2]
            caller.sendall(SSE + chunk(b"begun "))
            with contextlib.suppress(OSError):
                while len(body) < 3000 and (more := caller.recv(65536)):
                    body += more
            received.append(len(body))
            with contextlib.suppress(OSError):
                caller.sendall(chunk(b"done") + b"0\r\n\r\n")
            caller.close()

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    up = f"http://127.0.0.1:{listening.getsockname()[1]}"
    with open_gateway(None, upstream=up) as gateway:
        for leaves in (False, True):
            caller = connect(gateway)
            caller.sendall(upload(3000, b"a" * 1000))
            said = b""
            while b"begun" not in said:
                said += caller.recv(65536)
            caller.sendall(b"b" * 1000)
            if not leaves:
                caller.sendall(b"c" * 1000)
                while b"done" not in said:
                    said += caller.recv(65536)
            caller.close()
        thread.join(20)
        (told,) = gateway.http.get("/health").json()["upstreams"]
        assert received[0] == 3000 and received[1] < 3000
        assert told["is_up"] and told["failures"] == 0
    listening.close()


def test_a_thousand_streams_at_once(behind) -> None:
    def answer(caller: socket.socket, request: bytes) -> None:
        name = json.loads(request.partition(b"\r\n\r\n")[2])["user"].encode()
        caller.sendall(SSE)
        for word in (b"stream", b" ", name):
            caller.sendall(chunk(EVENT % word))
            time.sleep(0.5)  # so that they are under way together
        caller.sendall(chunk(b"data: [DONE]\n\n") + b"0\r\n\r\n")

    async def run(url: str) -> list[str]:
        connector = aiohttp.TCPConnector(limit=0)
        async with aiohttp.ClientSession(connector=connector) as session:

            async def ask(number: int) -> str:
                body = {**HELLO, "stream": True, "user": f"u{number}"}
                async with session.post(f"{url}{CHAT}", json=body) as said:
                    return await said.text()

            return await asyncio.gather(*map(ask, range(1000)))

    with behind(answer) as gateway:
        said = asyncio.run(run(gateway.url))
        for number, one in enumerate(said):
            assert f'"u{number}"' in one and one.endswith("data: [DONE]\n\n")
        kept = gateway.interactions()
        assert sorted(one.completion.text for one in kept) == sorted(
            f"stream u{number}" for number in range(1000)
        )
        assert {one.error for one in kept} == {""}
