"""The exact tokens a run would train on, looked at before it trains.

Three mistakes make a model worse without an error message: an answer that ended trains without its
end token, so the model forgets to stop; the prompt carries loss, so it learns to ask; the template
is not the one that served, so it learns to answer somebody else. Each is looked for in the tokens
themselves, not in the settings that should have produced them, and stops the run unless it is
allowed by name.
"""

from collections import Counter
from collections.abc import Collection, Sequence
from typing import Literal, NamedTuple, get_args

from trueup.errors import ConfigError, DataError
from trueup.models import chat
from trueup.models.backbone import Backbone
from trueup.records import Completion, Label, PreferencePair, Value
from trueup.train.config import Allowed
from trueup.train.data import Row, encode, encode_single

__all__ = ["Lint", "Problem", "Sample", "Token", "lint"]

NUM_SAMPLES = 3
NUM_EXAMPLES = 5

End = Literal["ended", "cut off", "lost", "unknown"]


class Advice(NamedTuple):
    """A problem in words: what is wrong, and what should be."""

    what: str
    expected: str


PROBLEMS: dict[Allowed, Advice] = {
    "lost-eos": Advice(
        "an answer that ended would train without its end token",
        "every finished answer to end with the template's end-of-turn token",
    ),
    "other-template": Advice(
        "the chat template to train with is not the one that served",
        "one template to serve and to train",
    ),
    "prompt-loss": Advice(
        "other tokens than those of the completion would carry loss",
        "the rendered prompt without loss, then the completion with it",
    ),
    "equal-pair": Advice(
        "the chosen answer is the rejected one, token for token", "two different answers"
    ),
}


class Token(NamedTuple):
    """One token of a record. `text` is what it adds to the text; special tokens show as named."""

    token_id: int
    text: str
    carries_loss: bool


class Sample(Value):
    """A record as it would be trained: prompt and chosen, prompt and rejected. A single answer is
    chosen if it is desirable, else rejected; the other is empty."""

    pair_id: str
    """Or the label's, of a single answer."""
    chosen: tuple[Token, ...] = ()
    rejected: tuple[Token, ...] = ()


class Problem(Value):
    """Something that stops training unless `--allow NAME` lets it through."""

    name: Allowed
    num_pairs: int
    """Records concerned, single answers among them."""
    examples: tuple[str, ...]
    """Ids of the first pairs concerned, at most five."""
    allowed: bool

    @property
    def what(self) -> str:
        """The problem in words, with the number of pairs it concerns."""
        records = "record" if self.num_pairs == 1 else "records"
        return f"{PROBLEMS[self.name].what} ({self.num_pairs:,} {records})"


class Lint(Value):
    """What a run would train on. Completions are counted over the records that train, so that
    ended, cut off, lost and unknown add up to two a pair and one a single answer."""

    template: str
    served_template: str | None
    """Hash of the template that served, where that is known."""
    eos_token: str
    eos_id: int
    max_tokens: int
    num_pairs: int
    num_labels: int
    """Unpaired ones, each a single answer."""
    num_records: int
    """Pairs and single answers that train; the others are in `skipped`, counted by reason."""
    skipped: dict[str, int]
    num_ended: int
    """Completions that train with their end token."""
    num_cut_off: int
    """Completions that the token limit cut off when they were drawn: there is no end to train."""
    num_lost_eos: int
    """Completions that ended, or are text that nothing cut off, without an end token."""
    num_unknown_end: int
    """Drawn tokens without an end token, of which nobody says whether they ended."""
    num_other_prompt: int
    """Completions drawn after other prompt tokens than they would train after: the template or
    the tokenizer has changed since. They train, as anybody's answers would."""
    num_equal: int
    """Pairs whose two completions are the same tokens. They never train."""
    longest_tokens: int
    """Tokens of the longest record, prompt once and both completions; 0 without records."""
    longest: str
    """Its pair's id; empty without records."""
    samples: tuple[Sample, ...]
    """Up to three records: those with a problem first, then the shortest, median and longest."""
    problems: tuple[Problem, ...]

    def stop(self) -> None:
        """Do nothing, unless there are problems that were not allowed.

        Raises:
            DataError: naming each of them, and the flag that lets it through.
        """
        found = [problem for problem in self.problems if not problem.allowed]
        if found:
            raise DataError(
                _sentence("; ".join(problem.what for problem in found)),
                got={problem.name: list(problem.examples) for problem in found},
                expected="; ".join(PROBLEMS[problem.name].expected for problem in found),
                next=f"mend or leave out these records, or pass {_flags(found)} to train on",
            )


