"""API keys: who gets in, what they may, and where a key never shows."""

import hmac
import json
import subprocess
import sys
import time
import tomllib
from pathlib import Path

import httpx
import openai
import pytest
from openai import OpenAI
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from trueup.capture import CaptureConfig
from trueup.config import validate
from trueup.errors import ConfigError
from trueup.gateway.app import create_app
from trueup.gateway.config import KeyConfig, ServeConfig
from trueup.gateway.front import NEEDS
from trueup.gateway.keys import Keys, digest
from trueup.gateway.serve import listen
from trueup.records import Interaction
from trueup.store import Store

HELLO = [{"role": "user", "content": "Hello?"}]
ALL, CHAT_ONLY, FROM_ENV = "all-of-it-0123456789", "chat-only-0123456789", "from-env-0123456789"
KEYS = (
    {"name": "boss", "tenant": "house", "scopes": ["admin"], "sha256": digest(ALL)},
    {"name": "team", "tenant": "blue", "scopes": ["chat"], "sha256": digest(CHAT_ONLY)},
    {"name": "env", "scopes": ["embeddings", "feedback"], "key_env": "TRUEUP_TEST_KEY"},
)


@pytest.fixture
def guarded(open_gateway, run_app, monkeypatch):
    """A gateway with keys, in front of a server that tells the headers it saw."""
    monkeypatch.setenv("TRUEUP_TEST_KEY", FROM_ENV)
    monkeypatch.setenv("TRUEUP_TEST_UPSTREAM_KEY", "upstream-secret")
    seen: list[dict[str, str]] = []

    async def answer(request: Request) -> JSONResponse:
        seen.append(dict(request.headers))
        choice = {"index": 0, "message": {"content": "Hi."}, "finish_reason": "stop"}
        return JSONResponse({"id": f"c{len(seen)}", "choices": [choice], "data": []})

    with run_app(Starlette(routes=[Route("/v1/{p:path}", answer, methods=["GET", "POST"])])) as up:
        serve = {"upstream": up, "upstream_key_env": "TRUEUP_TEST_UPSTREAM_KEY", "keys": KEYS}
        with open_gateway(None, api_key=CHAT_ONLY, access_log=True, **serve) as gateway:
            yield gateway, seen


def status(gateway, method: str, path: str, key: str | None, header: str = "Bearer") -> int:
    headers = {} if key is None else {"Authorization": f"{header} {key}"}
    body = {"messages": HELLO} if method == "POST" else None
    return gateway.http.request(method, path, json=body, headers=headers).status_code


def test_each_key_may_what_its_scopes_say(guarded) -> None:
    gateway, _ = guarded
    for path, method, may in (
        ("/v1/chat/completions", "POST", {ALL, CHAT_ONLY}),
        ("/v1/completions", "POST", {ALL, CHAT_ONLY}),
        ("/v1/models", "GET", {ALL, CHAT_ONLY}),
        ("/v1/embeddings", "POST", {ALL, FROM_ENV}),
        ("/v1/files", "GET", {ALL}),
        ("/metrics", "GET", {ALL}),
    ):
        for key in (ALL, CHAT_ONLY, FROM_ENV):
            assert status(gateway, method, path, key) == (200 if key in may else 403), (path, key)
        for bad in (None, "nobody-0123456789", f"{ALL}x", ALL[:-1], f"{ALL},{ALL}"):
            assert status(gateway, method, path, bad) == 401
        assert status(gateway, method, path, ALL, "Basic") == 401
    assert status(gateway, "POST", "/v1/feedback", CHAT_ONLY) == 403


def test_every_route_of_ours_needs_a_scope_or_is_open(guarded) -> None:
    gateway, _ = guarded
    for method, path in NEEDS:
        assert gateway.http.request(method, path).status_code == 401
    assert gateway.http.get("/openapi.json").status_code == 200
    assert gateway.http.get("/health").json() == {"status": "ok"}
    detailed = gateway.http.get("/health", headers={"Authorization": f"Bearer {ALL}"}).json()
    assert detailed["upstreams"] and detailed["capture"]


