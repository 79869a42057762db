"""Each signal on both sides of its line, by hand-computed values and by a real small model."""

import json
import math
from pathlib import Path

import numpy as np
import pytest

from trueup.errors import ConfigError, ModelError
from trueup.flag import FlagConfig, Parts, run
from trueup.flag.signals import SIGNALS, Context, Population, Rating, score
from trueup.flag.signals.consistency import clusters, semantic_entropy
from trueup.flag.signals.likelihood import perplexity
from trueup.flag.signals.toxicity import pattern_of, shipped_words
from trueup.models.embedder import Embedder, lexical
from trueup.models.entailment import Entailment
from trueup.records import Completion, Flag, Interaction, Message, ToolCall
from trueup.store import Store

GIVEN = "Context: A charge takes 4 hours. The bag is blue.\n\nQuestion: How long does it take?"


def asked(
    answer: str,
    prompt: str = GIVEN,
    *,
    logprobs: tuple[float, ...] | None = None,
    calls: tuple[ToolCall, ...] = (),
    tools: tuple[dict, ...] = (),
    error: str = "",
) -> Interaction:
    return Interaction(
        prompt=(Message(role="user", content=prompt),),
        completion=Completion(
            text=answer, logprobs=logprobs, tool_calls=calls, finish_reason="stop"
        ),
        source="gateway",
        tools=tools,
        error=error,
    )


def found(
    one: Interaction, *, config: FlagConfig | None = None, among: tuple = (), **known: object
) -> dict[str, float]:
    config = config or FlagConfig()
    population = Population((one, *among), known.pop("ratings", None))  # type: ignore[arg-type]
    rating = known.pop("rating", None) or (
        Rating(one.completion.logprobs) if one.completion.logprobs else None
    )
    return score(one, Context(population, config, rating=rating, **known))  # type: ignore[arg-type]


def test_every_signal_has_a_name_of_its_own_and_a_version() -> None:
    names = [one.name for one in SIGNALS]
    assert len(set(names)) == len(names)
    assert all(one.version >= 1 for one in SIGNALS)


# --- form, conduct ------------------------------------------------------------------------------


def test_a_call_without_words_is_no_empty_answer() -> None:
    call = ToolCall(name="weather", arguments='{"city": "Oslo"}')
    assert found(asked("", calls=(call,)))["empty"] == 0
    assert found(asked(""))["empty"] == 1


WEATHER = {
    "type": "function",
    "function": {
        "name": "weather",
        "parameters": {"type": "object", "required": ["city"], "properties": {"city": {}}},
    },
}


@pytest.mark.parametrize(
    ("name", "arguments", "value"),
    [
        ("weather", '{"city": "Oslo"}', 0),
        ("weather", '{"city": "Oslo", "day": 1}', 0),
        ("weather", "{}", 1),
        ("weather", '{"city": ', 1),
        ("weather", '["Oslo"]', 1),
        ("climate", '{"city": "Oslo"}', 1),
    ],
)
def test_a_call_that_cannot_run_is_bad(name: str, arguments: str, value: float) -> None:
    call = ToolCall(name=name, arguments=arguments)
    assert found(asked("", calls=(call,), tools=(WEATHER,)))["bad_call"] == value


def test_where_nothing_was_called_or_offered_nothing_is_said_of_names() -> None:
    assert "bad_call" not in found(asked("Four hours.", tools=(WEATHER,)))
    assert found(asked("", calls=(ToolCall(name="x", arguments=""),)))["bad_call"] == 0


def test_of_an_answer_that_broke_off_only_the_error_is_looked_at() -> None:
    broken = found(asked("", error="upstream 503"))
    assert broken == {"feedback": 0, "error": 1}
    assert found(asked("A charge ta", error="client left"))["error"] == 0.3


# --- refusal, words -----------------------------------------------------------------------------


def test_a_refusal_calls_for_a_label_and_an_admission_does_not() -> None:
    assert found(asked("I'm sorry, but I can't help with that."))["refusal"] == 0.6
    assert found(asked("The context does not say."))["refusal"] == 0


def test_listed_words_count_whole_once_each_and_not_where_the_prompt_has_them() -> None:
    assert found(asked("Shut up, moron."))["toxic"] == 0.7
    assert found(asked("Scunthorpe is near Shitterton Hall? No: in Lincolnshire."))["toxic"] == 0
    assert found(asked("It means moron.", prompt="What does moron mean?"))["toxic"] == 0
    assert found(asked("Moron, MORON, moron!"))["toxic"] == 0.6


def test_the_shipped_list_holds_only_phrases_that_it_finds() -> None:
    words = shipped_words()
    assert len(words) > 40 and len(set(words)) == len(words)
    pattern = pattern_of(words)
    for one in words:
        assert pattern.search(f"So, {one.rstrip('*')}!"), one
    assert not pattern.search("The classic assassin passed the glass to the cocktail bar.")


