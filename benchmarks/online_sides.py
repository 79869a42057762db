"""The sides of `online.py` that run in trueup's own environment: trueup and transformers.

`online.py` starts this file, writes tasks to it and reads answers, a line of JSON each. Every
measurement does its work once to warm up and then as often as it is timed.
"""

import random
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from processes import Task, peak_mb, serve

LORA = {"rank": 16, "alpha": 32.0}
WORDS = ("the", "sky", "is", "blue", "and", "small", "boats", "wait", "by", "an", "old", "bridge")


# --- what both sides are asked ------------------------------------------------------------------


def prepare(task: Task, scratch: Path) -> Task:
    """Prompts of exactly so many tokens, candidates, and the head that makes a reward model."""
    from transformers import AutoConfig, AutoTokenizer

    from trueup.models import chat

    if task["tiny"]:
        from trueup.models.tiny import save_tiny

        save_tiny(Path(task["model"]), seed=0)
    tokenizer = AutoTokenizer.from_pretrained(task["model"])
    config = AutoConfig.from_pretrained(task["model"])
    # wide enough that the order of candidates is seen in the third digit
    seeded = torch.Generator().manual_seed(task["seed"])
    head = torch.randn(1, config.hidden_size, generator=seeded) / config.hidden_size**0.5
    torch.save(head, task["head"])
    draw = random.Random(task["seed"])
    texts = [_text_of(tokenizer, task["prompt"], draw) for _ in range(task["num_prompts"])]
    special = {*tokenizer.all_special_ids, config.pad_token_id}
    usual = [token for token in range(len(tokenizer)) if token not in special]
    return {
        "texts": texts,
        "prompts": [chat.prompt_ids(tokenizer, _message(text)) for text in texts],
        "candidates": [
            [draw.choices(usual, k=task["num_new"]) for _ in range(task["num_samples"])]
            for _ in texts
        ],
        "eos_ids": sorted(chat.eos_ids(tokenizer)),
    }


def _text_of(tokenizer: Any, num_tokens: int, draw: random.Random) -> str:
    """Words that make a prompt of exactly this many tokens, template included."""
    from trueup.models import chat

    text, size = draw.choice(WORDS), 0
    while size < num_tokens:
        for more in (f" {draw.choice(WORDS)}", " a", "a", "."):
            longer = len(chat.prompt_ids(tokenizer, _message(text + more)))
            if size < longer <= num_tokens:
                text, size = text + more, longer
                break
        else:
            raise ValueError(f"no prompt of {num_tokens} tokens begins with {text!r}")
    return text


def _message(text: str) -> Any:
    from trueup.records import Message

    return (Message(role="user", content=text),)


def _timed(task: Task, work: Callable[[], Any]) -> tuple[list[float], Any]:
    """Seconds of the warm-up and of the timed runs, and what the last one gave."""
    seconds, found = [], None
    for _ in range(1 + task["timed"]):
        found = None  # what the run before gave is no part of this one's memory
        began = time.perf_counter()
        found = work()
        seconds.append(time.perf_counter() - began)
    return seconds, found


def _backbone(task: Task) -> Any:
    from trueup.models.backbone import Backbone

    return Backbone.load(Path(task["model"]), device="cpu", dtype="float32")


# --- drawing ------------------------------------------------------------------------------------


