"""One side of one measurement. `train.py` starts this file, writes tasks to it and reads answers,
a line of JSON each.

Both sides get the same token ids in the same order and take one warm-up step, the timed steps
and the counted steps. The peak of memory is read after the last timed step; the counted ones
repeat timed batches, to count what is computed in them.
"""

import hashlib
import json
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from processes import peak_mb, serve
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

Task = dict[str, Any]
LORA = {"rank": 16, "alpha": 32.0}


# --- what both sides are asked ------------------------------------------------------------------


class Operations(TorchDispatchMode):
    """Counts the operations of every matrix product and attention that runs, a multiplication and
    an addition as two. Nothing else is counted."""

    def __init__(self) -> None:
        super().__init__()
        self.total = 0.0
        aten = torch.ops.aten
        on_cpu = aten._scaled_dot_product_flash_attention_for_cpu
        on_cpu_backward = aten._scaled_dot_product_flash_attention_for_cpu_backward
        self.causal_at = {on_cpu: 4, on_cpu_backward: 7}
        """Where the flag stands that lets the kernel leave out the upper half of its square."""
        self.formulas = {
            **flop_registry,
            aten.addmm_: flop_registry[aten.addmm],
            on_cpu: flop_registry[aten._scaled_dot_product_flash_attention],
            on_cpu_backward: flop_registry[aten._scaled_dot_product_flash_attention_backward],
        }

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        kind = func._overloadpacket
        if kind in self.formulas:
            place = self.causal_at.get(kind)
            causal = place is not None and len(args) > place and args[place]
            done = self.formulas[kind](*args, **kwargs, out_val=out)
            self.total += done / 2 if causal else done
        return out


class Watch:
    """Told after every optimizer step; knows when the timed ones end and the counted ones begin."""

    def __init__(self, task: Task) -> None:
        self.last_timed, self.last = 1 + task["timed"], 1 + task["timed"] + task["counted"]
        self.done, self.peak_mb = 0, 0.0
        self.operations: list[float] = []
        self._counter = Operations()

    def step_done(self) -> None:
        self.done += 1
        if self.done > self.last_timed:
            self.operations.append(self._counter.total - sum(self.operations))
            if self.done == self.last:
                self._counter.__exit__(None, None, None)
        elif self.done == self.last_timed:
            self.peak_mb = peak_mb()
            if self.last > self.last_timed:
                self._counter.__enter__()


def fingerprint(parameters: Iterable[torch.nn.Parameter]) -> str:
    """Of the values that are about to learn, to the bit."""
    digest = hashlib.sha256()
    for one in parameters:
        digest.update(one.detach().contiguous().numpy())  # type: ignore[arg-type]
    return digest.hexdigest()[:16]


def prepare(task: Task, scratch: Path) -> dict[str, Any]:
    """What is needed once: how fast the machine multiplies, and the real pairs as token ids."""
    if task["tiny"]:
        from trueup.models.tiny import save_tiny

        save_tiny(Path(task["model"]), seed=0)
    config = json.loads((Path(task["model"]) / "config.json").read_text())
    return {
        "vocabulary": config["vocab_size"],
        "gemm": gemm(config, quick=task["quick"]),
        "pairs": real_pairs(task) if task["data"] else [],
    }


def gemm(config: dict[str, Any], *, quick: bool) -> list[dict[str, Any]]:
    """Operations a second in float32 products of square matrices and of the model's shapes, each
    the best of several."""
    hidden, vocabulary = config["hidden_size"], config["vocab_size"]
    inner = config.get("intermediate_size") or 4 * hidden
    shapes = [(size, size, size) for size in ((256,) if quick else (1024, 1536, 2048))]
    for tokens in (256,) if quick else (512, 1024):
        shapes += [(tokens, hidden, hidden), (tokens, hidden, inner), (tokens, inner, hidden)]
    shapes.append((256, hidden, vocabulary))
    found = []
    for rows, inside, columns in shapes:
        left, right = torch.rand(rows, inside), torch.rand(inside, columns)
        best, ends = float("inf"), time.perf_counter() + (0.05 if quick else 1.0)
        while time.perf_counter() < ends:
            started = time.perf_counter()
            torch.mm(left, right)
            best = min(best, time.perf_counter() - started)
        found.append(
            {"shape": [rows, inside, columns], "per_second": 2 * rows * inside * columns / best}
        )
    return found


