"""Which traffic is kept: the draw, the rules, and what a complaint brings back."""

import random

import pytest

from trueup.capture import CaptureConfig, Recorder
from trueup.capture.config import CaptureRule
from trueup.capture.recall import Recall, size_of
from trueup.capture.rules import why_left_out
from trueup.errors import StorageError
from trueup.privacy import PrivacyConfig, Scrubber, erase_user
from trueup.records import Completion, Interaction, Message
from trueup.store import Store


def interaction(name: str, text: str = "An answer.", **fields) -> Interaction:
    return Interaction(
        prompt=(Message(role="user", content="A question?"),),
        completion=Completion(text=text),
        source="gateway",
        request_id=name,
        **fields,
    )


@pytest.fixture
def store(tmp_path):
    store = Store(tmp_path)
    yield store
    store.close()


def balance(recorder: Recorder) -> None:
    """What was sent became something: one look, for it holds at every moment."""
    counts = recorder.counters
    outcomes = ("captured", "dropped", "failed", "waiting", "skipped_by_rate", "skipped_by_rule",
                "skipped_not_text", "skipped_known", "skipped_erased")  # fmt: skip
    assert counts["sent"] == sum(counts[name] for name in outcomes), counts


@pytest.mark.parametrize("by", ["user", "tenant"])
def test_a_user_or_a_tenant_is_in_or_out_as_a_whole(by) -> None:
    config = CaptureConfig(rate=0.3, by=by)
    drawn = {
        who: {why_left_out(config, interaction(f"{who}-{i}", **{by: who})) for i in range(20)}
        for who in (f"who-{n}" for n in range(600))
    }
    assert all(len(fates) == 1 for fates in drawn.values())
    share = sum(fates == {None} for fates in drawn.values()) / len(drawn)
    assert abs(share - 0.3) < 4 * (0.3 * 0.7 / 600) ** 0.5
    nobody = [why_left_out(config, interaction(f"r{i}")) for i in range(600)]
    assert 100 < nobody.count(None) < 260  # without a user each request is drawn alone


def test_the_same_user_of_two_tenants_is_two_and_a_salt_draws_anew() -> None:
    plain = CaptureConfig(rate=0.5, by="user")
    salted = CaptureConfig(rate=0.5, by="user", salt="spring")

    def fates(config, tenant):
        return [
            why_left_out(config, interaction("r", user=f"u{i}", tenant=tenant)) for i in range(400)
        ]

    assert fates(plain, "a") == fates(plain, "a")
    for other in (fates(plain, "b"), fates(salted, "a")):
        same = sum(x == y for x, y in zip(fates(plain, "a"), other, strict=True))
        assert 140 < same < 260


def test_rules_go_before_the_draw_and_never_before_always() -> None:
    config = CaptureConfig(
        rate=0,
        always=CaptureRule(tenants=("gold",), models=("gpt-*",), routes=("/v1/traces",)),
        never=CaptureRule(users=("boss",), models=("gpt-secret",)),
    )
    assert why_left_out(config, interaction("r")) == "rate"
    assert why_left_out(config, interaction("r", tenant="gold")) is None
    assert why_left_out(config, interaction("r", model="gpt-4o")) is None
    assert why_left_out(config, interaction("r"), "/v1/traces") is None
    assert why_left_out(config, interaction("r", tenant="gold", user="boss")) == "rule"
    assert why_left_out(config, interaction("r", model="gpt-secret")) == "rule"
    assert why_left_out(config, interaction("r", error="timeout")) is None
    quiet = CaptureConfig(rate=0, always_errors=False)
    assert why_left_out(quiet, interaction("r", error="timeout")) == "rate"


def test_what_the_rate_left_out_can_be_recalled_once_with_its_other_choices(store) -> None:
    recorder = Recorder(store, CaptureConfig(rate=0))
    recorder.record(interaction("r"), interaction("r-1", "Another."))
    assert store.count(Interaction) == 0
    assert [one.request_id for one in recorder.recall("r-1")] == ["r", "r-1"]
    assert store.count(Interaction) == 2
    assert recorder.recall("r") == []
    counts = recorder.counters
    assert (counts["recalled"], counts["captured"], counts["skipped_by_rate"]) == (2, 2, 2)
    balance(recorder)
    recorder.close()


def test_what_a_rule_left_out_cannot_be_recalled(store) -> None:
    recorder = Recorder(store, CaptureConfig(never=CaptureRule(tenants=("quiet",))))
    recorder.record(interaction("r", tenant="quiet"))
    assert recorder.recall("r") == [] and recorder.counters["skipped_by_rule"] == 1
    balance(recorder)
    recorder.close()