def draw_trueup(task: Task, scratch: Path) -> Task:
    """`sample`, whose answers come with their log-probs."""
    from trueup.models.sampler import SampleRequest, sample
    from trueup.records import Sampling

    backbone = _backbone(task)
    ends = task["lengths"]  # of each prompt's answers, or None
    requests = [
        SampleRequest(ids, Sampling(max_tokens=task["num_new"], seed=at), task["num_samples"])
        for at, ids in enumerate(task["prompts"])
    ]

    def work() -> list[list[Any]]:
        told: Counter[tuple[int, int]] = Counter()

        def on_token(key: int, sample_idx: int, token: int, logprob: float) -> Any:
            told[key, sample_idx] += 1
            return "stop" if told[key, sample_idx] == ends[key][sample_idx] else None

        with backbone.acting_as(None) as model:
            return sample(
                model,
                requests,
                eos_ids=frozenset(task["eos_ids"]),
                on_token=on_token if ends else None,
            )

    seconds, drawn = _timed(task, work)
    return {
        "seconds": seconds,
        "peak_mb": peak_mb(),
        "answers": [[list(one.token_ids) for one in group] for group in drawn],
        "logprobs": [[list(one.logprobs) for one in group] for group in drawn],
    }


def draw_transformers(task: Task, scratch: Path) -> Task:
    """`generate` with the answers to all prompts in one batch; with or without their log-probs."""
    from transformers import StoppingCriteriaList

    model = _causal(task)
    prompts_BT = torch.tensor(task["prompts"])
    rows = [length for group in task["lengths"] or [] for length in group]
    settings = {
        "do_sample": True,
        "temperature": 1.0,
        "top_p": 1.0,
        "top_k": 0,
        "num_return_sequences": task["num_samples"],
        "max_new_tokens": task["num_new"],
        "eos_token_id": task["eos_ids"] or None,
        "pad_token_id": 0,
        "return_dict_in_generate": True,
        "output_logits": task["with_logprobs"],
    }
    if not task["eos_ids"]:
        model.generation_config.eos_token_id = None

    def stop(token_ids: torch.Tensor, scores: Any, **kwargs: Any) -> torch.Tensor:
        return torch.tensor(rows) <= token_ids.shape[1] - prompts_BT.shape[1]

    def work() -> tuple[Any, torch.Tensor | None]:
        torch.manual_seed(task["seed"])
        out = model.generate(
            prompts_BT,
            attention_mask=torch.ones_like(prompts_BT),
            stopping_criteria=StoppingCriteriaList([stop] if rows else []),  # type: ignore[list-item]
            **settings,
        )
        if not task["with_logprobs"]:
            return out, None
        scores_BT = model.compute_transition_scores(
            out.sequences, out.logits, normalize_logits=True
        )
        return out, scores_BT

    seconds, (out, scores_BT) = _timed(task, work)
    peak, num_samples = peak_mb(), task["num_samples"]
    answers_BT = out.sequences[:, prompts_BT.shape[1] :]
    ended = [
        rows[at] if rows else _num_until(one, task["eos_ids"])
        for at, one in enumerate(answers_BT.tolist())
    ]
    found = {"seconds": seconds, "peak_mb": peak, "logprobs": None}
    found["answers"] = _grouped(answers_BT, ended, num_samples)
    if scores_BT is not None:
        # transformers' scores come from a float32 softmax along a strided axis and are 2e-4 off on
        # a vocabulary of 49,152; what is held to the plain pass are its logits, normalised exactly
        logprobs_BT = _drawn_logprobs(out.logits, answers_BT)
        found["logprobs"] = _grouped(logprobs_BT, ended, num_samples)
        pairs = zip(
            _flat(found["logprobs"]), _flat(_grouped(scores_BT, ended, num_samples)), strict=True
        )
        found["transition_scores_off"] = max(abs(exact - score) for exact, score in pairs)
    return found


def _drawn_logprobs(logits: Sequence[torch.Tensor], answers_BT: torch.Tensor) -> torch.Tensor:
    """Of the drawn tokens, in float64, from the logits of each position."""
    columns = [
        logits_BV.double().log_softmax(-1).gather(1, answers_BT[:, at : at + 1])
        for at, logits_BV in enumerate(logits)
    ]
    return torch.cat(columns, dim=1)


def _flat(groups: list[list[list[float]]]) -> list[float]:
    return [value for group in groups for one in group for value in one]


def _num_until(tokens: Sequence[int], eos_ids: Sequence[int]) -> int:
    """Tokens up to the first that ends, itself included."""
    return next((at + 1 for at, one in enumerate(tokens) if one in eos_ids), len(tokens))


