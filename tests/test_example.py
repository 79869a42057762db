"""The support example: its files parse, its split leaks nothing, its gold items can be marked."""

import json
import re
import runpy
from collections import Counter
from pathlib import Path

import pytest

from trueup.evaluate.checkers import RULES, check, validate

FOLDER = Path(__file__).parent.parent / "examples" / "support"


def read(name: str) -> list[dict]:
    return [json.loads(line) for line in (FOLDER / name).read_text("utf-8").splitlines()]


ARTICLES = {article["id"]: article for article in read("articles.jsonl")}
PROMPTS = read("prompts.jsonl")
GOLD = read("gold.jsonl")
ANSWERABLE = [prompt for prompt in PROMPTS if prompt["answerable"]]


def holds(text: str, spelling: str) -> bool:
    return re.search(rf"(?<!\w){re.escape(spelling)}(?!\w)", text, re.IGNORECASE) is not None


def sentences(text: str) -> list[str]:
    return re.split(r"(?<=[.;:])\s+", text)


def squeezed(text: str) -> str:
    return " ".join(re.findall(r"\w+", text.casefold()))


# --- articles and prompts ---------------------------------------------------------------------


def test_ids_are_unique() -> None:
    for rows in (read("articles.jsonl"), PROMPTS, GOLD):
        assert max(Counter(row["id"] for row in rows).values()) == 1


def test_there_are_enough_articles_and_prompts() -> None:
    splits = Counter(article["split"] for article in ARTICLES.values())
    assert splits["train"] >= 28 and splits["heldout"] >= 16 and len(splits) == 2
    assert len(PROMPTS) >= 240
    assert sum(prompt["split"] == "heldout" for prompt in PROMPTS) >= 80


@pytest.mark.parametrize("article", ARTICLES.values(), ids=lambda article: article["id"])
def test_an_article_is_short_and_has_five_questions_and_one_without_answer(article: dict) -> None:
    assert 35 <= len(article["text"].split()) <= 60
    mine = [prompt for prompt in PROMPTS if prompt["article"] == article["id"]]
    assert Counter(prompt["answerable"] for prompt in mine) == {True: 5, False: 1}
    assert len({prompt["messages"][1]["content"] for prompt in mine}) == 6


def test_every_prompt_shows_its_own_article_and_the_same_instructions() -> None:
    assert len({prompt["messages"][0]["content"] for prompt in PROMPTS}) == 1
    for prompt in PROMPTS:
        system, user = prompt["messages"]
        assert (system["role"], user["role"]) == ("system", "user")
        article = ARTICLES[prompt["article"]]
        assert user["content"].startswith(f"Context: {article['text']}\n\nQuestion: ")
        assert prompt["id"].startswith(article["id"] + "-")


def test_every_fact_stands_in_its_article() -> None:
    for prompt in ANSWERABLE:
        text = ARTICLES[prompt["article"]]["text"]
        assert 1 <= len(prompt["facts"]) <= 2, prompt["id"]
        for fact in prompt["facts"]:
            assert any(holds(text, spelling) for spelling in fact), (prompt["id"], fact)


def test_no_question_gives_its_answer_away() -> None:
    for prompt in ANSWERABLE:
        question = prompt["messages"][1]["content"].rpartition("Question: ")[2]
        for spelling in (spelling for fact in prompt["facts"] for spelling in fact):
            assert not holds(question, spelling), (prompt["id"], spelling)


def test_unanswerable_prompts_have_no_facts() -> None:
    assert all(prompt["facts"] == [] for prompt in PROMPTS if not prompt["answerable"])


def test_the_files_are_what_the_source_builds() -> None:
    built = runpy.run_path(str(FOLDER / "build.py"))["build"]
    articles, prompts = built((FOLDER / "knowledge.txt").read_text("utf-8"))
    assert articles == read("articles.jsonl") and prompts == PROMPTS


# --- the split --------------------------------------------------------------------------------


def test_a_prompt_is_on_the_side_of_its_article() -> None:
    for prompt in PROMPTS:
        assert prompt["split"] == ARTICLES[prompt["article"]]["split"]


def test_no_subject_and_no_sentence_is_on_both_sides() -> None:
    by_split = {"train": [], "heldout": []}
    for article in ARTICLES.values():
        by_split[article["split"]].append(article)
    titles = {squeezed(article["title"]) for article in by_split["train"]}
    train = squeezed(" ".join(article["text"] for article in by_split["train"]))
    for article in by_split["heldout"]:
        assert squeezed(article["title"]) not in titles
        for sentence in sentences(article["text"]):
            assert squeezed(sentence) not in train, sentence


def test_no_held_out_sentence_is_a_train_sentence_in_other_words() -> None:
    """Half of the words of a held-out sentence in one train sentence would be a retold fact."""
    train = [
        set(squeezed(sentence).split())
        for article in ARTICLES.values()
        if article["split"] == "train"
        for sentence in sentences(article["text"])
    ]
    for article in ARTICLES.values():
        if article["split"] == "heldout":
            for sentence in sentences(article["text"]):
                words = set(squeezed(sentence).split())
                shared = max(len(words & other) / len(words | other) for other in train)
                assert shared < 0.5, (article["id"], sentence)


# --- the gold set -----------------------------------------------------------------------------


def test_the_gold_set_has_every_slice_and_no_item_at_floor_or_ceiling() -> None:
    assert len(GOLD) >= 120
    slices = Counter(item["slice"] for item in GOLD)
    assert set(slices) == {"arithmetic", "reasoning", "python", "instruction"}
    assert min(slices.values()) >= 30
    assert all(0 < item["pass_rate"] < 1 for item in GOLD)


@pytest.mark.parametrize("item", GOLD, ids=lambda item: item["id"])
def test_every_gold_item_can_be_marked(item: dict) -> None:
    validate(item["checker"])
    assert item["prompt"].strip()
    assert check(item["checker"], "").passed is False


def test_gold_prompts_are_unique_and_no_product_prompt() -> None:
    # `squeezed` drops operators, so 7 + 2 and 7 - 2 are told apart by the prompts as they stand.
    assert len({item["prompt"].casefold() for item in GOLD}) == len(GOLD)
    gold = [squeezed(item["prompt"]) for item in GOLD]
    product = {squeezed(prompt["messages"][1]["content"]) for prompt in PROMPTS}
    product |= {text.rpartition(" question ")[2] for text in product}
    assert not product & set(gold)
    for word in ("wren", "feeder", "hedgerow"):
        assert not any(holds(text, word) for text in gold)


def test_gold_rules_are_known() -> None:
    used = {rule["rule"] for item in GOLD for rule in item["checker"].get("rules", [])}
    assert used and used <= set(RULES)
