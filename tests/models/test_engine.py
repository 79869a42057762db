"""The engine: batches change nothing, pieces are whole, and what fails fails alone."""

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from trueup.errors import DataError, ModelError, TrueupError
from trueup.models import chat
from trueup.models.backbone import Backbone
from trueup.models.engine import MAX_BATCH_TOKENS, Engine, Pending
from trueup.models.logprobs import Branches, completion_logprobs
from trueup.models.pieces import Piece, PieceStream
from trueup.models.tiny import save_tiny
from trueup.records import Checkpoint, Completion, Message, Messages, Release, Sampling, TrainingRun
from trueup.store import Store

EXAMPLES = [
    ("Say it.", "Grüße 🙂 an alle!"),
    ("How many?", "Twelve of them, I think."),
    ("So?", "No."),
]
GREEDY = Sampling(temperature=0, max_tokens=60)


def ask(text: str) -> Messages:
    return (Message(role="user", content=text),)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("tiny"), seed=0, examples=EXAMPLES, steps=60)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    store = Store(tmp_path)
    yield store
    store.close()


@pytest.fixture
def engine(folder: Path, store: Store) -> Iterator[Engine]:
    engine = Engine(Backbone.load(folder), store)
    yield engine
    engine.close()


def answer(engine: Engine, text: str, sampling: Sampling = GREEDY, **more) -> list[Completion]:
    return engine.submit(ask(text), sampling, **more).answer.result(60)


# --- answers ------------------------------------------------------------------------------------


def test_a_completion_tells_who_wrote_it_and_how(engine) -> None:
    (done,) = answer(engine, "How many?")
    assert done.text == "Twelve of them, I think." and done.finish_reason == "stop"
    assert done.weights == engine.champion_weights() and done.sampling == GREEDY
    assert len(done.token_ids) == len(done.logprobs) == len(done.text) + 1


def test_company_of_any_kind_changes_neither_tokens_nor_log_probs(engine, folder) -> None:
    alone = {text: answer(engine, text)[0] for text, _ in EXAMPLES}
    seeded = Sampling(temperature=1.5, top_p=0.9, max_tokens=50, seed=4)
    alone_seeded = answer(engine, "So?", seeded, num_samples=2)
    is_free = hold(engine)
    crowd = [engine.submit(ask(EXAMPLES[i % 3][0]), GREEDY) for i in range(12)]
    crowd_seeded = engine.submit(ask("So?"), seeded, num_samples=2)
    wild = [engine.submit(ask("x" * 40 * i), Sampling(max_tokens=70)) for i in range(1, 6)]
    is_free.set()
    for i, pending in enumerate(crowd):
        (one,), expected = pending.answer.result(60), alone[EXAMPLES[i % 3][0]]
        assert one.token_ids == expected.token_ids
        assert one.logprobs == pytest.approx(expected.logprobs, abs=1e-4)
    for one, expected in zip(crowd_seeded.answer.result(60), alone_seeded, strict=True):
        assert one.token_ids == expected.token_ids
        assert one.logprobs == pytest.approx(expected.logprobs, abs=1e-4)
    backbone = Backbone.load(folder)
    for pending in wild:
        (one,) = pending.answer.result(60)
        row = Branches(pending.prompt_ids, [one.token_ids])
        expected = completion_logprobs(backbone.model, [row])[0][0].tolist()
        assert one.logprobs == pytest.approx(expected, abs=1e-4)


def test_a_short_answer_does_not_wait_for_a_long_one(engine) -> None:
    is_free = hold(engine)
    heard = threading.Event()
    may_go_on = threading.Event()

    def slowly(piece: Piece) -> None:
        heard.set()
        may_go_on.wait(60)

    short = engine.submit(ask("So?"), GREEDY)
    engine.submit(ask("How many?"), GREEDY, on_piece=lambda p: p.text == " " and slowly(p))
    is_free.set()
    # "No." is three tokens and an end, "Twelve " has seven before the first blank
    assert heard.wait(60) and short.answer.result(60)[0].text == "No."
    may_go_on.set()


