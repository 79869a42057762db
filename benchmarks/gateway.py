"""What the gateway adds to a request: `make bench-gateway`.

A mock upstream is asked directly and through `trueup serve`, which has an API key, writes an access
log, scrubs, and captures every request; beside it through a LiteLLM proxy, in an environment of its
own. The load comes from `wrk`. All three take turns within a round, so that what else the machine
does hits them alike; what is printed are medians over the rounds. Afterwards every request that was
answered must be in the store.

    python benchmarks/gateway.py [--quick] [--rounds N] [--seconds S] [--no-litellm] [--bare]
                                 [--json]
"""

import argparse
import contextlib
import json
import os
import re
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

from processes import ROOT, BenchmarkError, commit, cpu_name, num_cores, say

MODEL = "mock"
KEY_VARIABLE = "TRUEUP_BENCH_KEY"
CASES = ((1, False), (1, True), (16, False), (16, True))
"""Concurrency, and whether answers are streams."""
TARGETS = {"added_p50_ms": 0.4, "added_p99_ms": 1.5, "share_of_rate": 0.4}
MESSAGES = [
    {"role": "system", "content": "You are a helpful assistant of a maker of routers."},
    {"role": "user", "content": "How do I reset it? The light has been red since this morning."},
]
LUA = """
wrk.method = "POST"
wrk.headers["Content-Type"] = "application/json"
wrk.headers["Authorization"] = "Bearer %s"
wrk.body = %s
function done(summary, latency, requests)
  io.write(string.format("RESULT %%d %%d %%d %%f %%f %%f\\n", summary.requests,
    summary.duration, summary.errors.status + summary.errors.connect + summary.errors.read
    + summary.errors.timeout, latency:percentile(50), latency:percentile(99), latency.max))
end
"""


class Shot(NamedTuple):
    """One measurement."""

    requests: int
    rate: float
    p50_ms: float
    p99_ms: float


class Side(NamedTuple):
    """Who is measured, and where it listens."""

    name: str
    port: int
    key: str


# --- the load -------------------------------------------------------------------------------------


def wrk() -> str:
    """The load generator, installed from Debian where it is missing and we may.

    Raises:
        BenchmarkError: it is not there.
    """
    found = shutil.which("wrk")
    if not found and os.geteuid() == 0 and shutil.which("apt-get"):
        say("installing wrk")
        subprocess.run(["apt-get", "install", "--yes", "wrk"], capture_output=True)
        found = shutil.which("wrk")
    if not found:
        raise BenchmarkError("There is no wrk. Next: apt-get install wrk")
    return found


def shoot(side: Side, folder: Path, case: tuple[int, bool], seconds: int) -> Shot:
    """Load one side for so long.

    Raises:
        BenchmarkError: a request failed.
    """
    concurrency, is_stream = case
    body = json.dumps({"model": MODEL, "messages": MESSAGES, "stream": is_stream, "user": "u1"})
    script = folder / "load.lua"
    script.write_text(LUA % (side.key, f"[==[{body}]==]"))
    url = f"http://127.0.0.1:{side.port}/v1/chat/completions"
    command = [wrk(), "-t1", f"-c{concurrency}", f"-d{seconds}s", "-s", str(script), url]
    done = subprocess.run(command, capture_output=True, text=True)
    told = re.search(r"RESULT (\d+) (\d+) (\d+) ([\d.]+) ([\d.]+)", done.stdout)
    if not told:
        raise BenchmarkError(f"wrk said nothing of {side.name}:\n{done.stdout}{done.stderr}")
    number, duration, errors = (int(one) for one in told.groups()[:3])
    p50, p99 = (float(one) / 1000 for one in told.groups()[3:])
    if errors or not number:
        raise BenchmarkError(f"{side.name}: {errors} of {number} requests failed")
    return Shot(number, number / (duration / 1e6), p50, p99)


def ask_once(side: Side) -> None:
    """The first request may load half a library; it gets a minute."""
    ask = urllib.request.Request(
        f"http://127.0.0.1:{side.port}/v1/chat/completions",
        data=json.dumps({"model": MODEL, "messages": MESSAGES}).encode(),
        headers={"Authorization": f"Bearer {side.key}", "Content-Type": "application/json"},
    )
    with urllib.request.urlopen(ask, timeout=60) as reply:
        reply.read()


