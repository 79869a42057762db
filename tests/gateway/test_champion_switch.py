"""Promotions and rollbacks made elsewhere are served from the next request on; forgeries never."""

import json
import subprocess
import sys
from pathlib import Path

import openai
import pytest
import torch
from openai import OpenAI

from trueup.models.backbone import Backbone
from trueup.records import Checkpoint, Release, TrainingRun
from trueup.store import Store

RESET = [{"role": "user", "content": "How do I reset it?"}]

RELEASE = """
import sys
from trueup.records import Release
from trueup.store import Store
store = Store(sys.argv[1])
store.release(Release.model_validate_json(sys.argv[2]))
"""


def make_checkpoint(folder: Path, store: Store, *, seed: int) -> Checkpoint:
    """An adapter that makes another model of the tiny one, in the store with its lineage."""
    backbone = Backbone.load(folder)
    backbone.new_adapter("policy", rank=4, alpha=8, targets=["q_proj", "v_proj"], seed=seed)
    noise = torch.Generator().manual_seed(seed)
    for name, weight in backbone.model.named_parameters():
        if "lora_B" in name:
            weight.data.copy_(torch.randn(weight.shape, generator=noise) * 0.5)
    path = f"checkpoints/noise-{seed}"
    weights = backbone.save_adapter("policy", store.folder / path, card={})
    base = backbone.base_weights
    run = TrainingRun(
        dataset_id="dataset_00", method="dpo", config={}, base_weights=base, start_weights=base,
        ref_weights=base, template=backbone.template,
    )  # fmt: skip
    checkpoint = Checkpoint(run_id=run.id, path=path, weights=weights, base_weights=base)
    store.add(run, checkpoint)
    return checkpoint


def promotion(checkpoint: Checkpoint, previous: Release | None) -> Release:
    return Release(
        action="promote", weights=checkpoint.weights, checkpoint_id=checkpoint.id,
        previous=previous.id if previous else None,
    )  # fmt: skip


def greedy(client: OpenAI) -> tuple[str, list[str], list[float]]:
    answer = client.chat.completions.create(
        model="champion", messages=RESET, temperature=0, max_tokens=40, logprobs=True
    )
    tokens = answer.choices[0].logprobs.content
    return answer.system_fingerprint, [t.token for t in tokens], [t.logprob for t in tokens]


def test_a_promotion_and_a_rollback_by_another_process(gateway, tiny_folder) -> None:
    base = Backbone.load(tiny_folder).base_weights
    before = greedy(gateway.client)
    assert before[0] == base

    checkpoint = make_checkpoint(tiny_folder, gateway.store, seed=1)
    assert greedy(gateway.client) == before  # a checkpoint alone changes nothing

    promote = promotion(checkpoint, None)
    release_elsewhere(gateway.store, promote)
    assert gateway.client.models.list().data[0].weights == checkpoint.weights
    promoted = greedy(gateway.client)
    assert promoted[0] == checkpoint.weights and promoted[1:] != before[1:]

    other = make_checkpoint(tiny_folder, gateway.store, seed=2)
    second = promotion(other, promote)
    release_elsewhere(gateway.store, second)
    assert greedy(gateway.client)[0] == other.weights

    rollback = promotion(checkpoint, second).model_copy(
        update={"id": "", "action": "rollback", "restores": promote.id}
    )
    release_elsewhere(gateway.store, Release.model_validate(rollback.model_dump()))
    restored = greedy(gateway.client)
    assert restored[:2] == promoted[:2]
    assert restored[2] == pytest.approx(promoted[2], abs=1e-5)

    to_base = Release(action="rollback", weights=base, previous=second.id)
    release_elsewhere(gateway.store, to_base)
    returned = greedy(gateway.client)
    assert returned[:2] == before[:2] and returned[2] == pytest.approx(before[2], abs=1e-5)
    said_by = [one.completion.weights for one in gateway.interactions()]
    assert said_by == [base, base, checkpoint.weights, other.weights, checkpoint.weights, base]


def test_a_tampered_adapter_is_not_served_and_mending_it_is_enough(gateway, tiny_folder) -> None:
    checkpoint = make_checkpoint(tiny_folder, gateway.store, seed=1)
    gateway.store.release(promotion(checkpoint, None))
    file = gateway.store.folder / checkpoint.path / "adapter_model.safetensors"
    original = file.read_bytes()
    file.write_bytes(original[:-1] + bytes([original[-1] ^ 1]))

    with pytest.raises(openai.InternalServerError) as caught:
        greedy(gateway.client)
    assert caught.value.status_code == 503
    assert "The champion cannot be served" in str(caught.value)
    assert checkpoint.weights in str(caught.value)  # what was expected
    with pytest.raises(openai.InternalServerError):
        gateway.client.chat.completions.create(model="champion", messages=RESET, stream=True)
    health = gateway.http.get("/health")
    assert health.status_code == 503 and health.json()["status"] == "refusing"
    assert gateway.interactions() == []

    file.write_bytes(original)
    assert greedy(gateway.client)[0] == checkpoint.weights
    assert gateway.http.get("/health").status_code == 200


@pytest.mark.parametrize("what", ["file", "folder", "scaling", "record"])
def test_an_adapter_that_is_not_there_or_not_the_same_is_not_served(
    gateway, tiny_folder, what
) -> None:
    checkpoint = make_checkpoint(tiny_folder, gateway.store, seed=1)
    release = promotion(checkpoint, None)
    folder = gateway.store.folder / checkpoint.path
    if what == "file":
        (folder / "adapter_model.safetensors").unlink()
    elif what == "folder":
        folder.rename(folder.with_name("elsewhere"))
    elif what == "scaling":
        config = json.loads((folder / "adapter_config.json").read_text())
        (folder / "adapter_config.json").write_text(json.dumps({**config, "lora_alpha": 80}))
    else:
        release = Release(action="promote", weights="weights_0", checkpoint_id="checkpoint_0")
    gateway.store.release(release)
    with pytest.raises(openai.InternalServerError, match="cannot be served") as caught:
        greedy(gateway.client)
    assert caught.value.status_code == 503


def test_a_release_of_another_base_is_not_served(gateway) -> None:
    gateway.store.release(Release(action="first", weights="weights_of_another_base"))
    with pytest.raises(openai.InternalServerError, match="weights_of_another_base"):
        greedy(gateway.client)


def release_elsewhere(store: Store, release: Release) -> None:
    command = [sys.executable, "-c", RELEASE, str(store.folder), release.model_dump_json()]
    subprocess.run(command, check=True, timeout=60)