def test_a_list_of_ones_own_replaces_it_and_a_missing_one_is_said(tmp_path: Path) -> None:
    own = tmp_path / "words.txt"
    own.write_text("# ours\ncompetitor*\n")
    config = FlagConfig(toxic_words=str(own))
    assert found(asked("Competitors are cheaper."), config=config)["toxic"] == 0.6
    assert found(asked("Shut up."), config=config)["toxic"] == 0
    with pytest.raises(ConfigError, match=r"toxic_words"):
        found(asked("x"), config=FlagConfig(toxic_words=str(tmp_path / "none.txt")))


# --- likelihood ---------------------------------------------------------------------------------


def test_the_least_likely_token_and_the_share_under_the_line_have_lines_of_their_own() -> None:
    """Medians of the least likely are -1, their median deviation 0.5."""
    usual = [asked(str(n), logprobs=(-0.1, -1 + 0.5 * n)) for n in (-2, -1, 0, 1)]
    odd = asked("odd", logprobs=(-0.1, -9.0))
    values = found(odd, among=tuple(usual))
    assert values["unlikely_token"] == 1
    assert "uncertain" not in values, "a capture brings no entropies"
    likely = asked("sure", logprobs=(-0.1, -0.2))
    assert found(likely, among=tuple(usual))["unlikely_token"] == 0


def test_entropies_of_a_local_pass_give_a_signal() -> None:
    ratings = [Rating((-1.0,), (e,)) for e in (0.5, 1.0, 1.5, 9.0)]
    one = asked("x")
    values = found(one, ratings=ratings, rating=ratings[-1])
    # median 1.25, median deviation 0.5: (9 - 1.25) / (1.4826 * 0.5) spreads away
    assert values["uncertain"] == 1
    assert found(one, ratings=ratings, rating=ratings[0])["uncertain"] == 0


def test_perplexity_is_that_of_a_die() -> None:
    assert perplexity(Rating([math.log(1 / 6)] * 5)) == pytest.approx(6)
    assert perplexity(Rating([-1e6])) == math.inf
    assert perplexity(Rating([])) is None


# --- grounding ----------------------------------------------------------------------------------


def planes(texts: list[str]) -> np.ndarray:
    """Charges lie east, bags north, all else up: a meaning for a test."""
    rows = [
        [float("charg" in t or "hours" in t), float("bag" in t), 1e-3 + float("elves" in t)]
        for t in map(str.lower, texts)
    ]
    return np.array(rows)


def test_the_furthest_sentence_from_the_context_decides() -> None:
    embedder, config = Embedder("test:planes", planes), FlagConfig(min_similarity=0.4)
    near = found(asked("It needs 4 hours. The bag is blue."), config=config, embedder=embedder)
    far = found(asked("It needs 4 hours. Elves help."), config=config, embedder=embedder)
    assert near["distant"] == pytest.approx(0, abs=1e-3)
    assert far["distant"] == pytest.approx(0.5 / 0.6, abs=2e-3)
    assert "distant" not in found(asked("Elves."), embedder=embedder), "off by default"
    assert "distant" not in found(asked("Elves."), config=config, embedder=lexical())
    assert "distant" not in found(asked("Elves.", "Who?"), config=config, embedder=embedder)


def test_an_admission_is_no_claim() -> None:
    embedder, config = Embedder("test:planes", planes), FlagConfig(min_similarity=0.4)
    values = found(asked("The context does not say."), config=config, embedder=embedder)
    assert values["distant"] == 0