def lint(
    backbone: Backbone,
    pairs: Sequence[PreferencePair],
    labels: Sequence[Label] = (),
    *,
    max_tokens: int,
    allow: Collection[str] = frozenset(),
    served_template: str | None = None,
) -> Lint:
    """Encode pairs and single answers as training does, and look at every token with loss.

    No forward pass: it costs about twice the encoding. Which tokens carry loss is worked out
    again from the record and the chat template, and compared with what was encoded.

    Args:
        max_tokens: longest record that trains, as `train.max_tokens`.
        allow: names of problems that may pass. Equal pairs do not train even then.
        served_template: hash of the template that served; None is unknown and checks nothing.

    Raises:
        ConfigError: `allow` names no problem.
    """
    _check_names(allow)
    rows, skipped = encode(backbone, pairs, max_tokens=max_tokens)
    single, skipped_single = encode_single(backbone, labels, max_tokens=max_tokens)
    rows, skipped = rows + single, skipped + skipped_single
    eos, end_id = chat.eos_ids(backbone.tokenizer), chat.end_id(backbone.tokenizer)
    ends = Counter(_end(c, ids, eos) for row in rows for c, ids in _sides(row))
    concerned = _concerned(backbone, pairs, labels, rows, served_template)
    longest = max(rows, key=lambda row: row.num_tokens, default=None)
    shown = _pick(rows, {*concerned["lost-eos"], *concerned["prompt-loss"]})
    return Lint(
        template=backbone.template,
        served_template=served_template,
        eos_token=str(backbone.tokenizer.convert_ids_to_tokens(end_id)),
        eos_id=end_id,
        max_tokens=max_tokens,
        num_pairs=len(pairs),
        num_labels=len(labels),
        num_records=len(rows),
        skipped=dict(skipped),
        num_ended=ends["ended"],
        num_cut_off=ends["cut off"],
        num_lost_eos=ends["lost"],
        num_unknown_end=ends["unknown"],
        num_other_prompt=sum(_num_other_prompt(row) for row in rows),
        num_equal=len(concerned["equal-pair"]),
        longest_tokens=longest.num_tokens if longest else 0,
        longest=longest.id if longest else "",
        samples=tuple(_sample(backbone, row) for row in shown),
        problems=tuple(
            Problem(
                name=name,
                num_pairs=len(ids),
                examples=tuple(ids[:NUM_EXAMPLES]),
                allowed=name in allow,
            )
            for name, ids in concerned.items()
            if ids
        ),
    )


def _check_names(allow: Collection[str]) -> None:
    unknown = sorted(set(allow) - set(PROBLEMS))
    if unknown:
        raise ConfigError(
            "There is no such problem to allow",
            got=unknown,
            expected=f"names among {', '.join(get_args(Allowed))}",
            next="correct --allow, or train.allow",
        )


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:]


def _flags(problems: Sequence[Problem]) -> str:
    return " ".join(f"--allow {problem.name}" for problem in problems)


# --- looking --------------------------------------------------------------------------------------


def _concerned(
    backbone: Backbone,
    pairs: Sequence[PreferencePair],
    labels: Sequence[Label],
    rows: Sequence[Row],
    served: str | None,
) -> dict[Allowed, list[str]]:
    """For each problem the ids of the records that have it."""
    by_id = {record.id: record for record in (*pairs, *labels)}
    encoded = {row.id: row.branches.completions for row in rows}
    eos = chat.eos_ids(backbone.tokenizer)
    is_served = served in (None, backbone.template)
    return {
        "lost-eos": [r.id for r in rows if any(_end(*s, eos) == "lost" for s in _sides(r))],
        "other-template": [] if is_served else [row.id for row in rows],
        "prompt-loss": [r.id for r in rows if _has_stray_loss(backbone, by_id[r.id], r)],
        "equal-pair": [p.id for p in pairs if _is_equal(backbone, p, encoded.get(p.id))],
    }


