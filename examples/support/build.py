"""The knowledge base of the Wren example, in one place, and its expansion to the two jsonl files.

Edit `knowledge.txt` and run `python build.py`: it writes `articles.jsonl` and `prompts.jsonl`
beside itself. An article there is a heading, one line of text, five questions (`?`) and one
question the text does not answer (`!`). After the `=` stand the facts a complete answer must hold:
`&` separates facts that are all needed, `|` separates spellings of one fact. Common spellings of
numbers, prices and temperatures are added by `spellings`, so the source stays readable.

Wren, Hedgerow and everything said about them are invented.
"""

import json
import re
from pathlib import Path

SYSTEM = (
    "You are the support assistant for Wren, a smart bird feeder. Answer from the context only, "
    "in one short sentence. If the context does not say, say so."
)

UP_TO_TWENTY = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen "
    "fifteen sixteen seventeen eighteen nineteen twenty"
)
WORDS = UP_TO_TWENTY.split()
NUMBER_OF = {word: str(number) for number, word in enumerate(WORDS)}
MEASURE = re.compile(r"(\d+|" + "|".join(WORDS[1:]) + r") (\w+)")


def spellings(alternative: str) -> list[str]:
    """One fact as written, then the other ways people write the same amount."""
    if price := re.fullmatch(r"\$(\d+)", alternative):
        return [alternative, f"{price[1]} dollars", f"{price[1]} USD"]
    if warmth := re.fullmatch(r"(\d+) °C", alternative):
        degrees = warmth[1]
        return [alternative, f"{degrees}°C", f"{degrees} degrees", f"{degrees} C", f"{degrees}C"]
    measure = MEASURE.fullmatch(alternative)
    if not measure:
        return [alternative]
    amount, unit = measure.groups()
    digits = NUMBER_OF.get(amount, amount)
    numbers = [digits] + ([WORDS[int(digits)]] if int(digits) < len(WORDS) else [])
    hyphened = [f"{number}-{unit.removesuffix('s')}" for number in numbers]
    return [alternative] + [f"{number} {unit}" for number in numbers] + hyphened


def parse_facts(source: str) -> list[list[str]]:
    """`a | b & c` as [[a, b], [c]], with the spellings added and nothing twice."""
    facts = []
    for fact in source.split(" & "):
        found = [form for part in fact.split(" | ") for form in spellings(part.strip())]
        facts.append(list(dict.fromkeys(found)))
    return facts


def build(source: str) -> tuple[list[dict], list[dict]]:
    """The articles and the prompts, in the order of the source."""
    articles, prompts = [], []
    for number, block in enumerate(source.strip().split("\n\n"), start=1):
        heading, text, *questions = block.split("\n")
        named = re.fullmatch(r"# (train|heldout): (.+)", heading)
        assert named, f"an article begins with '# train: ' or '# heldout: ', got {heading!r}"
        split, title = named.groups()
        article = {"id": f"kb-{number:02d}", "title": title, "split": split, "text": text}
        articles.append(article)
        for index, line in enumerate(questions, start=1):
            prompts.append(build_prompt(article, index, line))
    return articles, prompts


def build_prompt(article: dict, index: int, line: str) -> dict:
    """One question line as the record the product would receive."""
    question, _, facts = line[2:].partition(" = ")
    user = f"Context: {article['text']}\n\nQuestion: {question}"
    return {
        "id": f"{article['id']}-q{index}",
        "article": article["id"],
        "split": article["split"],
        "answerable": line.startswith("? "),
        "facts": parse_facts(facts) if facts else [],
        "messages": [{"role": "system", "content": SYSTEM}, {"role": "user", "content": user}],
    }


def write_jsonl(path: Path, rows: list[dict]) -> None:
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    path.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    here = Path(__file__).parent
    articles, prompts = build((here / "knowledge.txt").read_text(encoding="utf-8"))
    write_jsonl(here / "articles.jsonl", articles)
    write_jsonl(here / "prompts.jsonl", prompts)
    print(f"{len(articles)} articles, {len(prompts)} prompts")