def test_batches_keep_within_rows_and_tokens(folder, store) -> None:
    engine = Engine(Backbone.load(folder), store, max_batch_rows=4)
    sizes = watch_sizes(engine)
    is_free = hold(engine)
    small = [engine.submit(ask("So?"), GREEDY, num_samples=2) for _ in range(5)]
    is_free.set()
    assert all(len(p.answer.result(60)) == 2 for p in small)
    assert max(rows for rows, _ in sizes) == 4
    with pytest.raises(DataError, match="5"):
        engine.submit(ask("So?"), GREEDY, num_samples=5)
    engine.close()


def test_long_prompts_make_smaller_batches(engine) -> None:
    sizes = watch_sizes(engine)
    is_free = hold(engine)
    asked = [engine.submit(ask("x" * 900), Sampling(max_tokens=3)) for _ in range(24)]
    is_free.set()
    assert all(p.answer.result(60) for p in asked)
    assert 8 < max(rows for rows, _ in sizes) < 24
    assert max(places for _, places in sizes) <= MAX_BATCH_TOKENS


# --- joining ------------------------------------------------------------------------------------


def test_a_newcomer_joins_a_running_batch_and_overtakes_nobody(engine) -> None:
    """A long answer is held after its second token; who comes then is answered before its end."""
    is_held, is_free = threading.Event(), threading.Event()
    heard: list[str] = []

    def wait(piece: Piece) -> None:
        heard.append(piece.text)
        if len(heard) == 2:
            is_held.set()
            is_free.wait(60)

    long = engine.submit(ask("How many?"), GREEDY, on_piece=wait)
    assert is_held.wait(60)
    late = [engine.submit(ask("So?"), GREEDY) for _ in range(3)]
    seen: list[int] = []
    late[-1].answer.add_done_callback(lambda _: seen.append(len(heard)))
    is_free.set()
    assert [p.answer.result(60)[0].text for p in late] == ["No."] * 3
    (done,) = long.answer.result(60)
    assert done.text == "Twelve of them, I think." == "".join(heard)
    assert 2 < seen[0] < len(heard) - 5, "the long answer was not over"
    alone = answer(engine, "How many?")[0]
    assert done.logprobs == pytest.approx(alone.logprobs, abs=1e-4)


def test_nobody_joins_a_batch_once_another_release_exists(engine, folder) -> None:
    """The batch ends with the weights it began with; who waits is answered by the new ones."""
    store, base = engine._store, engine.champion_weights()
    checkpoint = make_checkpoint(folder, store)
    is_free = hold(engine, text="How many?")
    before = engine.submit(ask("So?"), GREEDY)
    is_free.set()
    before.answer.result(60)
    is_free = hold(engine, text="How many?")
    store.release(
        Release(action="promote", weights=checkpoint.weights, checkpoint_id=checkpoint.id)
    )
    after = engine.submit(ask("So?"), GREEDY)
    is_free.set()
    assert after.answer.result(60)[0].weights == checkpoint.weights != base
    assert before.weights == held[-1].weights == base
    assert held[-1].answer.result(60)[0].text == "Twelve of them, I think."


def test_a_prompt_that_fails_leaves_the_running_batch_alone(engine) -> None:
    is_free = hold(engine, text="How many?")
    broken = engine.submit(ask("So?"), GREEDY)
    broken.prompt_ids = (engine._backbone.model.config.vocab_size + 7,)
    is_free.set()
    with pytest.raises(TrueupError, match="IndexError"):
        broken.answer.result(60)
    assert held[-1].answer.result(60)[0].text == "Twelve of them, I think."


def test_who_was_answered_is_forgotten(engine) -> None:
    is_free = hold(engine)
    asked = [engine.submit(ask("So?"), GREEDY, num_samples=2) for _ in range(3)]
    is_free.set()
    assert all(p.answer.result(60) for p in asked)
    answer(engine, "So?")
    assert engine._running == {} and not engine._waiting


# --- stop strings -------------------------------------------------------------------------------


def test_a_stop_string_ends_the_text_and_the_tokens_stay(engine) -> None:
    whole = answer(engine, "How many?")[0]
    (done,) = answer(engine, "How many?", stopping("them", "zebra"))
    assert (done.text, done.finish_reason) == ("Twelve of ", "stop")
    assert done.token_ids == whole.token_ids[: len("Twelve of them")]
    assert done.logprobs == pytest.approx(whole.logprobs[: len(done.token_ids)], abs=1e-4)
    assert done.sampling.stop == ("them", "zebra") and not done.sampling.is_plain