def _grouped(rows_BT: torch.Tensor, lengths: list[int], size: int) -> list[list[list[Any]]]:
    cut = [row[:length] for row, length in zip(rows_BT.tolist(), lengths, strict=True)]
    return [cut[at : at + size] for at in range(0, len(cut), size)]


def _causal(task: Task) -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(task["model"], dtype=torch.float32).eval()


@torch.inference_mode()
def plain_logprobs(task: Task, scratch: Path) -> Task:
    """Log-probs of given answers, a row of its own each, from transformers' own model."""
    model, found = _causal(task), []
    for prompt, answer in task["rows"]:
        logits_TV = model(torch.tensor([prompt + answer])).logits[0, len(prompt) - 1 : -1]
        picked = torch.tensor(answer)[:, None]
        found.append(logits_TV.log_softmax(-1).gather(1, picked)[:, 0].tolist())
    return {"logprobs": found}


# --- scoring ------------------------------------------------------------------------------------


def score_trueup(task: Task, scratch: Path) -> Task:
    """`RewardModel.scores`, every prompt once for all its candidates."""
    from trueup.models.shared_prompt import Branches

    model = _reward_model(_backbone(task), task)
    rows = [
        Branches(prompt, answers)
        for prompt, answers in zip(task["prompts"], task["candidates"], strict=True)
    ]
    seconds, scores = _timed(task, lambda: model.scores(rows))
    return {"seconds": seconds, "peak_mb": peak_mb(), "scores": scores}


def score_transformers(task: Task, scratch: Path) -> Task:
    """A sequence classifier on full rows, padded to the right; a batch a prompt."""
    from transformers import AutoModelForSequenceClassification

    model: Any = AutoModelForSequenceClassification.from_pretrained(
        task["model"], num_labels=1, dtype=torch.float32
    ).eval()
    pad = model.config.pad_token_id  # it finds a row's end by it; no candidate holds it
    model.score.weight.data.copy_(torch.load(task["head"]))
    batches = []
    for prompt, answers in zip(task["prompts"], task["candidates"], strict=True):
        width = len(prompt) + max(map(len, answers))
        full = [prompt + answer for answer in answers]
        rows_BT = torch.tensor([row + [pad] * (width - len(row)) for row in full])
        mask_BT = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in full])
        batches.append((rows_BT, mask_BT))

    @torch.inference_mode()
    def work() -> list[list[float]]:
        return [
            model(input_ids=rows_BT, attention_mask=mask_BT, use_cache=False).logits[:, 0].tolist()
            for rows_BT, mask_BT in batches
        ]

    seconds, scores = _timed(task, work)
    return {"seconds": seconds, "peak_mb": peak_mb(), "scores": scores}


def _reward_model(backbone: Any, task: Task) -> Any:
    """An adapter that changes nothing yet under the head that every side has."""
    from trueup.models.reward import RewardHead, RewardModel

    model = RewardModel.new(backbone, "judge-0", targets=["all-linear"], seed=1, **LORA)
    model.head = RewardHead.of(torch.load(task["head"]))
    return model


# --- PPO ----------------------------------------------------------------------------------------


