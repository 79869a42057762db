"""The engine: batches change nothing, pieces are whole, and what fails fails alone."""

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from trueup.errors import DataError, ModelError, TrueupError
from trueup.models import chat
from trueup.models.backbone import Backbone
from trueup.models.engine import MAX_BATCH_TOKENS, Engine
from trueup.models.logprobs import Branches, completion_logprobs
from trueup.models.pieces import Piece, PieceStream
from trueup.models.tiny import save_tiny
from trueup.records import Completion, Message, Messages, Sampling
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
    sizes: list[int] = []
    answer_batch = engine._answer
    engine._answer = lambda batch: (sizes.append(len(batch)), answer_batch(batch))[1]
    is_free = hold(engine)
    small = [engine.submit(ask("So?"), GREEDY, num_samples=2) for _ in range(5)]
    is_free.set()
    assert all(len(p.answer.result(60)) == 2 for p in small)
    assert max(sizes) == 2
    with pytest.raises(DataError, match="5"):
        engine.submit(ask("So?"), GREEDY, num_samples=5)
    engine.close()


def test_long_prompts_make_smaller_batches(engine) -> None:
    is_free = hold(engine)
    pending = [engine.submit(ask("x" * 900), GREEDY.model_copy(update={"max_tokens": 60}))] * 40
    assert not engine._fits(pending) and engine._fits(pending[:8])
    assert engine._fits(pending[:1]) and MAX_BATCH_TOKENS < 1000 * 17
    is_free.set()


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


def hold(engine: Engine) -> threading.Event:
    """Keep the engine in the middle of a batch until the event is set."""
    is_held, is_free = threading.Event(), threading.Event()

    def wait(_: Piece) -> None:
        is_held.set()
        is_free.wait(60)

    engine.submit(ask("So?"), GREEDY, on_piece=wait)
    assert is_held.wait(60)
    return is_free
