"""What the training linter found, for the terminal."""

import unicodedata
from collections.abc import Sequence
from itertools import groupby
from textwrap import wrap

from trueup.train.lint import Lint, Problem, Token

__all__ = ["lint_text"]

SHOWN_TOKENS = 40
"""Of a longer prompt or completion only the first and last half of this many are printed."""
WIDTH = 80


def lint_text(lint: Lint) -> str:
    """A lint for the terminal, at most 80 columns wide, without colour.

    Under each line of a sample a `^` marks where a token that carries loss begins, and `~` goes on
    with it; what stands over a blank carries none. Line breaks and other characters that do not
    print show as escapes, so that no record can steer the terminal.
    """
    parts = [_summary(lint)]
    if lint.samples:
        parts.append("^ begins a token that carries loss, ~ goes on with it")
    for place, sample in enumerate(lint.samples, start=1):
        parts.append(f"Sample {place} of {len(lint.samples)}: {sample.pair_id}")
        for name, tokens in (("chosen", sample.chosen), ("rejected", sample.rejected)):
            if not tokens:
                continue  # a single answer
            loss = sum(token.carries_loss for token in tokens)
            title = f"prompt + {name}: {len(tokens):,} tokens, loss on the last {loss:,}"
            parts.append("\n".join([title, *_marked(_shortened(tokens))]))
    return "\n\n".join(parts) + "\n"


def _summary(lint: Lint) -> str:
    """The figures, one subject a line."""
    same = {None: "served with is unknown", lint.template: "the one that served"}
    served = same.get(lint.served_template, f"served with {lint.served_template}")
    lines = [
        ("template", f"{lint.template} ({served})"),
        ("end token", f"{_visible(lint.eos_token)} (id {lint.eos_id})"),
        ("records", f"{lint.num_records:,} of {_records(lint)}"),
        *(("skipped", f"{number:,} {why}") for why, number in sorted(lint.skipped.items())),
        ("longest", f"{lint.longest_tokens:,} of at most {lint.max_tokens:,} tokens"),
        ("answers", f"{lint.num_ended:,} with their end token"),
        *(("", f"{number:,} {what}") for number, what in _remarks(lint) if number),
        *(("problem", _problem_text(problem)) for problem in lint.problems),
    ]
    wrapped = []
    for name, said in lines:
        first, *others = wrap(said, WIDTH - 11, break_on_hyphens=False) or [""]
        wrapped += [f"{name:<11}{first}".rstrip(), *(" " * 11 + line for line in others)]
    return "\n".join(wrapped)


def _records(lint: Lint) -> str:
    single = f"{lint.num_labels:,} single answers"
    if not lint.num_pairs:
        return single if lint.num_labels else "0 pairs"
    return f"{lint.num_pairs:,} pairs" + (f" and {single}" if lint.num_labels else "")


def _remarks(lint: Lint) -> list[tuple[int, str]]:
    return [
        (lint.num_cut_off, "cut off when drawn: they train without one"),
        (lint.num_lost_eos, "LOST their end token"),
        (lint.num_unknown_end, "without one, and nobody says whether they ended"),
        (lint.num_other_prompt, "drawn after other prompt tokens than they train after"),
    ]


def _problem_text(problem: Problem) -> str:
    fate = "allowed" if problem.allowed else f"stops training; --allow {problem.name} lets it pass"
    return f"{problem.what}: {fate}"


def _shortened(tokens: Sequence[Token]) -> list[Token]:
    """The tokens with the middle of a long prompt or completion told by its number."""
    shown: list[Token] = []
    for carries_loss, group in groupby(tokens, key=lambda token: token.carries_loss):
        run = list(group)
        hidden = len(run) - SHOWN_TOKENS
        if hidden > 1:
            half = SHOWN_TOKENS // 2
            middle = Token(-1, f" ... {hidden:,} tokens ... ", carries_loss)
            run = [*run[:half], middle, *run[-half:]]
        shown += run
    return shown


def _marked(tokens: Sequence[Token]) -> list[str]:
    """Lines of text, each followed by a line of marks where it carries loss."""
    lines = [("", "")]
    for token in tokens:
        mark, fill = ("^", "~") if token.carries_loss else (" ", " ")
        if _columns(lines[-1][0] + _visible(token.text)) > WIDTH:
            lines.append(("", ""))
        for char in token.text:
            text, marks = lines[-1]
            piece = _visible(char)
            size = _columns(piece)
            if _columns(text) + size > WIDTH:
                lines.append(("", ""))
                text, marks = lines[-1]
            lines[-1] = (text + piece, marks + mark[:size] + fill * (size - 1))
            mark = fill if size else mark  # an accent alone takes no column
            if char == "\n":
                lines.append(("", ""))
    both = [line.rstrip() for text, marks in lines if text for line in (text, marks)]
    return [line for place, line in enumerate(both) if line or place % 2 == 0]


def _visible(text: str) -> str:
    """The text with everything that does not print as an escape."""
    return "".join(
        char if char.isprintable() and char != "\\" else repr(char)[1:-1] for char in text
    )


def _columns(text: str) -> int:
    """Columns of a terminal that a text takes."""
    return sum(
        0 if unicodedata.combining(char) else 1 + (unicodedata.east_asian_width(char) in "WF")
        for char in text
    )