def test_a_recall_that_cannot_be_written_can_be_tried_again(store, monkeypatch) -> None:
    recorder = Recorder(store, CaptureConfig(rate=0))
    recorder.record(interaction("r"))

    def full(records):
        raise StorageError("No space", got="full", expected="room", next="free some")

    with monkeypatch.context() as patched:
        patched.setattr(store, "add_late", full)
        with pytest.raises(StorageError):
            recorder.recall("r")
        balance(recorder)
    assert len(recorder.recall("r")) == 1 and store.count(Interaction) == 1
    balance(recorder)
    recorder.close()


def test_two_tenants_may_give_the_same_id_and_each_recalls_its_own(store) -> None:
    recorder = Recorder(store, CaptureConfig(rate=0))
    for tenant in ("a", "b"):
        recorder.record(interaction("r", f"For {tenant}.", tenant=tenant))
    assert recorder.recall("r", "c") == []
    for tenant in ("a", "b"):
        assert [one.completion.text for one in recorder.recall("r", tenant)] == [f"For {tenant}."]
    for tenant in ("a", "b"):
        recorder.record(interaction("s", f"For {tenant}.", tenant=tenant))
    found = [recorder.recall("s") for _ in range(3)]  # whoever may see all gets the latest first
    assert [[one.tenant for one in group] for group in found] == [["b"], ["a"], []]
    balance(recorder)
    recorder.close()


@pytest.mark.parametrize("has_more", [True, False])
def test_a_complaint_does_not_bring_back_whoever_was_erased_meanwhile(store, has_more) -> None:
    """Erased by another process, which knows of this one's memory as little as of its rows."""
    recorder = Recorder(store, CaptureConfig(rate=0), scrub=Scrubber(PrivacyConfig(), store))
    other = Store(store.folder)
    if has_more:
        other.add(Scrubber(PrivacyConfig(), other)(interaction("q", user="ann")))
    recorder.record(interaction("r", "A secret.", user="ann"))
    assert bool(erase_user(other, "ann").removed) == has_more
    assert recorder.recall("r") == [] and store.count(Interaction) == 0
    counts = recorder.counters
    assert (counts["captured"], counts["skipped_erased"], counts["recalled"]) == (0, 1, 0)
    balance(recorder)
    recorder.close()
    other.close()


def test_what_was_said_well_after_an_erasure_can_be_recalled(store, monkeypatch) -> None:
    from datetime import timedelta

    erase_user(store, "ann")
    recorder = Recorder(store, CaptureConfig(rate=0))
    recorder.record(interaction("r"))
    monkeypatch.setattr("trueup.store.store.CLOCKS_DIFFER", timedelta(0))
    assert len(recorder.recall("r")) == 1 and store.count(Interaction) == 1
    recorder.close()


def test_what_is_there_and_what_was_erased_is_not_captured_again(store) -> None:
    recorder = Recorder(store, CaptureConfig())
    one, two = interaction("r", user="ann"), interaction("s", user="bob")
    for _ in range(2):
        for each in (one, two):
            recorder.record(each)
        assert recorder.flush(60)
    assert recorder.counters["captured"] == recorder.counters["skipped_known"] == 2
    erase_user(store, "ann")
    recorder.record(one, two)
    assert recorder.flush(60)
    kept = recorder.keep([[one], [two], [one, two]])
    assert [each.skipped for each in kept] == ["erased", "", ""]
    assert kept[1].ids == kept[2].ids == (two.id,) and store.count(Interaction) == 1
    counts = recorder.counters
    assert (counts["captured"], counts["skipped_known"], counts["skipped_erased"]) == (2, 5, 3)
    balance(recorder)
    recorder.close()


def test_patterns_are_stars_and_question_marks_and_nothing_else() -> None:
    rule = CaptureRule(models=("m[1]-*", "[ab]", "x?z"))
    config = CaptureConfig(rate=0, always=rule)
    for model in ("m[1]-", "m[1]-large", "[ab]", "xyz", "x[z"):
        assert why_left_out(config, interaction("r", model=model)) is None, model
    for model in ("m1-large", "a", "xz", "M[1]-", "[ab"):
        assert why_left_out(config, interaction("r", model=model)) == "rate", model


