"""Chooses the gold items a given model gets right sometimes, but not always.

An item every answer passes (or fails) cannot show a regression (or a gain), so it only dilutes the
gate. Each candidate of `gold_pool.py` is answered once greedily and eight times at temperature 0.7;
items with a pass rate of 0 or 1 are dropped, and of the rest the most stable are kept.

    python gold_pool.py --out pool.jsonl
    python calibrate.py --model FOLDER --pool pool.jsonl --answers answers.jsonl --out gold.jsonl

Answers are kept, so a stopped run goes on where it was, and choosing again costs nothing. Generated
Python runs in `trueup.sandbox` and nowhere else. About 20 minutes on two cores for a 135M model.
"""

import argparse
import functools
import json
import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from trueup.errors import SandboxUnavailable
from trueup.evaluate.checkers import check

NUM_SAMPLES = 8
TEMPERATURE = 0.7
MAX_NEW_TOKENS = 48
PROMPTS_PER_BATCH = 8
PER_SLICE = 40
PER_FAMILY = 14
"""Most items of a slice that begin alike, such as `What is the opposite of …`."""

GREEDY_RATE = 0.6
"""Share of kept items the greedy answer passes: room to fall and room to rise."""

Sampler = Callable[[list[str]], list[list[str]]]


class Marked(NamedTuple):
    item: dict
    greedy: bool
    pass_rate: float

    @property
    def instability(self) -> tuple[bool, float]:
        """Small is good: greedy and the majority agree, then rates near 0.25 or 0.75."""
        agrees = self.greedy == (self.pass_rate > 0.5) and self.pass_rate != 0.5
        return not agrees, abs(abs(self.pass_rate - 0.5) - 0.25)