def real_pairs(task: Task) -> list[list[list[int]]]:
    """The first pairs of the file that are short enough, as (prompt, chosen, rejected) ids."""
    from transformers import AutoTokenizer

    from trueup.models import chat
    from trueup.records import Completion, Message

    roles = {"human": "user", "gpt": "assistant", "system": "system"}
    tokenizer = AutoTokenizer.from_pretrained(task["model"])
    pairs: list[list[list[int]]] = []
    for line in Path(task["data"]).read_text("utf-8").splitlines():
        said = json.loads(line)
        prompt = tuple(
            Message(role=roles[turn["from"]], content=turn["value"])
            for turn in said["conversations"]
        )
        pair = [chat.prompt_ids(tokenizer, prompt)]
        for side in ("chosen", "rejected"):
            pair.append(chat.completion_ids(tokenizer, Completion(text=said[side]["value"])))
        if sum(map(len, pair)) <= task["max_tokens"] and pair[1] != pair[2]:
            pairs.append(pair)
        if len(pairs) == task["num_pairs"]:
            break
    return pairs


# --- trueup -------------------------------------------------------------------------------------


def trueup_side(task: Task, scratch: Path) -> dict[str, Any]:
    """`fit`, as the train stage calls it, with the champion's model in memory beside the policy."""
    from trueup.models.backbone import Backbone
    from trueup.models.shared_prompt import Branches
    from trueup.models.stored import StoredModel
    from trueup.records import Completion
    from trueup.store import Store
    from trueup.train.config import TrainConfig
    from trueup.train.data import Row, order
    from trueup.train.fit import fit
    from trueup.train.objectives import Preference
    from trueup.train.policy import Policy
    from trueup.train.reference import FixedReference, MovingReference
    from trueup.train.step import budget

    after_imports = peak_mb()
    config = TrainConfig(
        method="dpo",
        beta=task["beta"],
        adapter=task["adapter"],
        learning_rate=task["learning_rate"],
        schedule="constant",
        warmup=0.0,
        pairs_per_step=task["pairs_per_step"],
        checkpointing=task["checkpointing"],
        lora_rank=LORA["rank"],
        lora_alpha=LORA["alpha"],
        save_every_steps=0,
        seed=task["seed"],
    )
    # `fit` shuffles: rows are placed so that it meets the pairs in the task's order
    rows: list[Any] = [None] * len(task["pairs"])
    places = order(len(rows), epoch=0, seed=config.seed)
    for number, (place, pair) in enumerate(zip(places, task["pairs"], strict=True)):
        sides = (Completion(text=""), Completion(text=""))
        branches = Branches(pair[0], pair[1:])
        rows[place] = Row(f"pair-{number}", branches, sides, (True, False), 1.0, "")

    backbone = Backbone.load(Path(task["model"]), device="cpu", dtype="float32")
    champion = StoredModel(Store(scratch / "store"), backbone, None)
    policy = Policy.start(champion, config)
    tokens = budget(config, backbone.device)
    began = time.perf_counter()
    if task["reference"] == "precomputed":
        reference: Any = FixedReference(champion.acting, champion.weights, tokens_per_batch=tokens)
        reference.prepare(rows)
    else:  # an average that never moves: computed anew in every step, nothing kept
        reference = MovingReference(champion.acting, {}, {}, decay=1.0, tokens_per_batch=tokens)
    reference_seconds = time.perf_counter() - began

    start, watch = fingerprint(policy.parameters.values()), Watch(task)
    before = peak_mb()
    fitted = fit(
        policy.acting,
        policy.parameters,
        rows,
        Preference(config, reference),
        config,
        scratch,
        after_step=watch.step_done,
    )
    return {
        "start": start,
        "losses": [step["loss"] for step in fitted.history],
        "grad_norms": [step["grad_norm"] for step in fitted.history],
        "seconds": [step["seconds"] for step in fitted.history],
        "peak_mb": watch.peak_mb,
        "after_imports_mb": after_imports,
        "before_training_mb": before,
        "reference_seconds": reference_seconds,
        "operations": watch.operations,
    }


