"""The quick way of importing gives what the long way gives, and takes nothing it should not."""

import json
import random
from contextlib import contextmanager

import pytest
from pydantic_core import from_json

from trueup import progress
from trueup.capture.importer import import_file
from trueup.capture.plain import PlainRows
from trueup.capture.shapes import ROLES, Origin, Skip, to_record
from trueup.privacy import PrivacyConfig, Scrubber
from trueup.records import Interaction, Label
from trueup.store import Store

ORIGIN = Origin('rows "1" é.jsonl')
NOW = "2026-01-02T03:04:05.000006+00:00"
ODD = ["", " ", "\n", "a", "é🙂", '"', "\\", "\x00", "\x1f", "\x7f", "\u2028", "\x85", "</script>",
       "\\ud83d", "{}", "\b\f\n\r\t", "\ufeff", "𝔘", "\ud800"]  # fmt: skip


def text(generator: random.Random) -> str:
    if generator.random() < 0.3:
        return "".join(chr(generator.randrange(0x20, 0x3000)) for _ in range(20))
    return "".join(generator.choices(ODD[:-1], k=generator.randrange(1, 5)))


def random_row(generator: random.Random) -> dict:
    """Mostly plain rows, of each shape, with everything odd somewhere."""
    roles = [*ROLES, "System", "USER", "tool", "", None, 3]
    if generator.random() < 0.3:
        row = {"prompt": text(generator), "completion": text(generator)}
    else:
        names = generator.choice([("role", "content"), ("from", "value")])
        who = ["system", "user", "assistant"] if generator.random() < 0.7 else ["user", "gpt"]
        turns = [{names[0]: one, names[1]: text(generator)} for one in who]
        row = {generator.choice(["messages", "conversations"]): turns}
        if generator.random() < 0.2:
            turn = generator.choice(turns)
            key = generator.choice([*names, "role", "tool_calls", "function_call", "extra"])
            turn[key] = generator.choice([None, 1, [], {}, "x", *roles, [{"type": "text"}]])
        if generator.random() < 0.1:
            turns.insert(generator.randrange(len(turns) + 1), generator.choice([None, 3, {}, "x"]))
        if generator.random() < 0.1:
            del turns[generator.randrange(len(turns))]
    if generator.random() < 0.3:
        key = generator.choice(
            ["label", "chosen", "rejected", "system", "prompt", "completion", "messages", "id",
             "user", "user_id", "safety_identifier", "tenant"]
        )  # fmt: skip
        row[key] = generator.choice([None, True, "", "x", 0, [], [{"role": "user"}]])
    if generator.random() < 0.03:
        row["prompt"], row["completion"] = "half \ud800", "x"
    return row


def test_the_quick_way_and_the_long_way_agree_on_any_row() -> None:
    generator, plain = random.Random(5), PlainRows(ORIGIN)
    taken = left = 0
    for _ in range(8000):
        row = random_row(generator)
        found = plain.row(row, NOW)
        try:
            wanted = to_record(row, ORIGIN)
        except Skip:
            assert found is None, row
            continue
        if found is None:
            left += isinstance(wanted, Interaction)
            continue
        taken += 1
        assert isinstance(wanted, Interaction), row
        wanted = wanted.model_copy(update={"created_at": NOW})
        assert found == (
            wanted.id, NOW, wanted.source, "", None, None, wanted.model_dump_json(),
        )  # fmt: skip
        read = Interaction.model_validate_json(found[-1])
        assert read == wanted and read.expected_id() == read.id
    assert taken > 2000 and left < taken / 4


def test_the_quick_parser_reads_nothing_otherwise_than_the_slow_one() -> None:
    """Damaged and odd lines: where it reads them at all, it reads what Python's own reads."""
    generator = random.Random(9)
    odd = [b"NaN", b"-Infinity", b"1e400", b"9" * 400, b"1.0", b"-0", b"[1,]", b"01", b'"\\u12"',
           b'{"a":1,"a":2}', b'"\x01"', b"\xff", b"'a'", b"1 2", b"tru", b"\xef\xbb\xbf1", b"-",
           b'"\\ud83d\\ude00"', b"\x0c1", b"1.", b".5", b"1e5", b"[[[]]]", b'{"a"}']  # fmt: skip
    lines = [b'{"a": ' + one + b"}" for one in odd] + odd
    for _ in range(4000):
        line = bytearray(json.dumps(random_row(generator), ensure_ascii=bool(_ % 2)).encode(
            "utf-8", "surrogatepass"))  # fmt: skip
        for _ in range(generator.randrange(3)):
            line[generator.randrange(len(line))] = generator.randrange(256)
        lines.append(bytes(line))
    num_read = 0
    for line in lines:
        try:
            quick = from_json(line)
        except ValueError:
            continue
        assert repr(quick) == repr(json.loads(line.decode())), line  # NaN equals not even itself
        num_read += 1
    assert num_read > 1000