@pytest.mark.parametrize(
    ("stop", "text"),
    [
        (("them", "of t"), "Twelve "),
        (("f them", "of themselves"), "Twelve o"),
        (("elves", "!"), "Twelve of them, I think."),
        (("T",), ""),
        (("k.",), "Twelve of them, I thin"),
        ((".",), "Twelve of them, I think"),
    ],
)
def test_pieces_show_no_part_of_a_stop_string(engine, stop, text) -> None:
    heard: list[Piece] = []
    pending = engine.submit(ask("How many?"), stopping(*stop), on_piece=heard.append)
    (done,) = pending.answer.result(60)
    shown = "".join(p.text for p in heard)
    assert shown == done.text == text and done.finish_reason == "stop"
    assert tuple(t for p in heard for t in p.token_ids) == done.token_ids
    assert tuple(x for p in heard for x in p.logprobs) == done.logprobs
    assert [p.finish_reason for p in heard if p.finish_reason] == ["stop"]
    at = 0
    for piece in heard[:-1]:  # one token a byte: tokens are told with their text, never before
        at += len(piece.text)
        assert len([t for p in heard[: heard.index(piece) + 1] for t in p.token_ids]) <= at


def test_a_held_back_beginning_is_shown_once_it_is_none(engine) -> None:
    """`them, she` holds back `them, ` until `I` comes; nothing else waits."""
    heard: list[Piece] = []
    engine.submit(ask("How many?"), stopping("them, she"), on_piece=heard.append).answer.result(60)
    texts = [p.text for p in heard]
    assert "them, I" in texts and texts.index("them, I") == len("Twelve of ")
    assert "".join(texts) == "Twelve of them, I think."


def test_each_sample_stops_for_itself(engine) -> None:
    hot = Sampling(temperature=1.2, max_tokens=40, seed=2)
    whole = answer(engine, "How many?", hot, num_samples=6)
    cut = answer(engine, "How many?", hot.model_copy(update={"stop": ("e",)}), num_samples=6)
    assert any("e" in one.text for one in whole)
    for one, other in zip(whole, cut, strict=True):
        assert other.text == one.text.split("e")[0]
        assert other.finish_reason == ("stop" if "e" in one.text else one.finish_reason)


# --- pieces -------------------------------------------------------------------------------------


def test_pieces_join_to_the_completion_and_split_no_character(engine) -> None:
    heard: list[Piece] = []
    pending = engine.submit(ask("Say it."), GREEDY, on_piece=heard.append)
    (done,) = pending.answer.result(60)
    assert "".join(p.text for p in heard) == done.text == "Grüße 🙂 an alle!"
    assert "🙂" in [p.text for p in heard] and not any("\ufffd" in p.text for p in heard)
    assert tuple(t for p in heard for t in p.token_ids) == done.token_ids
    assert tuple(x for p in heard for x in p.logprobs) == done.logprobs
    assert [p.finish_reason for p in heard if p.finish_reason] == ["stop"]
    assert heard[-1].finish_reason and pending.weights == done.weights


@pytest.mark.parametrize("seed", range(5))
def test_pieces_of_random_bytes_join_to_what_they_decode_to(folder, seed) -> None:
    import random

    tokenizer = Backbone.load(folder).tokenizer
    dice = random.Random(seed)
    ids = [dice.randrange(len(tokenizer)) for _ in range(300)]
    ids += tokenizer("é🙂 ok")["input_ids"] + [dice.randrange(len(tokenizer)) for _ in range(3)]
    heard: list[Piece] = []
    stream = PieceStream(lambda part: chat.decode(tokenizer, part), heard.append, 0)
    for token_id in ids:
        stream.push(token_id, -1.0)
    text = chat.decode(tokenizer, ids)
    stream.finish(Completion(text=text, finish_reason="length"))
    assert "".join(p.text for p in heard) == text
    assert [t for p in heard for t in p.token_ids] == ids


def test_a_cancelled_answer_ends_where_it_is(engine) -> None:
    pending = engine.submit(
        ask("How many?"), GREEDY, on_piece=lambda p: p.text == "v" and pending.cancel()
    )
    (done,) = pending.answer.result(60)
    assert done.finish_reason == "unknown" and done.text.startswith("Twelv")
    assert len(done.text) < 8