def read_jsonl(path: Path) -> list[dict]:
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def load_sampler(folder: Path, threads: int) -> Sampler:
    """A function from prompts to answers: for each prompt the greedy one, then the samples.

    Written out instead of calling `generate` because all answers to a prompt share one prefill and
    a finished answer leaves the batch at once: four times as fast on a CPU.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    torch.set_num_threads(threads)
    tokenizer = AutoTokenizer.from_pretrained(folder, padding_side="left")
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    per_prompt = 1 + NUM_SAMPLES

    @torch.inference_mode()
    def answer(prompts: list[str]) -> list[list[str]]:
        chats = [[{"role": "user", "content": prompt}] for prompt in prompts]
        texts = tokenizer.apply_chat_template(chats, tokenize=False, add_generation_prompt=True)
        inputs = tokenizer(texts, return_tensors="pt", padding=True, add_special_tokens=False)
        mask_BT = inputs["attention_mask"]
        positions_BT = (mask_BT.cumsum(1) - 1).clamp(min=0)
        out = model(**inputs, position_ids=positions_BT, use_cache=True, logits_to_keep=1)
        cache = out.past_key_values
        cache.batch_repeat_interleave(per_prompt)
        logits_BV = out.logits[:, -1].repeat_interleave(per_prompt, 0)
        mask_BT = mask_BT.repeat_interleave(per_prompt, 0)
        rows = torch.arange(len(logits_BV))  # which answer each row of the shrinking batch is
        answers: list[list[int]] = [[] for _ in rows]
        torch.manual_seed(sum(map(len, prompts)))
        for _ in range(MAX_NEW_TOKENS):
            sampled = torch.multinomial((logits_BV / TEMPERATURE).softmax(-1), 1)[:, 0]
            tokens = torch.where(rows % per_prompt == 0, logits_BV.argmax(-1), sampled)
            alive = (tokens != tokenizer.eos_token_id).nonzero()[:, 0]
            if not len(alive):
                break
            rows, tokens, mask_BT = rows[alive], tokens[alive], mask_BT[alive]
            cache.batch_select_indices(alive)
            for row, token in zip(rows.tolist(), tokens.tolist(), strict=True):
                answers[row].append(token)
            positions = mask_BT.sum(1, keepdim=True)
            mask_BT = torch.cat([mask_BT, torch.ones_like(mask_BT[:, :1])], 1)
            logits_BV = model(
                input_ids=tokens[:, None],
                attention_mask=mask_BT,
                position_ids=positions,
                past_key_values=cache,
            ).logits[:, -1]
        texts = tokenizer.batch_decode(answers, skip_special_tokens=True)
        return [texts[i : i + per_prompt] for i in range(0, len(texts), per_prompt)]

    return answer


def generate(pool: list[dict], answers_path: Path, make_sampler: Callable[[], Sampler]) -> None:
    """Appends the greedy answer and the samples of every prompt that has none yet."""
    done = {row["prompt"] for row in read_jsonl(answers_path)}
    todo = [item for item in pool if item["prompt"] not in done]
    if not todo:
        return
    sampler = make_sampler()
    for start in range(0, len(todo), PROMPTS_PER_BATCH):
        batch = todo[start : start + PROMPTS_PER_BATCH]
        with answers_path.open("a", encoding="utf-8") as out:
            answers = sampler([item["prompt"] for item in batch])
            for item, (greedy, *samples) in zip(batch, answers, strict=True):
                row = {"prompt": item["prompt"], "greedy": greedy, "samples": samples}
                out.write(json.dumps(row, ensure_ascii=False) + "\n")
        print(f"{start + len(batch)}/{len(todo)}", flush=True)


def mark(pool: list[dict], answers: list[dict]) -> list[Marked]:
    """Every answered candidate with what its checker says of the answers."""
    texts = {row["prompt"]: (row["greedy"], row["samples"]) for row in answers}
    marked = []
    for item in pool:
        if item["prompt"] in texts:
            passes = functools.partial(is_right, item)
            greedy, samples = texts[item["prompt"]]
            rate = sum(map(passes, samples)) / len(samples)
            marked.append(Marked(item, passes(greedy), rate))
    return marked


def is_right(item: dict, text: str) -> bool:
    outcome = check(item["checker"], text)
    if outcome.passed is None:  # a pass rate with unmarked answers in it would be a guess
        raise SandboxUnavailable(f"calibrate: {item['id']} cannot be marked", got=outcome.reason)
    return outcome.passed


def choose(marked: list[Marked]) -> list[Marked]:
    """Up to PER_SLICE items of each slice, GREEDY_RATE of them right at greedy where possible."""
    kept = []
    for name in dict.fromkeys(row.item["slice"] for row in marked):
        usable = [row for row in marked if row.item["slice"] == name and 0 < row.pass_rate < 1]
        usable = varied(sorted(usable, key=lambda row: row.instability))
        right = [row for row in usable if row.greedy][: round(PER_SLICE * GREEDY_RATE)]
        wrong = [row for row in usable if not row.greedy][: PER_SLICE - len(right)]
        kept += sorted(right + wrong, key=lambda row: row.item["id"])
    return kept


def varied(rows: list[Marked]) -> list[Marked]:
    """The first PER_FAMILY of each family; two prompts whose first five words agree are family."""
    counts: Counter[str] = Counter()
    kept = []
    for row in rows:
        family = re.sub(r"\d+", "0", " ".join(row.item["prompt"].split()[:5]))
        counts[family] += 1
        if counts[family] <= PER_FAMILY:
            kept.append(row)
    return kept


def print_table(title: str, rows: list[Marked]) -> None:
    """Counts and rates per slice, and how many items have 0, 1, … 8 right samples of 8."""
    print(
        f"\n{title}\n{'slice':<12} items greedy sampled  items by right samples, 0 to {NUM_SAMPLES}"
    )
    for name in [*dict.fromkeys(row.item["slice"] for row in rows), "all"]:
        part = [row for row in rows if name in (row.item["slice"], "all")]
        greedy = sum(row.greedy for row in part) / len(part)
        sampled = sum(row.pass_rate for row in part) / len(part)
        counts = Counter(round(row.pass_rate * NUM_SAMPLES) for row in part)
        bars = " ".join(f"{counts[right]:>3}" for right in range(NUM_SAMPLES + 1))
        print(f"{name:<12} {len(part):>5} {greedy:>6.2f} {sampled:>7.2f}  {bars}")


def main() -> None:
    parser = argparse.ArgumentParser(description="Chooses gold items by what a model can do.")
    parser.add_argument("--model", type=Path, required=True, help="transformers folder")
    parser.add_argument("--pool", type=Path, required=True, help="written by gold_pool.py")
    parser.add_argument("--answers", type=Path, required=True, help="kept answers, appended to")
    parser.add_argument("--out", type=Path, help="where the gold set is written (default: nowhere)")
    parser.add_argument("--threads", type=int, default=2, help="CPU threads for the model")
    args = parser.parse_args()
    pool = read_jsonl(args.pool)
    generate(pool, args.answers, lambda: load_sampler(args.model, args.threads))
    marked = mark(pool, read_jsonl(args.answers))
    kept = choose(marked)
    print_table("pool", marked)
    print_table("kept", kept)
    if args.out:
        rows = [{**row.item, "pass_rate": row.pass_rate} for row in kept]
        lines = (json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        args.out.write_text("".join(lines), encoding="utf-8")


if __name__ == "__main__":
    main()
