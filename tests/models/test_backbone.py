"""One frozen base in many roles: what a role may change, and what must stay to the last bit."""

import json
import shutil
from pathlib import Path

import pytest
import torch

from trueup.errors import ModelError
from trueup.models.backbone import Backbone, adapter_weights, base_weights
from trueup.models.logprobs import Branches, completion_logprobs
from trueup.models.tiny import save_tiny
from trueup.records import Completion, Message, Sampling

ADAPTER = "adapter_model.safetensors"
PROMPTS = [(Message(role="user", content=text),) for text in ("sky?", "a longer one?", "a")]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("random") / "model", seed=2, hidden_size=32)


@pytest.fixture
def backbone(folder: Path) -> Backbone:
    return Backbone.load(folder)


def save_random_adapter(backbone: Backbone, folder: Path, seed: int) -> Path:
    """An adapter that makes a clearly other model."""
    backbone.new_adapter("scratch", rank=2, alpha=4.0, targets=["all-linear"], seed=seed)
    random = torch.Generator().manual_seed(seed)
    for name, parameter in backbone.model.named_parameters():
        if "lora_B.scratch" in name:
            torch.nn.init.normal_(parameter, std=0.5, generator=random)
    folder.mkdir()
    backbone.save_adapter("scratch", folder, card={})
    backbone.detach("scratch")
    return folder


