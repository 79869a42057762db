"""The TRL side of `online.py`: updates of its PPO, which left TRL after 1.12.

Runs in an environment of its own (see `ppo_venv.py`), so it imports nothing of trueup's. The
trainer is used as it is; its functions are watched from outside, for what they were given and gave.
"""

import time
from pathlib import Path
from typing import Any

import torch
from processes import Task, peak_mb, serve, versions


def trl_side(task: Task, scratch: Path) -> Task:
    """`PPOTrainer.train` with four models in float32, one warm-up update and the timed ones."""
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
    from trl.experimental.ppo import PPOConfig, PPOTrainer  # type: ignore[import-not-found]

    after_imports = peak_mb()
    torch.manual_seed(task["seed"])
    seconds: list[float] = []

    class Clock(TrainerCallback):
        """From the prompts to the updated weights."""

        def on_train_begin(self, *args: Any, **kwargs: Any) -> None:
            self.began = time.perf_counter()

        def on_step_end(self, *args: Any, **kwargs: Any) -> None:
            now = time.perf_counter()
            seconds.append(now - self.began)
            self.began = now

    tokenizer = AutoTokenizer.from_pretrained(task["model"])
    # TRL cuts an answer at the first pad token: one that no model draws
    tokenizer.add_special_tokens({"pad_token": "<|no token|>"})
    rows = [prompt for prompt in task["prompts"] for _ in range(task["num_samples"])]
    args = PPOConfig(
        output_dir=str(scratch),
        use_cpu=True,
        bf16=False,
        fp16=False,
        gradient_checkpointing=False,
        per_device_train_batch_size=len(rows) // task["parts"],
        gradient_accumulation_steps=task["parts"],
        num_ppo_epochs=task["passes"],
        num_mini_batches=1,
        total_episodes=len(rows) * (1 + task["timed"]),
        response_length=task["num_new"],
        stop_token=None,
        temperature=1.0,
        learning_rate=task["learning_rate"],
        lr_scheduler_type="constant",
        weight_decay=0.0,
        num_sample_generations=0,
        seed=task["seed"],
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        **task["coefficients"],
    )
    trainer = PPOTrainer(
        args=args,
        processing_class=tokenizer,
        model=AutoModelForCausalLM.from_pretrained(task["model"], dtype=torch.float32),
        ref_model=AutoModelForCausalLM.from_pretrained(task["model"], dtype=torch.float32),
        reward_model=_classifier(task, torch.load(task["head"])),
        value_model=_classifier(task, None),
        train_dataset=Dataset.from_list([{"input_ids": row} for row in rows]),
        callbacks=[Clock()],
    )
    watched = Watched(trainer, tokenizer.pad_token_id, len(task["prompts"][0]))
    before = peak_mb()
    trainer.train()
    return {
        "seconds": seconds,
        "peak_mb": peak_mb(),
        "after_imports_mb": after_imports,
        "before_training_mb": before,
        "answer_tokens": watched.answer_tokens,
        "sequences": watched.sequences,
        "scores": watched.scores,
        "logprobs": watched.logprobs,
        "ref_logprobs": watched.ref_logprobs,
        "versions": versions("trl", "torch", "transformers", "accelerate"),
    }


class Watched:
    """What the trainer drew, and what it thought of the first batch."""

    def __init__(self, trainer: Any, pad_id: int, prompt_tokens: int) -> None:
        from trl.experimental.ppo import ppo_trainer  # type: ignore[import-not-found]

        self.answer_tokens: list[list[int]] = []
        """Of every answer of every update."""
        self.sequences: list[list[int]] = []
        self.scores: list[float] = []
        self.logprobs: list[list[float]] = []
        self.ref_logprobs: list[list[float]] = []
        library: Any = ppo_trainer
        draw, reward, logprobs = (
            library.batch_generation,
            library.get_reward,
            library.selective_log_softmax,
        )

        def drawn(*args: Any) -> Any:
            found = draw(*args)
            answers = found[0][:, prompt_tokens:]
            self.answer_tokens.append((answers != pad_id).sum(1).tolist())
            self.sequences = self.sequences or found[0].tolist()
            return found

        def rewarded(model: Any, *args: Any) -> Any:
            found = reward(model, *args)
            if model is trainer.reward_model and not self.scores:
                self.scores = found[1].tolist()
            return found

        def compared(*args: Any) -> Any:
            found = logprobs(*args)
            if not self.logprobs:  # asked first of the policy that drew, then of the reference
                self.logprobs = found.tolist()
            elif not self.ref_logprobs:
                self.ref_logprobs = found.tolist()
            return found

        library.batch_generation = drawn
        library.get_reward = rewarded
        library.selective_log_softmax = compared


def _classifier(task: Task, head: torch.Tensor | None) -> Any:
    """The model under a head that gives one number; without a head it says 0, as ours begins."""
    from transformers import AutoModelForSequenceClassification

    model: Any = AutoModelForSequenceClassification.from_pretrained(
        task["model"], num_labels=1, dtype=torch.float32
    )
    with torch.no_grad():
        model.score.weight.zero_()
        if head is not None:
            model.score.weight.copy_(head)
    return model


if __name__ == "__main__":
    serve({"trl": trl_side})