# --- the sides ------------------------------------------------------------------------------------


@contextlib.contextmanager
def process(
    command: list[str],
    port: int,
    path: str,
    log: Path,
    more: dict[str, str] | None = None,
    *,
    wait_s: float = 60,
) -> Iterator[subprocess.Popen[bytes]]:
    """A server in a process of its own, once it answers; told to stop at the end."""
    with log.open("wb") as out:
        server = subprocess.Popen(
            command, stdout=out, stderr=out, env={**os.environ, **(more or {})}, cwd=log.parent
        )
    try:
        deadline = time.monotonic() + wait_s
        while not _answers(f"http://127.0.0.1:{port}{path}"):
            if server.poll() is not None or time.monotonic() > deadline:
                tail = log.read_text(errors="replace")[-2000:]
                raise BenchmarkError(f"{' '.join(command)} did not start:\n{tail}")
            time.sleep(0.1)
        yield server
    finally:
        server.send_signal(signal.SIGINT)
        with contextlib.suppress(subprocess.TimeoutExpired):
            server.wait(60)
        if server.poll() is None:
            server.kill()


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=5) as reply:
            return reply.status == 200
    except OSError:
        return False


def write_project(folder: Path, upstream_port: int) -> Path:
    """A project whose gateway does all that it does in production."""
    project = folder / "project"
    project.mkdir()
    # a burst at full speed is more than the disk takes at once, and nothing may be dropped
    capture = {"rate": 1.0, "queue_size": 200_000, "queue_mb": 1000.0}
    lines = [
        "[serve]",
        f'upstream = "http://127.0.0.1:{upstream_port}/v1"',
        "access_log = true",
        "[[serve.keys]]",
        'name = "bench"',
        'tenant = "bench"',
        f'key_env = "{KEY_VARIABLE}"',
        'scopes = ["admin"]',
        "[capture]",
        *(f"{name} = {json.dumps(value)}" for name, value in capture.items()),
        "[privacy]",
        'scrubber = "patterns"',
        "pseudonyms = true",
    ]
    (project / "trueup.toml").write_text("\n".join(lines) + "\n")
    return project


def litellm(*, make: bool) -> Path | None:
    """LiteLLM's program in `.venv-litellm`; made on first use.

    Raises:
        BenchmarkError: it could not be installed.
    """
    folder = ROOT / ".venv-litellm"
    program, ready = folder / "bin" / "litellm", folder / ".ready"
    if ready.is_file() or not make:
        return program if ready.is_file() else None
    say(f"installing litellm[proxy] in {folder}: a minute or two, 700 MB")
    pip = [str(folder / "bin" / "python"), "-m", "pip", "install", "--quiet"]
    for command in ([sys.executable, "-m", "venv", str(folder)], [*pip, "litellm[proxy]"]):
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            raise BenchmarkError(f"LiteLLM could not be installed:\n{done.stderr[-2000:]}")
    ready.touch()
    return program


def write_litellm(folder: Path, upstream_port: int) -> Path:
    """LiteLLM's settings for the same upstream, behind a key likewise."""
    path = folder / "litellm.json"  # its YAML reader takes JSON
    target = {
        "model": f"openai/{MODEL}",
        "api_base": f"http://127.0.0.1:{upstream_port}/v1",
        "api_key": "none",
    }
    settings = {
        "model_list": [{"model_name": MODEL, "litellm_params": target}],
        "general_settings": {"master_key": f"os.environ/{KEY_VARIABLE}"},
    }
    path.write_text(json.dumps(settings))
    return path