def test_a_key_that_may_chat_may_not_delete_list_or_wander(guarded) -> None:
    """What stands behind a path by another method is another tenant's business."""
    gateway, seen = guarded
    before = len(seen)
    for method, path in (
        ("DELETE", "/v1/models/ft:mine"),
        ("GET", "/v1/chat/completions?limit=100"),
        ("DELETE", "/v1/chat/completions/chatcmpl-1"),
        ("PUT", "/v1/feedback"),
    ):
        assert status(gateway, method, path, CHAT_ONLY) == 403, (method, path)
    for path in ("/v1/models/%2e%2e/fine_tuning/jobs", "/v1/models/%2E%2E/%2e%2e/admin"):
        assert status(gateway, "GET", path, CHAT_ONLY) == 400, path
    assert status(gateway, "DELETE", "/v1/feedback", ALL) == 405
    assert status(gateway, "POST", "/v1/capture/", ALL) == 404
    assert len(seen) == before
    assert status(gateway, "GET", "/v1/models/ft:mine", CHAT_ONLY) == 200


def test_the_openai_client_raises_what_it_raises_for_openai(guarded) -> None:
    gateway, _ = guarded
    assert gateway.client.chat.completions.create(model="m", messages=HELLO).id
    with pytest.raises(openai.PermissionDeniedError, match="scope 'embeddings'"):
        gateway.client.embeddings.create(model="m", input="x")
    with OpenAI(base_url=f"{gateway.url}/v1", api_key="wrong-key", max_retries=0) as stranger:
        with pytest.raises(openai.AuthenticationError) as caught:
            stranger.chat.completions.create(model="m", messages=HELLO)
        assert caught.value.code == "invalid_api_key" and "wrong-key" not in str(caught.value)


def test_the_upstream_gets_its_own_key_and_never_the_clients(guarded) -> None:
    gateway, seen = guarded
    for header in ("authorization", "api-key", "x-api-key"):
        value = f"Bearer {ALL}" if header == "authorization" else ALL
        assert gateway.http.get("/v1/models", headers={header: value}).status_code == 200
    for headers in seen:
        assert headers["authorization"] == "Bearer upstream-secret"
        assert ALL not in json.dumps(headers)


def test_without_a_key_for_the_upstream_it_gets_none(open_gateway, raw_server) -> None:
    requests: list[bytes] = []

    def answer(caller, request: bytes) -> None:
        requests.append(request)
        caller.sendall(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\nconnection: close\r\n\r\n{}")

    with raw_server(answer) as up, open_gateway(None, upstream=up, keys=KEYS[:1]) as gateway:
        assert status(gateway, "GET", "/v1/models", ALL) == 200
    assert b"authorization" not in requests[0].lower() and ALL.encode() not in requests[0]


def test_the_tenant_is_kept_and_the_key_shows_nowhere(guarded, capfd) -> None:
    gateway, _ = guarded
    assert status(gateway, "POST", "/v1/chat/completions", CHAT_ONLY) == 200
    assert status(gateway, "POST", "/v1/chat/completions", ALL) == 200
    (blue, house) = gateway.interactions()
    assert (blue.tenant, house.tenant) == ("blue", "house")
    assert [one.id for one in gateway.store.all(Interaction, tenant="blue")] == [blue.id]
    stored = b"".join(p.read_bytes() for p in gateway.store.folder.rglob("*") if p.is_file())
    lines = wait_for_log(capfd, 2)
    for secret in (ALL, CHAT_ONLY, FROM_ENV, "upstream-secret"):
        assert secret.encode() not in stored and secret not in "".join(lines)
    told = [json.loads(line) for line in lines if line.startswith("{")]
    assert [(one["key"], one["status"]) for one in told[-2:]] == [("team", 200), ("boss", 200)]
    assert "Hello?" not in "".join(lines)


def test_a_key_that_comes_as_the_id_of_a_request_is_no_id(guarded, capfd) -> None:
    gateway, _ = guarded
    for given, is_kept in (("my-id", True), (CHAT_ONLY, False)):
        headers = {"Authorization": f"Bearer {CHAT_ONLY}", "x-request-id": given}
        answer = gateway.http.get("/v1/models", headers=headers)
        assert (answer.headers["x-request-id"] == given) == is_kept
    assert CHAT_ONLY not in "".join(wait_for_log(capfd, 2))


def test_mirrored_traffic_has_the_tenant_of_its_key(open_gateway) -> None:
    keys = ({"name": "m", "tenant": "green", "scopes": ["capture"], "sha256": digest(ALL)},)
    entry = {
        "request": {"model": "m", "messages": HELLO},
        "response": {"choices": [{"index": 0, "message": {"content": "Hi."}}]},
    }
    with open_gateway(None, upstream="http://127.0.0.1:9", keys=keys) as gateway:
        assert gateway.http.post("/v1/capture", json=entry).status_code == 401
        headers = {"Authorization": f"Bearer {ALL}"}
        assert gateway.http.post("/v1/capture", json=entry, headers=headers).status_code == 200
        assert [one.tenant for one in gateway.interactions()] == ["green"]


def wait_for_log(capfd, number: int) -> list[str]:
    said, deadline = "", time.monotonic() + 30
    while said.count("\n") < number and time.monotonic() < deadline:
        time.sleep(0.05)
        said += capfd.readouterr().err
    return said.splitlines()


def test_the_digests_of_all_keys_are_compared(monkeypatch) -> None:
    """None is left out after a hit: the time says nothing about which key it was."""
    compared = []
    real = hmac.compare_digest
    monkeypatch.setattr(
        "trueup.gateway.keys.hmac.compare_digest",
        lambda a, b: compared.append((a, b)) or real(a, b),
    )
    keys = Keys(KeyConfig(name=f"k{i}", sha256=digest(f"secret-{i}-0123456789")) for i in range(4))
    caller = keys.caller([(b"authorization", b"Bearer secret-0-0123456789")])
    assert caller and caller.name == "k0" and len(compared) == 4
    assert all(len(a) == len(b) == 32 for a, b in compared)


@pytest.mark.parametrize("value", [None, "", "short"])
def test_a_key_that_is_not_in_the_environment_stops_the_start(
    store: Store, monkeypatch, value
) -> None:
    monkeypatch.delenv("TRUEUP_TEST_KEY", raising=False)
    if value is not None:
        monkeypatch.setenv("TRUEUP_TEST_KEY", value)
    config = ServeConfig(upstream="http://127.0.0.1:9", keys=KEYS)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="TRUEUP_TEST_KEY") as caught:
        create_app(store, config, CaptureConfig(), None)
    assert "short" not in str(caught.value)


