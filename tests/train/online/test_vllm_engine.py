"""Rollouts from a vLLM server: what a real one said in a short run, and what must stop a run."""

import json
from pathlib import Path
from typing import Any

import pytest

from trueup.errors import ConfigError, IdentityError, TrainingError, UpstreamError
from trueup.models.sampler import SampleRequest, sample
from trueup.records import Sampling
from trueup.train import TrainConfig, run
from trueup.train.online.choices import importance_of
from trueup.train.online.config import OnlineConfig
from trueup.train.online.gap import EngineGap, check_engine, need_near
from vllm_live.runs import CONFIG, RUNS, engine_at, filled
from vllm_live.scenarios import save_model
from vllm_live.wire import Answer, replaying, serving


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(tmp_path_factory.mktemp("base") / "model")


@pytest.mark.parametrize("name", RUNS)
def test_a_run_on_what_a_real_server_said(model: Path, tmp_path: Path, name: str) -> None:
    """Three batches of RLOO. The recorded log-probs are those of the weights that the recorded run
    had then, so they also show that this run has the same."""
    with replaying(name) as url:
        RUNS[name](tmp_path / "store", model, url)


# --- a made-up server, which answers with our own sampler ----------------------------------------


class Twin:
    """Speaks as vLLM does. It has the base and no adapter, so it follows nobody.

    `off` is added to every log-prob it gives.
    """

    def __init__(self, champion: Any, *, off: float = 0.0, down_after: int = 10**9) -> None:
        self.champion, self.off, self.down_after = champion, off, down_after
        self.loaded: list[dict[str, Any]] = []
        self.unloaded: list[str] = []
        self.bodies: list[dict[str, Any]] = []

    def __call__(self, method: str, path: str, body: bytes, headers: dict[str, str]) -> Answer:
        asked = json.loads(body)
        if path == "/v1/load_lora_adapter":
            folder = Path(asked["lora_path"])
            assert (folder / "adapter_model.safetensors").is_file(), "the server reads the folder"
            self.loaded.append(asked)
            return Answer(200, b"done") if len(self.loaded) <= self.down_after else Answer(500, b"")
        if path == "/v1/unload_lora_adapter":
            self.unloaded.append(asked["lora_name"])
            return Answer(200, b"done")
        self.bodies.append(asked)
        sampling = Sampling(max_tokens=asked["max_tokens"], seed=asked["seed"])
        request = SampleRequest(asked["prompt"], sampling, asked["n"])
        ends = frozenset(asked["stop_token_ids"])
        with self.champion.acting() as network:
            ((*drawn,),) = sample(network, [request], eos_ids=ends)
        choices = [
            {
                "index": at,
                "token_ids": one.token_ids,
                "logprobs": {"token_logprobs": [x + self.off for x in one.logprobs]},
                "finish_reason": one.finish_reason,
            }
            for at, one in enumerate(drawn)
        ]
        return Answer(200, json.dumps({"choices": choices}).encode())


def config(url: str, **online: Any) -> TrainConfig:
    given = {**CONFIG["online"], "engine": engine_at(url, concurrency=1), "steps": 1}
    return TrainConfig.model_validate(CONFIG | {"online": given | online})


def test_a_batch_is_asked_of_the_policys_own_adapter(model: Path, tmp_path: Path) -> None:
    store, dataset, champion = filled(tmp_path, model)
    twin = Twin(champion)
    with serving(twin) as url:
        run(store, config(url), dataset, champion)
    assert len(twin.loaded) == 2, "before the check and before the batch"
    assert {one["lora_name"] for one in twin.loaded} == {"policy"}
    assert {one["model"] for one in twin.bodies} == {"policy"}
    assert len({one["seed"] for one in twin.bodies[-3:]}) == 3, "a prompt, a seed"
    assert twin.unloaded[-1] == "policy"
    store.close()


def test_an_engine_far_from_the_policy_is_refused_before_the_first_step(
    model: Path, tmp_path: Path
) -> None:
    store, dataset, champion = filled(tmp_path, model)
    with (
        serving(Twin(champion, off=0.2)) as url,
        pytest.raises(IdentityError, match=r"does not draw from the policy.*0\.2 nats.*dtype"),
    ):
        run(store, config(url), dataset, champion)
    store.close()


def test_an_engine_that_differs_by_rounding_needs_a_correction(model: Path, tmp_path: Path) -> None:
    store, dataset, champion = filled(tmp_path, model)
    with serving(Twin(champion, off=0.01)) as url:
        with pytest.raises(ConfigError, match=r"nothing would correct.*train\.online\.importance"):
            run(store, config(url, importance="none"), dataset, champion)
        metrics = run(store, config(url), dataset, champion).metrics
    assert metrics["identity"]["engine_gap"] == pytest.approx(0.01, abs=1e-4)
    assert metrics["last"]["weight"] < 1, "what the engine overrates counts less"
    store.close()


def test_an_engine_that_does_not_follow_is_noticed(model: Path, tmp_path: Path) -> None:
    store, dataset, champion = filled(tmp_path, model)
    with serving(Twin(champion)) as url:
        still = config(url, steps=6).model_copy(update={"learning_rate": 0.1})
        with pytest.raises(TrainingError, match="no longer draws from the policy"):
            run(store, still, dataset, champion)
    assert list(store.folder.glob("runs/*/step-*")), "what was done before is kept"
    store.close()


def test_a_server_that_goes_down_leaves_a_run_to_resume(model: Path, tmp_path: Path) -> None:
    store, dataset, champion = filled(tmp_path, model)
    with (
        serving(Twin(champion, down_after=2)) as url,
        pytest.raises(UpstreamError, match="load_lora_adapter"),
    ):
        run(store, config(url, steps=2), dataset, champion)
    (state,) = store.folder.glob("runs/*/step-*")
    assert int(state.name.removeprefix("step-")) == 1
    store.close()


def test_the_engine_says_how_it_is_corrected() -> None:
    local, vllm = OnlineConfig(), OnlineConfig.model_validate({"engine": {"kind": "vllm"}})
    assert importance_of("grpo", local) == "none"
    assert importance_of("grpo", vllm) == importance_of("ppo", vllm) == "token"
    assert importance_of("rloo", vllm) == "sequence"
    said = vllm.model_copy(update={"importance": "none"})
    assert importance_of("grpo", said) == "none"


def test_a_whole_model_cannot_be_sent_to_a_server() -> None:
    with pytest.raises(ValueError, match="loads adapters"):
        config("http://127.0.0.1:1/v1").model_validate(
            CONFIG | {"adapter": "full", "online": {"engine": {"kind": "vllm"}}}
        )


def test_a_gap_that_is_no_number_is_refused() -> None:
    nothing = EngineGap(float("nan"), float("nan"))
    with pytest.raises(IdentityError):
        check_engine(nothing, "token")
    with pytest.raises(TrainingError):
        need_near(nothing)
    assert check_engine(EngineGap(1e-4, 1e-2), "none") == {
        "engine_gap": 1e-4,
        "engine_gap_max": 1e-2,
    }
