"""A real Label Studio on loopback, for as long as a `with` lasts, with two people in it.

It starts without a network. Webhooks to loopback are refused as an attack unless
USE_DEFAULT_BANNED_SUBNETS is false, and legacy tokens unless they are allowed.
"""

import http.cookiejar
import json
import os
import secrets
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

__all__ = ["ANN", "BOB", "Place", "running"]

ANN, BOB = "ann@example.org", "bob@example.org"
START_S = 600.0
"""Its first start migrates a database: half a minute on a free machine, minutes on a busy one."""


class Place(NamedTuple):
    """A server and the tokens of the people in it."""

    url: str
    ann: str
    """A legacy token, as is Bob's."""
    bob: str
    pat: str
    """Ann's personal access token."""


@contextmanager
def running(python: Path, folder: Path) -> Iterator[Place]:
    """The server once it answers; it is stopped at the end, whatever happened.

    Args:
        python: the interpreter that has Label Studio.
        folder: for its database and its log.
    """
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port = one.getsockname()[1]
    password, token = secrets.token_urlsafe(12), secrets.token_hex(20)
    command = [str(python.parent / "label-studio"), "start", "--no-browser"]
    command += ["--internal-host", "127.0.0.1", "--port", str(port)]
    command += ["--username", ANN, "--password", password, "--user-token", token]
    environment = {
        **{
            k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "DJANGO_SETTINGS_MODULE")
        },
        "LABEL_STUDIO_BASE_DATA_DIR": str(folder / "data"),
        "USE_DEFAULT_BANNED_SUBNETS": "false",
        "LABEL_STUDIO_ENABLE_LEGACY_API_TOKEN": "true",
        "COLLECT_ANALYTICS": "false",
        "LATEST_VERSION_CHECK": "false",
        "SENTRY_DSN": "",
        "FRONTEND_SENTRY_DSN": "",
    }
    log = folder / "server.log"
    with log.open("wb") as said:
        process = subprocess.Popen(
            command,
            env=environment,
            stdout=said,
            stderr=said,
            stdin=subprocess.DEVNULL,
            cwd=folder,
            start_new_session=True,
        )
        try:
            url = f"http://127.0.0.1:{port}"
            _wait(process, url, log)
            pat = _ask(url, "/api/token/", token, {})["token"]
            yield Place(url, token, _sign_up(url, BOB, password), pat)
        finally:
            process.terminate()
            with suppress(subprocess.TimeoutExpired):
                process.wait(timeout=20)
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def _wait(process: subprocess.Popen[bytes], url: str, log: Path) -> None:
    deadline = time.monotonic() + START_S
    while time.monotonic() < deadline and process.poll() is None:
        try:
            with urllib.request.urlopen(f"{url}/health", timeout=5):
                return
        except OSError:
            time.sleep(0.5)
    raise RuntimeError(f"Label Studio did not start: {log.read_text(errors='replace')[-3000:]}")


def _ask(url: str, path: str, token: str, body: object = None) -> dict:
    headers = {"Authorization": f"Token {token}", "Content-Type": "application/json"}
    data = None if body is None else json.dumps(body).encode()
    with urllib.request.urlopen(urllib.request.Request(url + path, data, headers)) as answer:
        return json.loads(answer.read())


def _sign_up(url: str, email: str, password: str) -> str:
    """A second person comes by the door for people, and takes a legacy token."""
    jar = http.cookiejar.CookieJar()
    browser = urllib.request.build_opener(urllib.request.HTTPCookieProcessor(jar))
    browser.open(f"{url}/user/signup/").read()
    cookie = next(one.value for one in jar if one.name == "csrftoken")
    form = {"csrfmiddlewaretoken": cookie, "email": email, "password": password}
    form |= {"how_find_us": "Other", "elaborate": "", "allow_newsletters": "false"}
    body = urllib.parse.urlencode(form).encode()
    page = urllib.request.Request(f"{url}/user/signup/", body, {"Referer": f"{url}/user/signup/"})
    browser.open(page).read()
    with browser.open(f"{url}/api/current-user/token") as answer:
        return json.loads(answer.read())["token"]