@pytest.fixture(scope="module")
def nli(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny classifier with random weights and the labels of natural language inference."""
    import torch
    from transformers import BertConfig, BertForSequenceClassification

    from trueup.models.tiny import _byte_tokenizer

    folder = tmp_path_factory.mktemp("nli") / "model"
    torch.manual_seed(0)
    tokenizer = _byte_tokenizer()
    labels = ["contradiction", "neutral", "entailment"]
    model = BertForSequenceClassification(
        BertConfig(
            vocab_size=len(tokenizer),
            hidden_size=32,
            num_hidden_layers=1,
            num_attention_heads=2,
            intermediate_size=32,
            max_position_embeddings=128,
            initializer_range=0.5,
            id2label=dict(enumerate(labels)),
            label2id={name: n for n, name in enumerate(labels)},
        )
    )
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def test_entailment_is_the_softmax_of_the_label_that_says_so_whatever_the_batch(nli: Path) -> None:
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    pairs = [("A charge takes 4 hours.", "It is short."), ("Blue.", "The bag is blue, " * 3)]
    asked_at_once = Entailment(nli)(pairs)
    model = AutoModelForSequenceClassification.from_pretrained(nli).eval()
    tokenizer = AutoTokenizer.from_pretrained(nli)
    for pair, value in zip(pairs, asked_at_once, strict=True):
        with torch.no_grad():
            logits = model(**tokenizer(*pair, return_tensors="pt")).logits[0]
        assert value == pytest.approx(float(logits.softmax(-1)[2]), abs=1e-5)
    assert asked_at_once[0] != asked_at_once[1]


def test_answers_are_held_against_their_context_by_entailment(nli: Path) -> None:
    entailment = Entailment(nli)
    given = "A charge takes 4 hours. The bag is blue."
    expected = 1 - entailment([(given, "It needs 4 hours."), (given, "Elves help.")]).mean()
    values = found(asked("It needs 4 hours. Elves help."), entailment=entailment)
    assert values["not_entailed"] == pytest.approx(expected, abs=1e-4)
    assert "not_entailed" not in found(asked("Elves.", "Who?"), entailment=entailment)


def test_a_folder_that_is_no_such_model_is_refused_before_anything_is_scored(
    tmp_path: Path, nli: Path
) -> None:
    with pytest.raises(ModelError, match="safetensors"):
        Entailment(tmp_path)
    other = tmp_path / "other"
    other.mkdir()
    for file in nli.iterdir():
        (other / file.name).write_bytes(file.read_bytes())
    card = json.loads((other / "config.json").read_text())
    card["id2label"] = {"0": "good", "1": "bad", "2": "ugly"}
    card["label2id"] = {"good": 0, "bad": 1, "ugly": 2}
    (other / "config.json").write_text(json.dumps(card))
    with pytest.raises(ModelError, match="entailment"):
        Entailment(other)


def test_the_step_asks_the_model_that_the_settings_name(tmp_path: Path, nli: Path) -> None:
    store = Store(tmp_path / "store")
    store.add(asked("Elves help."))
    config = FlagConfig(nli_model=nli.name)
    (flag,) = run(store, config, Parts(folder=nli.parent))
    assert "not_entailed" in flag.signals
    store.close()


# --- consistency --------------------------------------------------------------------------------


def test_semantic_entropy_by_hand() -> None:
    assert semantic_entropy([0, 0, 0, 0]) == 0
    assert semantic_entropy([0, 1, 2, 3]) == pytest.approx(math.log(4))
    assert semantic_entropy([0, 0, 1, 1]) == pytest.approx(math.log(2))
    assert semantic_entropy([0, 0, 0, 1]) == pytest.approx(0.5623, abs=1e-4)


def test_a_text_joins_the_first_cluster_whose_first_member_means_the_same() -> None:
    near = clusters(["10", "11", "12", "20"], lambda a, b: abs(int(a) - int(b)) <= 1)
    assert near == [0, 0, 1, 2], "12 is near 11, but the first member is 10"


def test_the_signal_is_entropy_over_its_largest_value() -> None:
    one = asked("Paris.", "Capital of France?")
    same = ("Paris.", "It is Paris.", "Paris!", "paris")
    split = ("Paris.", "Paris!", "London.", "London!")
    assert found(one, samples=same)["inconsistent"] == 0
    assert found(one, samples=split)["inconsistent"] == 0.5
    assert found(one, samples=("Paris", "Rome", "Oslo", "Bern"))["inconsistent"] == 1
    assert "inconsistent" not in found(one, samples=("Paris",))


def test_meaning_is_asked_of_the_embedder_where_there_is_one() -> None:
    embedder = Embedder("test:planes", planes)
    one = asked("x", "y")
    assert found(one, samples=("4 hours", "charging"), embedder=embedder)["inconsistent"] == 0
    assert found(one, samples=("4 hours", "the bag"), embedder=embedder)["inconsistent"] == 1


def test_the_step_draws_from_the_champion_once(tmp_path: Path, tiny_model: Path) -> None:
    from trueup.models.backbone import Backbone
    from trueup.models.stored import StoredModel
    from trueup.records import SampleSet

    store = Store(tmp_path / "store")
    store.add(asked("blue.", "sky?"), asked("", "leaf?", error="timeout"))
    backbone = Backbone.load(tiny_model, device="cpu")
    config = FlagConfig(consistency_samples=4, consistency_tokens=12)
    parts = Parts(champion=lambda: StoredModel.serving(store, backbone))
    flags = {f.interaction_id: f for f in run(store, config, parts)}
    values = [f.signals.get("inconsistent") for f in flags.values()]
    assert len(values) == 2 and values.count(None) == 1, "a broken answer is not asked again"
    (drawn,) = store.all(SampleSet)
    assert len(drawn.completions) == 4
    assert run(store, config, parts) == []
    assert store.count(Flag) == 2
    store.close()