# --- trouble ------------------------------------------------------------------------------------


def test_prompts_that_do_not_fit_are_refused_and_answers_are_cut_to_fit(engine) -> None:
    with pytest.raises(DataError, match="context"):
        engine.submit(ask("x" * 1024), GREEDY)
    room = engine.context - len(engine._prompt_ids(ask("x" * 990), 1))
    (done,) = answer(engine, "x" * 990, Sampling(temperature=1, max_tokens=500, seed=1))
    assert done.sampling.max_tokens == room < 30 and len(done.token_ids) <= room


def test_a_batch_that_fails_takes_nobody_else_with_it(engine, caplog) -> None:
    vocabulary = engine._backbone.model.config.vocab_size
    is_free = hold(engine)
    broken = engine.submit(ask("So?"), GREEDY)
    broken.prompt_ids = (vocabulary + 7,)  # no such token: the network itself fails
    beside = engine.submit(ask("So?"), GREEDY)
    is_free.set()
    for pending in (broken, beside):
        with pytest.raises(TrueupError, match="IndexError"):
            pending.answer.result(60)
    assert answer(engine, "So?")[0].text == "No."
    assert "A batch of 2 requests failed" in caplog.text


def test_a_listener_that_falls_over_fails_alone(engine) -> None:
    is_free = hold(engine)

    def fall_over(_: Piece) -> None:
        raise RuntimeError("the loop is closed")

    broken = engine.submit(ask("How many?"), GREEDY, on_piece=fall_over)
    beside = engine.submit(ask("How many?"), GREEDY)
    is_free.set()
    assert beside.answer.result(60)[0].text == "Twelve of them, I think."
    assert broken.answer.result(60)[0].finish_reason == "unknown"


def test_close_fails_who_waits_and_ends_who_runs(engine) -> None:
    is_free = hold(engine)
    waiting = engine.submit(ask("So?"), GREEDY)
    threading.Timer(0.1, is_free.set).start()
    engine.close()
    with pytest.raises(ModelError, match="closed"):
        waiting.answer.result(60)
    with pytest.raises(ModelError, match="closed"):
        engine.submit(ask("So?"), GREEDY)
    engine.close()


held: list[Pending] = []
"""Requests that `hold` made, the last one last."""


def hold(engine: Engine, text: str = "So?") -> threading.Event:
    """Keep the engine in the middle of a batch until the event is set."""
    is_held, is_free = threading.Event(), threading.Event()

    def wait(_: Piece) -> None:
        is_held.set()
        is_free.wait(60)

    held.append(engine.submit(ask(text), GREEDY, on_piece=wait))
    assert is_held.wait(60)
    return is_free


def stopping(*stop: str) -> Sampling:
    return GREEDY.model_copy(update={"stop": stop})


def watch_sizes(engine: Engine) -> list[tuple[int, int]]:
    """Rows, and rows times columns, of every forward pass from here on."""
    sizes: list[tuple[int, int]] = []

    def note(_: object, __: object, kwargs: dict) -> None:
        rows, columns = kwargs["attention_mask"].shape
        sizes.append((rows, rows * columns))

    engine._backbone.model.register_forward_pre_hook(note, with_kwargs=True)
    return sizes


def make_checkpoint(folder: Path, store: Store) -> Checkpoint:
    """An adapter that makes another model of the tiny one, in the store with its lineage."""
    backbone = Backbone.load(folder)
    backbone.new_adapter("policy", rank=4, alpha=8, targets=["q_proj", "v_proj"], seed=1)
    noise = torch.Generator().manual_seed(1)
    for name, weight in backbone.model.named_parameters():
        if "lora_B" in name:
            weight.data.copy_(torch.randn(weight.shape, generator=noise) * 0.5)
    weights = backbone.save_adapter("policy", store.folder / "checkpoints/noise", card={})
    base = backbone.base_weights
    run = TrainingRun(
        dataset_id="dataset_00", method="dpo", config={}, base_weights=base, start_weights=base,
        ref_weights=base, template=backbone.template,
    )  # fmt: skip
    checkpoint = Checkpoint(
        run_id=run.id, path="checkpoints/noise", weights=weights, base_weights=base
    )
    store.add(run, checkpoint)
    return checkpoint