def _sides(row: Row) -> list[tuple[Completion, Sequence[int]]]:
    """Each completion with its tokens as encoded."""
    return list(zip(row.completions, row.branches.completions, strict=True))


def _end(completion: Completion, ids: Sequence[int], eos: frozenset[int]) -> End:
    """How a completion ends. Text that was never tokens is whole unless it says otherwise."""
    if completion.finish_reason == "length":
        return "cut off"
    if ids and ids[-1] in eos:
        return "ended"
    if completion.finish_reason == "stop" or not completion.token_ids:
        return "lost"
    return "unknown"


def _has_stray_loss(backbone: Backbone, record: PreferencePair | Label, row: Row) -> bool:
    """True unless the row is the rendered prompt, then the completions and nothing else.

    Made again from the record: the row's own border between prompt and completion is what is in
    doubt.
    """
    prompt = chat.prompt_ids(backbone.tokenizer, record.prompt)
    border = len(row.branches.prompt_ids)
    is_pair = isinstance(record, PreferencePair)
    answers = (record.chosen, record.rejected) if is_pair else record.candidates[:1]
    for completion, ids in zip(answers, row.branches.completions, strict=True):
        trained = [*row.branches.prompt_ids, *ids]
        expected = chat.completion_ids(backbone.tokenizer, completion)
        if trained[: len(prompt)] != prompt or trained[len(prompt) :] != expected:
            return True
    return border != len(prompt)


def _num_other_prompt(row: Row) -> int:
    """Completions that remember other prompt tokens than these."""
    prompt = chat.digest(row.branches.prompt_ids)
    return sum(completion.after not in (None, prompt) for completion in row.completions)


def _is_equal(
    backbone: Backbone, pair: PreferencePair, encoded: Sequence[Sequence[int]] | None
) -> bool:
    """True where both completions are the same tokens, whatever their texts. A pair that was left
    out is encoded here."""
    sides = (pair.chosen, pair.rejected)
    ids = encoded or [chat.completion_ids(backbone.tokenizer, c) for c in sides]
    return list(ids[0]) == list(ids[1])


# --- samples --------------------------------------------------------------------------------------


def _pick(rows: Sequence[Row], troubled: Collection[str]) -> list[Row]:
    """Three records a person should see."""
    by_length = sorted(rows, key=lambda row: row.num_tokens)
    typical = [by_length[at] for at in (0, len(rows) // 2, -1)] if rows else []
    first = [row for row in rows if row.id in troubled]
    picked = {row.id: row for row in (*first, *typical, *by_length)}
    return list(picked.values())[:NUM_SAMPLES]


def _sample(backbone: Backbone, row: Row) -> Sample:
    shown = {
        "chosen" if good else "rejected": _tokens(backbone, row, side)
        for side, good in enumerate(row.desirable)
    }
    return Sample(pair_id=row.id, **shown)


def _tokens(backbone: Backbone, row: Row, side: int) -> tuple[Token, ...]:
    """The tokens of the prompt and one completion, as the loss would see them."""
    ids = [*row.branches.prompt_ids, *row.branches.completions[side]]
    border = len(row.branches.prompt_ids)
    texts = _texts(backbone, ids)
    return tuple(
        Token(token, text, at >= border)
        for at, (token, text) in enumerate(zip(ids, texts, strict=True))
    )


def _texts(backbone: Backbone, ids: Sequence[int]) -> list[str]:
    """What each token adds to the text before it; a character in several tokens stands with its
    last one."""

    def decode(some: Sequence[int]) -> str:
        return str(
            backbone.tokenizer.decode(
                list(some), skip_special_tokens=False, clean_up_tokenization_spaces=False
            )
        )

    texts: list[str] = []
    start = 0  # of the character that is not complete
    for at in range(len(ids)):
        # with one token more in front: many tokenizers drop the blank of the first they decode
        front = max(0, start - 1)
        before, both = decode(ids[front:start]), decode(ids[front : at + 1])
        added = both[len(before) :] if both.startswith(before) else decode(ids[start : at + 1])
        is_part = added.endswith("\ufffd") and at - start < 3 and at + 1 < len(ids)
        texts.append("" if is_part else added)
        start = start if is_part else at + 1
    return texts