@pytest.fixture(scope="module")
def adapters(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    place = tmp_path_factory.mktemp("adapters")
    return [save_random_adapter(Backbone.load(folder), place / str(n), n) for n in (1, 2)]


def says(backbone: Backbone, role: str | None) -> torch.Tensor:
    row = Branches([3, 1, 4, 1, 5], [[9, 2, 6], [5, 3, 5, 8]])
    with torch.no_grad(), backbone.acting_as(role) as model:
        return torch.cat(completion_logprobs(model, [row])[0])


# --- roles ----------------------------------------------------------------------------------------


def test_the_base_with_its_adapters_switched_off_is_the_base_to_the_bit(
    backbone: Backbone, adapters: list[Path]
) -> None:
    before = says(backbone, None)
    backbone.attach("champion", adapters[0])
    backbone.attach("policy", adapters[1])
    assert not torch.equal(says(backbone, "champion"), before)
    assert torch.equal(says(backbone, None), before)
    assert not torch.equal(says(backbone, "policy"), says(backbone, "champion"))
    assert torch.equal(says(backbone, None), before)


def test_a_role_says_the_same_whoever_else_is_attached(
    folder: Path, backbone: Backbone, adapters: list[Path]
) -> None:
    alone = Backbone.load(folder)
    alone.attach("x", adapters[0])
    backbone.attach("champion", adapters[1])
    backbone.attach("candidate", adapters[0])
    assert torch.equal(says(backbone, "candidate"), says(alone, "x"))


def test_attaching_again_replaces_what_the_role_was(
    backbone: Backbone, adapters: list[Path]
) -> None:
    said = {}
    for adapter in (adapters[0], adapters[1], adapters[0]):
        backbone.attach("champion", adapter)
        said.setdefault(adapter, []).append(says(backbone, "champion"))
    first, again = said[adapters[0]]
    assert torch.equal(first, again)
    assert not torch.equal(first, said[adapters[1]][0])


def test_detaching_gives_the_base_back_and_the_role_can_come_again(
    backbone: Backbone, adapters: list[Path]
) -> None:
    before = says(backbone, None)
    for _ in range(2):
        backbone.attach("champion", adapters[0])
        said = says(backbone, "champion")
        backbone.detach("champion")
        assert torch.equal(says(backbone, None), before)
    backbone.detach("champion")
    backbone.attach("champion", adapters[0])
    assert torch.equal(says(backbone, "champion"), said)


def test_detaching_one_role_leaves_the_other(backbone: Backbone, adapters: list[Path]) -> None:
    backbone.attach("champion", adapters[0])
    backbone.attach("candidate", adapters[1])
    champion = says(backbone, "champion")
    backbone.detach("candidate")
    assert torch.equal(says(backbone, "champion"), champion)
    with pytest.raises(ModelError, match="'candidate'"):
        says(backbone, "candidate")


def test_a_role_that_was_never_attached_is_refused(backbone: Backbone) -> None:
    with pytest.raises(ModelError, match="'policy'"):
        says(backbone, "policy")


@pytest.mark.parametrize("outer", [None, "champion", "policy"])
@pytest.mark.parametrize("inner", [None, "champion", "policy"])
def test_roles_nest_and_the_outer_one_comes_back(
    backbone: Backbone, adapters: list[Path], outer: str | None, inner: str | None
) -> None:
    backbone.attach("champion", adapters[0])
    backbone.attach("policy", adapters[1])
    expected = {role: says(backbone, role) for role in (None, "champion", "policy")}
    row = Branches([3, 1, 4, 1, 5], [[9, 2, 6], [5, 3, 5, 8]])
    with backbone.acting_as(outer) as model:
        assert torch.equal(says(backbone, inner), expected[inner])
        with torch.no_grad():
            back = torch.cat(completion_logprobs(model, [row])[0])
        assert torch.equal(back, expected[outer])


def test_an_error_inside_a_role_gives_the_outer_one_back(
    backbone: Backbone, adapters: list[Path]
) -> None:
    backbone.attach("champion", adapters[0])
    expected = says(backbone, None)
    with pytest.raises(ZeroDivisionError), backbone.acting_as("champion"):
        raise ZeroDivisionError
    assert torch.equal(says(backbone, None), expected)


def test_a_fresh_adapter_is_the_base_to_the_bit_and_its_seed_decides_it(
    folder: Path, tmp_path: Path
) -> None:
    names = []
    for place, seed in enumerate((1, 1, 2)):
        backbone = Backbone.load(folder)
        before = says(backbone, None)
        torch.manual_seed(99)
        expected = torch.rand(2)
        torch.manual_seed(99)
        backbone.new_adapter("policy", rank=2, alpha=4.0, targets=["all-linear"], seed=seed)
        assert torch.equal(torch.rand(2), expected), "the global randomness is left alone"
        assert torch.equal(says(backbone, "policy"), before)
        (tmp_path / str(place)).mkdir()
        names.append(backbone.save_adapter("policy", tmp_path / str(place), card={}))
    assert names[0] == names[1] != names[2]


def test_only_named_modules_get_an_adapter(backbone: Backbone) -> None:
    backbone.new_adapter("policy", rank=2, alpha=4.0, targets=["q_proj", "v_proj"], seed=0)
    touched = {n.split(".")[-4] for n, _ in backbone.model.named_parameters() if "lora_A" in n}
    assert touched == {"q_proj", "v_proj"}


# --- names of weights -----------------------------------------------------------------------------


def flip_one_bit(file: Path) -> None:
    raw = bytearray(file.read_bytes())
    raw[-7] ^= 1  # inside the tensors, behind the header
    file.write_bytes(bytes(raw))


def test_the_same_bytes_are_the_same_model_wherever_they_lie(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path / "copy")
    assert base_weights(tmp_path / "copy") == base_weights(folder)
    assert base_weights(folder).startswith("weights_")


def test_one_bit_makes_another_model(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path / "copy")
    flip_one_bit(tmp_path / "copy" / "model.safetensors")
    assert base_weights(tmp_path / "copy") != base_weights(folder)


def test_one_bit_makes_another_adapter(adapters: list[Path], tmp_path: Path) -> None:
    copy = shutil.copytree(adapters[0], tmp_path / "copy")
    assert adapter_weights("weights_1", copy) == adapter_weights("weights_1", adapters[0])
    assert adapter_weights("weights_2", copy) != adapter_weights("weights_1", copy)
    flip_one_bit(copy / ADAPTER)
    assert adapter_weights("weights_1", copy) != adapter_weights("weights_1", adapters[0])


@pytest.mark.parametrize(
    "change",
    [
        {"lora_alpha": 40},
        {"use_rslora": True},
        {"alpha_pattern": {"q_proj": 64}},
        {"rank_pattern": {"q_proj": 1}},
        {"layers_to_transform": [0]},
    ],
    ids=str,
)
def test_a_setting_that_changes_what_an_adapter_does_changes_its_name(
    adapters: list[Path], tmp_path: Path, change: dict
) -> None:
    """Otherwise another model could be served under the champion's name."""
    copy = shutil.copytree(adapters[0], tmp_path / "copy")
    config = json.loads((copy / "adapter_config.json").read_text())
    (copy / "adapter_config.json").write_text(json.dumps(config | change))
    assert adapter_weights("weights_1", copy) != adapter_weights("weights_1", adapters[0])


def test_a_setting_that_changes_nothing_keeps_the_name(
    adapters: list[Path], tmp_path: Path
) -> None:
    """The folder the base was loaded from is another on every machine."""
    copy = shutil.copytree(adapters[0], tmp_path / "copy")
    config = json.loads((copy / "adapter_config.json").read_text())
    moved = config | {"base_model_name_or_path": "/elsewhere", "inference_mode": False}
    (copy / "adapter_config.json").write_text(json.dumps(moved))
    assert adapter_weights("weights_1", copy) == adapter_weights("weights_1", adapters[0])


# --- folders that are no model --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("missing", "named"),
    [
        ("tokenizer.json", "a tokenizer"),
        ("config.json", "a config.json"),
        ("model.safetensors", "safetensors weights"),
    ],
)
def test_a_folder_that_lacks_a_part_is_refused_by_name(
    folder: Path, tmp_path: Path, missing: str, named: str
) -> None:
    copy = shutil.copytree(folder, tmp_path / "half")
    (copy / missing).unlink()
    with pytest.raises(ModelError, match=f"lacks {named}") as caught:
        Backbone.load(copy)
    assert str(copy) in str(caught.value)