def test_the_ring_is_bounded_by_number_size_and_time(monkeypatch) -> None:
    ring = Recall(60, 3, 1e9)
    for i in range(5):
        ring.hold([interaction(f"r{i}")])
    assert len(ring) == 3 and not ring.take("r1") and ring.take("r2") and len(ring) == 2

    one = size_of(interaction("r"))
    ring = Recall(60, 100, 3 * one)
    for i in range(50):
        ring.hold([interaction(f"r{i}")])
    assert len(ring) <= 3 and ring.take("r49")
    ring.hold([interaction("huge", "x" * 10 * one)])
    assert not ring.take("huge")

    now = [0.0]
    monkeypatch.setattr("trueup.capture.recall.time.monotonic", lambda: now[0])
    ring = Recall(60, 100, 1e9)
    ring.hold([interaction("old")])
    now[0] = 61.0
    assert not ring.take("old") and len(ring) == 0


def test_the_ring_survives_the_same_request_twice() -> None:
    ring, generator = Recall(60, 5, 1e9), random.Random(3)
    for _ in range(500):
        name = f"r{generator.randrange(8)}"
        ring.hold([interaction(name, generator.choice("ab"), tenant=generator.choice("xy"))])
        if generator.random() < 0.3:
            ring.take(name, generator.choice([None, "x", "y"]))
        assert ring._bytes == sum(size for _, size, _ in ring._groups.values())
        held = {key for keys in ring._keys_of.values() for key in keys.values()}
        assert held <= set(ring._groups) and all(ring._keys_of.values())


def test_whatever_comes_the_sum_holds(store) -> None:
    """Every kind of outcome at once, from several threads."""
    import threading

    def scrub(one: Interaction) -> Interaction:
        if one.completion.text == "poison":
            raise ValueError("no")
        return one

    rule = CaptureRule(models=("secret",))
    config = CaptureConfig(rate=0.5, never=rule, queue_size=40, commit_ms=1)
    recorder = Recorder(store, config, scrub=scrub)

    def send(seed: int) -> None:
        generator = random.Random(seed)
        for i in range(150):
            name = f"{seed}-{i}"
            kind = generator.randrange(6)
            if kind == 0:
                recorder.record_from(lambda: [])
            elif kind == 1:
                recorder.record_from(lambda: [interaction(None)])  # type: ignore[arg-type]
            elif kind == 2:
                recorder.record(interaction(name, "poison"))
            elif kind == 3:
                recorder.record(interaction(name, model="secret"))
            elif kind == 4:
                two = [interaction(name), interaction(f"{name}-1", "half: \ud800")]
                recorder.record_later(lambda two=two: two, size=900)
            else:
                recorder.record(interaction(name), interaction(f"{name}-1", "More."))
            if i % 10 == 0:
                recorder.keep([[interaction(name, "poison"), interaction(f"{seed % 2}-{i}")]])
            balance(recorder)

    threads = [threading.Thread(target=send, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert recorder.flush(60)
    balance(recorder)
    counts = recorder.counters
    assert sum(recorder.reasons.values()) == counts["sent"]
    assert counts["waiting"] == 0 and counts["captured"] == store.count(Interaction)
    assert not any(one.completion.text == "poison" for one in store.all(Interaction))
    reasons = recorder.reasons
    assert all(reasons["failed", why] for why in ("build", "scrub", "record"))
    recorder.close()
    assert not list((store.folder / "capture").glob("*.counts"))  # nothing is owed


def test_bytes_bound_the_queue_too(store) -> None:
    config = CaptureConfig(queue_mb=0.01, commit_ms=60_000, queue_size=1000)
    recorder = Recorder(store, config)
    recorder.record(interaction("small"))
    recorder.record(interaction("big", "x" * 20_000))
    recorder.record_later(lambda: [interaction("later")], size=20_000)
    assert recorder.reasons["dropped", "queue_mb"] == 2
    assert recorder.flush(60) and store.count(Interaction) == 1
    balance(recorder)
    recorder.close()


def test_what_cannot_be_scrubbed_is_not_written_and_its_text_is_not_logged(store, caplog) -> None:
    def scrub(one: Interaction) -> Interaction:
        if "4711" in one.completion.text:
            raise ValueError(one.completion.text)
        return one.model_copy(update={"id": "", "user": "u-hash"})

    recorder = Recorder(store, CaptureConfig(), scrub=scrub)
    recorder.record(interaction("a", user="ann"), interaction("b", "My card is 4711", user="ann"))
    kept = recorder.keep([[interaction("c", "4711")], [interaction("d", user="bob")]])
    assert [one.skipped for one in kept] == ["scrub", ""] and recorder.flush(60)
    assert kept[1].ids == tuple(one.id for one in store.all(Interaction, request_id="d"))
    assert {one.request_id for one in store.all(Interaction)} == {"a", "d"}
    assert {one.user for one in store.all(Interaction)} == {"u-hash"}
    assert recorder.reasons["failed", "scrub"] == 2 and "4711" not in caplog.text
    balance(recorder)
    recorder.close()