@pytest.mark.parametrize(
    "key",
    [
        {"name": "a"},
        {"name": "a", "sha256": "f" * 64, "key_env": "X"},
        {"name": "a", "sha256": "the-secret-itself"},
        {"name": "a", "sha256": "f" * 64, "scopes": ["everything"]},
        {"name": "", "sha256": "f" * 64},
    ],
)
def test_keys_that_cannot_be_used_are_refused(key) -> None:
    with pytest.raises(ConfigError):
        validate(ServeConfig, {"keys": [key]}, source="serve")


def test_others_than_this_machine_need_keys() -> None:
    for host in ("0.0.0.0", "::"):
        with pytest.raises(ConfigError, match="would answer everybody"):
            listen(ServeConfig(host=host, port=0))
    listen(ServeConfig(host="0.0.0.0", port=0, allow_open=True)).close()
    listen(ServeConfig(host="0.0.0.0", port=0, keys=KEYS[:1])).close()  # type: ignore[arg-type]
    listen(ServeConfig(host="localhost", port=0)).close()


def test_a_key_from_the_command_opens_the_gateway(open_gateway, raw_server, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "trueup", "key", "team a", "--tenant", "t", "--scope", "chat"]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=tmp_path)
    secret = done.stdout.partition("once: ")[2].split()[0]
    toml, _, _ = done.stdout.partition("The key")
    (tmp_path / "trueup.toml").write_text(toml)
    assert secret not in toml and len(secret) > 40
    config = validate(ServeConfig, tomllib.loads(toml)["serve"], source="serve")
    told = json.loads(subprocess.run([*command, "--json"], capture_output=True, text=True).stdout)
    assert told["secret"] != secret and digest(told["secret"]) == told["settings"]["sha256"]

    def answer(caller, _: bytes) -> None:
        caller.sendall(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\nconnection: close\r\n\r\n{}")

    with raw_server(answer) as up, open_gateway(None, upstream=up, keys=config.keys) as gateway:
        assert status(gateway, "GET", "/v1/models", secret) == 200
        assert httpx.get(f"{gateway.url}/v1/models").status_code == 401