def test_pickled_weights_are_not_read(folder: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(folder, tmp_path / "pickled")
    (copy / "model.safetensors").unlink()
    torch.save({}, copy / "pytorch_model.bin")
    with pytest.raises(ModelError, match="pickled weights are not read"):
        Backbone.load(copy)


def test_no_folder_at_all_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="no such folder"):
        Backbone.load(tmp_path / "nowhere")


def test_a_tokenizer_without_a_chat_template_is_refused(folder: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(folder, tmp_path / "mute")
    (copy / "chat_template.jinja").unlink()
    with pytest.raises(ModelError, match="no chat template"):
        Backbone.load(copy)


def test_weights_that_are_cut_off_are_refused(folder: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(folder, tmp_path / "cut")
    whole = (copy / "model.safetensors").read_bytes()
    (copy / "model.safetensors").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ModelError, match="could not be loaded"):
        Backbone.load(copy)


def test_an_adapter_folder_that_lacks_a_part_is_refused(
    backbone: Backbone, adapters: list[Path], tmp_path: Path
) -> None:
    for missing in (ADAPTER, "adapter_config.json"):
        copy = shutil.copytree(adapters[0], tmp_path / missing)
        (copy / missing).unlink()
        with pytest.raises(ModelError, match="is not an adapter this program reads"):
            backbone.attach("champion", copy)
    with pytest.raises(ModelError, match="no such folder"):
        backbone.attach("champion", tmp_path / "nowhere")


# --- drawing --------------------------------------------------------------------------------------


def drawn(backbone: Backbone, prompts: list, **settings: object) -> list[list[Completion]]:
    sampling = Sampling(**{"max_tokens": 8, "seed": 5, **settings})  # type: ignore[arg-type]
    return backbone.complete(prompts, sampling, role=None, weights="weights_1", num_samples=2)


def test_completions_come_in_the_prompts_order_and_carry_where_they_are_from(
    backbone: Backbone,
) -> None:
    answers = drawn(backbone, PROMPTS)
    greedy = [drawn(backbone, [p], temperature=0.0)[0][0].text for p in PROMPTS]
    assert [g[0].text for g in drawn(backbone, PROMPTS, temperature=0.0)] == greedy
    assert [len(group) for group in answers] == [2, 2, 2]
    one = answers[0][0]
    assert (one.weights, one.sampling) == ("weights_1", Sampling(max_tokens=8, seed=5))
    assert one.token_ids and one.logprobs and len(one.token_ids) == len(one.logprobs)
    assert drawn(backbone, PROMPTS) == answers, "the same again"


def test_equal_prompts_in_one_call_get_different_answers(backbone: Backbone) -> None:
    answers = drawn(backbone, [PROMPTS[0]] * 3)
    assert len({c.token_ids for group in answers for c in group}) == 6


def test_no_prompts_are_no_completions(backbone: Backbone) -> None:
    assert drawn(backbone, []) == []


def test_a_prompt_without_room_for_an_answer_is_refused_by_its_beginning(
    backbone: Backbone,
) -> None:
    long = (Message(role="user", content="sky " * backbone.context),)
    with pytest.raises(ModelError, match=r"no room for an answer.*'sky sky"):
        drawn(backbone, [PROMPTS[0], long])
    assert drawn(backbone, PROMPTS[:1], max_tokens=backbone.context // 2)
    with pytest.raises(ModelError, match="no room"):
        drawn(backbone, PROMPTS[:1], max_tokens=backbone.context)
