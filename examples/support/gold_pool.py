"""Builds the pool of candidate gold items: small tasks a program can mark, none of them about Wren.

`python gold_pool.py --out pool.jsonl` writes every candidate; `calibrate.py` then keeps those a
given model gets right sometimes but not always. Tasks that are only data stand in `gold_tasks.txt`;
numbers come from a fixed seed, so the pool is the same on every machine. Answers fit in 48 tokens.
"""

import argparse
import json
import random
from collections.abc import Iterator
from pathlib import Path

Task = tuple[str, dict]

NAMES = "Tom Mia Ben Zoe Sam Ida Leo Eva Max Ann Raj Kim Omar Lily Jan Rosa"
THINGS = "apples pens coins books shells stamps cards marbles cookies balloons"

LISTABLE = "fruits animals colours countries vegetables cities"
SUBJECTS = "the sea; winter; a cat; music; a train; the moon; bread; a garden; rain; books"
STARTS = "Today Yesterday Perhaps Every Once Never Sometimes My Many Look"
INCLUDE = "blue happy river seven quiet garden always yellow window slowly"
PLACES = "box drawer kitchen basket garden car pocket cupboard bag garage"
ITEMS = "key ball letter cup book ring map coin phone scarf"
COLOURS = "red blue green yellow white black brown purple"
PETS = "dog cat rabbit parrot hamster horse turtle goldfish"
KEYS = "name age;city country;title year;colour size;id price;day month;first last;key value"


def rows(section: str) -> list[list[str]]:
    """The lines of one section of `gold_tasks.txt`, split at the bars."""
    text = Path(__file__).with_name("gold_tasks.txt").read_text(encoding="utf-8")
    block = text.partition(f"[{section}]\n")[2].partition("\n\n")[0]
    return [[part.strip() for part in line.split(" | ")] for line in block.strip().split("\n")]


def numeric(answer: float) -> dict:
    return {"type": "numeric", "answer": answer}


def instruction(*rules: dict) -> dict:
    return {"type": "instruction", "rules": list(rules)}


def rule(name: str, value: object = None) -> dict:
    return {"rule": name} if value is None else {"rule": name, "value": value}


