"""The main job once, for real: a live server, real traffic over HTTP, one turn of the loop.

Nothing here is staged: the server is the one `trueup serve` starts, the traffic goes through an
HTTP client, and the turn is `loop.turn`. A half-finished quickstart is taken up where it stands;
a finished one is started over.
"""

import asyncio
import json
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from trueup.errors import UpstreamError
from trueup.loop import Turn, turn
from trueup.measure import Cost
from trueup.models import pull
from trueup.progress import task
from trueup.project import Project
from trueup.records import Interaction
from trueup.suite import SuitePrompt, read_suite

__all__ = ["Quickstart", "run"]

CONCURRENCY = 32
START_TIMEOUT_S = 180
FINISHED = ".trueup/quickstart.done"


class Shown(NamedTuple):
    """One held-out prompt, answered by both."""

    question: str
    champion: str
    candidate: str


@dataclass
class Quickstart:
    """What happened."""

    project: Project
    turn: Turn
    served: str
    """Weights the live server answers with at the end."""
    examples: list[Shown] = field(default_factory=list)


def run(example: Path, folder: Path) -> Quickstart:
    """Make a project from an example and turn its loop once against a live server.

    Raises:
        UpstreamError: the server did not start, or stopped answering.
    """
    _prepare(example, folder)
    project = Project(folder)
    with task("model", 1) as advance:
        pull(project.config.model.base)
        advance(1)
    traffic = read_suite(folder / project.config.ab.prompts, split="train")
    with _server(folder) as server:
        cost = _send_traffic(server, project, traffic)
        done = turn(project)
        served = _weights(server)
    done.costs.insert(0, cost)
    (folder / FINISHED).write_text(done.verdict.status)
    return Quickstart(project, done, served, _examples(done))


def _prepare(example: Path, folder: Path) -> None:
    """Copy the example's files; a finished project is set aside, an unfinished one taken up."""
    if (folder / FINISHED).exists():
        folder.rename(folder.with_name(f"{folder.name}.{int(time.time())}"))
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("trueup.toml", "prompts.jsonl", "gold.jsonl"):
        shutil.copyfile(example / name, folder / name)


@dataclass(frozen=True)
class _Server:
    base_url: str
    pid: int


@contextmanager
def _server(folder: Path) -> Iterator[_Server]:
    """`trueup serve` in a process of its own, stopped at the end of the block."""
    command = [
        sys.executable,
        "-m",
        "trueup",
        "--project",
        str(folder),
        "serve",
        "--port",
        "0",
        "--json",
    ]
    path = folder / ".trueup" / "server.log"
    with path.open("w") as log:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True)
        try:
            yield _Server(_base_url(process, path), process.pid)
        finally:
            process.terminate()
            process.wait(timeout=60)


def _base_url(process: subprocess.Popen[str], log: Path) -> str:
    """Read what the server prints when it listens."""
    assert process.stdout is not None
    text, started = "", time.monotonic()
    while time.monotonic() - started < START_TIMEOUT_S:
        line = process.stdout.readline()
        text += line
        if line.startswith("}"):
            return str(json.loads(text)["base_url"])
        if not line:
            break
    raise UpstreamError(
        "The server did not start",
        got=log.read_text()[-400:] or "no output",
        expected="its address on stdout",
        next=f"look into {log}",
    )


def _send_traffic(server: _Server, project: Project, prompts: list[SuitePrompt]) -> Cost:
    """Send every prompt that was not answered before, a third of them streaming."""
    known = {one.prompt for one in project.store.each(Interaction)}
    waiting = [p for p in prompts if p.messages not in known]
    started = time.perf_counter()
    with task("traffic", len(waiting)) as advance:
        asyncio.run(_chat_all(server.base_url, waiting, advance))
    return Cost("serve", time.perf_counter() - started, _peak_mb(server.pid))


async def _chat_all(base_url: str, prompts: list[SuitePrompt], advance: Any) -> None:
    import aiohttp

    room = asyncio.Semaphore(CONCURRENCY)
    patience = aiohttp.ClientTimeout(total=600)
    async with aiohttp.ClientSession(timeout=patience) as session:

        async def chat(place: int, prompt: SuitePrompt) -> None:
            body = {
                "model": "champion",
                "messages": [m.model_dump() for m in prompt.messages],
                "seed": place,
                "stream": place % 3 == 0,
                "user": f"visitor-{place % 40}",
            }
            async with room, session.post(f"{base_url}/chat/completions", json=body) as response:
                answer = await response.read()
                if response.status != 200:
                    raise UpstreamError(
                        "The server refused a request",
                        got=answer[:300].decode(errors="replace"),
                        expected="HTTP 200",
                        next="look into .trueup/server.log",
                    )
            advance(1)

        await asyncio.gather(*(chat(place, prompt) for place, prompt in enumerate(prompts)))


def _weights(server: _Server) -> str:
    """What the live server would answer with now."""
    import urllib.request

    with urllib.request.urlopen(f"{server.base_url}/models", timeout=60) as answer:
        return str(json.load(answer)["data"][0]["weights"])


def _peak_mb(pid: int) -> float:
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
        return int(next(line for line in lines if line.startswith("VmHWM:")).split()[1]) / 1024
    except (OSError, StopIteration):
        return 0.0


def _examples(done: Turn) -> list[Shown]:
    """Two prompts with the greatest gain and the one with the greatest loss."""
    votes = next((r.details["votes"] for r in done.reports if r.tag == "ab"), [])
    ranked = sorted(votes, key=lambda v: v["score"] - v["champion_score"])
    picked = [*ranked[-2:], *ranked[:1]] if len(ranked) >= 3 else []
    return [
        Shown(v["prompt"].rpartition("Question:")[2].strip(), v["champion_answer"], v["answer"])
        for v in picked
    ]
