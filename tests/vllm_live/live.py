"""Against a real vLLM server, which this starts and stops; records its answers for the other tests.

    make test-vllm

Not collected by `make test`: it needs an environment with vLLM, named by TRUEUP_VLLM_PYTHON.
"""

import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from trueup.errors import UpstreamError
from trueup.models.vllm import VLLMServer
from vllm_live.runs import RUNS
from vllm_live.scenarios import BASE, RANK, SCENARIOS, World, asked, make_world, save_model
from vllm_live.vllm_server import running
from vllm_live.wire import recording


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("live")


@pytest.fixture(scope="module")
def python() -> Path:
    return Path(os.environ["TRUEUP_VLLM_PYTHON"]).absolute()


@pytest.fixture(scope="module")
def world(place: Path, python: Path) -> Iterator[World]:
    model = save_model(place / "model")
    started = time.perf_counter()
    with running(python, model, place / "server.log", name=BASE, max_lora_rank=RANK) as url:
        print(f"\nserver up after {time.perf_counter() - started:.0f} s")
        yield make_world(place, model)._replace(url=url)


@pytest.mark.parametrize("name", SCENARIOS)
def test_scenario(world: World, place: Path, name: str) -> None:
    with recording(world.url, name, place) as url:
        SCENARIOS[name](world._replace(url=url))


@pytest.mark.parametrize("name", RUNS)
def test_run(world: World, place: Path, name: str) -> None:
    folder = place / name
    with recording(world.url, name, place) as url:
        RUNS[name](folder, place / "model", url)


def test_keys_and_values_of_replaced_weights_are_not_reused(world: World) -> None:
    """The server keeps them by an adapter's name and path. Our salt is what tells them apart: under
    the old one answers are of neither model, under a new one of the right one."""
    from vllm_live.scenarios import draw, gap

    folder, prompt = world.adapters[0].parent / "moving", list(range(60, 110)) * 6
    gaps = {}
    for at, adapter in enumerate(world.adapters):
        shutil.copytree(adapter, folder, dirs_exist_ok=True)
        world.server.load_adapter("moving", folder)
        for salt in ("same", f"of {at}"):
            (group,) = draw(world, [asked(prompt, 2)], "moving", salt=salt)
            gaps[at, salt] = gap(world, ("first", "second")[at], prompt, group)
    world.server.unload_adapter("moving")
    print("\nlargest gaps by (adapter, salt), nats:", gaps)
    assert gaps[0, "of 0"] < 1e-4 and gaps[1, "of 1"] < 1e-4
    assert gaps[1, "same"] > 0.1, "then the salt is no longer needed"


def test_a_swap_and_a_draw_are_quick(world: World) -> None:
    server, took = world.server, []
    for adapter in world.adapters * 5:
        started = time.perf_counter()
        server.load_adapter("quick", adapter)
        took.append(time.perf_counter() - started)
    requests = [asked([60 + i, 70, 80], 4, max_tokens=64) for i in range(8)]
    speed = {}
    for model in (BASE, "quick"):
        started = time.perf_counter()
        server.sample(model, requests, eos_ids=frozenset((256,)), salt="quick")
        speed[model] = 8 * 4 * 64 / (time.perf_counter() - started)
    server.unload_adapter("quick")
    print(f"\nswap: {sorted(took)[5] * 1e3:.0f} ms; tokens a second: {speed}")


def test_a_server_that_may_not_load_says_how_to_let_it(place: Path, python: Path) -> None:
    model, log = place / "model", place / "closed.log"
    with (
        running(python, model, log, name=BASE, max_lora_rank=RANK, may_load=False) as closed,
        recording(closed, "a_server_that_may_not_load", place) as url,
        pytest.raises(UpstreamError, match="VLLM_ALLOW_RUNTIME_LORA_UPDATING"),
    ):
        VLLMServer(url, max_retries=0).load_adapter("policy", Path("/nowhere/adapter"))