def test_both_ways_write_the_same_store(tmp_path) -> None:
    generator = random.Random(6)
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(random_row(generator)) + "\n" for _ in range(1500)))
    quick, slow = Store(tmp_path / "quick"), Store(tmp_path / "slow")
    first = import_file(quick, path, max_skip_rate=1)
    second = import_file(slow, path, max_skip_rate=1, scrub=lambda one: one)
    assert first == second and first.interactions > 500 and first.skipped
    for kind in (Interaction, Label):
        rows = [{one.id: one.model_copy(update={"created_at": ""}) for one in store.each(kind)}
                for store in (quick, slow)]  # fmt: skip
        assert rows[0] == rows[1]
    assert import_file(slow, path, max_skip_rate=1).new == 0
    columns = quick.all(Interaction, source="file:rows.jsonl", request_id="")
    assert len(columns) == quick.count(Interaction)
    for store in (quick, slow):
        store.close()


def test_what_was_imported_is_durable_settings_and_all(tmp_path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"prompt": "a", "completion": "b"}\n')
    store = Store(tmp_path / "store")
    import_file(store, path)
    with store._engine.connect() as connection:
        raw = connection.connection.driver_connection
        settings = {
            name: raw.execute(f"PRAGMA {name}").fetchone()[0]
            for name in ("synchronous", "wal_autocheckpoint", "cache_size", "secure_delete")
        }
    wanted = {"synchronous": 2, "wal_autocheckpoint": 1000, "cache_size": -2000, "secure_delete": 1}
    assert settings == wanted
    assert (tmp_path / "store" / "store.sqlite").stat().st_size > 0
    store.close()


def test_what_cannot_be_scrubbed_is_skipped_and_not_quoted(tmp_path) -> None:
    def scrub(one: Interaction | Label) -> Interaction | Label:
        if "4711" in one.model_dump_json():
            raise ValueError("4711")
        prompt = tuple(
            turn.model_copy(update={"content": turn.content.replace("Ann", "[NAME]")})
            for turn in one.prompt
        )
        return one.model_copy(update={"prompt": prompt})

    rows = [
        {"prompt": "I am Ann", "completion": "Hello"},
        {"prompt": "I am Ann", "completion": "Your card is 4711"},
        {"prompt": "I am Ann", "chosen": "Hello", "rejected": "So what"},
        {"prompt": "I am Ann", "chosen": "Hello", "rejected": "4711"},
    ]
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    store = Store(tmp_path / "store")
    found = import_file(store, path, scrub=scrub, max_skip_rate=0.5)
    assert (found.interactions, found.labels) == (1, 1)
    assert found.skipped == {"could not be scrubbed": 2} and "4711" not in str(found.problems)
    for one in [*store.all(Interaction), *store.all(Label)]:
        assert one.prompt[0].content == "I am [NAME]" and one.id == one.expected_id()
    assert import_file(store, path, scrub=scrub, max_skip_rate=0.5).new == 0
    store.close()


def test_the_quick_way_writes_no_text_that_the_scrubber_would_change(tmp_path) -> None:
    hidden = ["a@b.example", "+49 30 901820", "4111 1111 1111 1111", "93.184.216.34",
              "sk-abcdefghijklmnop1234", "2a00:1450:4001::200e", "plain words, 12:30, v1.2.3",
              "ghp_" + "a" * 36, "-----BEGIN RSA PRIVATE KEY-----\nabc", "Grüße 😀"]  # fmt: skip
    rows = [{"prompt": f"{a} first\n{b}", "completion": f"of {b}"} for a in hidden for b in hidden]
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    store = Store(tmp_path / "store")
    scrub = Scrubber(PrivacyConfig(), store)
    assert import_file(store, path, scrub=scrub).interactions == 100
    found = store.all(Interaction)
    assert all(scrub(one) is one for one in found)
    plain = [one for one in found if "<" not in one.model_dump_json()]
    assert {one.prompt[0].content for one in plain} == {
        f"{a} first\n{b}" for a in hidden[6::3] for b in hidden[6::3]
    }
    store.close()


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.json", "rows.jsonl.gz"])
def test_progress_is_in_bytes_and_ends_at_the_end(tmp_path, name) -> None:
    import gzip

    rows = [{"prompt": f"{i} " + "word " * 60, "completion": "yes"} for i in range(3500)]
    text = json.dumps(rows) if name == "rows.json" else "\n".join(map(json.dumps, rows))
    path = tmp_path / name
    path.write_bytes(gzip.compress(text.encode()) if name.endswith("gz") else text.encode())
    steps: list[int] = []
    totals: list[int] = []

    @contextmanager
    def listener(_: str, total: int):
        totals.append(total)
        yield steps.append

    store = Store(tmp_path / "store")
    with progress.listen(listener):
        import_file(store, path)
    assert totals == [path.stat().st_size // 1000] and sum(steps) == totals[0]
    assert len(steps) == 4 and all(step >= 0 for step in steps)
    store.close()