# --- TRL ----------------------------------------------------------------------------------------


def trl_side(task: Task, scratch: Path) -> dict[str, Any]:
    """`DPOTrainer.train`, watched from a callback: its step as it is, its own metrics included."""
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
    from trl import DPOConfig, DPOTrainer  # type: ignore[attr-defined]

    after_imports = peak_mb()
    watch = Watch(task)
    losses: list[float] = []
    norms: list[float] = []
    seconds: list[float] = []
    spent = {"reference": 0.0}

    class Watched(DPOTrainer):
        """Reads the loss and the norm of the gradient where the trainer has them."""

        def _prepare_dataset(self, dataset: Any, *args: Any, **kwargs: Any) -> Any:
            return dataset  # token ids already, the other side's

        def _precompute_ref_logps(self, *args: Any, **kwargs: Any) -> Any:
            began = time.perf_counter()
            found = super()._precompute_ref_logps(*args, **kwargs)
            spent["reference"] = time.perf_counter() - began
            return found

        def training_step(self, *args: Any, **kwargs: Any) -> torch.Tensor:
            loss = super().training_step(*args, **kwargs)
            losses[-1] += float(loss)
            return loss

        def _clip_grad_norm(self, model: Any) -> Any:
            norm = super()._clip_grad_norm(model)
            norms.append(float(norm))  # type: ignore[arg-type]
            return norm

    class Clock(TrainerCallback):
        """From the batch, already padded, to the updated weights."""

        def on_step_begin(self, *args: Any, **kwargs: Any) -> None:
            losses.append(0.0)
            self.began = time.perf_counter()

        def on_step_end(self, *args: Any, **kwargs: Any) -> None:
            seconds.append(time.perf_counter() - self.began)
            watch.step_done()

    per_step = task["pairs_per_step"]
    same = {
        "fp16": False,
        "bf16": False,
        "gradient_checkpointing": task["checkpointing"],
        "max_length": None,
    }
    args = DPOConfig(
        output_dir=str(scratch),
        use_cpu=True,
        per_device_train_batch_size=1 if task["accumulate"] else per_step,
        gradient_accumulation_steps=per_step if task["accumulate"] else 1,
        max_steps=watch.last,
        learning_rate=task["learning_rate"],
        lr_scheduler_type="constant",
        weight_decay=0.0,
        max_grad_norm=1.0,
        beta=task["beta"],
        precompute_ref_log_probs=task["reference"] == "precomputed",
        train_sampling_strategy="sequential",
        seed=task["seed"],
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        **({} if task["trl_defaults"] else same),
    )
    model: Any = task["model"]
    adapter = None
    if task["adapter"] == "lora":
        # as an instance, so that nothing draws between the seed and the adapter's initial values
        model = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
        adapter = LoraConfig(
            r=int(LORA["rank"]),
            lora_alpha=LORA["alpha"],  # type: ignore[arg-type]
            lora_dropout=0.0,
            bias="none",
            task_type="CAUSAL_LM",
            target_modules="all-linear",
        )
    trainer = Watched(
        model=model,
        args=args,
        train_dataset=Dataset.from_list(
            [
                {"prompt_ids": prompt, "chosen_ids": chosen, "rejected_ids": rejected}
                for prompt, chosen, rejected in task["pairs"]
            ]
        ),
        processing_class=AutoTokenizer.from_pretrained(task["model"]),
        peft_config=adapter,
        callbacks=[Clock()],
    )
    learner: Any = trainer.model
    start = fingerprint(one for one in learner.parameters() if one.requires_grad)
    before = peak_mb()
    trainer.train()
    return {
        "start": start,
        "losses": losses,
        "grad_norms": norms,
        "seconds": seconds,
        "peak_mb": watch.peak_mb,
        "after_imports_mb": after_imports,
        "before_training_mb": before,
        "reference_seconds": spent["reference"],
        "operations": watch.operations,
    }


if __name__ == "__main__":
    serve({"prepare": prepare, "trueup": trueup_side, "trl": trl_side})
