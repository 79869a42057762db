"""Against a real Label Studio, which this starts and stops; records its answers for other tests.

    make test-label-studio

Not collected by `make test`: it needs an environment with Label Studio, named by
TRUEUP_LABEL_STUDIO_PYTHON.
"""

import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from label_studio_live.label_studio_server import Place, running
from label_studio_live.scenarios import (
    SCENARIOS,
    World,
    annotate,
    choices,
    key_of,
    said,
    task,
    there,
)
from label_studio_live.wire import recording
from trueup.label import webhook
from trueup.label.label_studio import pull, push
from trueup.store import Store


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    python = Path(os.environ["TRUEUP_LABEL_STUDIO_PYTHON"]).absolute()
    started = time.perf_counter()
    with running(python, tmp_path_factory.mktemp("studio")) as found:
        print(f"\nserver up after {time.perf_counter() - started:.0f} s")
        yield found


@pytest.mark.parametrize("name", SCENARIOS)
def test_scenario(place: Place, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with recording(place.url, name) as url:
        SCENARIOS[name](World(url, place.ann, place.bob, place.pat, tmp_path, monkeypatch))


def test_webhooks_bring_votes_as_they_are_made(
    place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Made, edited, deleted; what came is recorded; a wrong secret changes nothing."""
    world = World(place.url, place.ann, place.bob, place.pat, tmp_path, monkeypatch)
    store = Store(tmp_path)
    store.add_all([task(0), task(1)])
    config = world.settings("webhooks")
    server = world.server(config)
    project = push(store, config, server).project
    with (
        webhook.running(store, server, project, "a secret of the test") as address,
        recording(address, "webhooks") as hook,
    ):
        for _ in range(2):
            server.register(project, f"{hook}/label-studio", "a secret of the test")
        seen = there(world, world.ann, project)[task(0).id]
        made = annotate(world, world.bob, seen, choices(key_of(seen, "good")))
        until(lambda: said(store) == {("0", "bob@example.org"): "first"})
        body = {"result": [choices("tie")]}
        world.call(world.bob, "PATCH", f"/api/annotations/{made}/", body)
        until(lambda: said(store) == {("0", "bob@example.org"): "tie"})
        assert pull(store, config.label_studio, server)[1:4] == (0, 1, 0)
        world.call(world.bob, "DELETE", f"/api/annotations/{made}/")
        until(lambda: said(store) == {})
        hooks = world.call(world.ann, "GET", f"/api/webhooks/?project={project}")
        assert len(hooks) == 1, "registered twice, there once"
        server.register(project, f"{hook}/label-studio", "another secret")
        annotate(world, world.bob, seen, choices("tie"))
        time.sleep(1)
        assert said(store) == {}
    store.close()


def until(holds) -> None:  # type: ignore[no-untyped-def]
    deadline = time.monotonic() + 20
    while not holds():
        assert time.monotonic() < deadline, "the webhook did not bring it"
        time.sleep(0.05)