# --- the benchmark --------------------------------------------------------------------------------


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """Start everybody, load them in turns, count what was kept."""
    key = f"sk-{secrets.token_hex(16)}"
    seconds = args.seconds or (1 if args.quick else 8)
    rounds = args.rounds or (1 if args.quick else 5)
    with_litellm = not (args.quick or args.no_litellm)
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="trueup-gateway-")))
        mock, gateway, other = (free_port() for _ in range(3))
        command = [sys.executable, str(ROOT / "benchmarks" / "gateway_mock.py"), str(mock)]
        command += ["--bare"] if args.bare else []
        stack.enter_context(process(command, mock, "/", folder / "mock.log"))
        sides = [Side("mock", mock, key), Side("trueup", gateway, key)]
        if program := litellm(make=True) if with_litellm else None:
            config = write_litellm(folder, mock)
            command = [str(program), "--config", str(config), "--port", str(other)]
            more = {KEY_VARIABLE: key, "LITELLM_LOCAL_MODEL_COST_MAP": "True"}
            log = folder / "litellm.log"
            path = "/health/liveliness"
            stack.enter_context(process(command, other, path, log, more, wait_s=180))
            sides.append(Side("litellm", other, key))
        project = write_project(folder, mock)
        command = [sys.executable, "-m", "trueup", "--project", str(project), "serve"]
        command += ["--port", str(gateway)]
        with process(
            command, gateway, "/health", folder / "gateway.log", {KEY_VARIABLE: key}
        ) as server:
            shots = load(sides, folder, seconds, rounds)
            counters = drained(gateway, key)
            server.send_signal(signal.SIGINT)
            server.wait(120)
        answered = sum(one.requests for case in shots["trueup"].values() for one in case)
        kept = count_kept(project)
        lines = (folder / "gateway.log").read_text().count('"/v1/chat/completions"')
    return {
        "machine": {"cpu": cpu_name(), "cores": num_cores(), "commit": commit()},
        "mock": "bare ASGI" if args.bare else "Starlette",
        "rounds": rounds,
        "seconds": seconds,
        "sides": {
            name: {_name(c): _pooled(s) for c, s in of.items()} for name, of in shots.items()
        },
        "ratios": {_name(case): ratios(shots, case) for case in CASES},
        "capture": {
            "answered": answered,
            "sent": counters["sent"],
            "stored": kept,
            "sent_minus_stored": counters["sent"] - kept,
            "log_lines": lines,
        },
    }


def load(
    sides: list[Side], folder: Path, seconds: int, rounds: int
) -> dict[str, dict[tuple[int, bool], list[Shot]]]:
    """Every case of every side, in turns."""
    shots: dict[str, Any] = {side.name: {case: [] for case in CASES} for side in sides}
    for side in sides:
        ask_once(side)
        for case in CASES[2:]:
            shoot(side, folder, case, min(seconds, 2))  # to warm up, and not counted
    for at in range(rounds):
        for case in CASES:
            for side in sides:
                shot = shoot(side, folder, case, seconds)
                shots[side.name][case].append(shot)
                say(f"round {at + 1}, {_name(case)}, {side.name}: {shot.rate:,.0f}/s")
    return shots


def drained(port: int, key: str) -> dict[str, int]:
    """The gateway's counters, once nothing waits any more.

    Raises:
        BenchmarkError: something still waits after two minutes.
    """
    ask = urllib.request.Request(
        f"http://127.0.0.1:{port}/health", headers={"Authorization": f"Bearer {key}"}
    )
    deadline = time.monotonic() + 120
    while True:
        with urllib.request.urlopen(ask, timeout=30) as reply:
            counters = json.load(reply)["capture"]
        if not counters["waiting"]:
            return counters
        if time.monotonic() > deadline:
            raise BenchmarkError(f"Capture did not drain: {counters}")
        time.sleep(0.2)


def count_kept(project: Path) -> int:
    """Interactions on disk, asked for by another process than the one that wrote them."""
    from trueup.records import Interaction
    from trueup.store import Store

    store = Store(project / ".trueup")
    try:
        return store.count(Interaction)
    finally:
        store.close()


def ratios(shots: dict[str, Any], case: tuple[int, bool]) -> dict[str, float]:
    """Trueup's figures, and LiteLLM's, against the mock's of the same round; medians."""
    found: dict[str, float] = {}
    for name in shots:
        if name == "mock":
            continue
        both = list(zip(shots["mock"][case], shots[name][case], strict=True))
        prefix = "" if name == "trueup" else f"{name}_"
        found |= {
            f"{prefix}added_p50_ms": median(b.p50_ms - a.p50_ms for a, b in both),
            f"{prefix}added_p99_ms": median(b.p99_ms - a.p99_ms for a, b in both),
            f"{prefix}share_of_rate": median(b.rate / a.rate for a, b in both),
        }
    return {key: round(value, 3) for key, value in found.items()}