def arithmetic(rng: random.Random) -> Iterator[Task]:
    """Sums a primary-school pupil does in the head."""
    only = " Answer with the number only."
    for low, high, count in ((2, 9, 8), (10, 50, 14), (20, 99, 12)):
        for _ in range(count):
            a, b = rng.randint(low, high), rng.randint(low, high)
            yield f"What is {a} + {b}?{only}", numeric(a + b)
            a, b = max(a, b) + 1, min(a, b)
            yield f"What is {a} - {b}?{only}", numeric(a - b)
    for _ in range(22):
        a, b = rng.randint(2, 12), rng.randint(2, 12)
        yield f"What is {a} * {b}?{only}", numeric(a * b)
    for _ in range(14):
        a, b = rng.randint(2, 10), rng.randint(2, 10)
        yield f"What is {a * b} divided by {b}?{only}", numeric(a)
    for _ in range(10):
        a, b, c = (rng.randint(1, 9) for _ in range(3))
        yield f"What is {a} + {b} + {c}?{only}", numeric(a + b + c)
    for number in (8, 14, 18, 30, 46, 70, 90):
        yield f"What is half of {number}?{only}", numeric(number // 2)
        yield f"What is double {number + 3}?{only}", numeric(2 * number + 6)
    for number in (4, 6, 7, 9, 11):
        yield f"What is {number} squared?{only}", numeric(number**2)
    for share, number in ((10, 50), (50, 40), (25, 80), (10, 200), (50, 18), (20, 100)):
        yield f"What is {share} percent of {number}?{only}", numeric(share * number / 100)
    for _ in range(18):
        a, b = rng.randint(2, 10), rng.randint(2, 10)
        yield f"What is {a} * {b}?{only}", numeric(a * b)
        a, b = rng.randint(2, 10), rng.randint(2, 10)
        yield f"What is {a} times {b}?", numeric(a * b)
        yield f"Multiply {b} by {a + 1}.{only}", numeric((a + 1) * b)
    for _ in range(10):
        share, number = rng.choice((5, 10, 20, 25, 50)), rng.choice((100, 200, 300, 400, 1000))
        yield f"What is {share} percent of {number}?{only}", numeric(share * number // 100)
        a, b = rng.randint(2, 9), rng.randint(2, 9)
        yield f"What is {a * b} divided by {b}?", numeric(a)


def reasoning(rng: random.Random) -> Iterator[Task]:
    """One-step word problems, number series, choices, word pairs and look-ups."""
    for template, formula in rows("word_problems"):
        for _ in range(4):
            amounts = {
                "a": rng.randint(10, 30),
                "b": rng.randint(5, 19),
                "c": rng.randint(2, 9),
                "d": rng.randint(2, 9),
                "h": rng.choice((20, 40, 50)),
            }
            names = {"n": rng.choice(NAMES.split()), "t": rng.choice(THINGS.split())}
            left, sign, right = formula
            text = template.format(**amounts, **names) + " Answer with the number only."
            yield text, numeric(apply(amounts[left], sign, amounts[right]))
    for start, step in ((2, 2), (5, 5), (1, 3), (10, 10), (3, 4), (20, -2), (7, 7), (30, -5)):
        series = ", ".join(str(start + step * i) for i in range(4))
        yield f"Which number comes next: {series}, ...?", numeric(start + 4 * step)
    for question, options, letter in rows("choice"):
        listed = zip("ABC", options.split("; "), strict=True)
        lines = " ".join(f"{mark}) {option}" for mark, option in listed)
        text = f"{question} {lines}. Answer with the letter only."
        yield text, {"type": "choice", "choices": ["A", "B", "C"], "answer": letter.upper()}
    for question, answers in rows("relations"):
        yield question, {"type": "contains", "any": answers.split("; ")}
    yield from lookups(rng)


def lookups(rng: random.Random) -> Iterator[Task]:
    """Two statements and a question that one of them answers; the other must stay out."""
    for _ in range(6):
        (ann, bob), item = rng.sample(NAMES.split(), 2), rng.choice(ITEMS.split())
        (here, there), (red, blue) = rng.sample(PLACES.split(), 2), rng.sample(COLOURS.split(), 2)
        (dog, cat), price = rng.sample(PETS.split(), 2), rng.randint(3, 30)
        where = f"{ann} put the {item} in the {here}. {bob} looked in the {there}."
        yield f"{where} Where is the {item}?", only_word(here, there)
        yield f"{ann} has a {dog} and {bob} has a {cat}. Who has the {dog}?", only_word(ann, bob)
        yield (
            f"The {dog} is {red} and the {cat} is {blue}. What colour is the {cat}?",
            only_word(blue, red),
        )
        yield (
            f"The {item} costs {price} dollars. {ann} buys it for {bob}. How much does {ann} pay?",
            numeric(price),
        )
        each, days = rng.randint(2, 9), rng.randint(2, 9)
        yield (
            f"{ann} drinks {each} cups of tea a day. How many cups is that in {days} days?",
            numeric(each * days),
        )
        yield (
            f"A ticket costs {days} dollars. How many dollars do {each} tickets cost?",
            numeric(each * days),
        )


def only_word(wanted: str, unwanted: str) -> dict:
    return instruction(rule("contains_word", wanted), rule("avoids_word", unwanted))


def apply(left: int, sign: str, right: int) -> int:
    return {"+": left + right, "-": left - right, "*": left * right}[sign]


def python(rng: random.Random) -> Iterator[Task]:
    """One-line functions, marked by running their tests."""
    for signature, what, tests in rows("python"):
        text = f"Write a Python function `{signature}` that {what}. Reply with code only."
        asserts = [f"assert {test}" for test in tests.split("; ")]
        yield text, {"type": "python", "entry_point": signature.split("(")[0], "tests": asserts}


def following(rng: random.Random) -> Iterator[Task]:
    """Constraints on the form of the answer."""
    for things in LISTABLE.split():
        for number, word in ((3, "three"), (4, "four")):
            yield f"List {word} {things}.", instruction(rule("num_items", number))
        wanted = instruction(rule("num_items", 3), rule("num_lines", 1), rule("max_words", 15))
        yield f"List three {things} in one line, separated by commas.", wanted
    one = rule("num_sentences", 1)
    for subject, start, include in zip(
        SUBJECTS.split("; "), STARTS.split(), INCLUDE.split(), strict=True
    ):
        yield (
            f'Write one sentence about {subject} that starts with the word "{start}".',
            instruction(one, rule("starts_with", start)),
        )
        yield (
            f'Write one sentence about {subject} that contains the word "{include}".',
            instruction(one, rule("contains_word", include)),
        )
        yield (
            f"Write one short sentence about {subject}, at most 20 words.",
            instruction(one, rule("max_words", 20)),
        )
        yield (
            f"Write one sentence about {subject} without using any commas.",
            instruction(one, rule("no_commas")),
        )
        yield (
            f"Write a question about {subject}. Write only the question.",
            instruction(one, rule("ends_with", "?")),
        )
        noun = subject.split()[-1]
        yield (
            f'Describe {subject} in one sentence without using the word "{noun}".',
            instruction(one, rule("avoids_word", noun)),
        )
    for keys in KEYS.split(";"):
        first, second = keys.split()
        text = f'Reply with a JSON object that has exactly the keys "{first}" and "{second}".'
        yield text, instruction(rule("json_object", [first, second]))
    for question, answer in rows("one_word"):
        wanted = instruction(rule("one_word"), rule("contains_word", answer))
        yield f"Reply with exactly one word: {question}", wanted
    for (sentence,) in rows("repeat"):
        yield f"Repeat this sentence exactly: {sentence}", {"type": "exact", "answers": [sentence]}


SLICES = {
    "arith": ("arithmetic", arithmetic),
    "reason": ("reasoning", reasoning),
    "python": ("python", python),
    "instr": ("instruction", following),
}


def build() -> list[dict]:
    """Every candidate with its id, each prompt once."""
    pool, seen = [], set()
    for tag, (name, tasks) in SLICES.items():
        number = 0
        for prompt, checker in tasks(random.Random(f"gold {name}")):
            if prompt in seen:
                continue
            seen.add(prompt)
            number += 1
            item = {"id": f"{tag}-{number:03d}", "slice": name, "prompt": prompt}
            pool.append({**item, "checker": checker})
    return pool


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="where the pool is written")
    out = parser.parse_args().out
    pool = build()
    out.write_text("".join(json.dumps(item) + "\n" for item in pool), encoding="utf-8")
    print(f"{len(pool)} candidates in {out}")
