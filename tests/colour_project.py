"""A project on a taught tiny model: it names colours, tersely or with filler, and repeats a word.

What is held out is asked otherwise than traffic, and the gold set is another skill. So small a
model forgets some of that, more on one processor than on another: the margin is wide.
"""

import json
import shutil
from pathlib import Path

from trueup.models.tiny import save_tiny
from trueup.records import Message, Messages

COLOURS = {
    "sky": "blue", "leaf": "green", "coal": "black", "snow": "white", "rose": "red", "sun": "gold",
    "sea": "teal", "clay": "brown", "ash": "grey", "plum": "violet",
}  # fmt: skip
WORDS = ["cat", "dog", "owl", "fox", "ant", "bee"]

SETTINGS = """
[model]
base = "model"
num_threads = 1
[flag]
threshold = 0.01
[label]
judge = "loop_scorers:{judge}"
max_tokens = 24
[train]
min_new_pairs = 12
epochs = 6
beta = 0.5
learning_rate = 1e-3
lora_rank = 8
[guard]
max_tokens = 24
samples_per_prompt = 4
max_same_answer_rate = 0.5
max_opening_rate = 0.5
max_duplicate_rate = 0.6
[evaluate]
max_tokens = 24
margin = 0.25
[ab]
scorer = "loop_scorers:brief"
"""


def asked(question: str) -> Messages:
    return (Message(role="user", content=question),)


def save_model(folder: Path) -> Path:
    """Teach the model: four ways to name each colour, and words to say again."""
    examples = [(f"say {word}", f"{word}.") for word in WORDS for _ in range(6)]
    for thing, colour in COLOURS.items():
        for question in (f"colour of {thing}?", f"{thing} is?"):
            examples += [
                (question, f"{colour}."),
                (question, f"um {colour}."),
                (question, f"the {thing} is {colour} um um."),
                (question, f"{colour} {colour} ok."),
            ]
    return save_tiny(folder, seed=0, hidden_size=64, examples=examples, steps=500)


def make_project(model: Path, folder: Path) -> Path:
    """A project folder around a copy of the model."""
    shutil.copytree(model, folder / "model")
    held_out = [
        {"messages": [{"role": "user", "content": f"{thing} is?" + " " * i}]}
        for thing in COLOURS for i in range(5)
    ]  # fmt: skip
    gold = [
        {"id": f"{word}-{i}", "prompt": f"say {word}" + " " * i,
         "checker": {"type": "contains", "all": [word]}}
        for word in WORDS for i in range(14)
    ]  # fmt: skip
    train = [
        {"split": "train",
         "messages": [{"role": "user", "content": f"colour of {thing}?" + " " * i}]}
        for thing in COLOURS for i in range(3)
    ]  # fmt: skip
    for name, rows in (("heldout", held_out), ("gold", gold), ("train", train)):
        (folder / f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    settings(folder, "plain")
    return folder


def settings(folder: Path, judge: str) -> None:
    """The project's settings, with this judge to label."""
    (folder / "trueup.toml").write_text(SETTINGS.format(judge=judge))