def verdicts(found: dict[str, Any]) -> dict[str, bool]:
    """Each target, and whether it was met."""
    told: dict[str, bool] = {}
    for case in CASES:
        of, name = found["ratios"][_name(case)], _name(case)
        if case[0] == 1:
            told[f"{name}: added p50 <= 0.4 ms"] = of["added_p50_ms"] <= TARGETS["added_p50_ms"]
            told[f"{name}: added p99 <= 1.5 ms"] = of["added_p99_ms"] <= TARGETS["added_p99_ms"]
        else:
            share = of["share_of_rate"] >= TARGETS["share_of_rate"]
            told[f"{name}: >= 0.4 of the mock's rate"] = share
    told["sent minus stored is 0"] = found["capture"]["sent_minus_stored"] == 0
    told["all that was answered is stored"] = (
        found["capture"]["stored"] >= found["capture"]["answered"]
    )
    return told


def free_port() -> int:
    """One that nobody has at the moment."""
    with socket.create_server(("127.0.0.1", 0)) as one:
        return one.getsockname()[1]


def _name(case: tuple[int, bool]) -> str:
    return f"c={case[0]} {'stream' if case[1] else 'plain'}"


def _pooled(shots: list[Shot]) -> dict[str, float]:
    return {
        "rate": round(median(one.rate for one in shots), 1),
        "p50_ms": round(median(one.p50_ms for one in shots), 3),
        "p99_ms": round(median(one.p99_ms for one in shots), 3),
    }


def show(found: dict[str, Any]) -> None:
    """The table and the ratios."""
    machine = found["machine"]
    print(f"{machine['cpu']}, {machine['cores']} cores, commit {machine['commit']}")
    told = f"medians of {found['rounds']} rounds of {found['seconds']} s"
    print(f"{told}; the mock is {found['mock']}\n")
    print(f"{'case':<13}{'side':<10}{'rate /s':>10}{'p50 ms':>9}{'p99 ms':>9}")
    for case in CASES:
        for name, of in found["sides"].items():
            one = of[_name(case)]
            figures = f"{one['rate']:>10,.0f}{one['p50_ms']:>9.2f}{one['p99_ms']:>9.2f}"
            print(f"{_name(case):<13}{name:<10}{figures}")
    print(f"\n{'case':<13}{'side':<10}{'added p50':>10}{'added p99':>11}{'share of rate':>15}")
    for case in CASES:
        of = found["ratios"][_name(case)]
        for name in list(found["sides"])[1:]:
            prefix = "" if name == "trueup" else f"{name}_"
            p50, p99 = of[f"{prefix}added_p50_ms"], of[f"{prefix}added_p99_ms"]
            share = of[f"{prefix}share_of_rate"]
            print(f"{_name(case):<13}{name:<10}{p50:>10.3f}{p99:>11.3f}{share:>15.3f}")
    kept = found["capture"]
    print(
        f"\nanswered {kept['answered']:,}, sent to capture {kept['sent']:,}, stored "
        f"{kept['stored']:,}, sent minus stored {kept['sent_minus_stored']}, log lines "
        f"{kept['log_lines']:,}\n"
    )
    for told, is_met in found["targets"].items():
        print(f"{'met   ' if is_met else 'MISSED'}  {told}")


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description="What the gateway adds to a request.")
    parser.add_argument("--quick", action="store_true", help="one short round, without LiteLLM")
    parser.add_argument("--rounds", type=int, help="rounds [5]")
    parser.add_argument("--seconds", type=int, help="of load for each figure [8]")
    parser.add_argument("--no-litellm", action="store_true", help="the mock and trueup alone")
    parser.add_argument("--bare", action="store_true", help="a mock of bytes alone, no framework")
    parser.add_argument("--json", action="store_true", help="print the result as JSON")
    args = parser.parse_args()
    try:
        found = measure(args)
    except BenchmarkError as error:
        sys.exit(f"error: {error}")
    found["targets"] = verdicts(found)
    if args.json:
        print(json.dumps(found, indent=2))
    else:
        show(found)


if __name__ == "__main__":
    main()