def ppo_trueup(task: Task, scratch: Path) -> Task:
    """`fit_online`, as the train stage calls it: answers, scores, reference, values, update."""
    from trueup.judges.reward_model import RewardJudge
    from trueup.models import chat
    from trueup.models.offload import Offload
    from trueup.models.reward import RewardEnsemble
    from trueup.models.stored import StoredModel
    from trueup.store import Store
    from trueup.train.config import TrainConfig
    from trueup.train.online.config import OnlineConfig
    from trueup.train.online.critic import Critic
    from trueup.train.online.engine import LocalEngine
    from trueup.train.online.fit import OnlineRun, fit_online
    from trueup.train.online.rewards import Reward
    from trueup.train.online.rollouts import Prompt, Rollouts
    from trueup.train.policy import Policy
    from trueup.train.reference import FixedReference
    from trueup.train.step import budget

    after_imports = peak_mb()
    said = task["coefficients"]
    online = OnlineConfig(
        prompts_per_step=len(task["prompts"]),
        num_samples=task["num_samples"],
        steps=1 + task["timed"],
        max_tokens=task["num_new"],
        updates_per_batch=task["passes"],
        minibatches=1,
        value=task["value"],
        kl_coef=said["kl_coef"],
        clip_low=said["cliprange"],
        clip_high=said["cliprange"],
        value_coef=said["vf_coef"],
        value_clip=said["cliprange_value"],
        gamma=said["gamma"],
        lam=said["lam"],
    )
    config = TrainConfig(
        method="ppo",
        online=online,
        adapter=task["adapter"],
        learning_rate=task["learning_rate"],
        schedule="constant",
        warmup=0.0,
        lora_rank=int(LORA["rank"]),
        lora_alpha=LORA["alpha"],
        save_every_steps=0,
        seed=task["seed"],
    )
    backbone = _backbone(task)
    prompts = [
        Prompt(_message(text), tuple(ids))
        for text, ids in zip(task["texts"], task["prompts"], strict=True)
    ]
    rendered = [chat.prompt_ids(backbone.tokenizer, prompt.messages) for prompt in prompts]
    assert rendered == task["prompts"], "what is drawn from is what the other side was given"
    judge = RewardJudge(backbone, RewardEnsemble([_reward_model(backbone, task)], "bench"))
    champion = StoredModel(Store(scratch / "store"), backbone, None)
    policy = Policy.start(champion, config)
    tokens = budget(config, backbone.device)
    reference = FixedReference(champion.acting, champion.weights, tokens_per_batch=tokens)
    engine = LocalEngine(policy, champion.weights)
    reward = Reward(judge, online)
    rollouts = Rollouts(engine, policy.acting, reference, reward, online, tokens_per_batch=tokens)
    critic = Critic.start(champion, policy, config, Offload(backbone, enabled=False))
    run = OnlineRun(policy, engine, rollouts, reference, critic, config, scratch)
    before = peak_mb()
    with patch.object(chat, "eos_ids", lambda tokenizer: frozenset()):  # all answers go on
        fitted = fit_online(run, prompts, [])
    return {
        "seconds": [step["seconds"] for step in fitted.history],
        "rollout_seconds": [step["rollout_seconds"] for step in fitted.history],
        "peak_mb": peak_mb(),
        "after_imports_mb": after_imports,
        "before_training_mb": before,
        # their mean is the limit, so all are as long
        "answer_tokens": [[step["tokens"]] * int(step["answers"]) for step in fitted.history],
    }


def ppo_check(task: Task, scratch: Path) -> Task:
    """What trueup's reward model and its policy, before its first step, say of given answers."""
    from trueup.models.logprobs import completion_logprobs
    from trueup.models.shared_prompt import Branches

    backbone, at = _backbone(task), len(task["prompts"][0])
    model = _reward_model(backbone, task)
    rows = [Branches(sequence[:at], [sequence[at:]]) for sequence in task["sequences"]]
    scores = [score for (score,) in model.scores(rows)]
    with torch.inference_mode(), backbone.acting_as(None) as network:
        logprobs = [one.tolist() for row in rows for (one,) in completion_logprobs(network, [row])]
    return {"scores": scores, "logprobs": logprobs}


if __name__ == "__main__":
    serve(
        {
            "prepare": prepare,
            "draw-trueup": draw_trueup,
            "draw-transformers": draw_transformers,
            "plain-logprobs": plain_logprobs,
            "score-trueup": score_trueup,
            "score-transformers": score_transformers,
            "ppo-trueup": ppo_trueup,
            "ppo-check": ppo_check,
        }
    )
