"""One task as a person sees it: two answers in an order of their own, and not who wrote them.

The order is drawn from the person and the task, so it is the same when they come back and another
for their colleague. Texts are shown as they are, with control characters made visible and what
reorders text named; only the box to mend an answer in holds the text itself.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from trueup.label.votes import Choice, is_swapped, mirrored
from trueup.records import Completion, Message, Messages, ReviewTask
from trueup.review.desk import Said
from trueup.review.words import differing
from trueup.web.page import plain

__all__ = ["PICKS", "Pick", "as_pick", "card", "read_said", "to_choice", "to_pick"]

Pick = Literal["1", "2", "tie", "bad"]
"""What the page's buttons say: the number of an answer is its place on the page."""
PICKS: dict[Pick, Choice] = {"1": "first", "2": "second", "tie": "tie", "bad": "both bad"}
MOST_CHARS = 100_000
"""Of a text, shown and mended; what is beyond is counted."""
MOST_PROMPT_CHARS = 400_000
"""Of a conversation; earlier turns are counted."""
MOST_FIELD_BYTES = 1_000_000
"""Of a field of a form, percent-encoded; Starlette refuses more than 1 MB."""


def as_pick(word: str) -> Pick | None:
    """The button that a form names, if there is one."""
    return next((pick for pick in PICKS if pick == word), None)


def to_choice(pick: Pick, name: str, task_id: str) -> Choice:
    """What a button on this person's page says of the task's candidates."""
    choice = PICKS[pick]
    return mirrored(choice) if is_swapped(task_id, name) else choice


def to_pick(choice: Choice | None, name: str, task_id: str) -> Pick | None:
    """The button on this person's page that says this of the candidates."""
    return next((pick for pick in PICKS if to_choice(pick, name, task_id) == choice), None)


def card(
    task: ReviewTask, name: str, rubric: Sequence[str], said: Said | None = None
) -> dict[str, Any]:
    """What the page shows of a task, as plain values. It tells neither the candidates' order nor
    their models, nor whether the task is a gold question."""
    said = said or Said()
    swapped = is_swapped(task.id, name)
    order = (1, 0) if swapped else (0, 1)
    texts = [_answer_text(task.candidates[place]) for place in order]
    shown = [plain(text[:MOST_CHARS]) for text in texts]
    parts = differing(*shown)
    turns = _turns(task.prompt)
    answers = []
    for at, place in enumerate(order):
        whole = [(shown[at], False)] if shown[at] else []
        edited = said.edits[place] if len(said.edits) > place else None
        answers.append(
            {
                "number": at + 1,
                "text": texts[at][:MOST_CHARS],
                "parts": [list(part) for part in (parts[at] if parts else whole)],
                "is_empty": not texts[at].strip(),
                "chars_left_out": max(0, len(texts[at]) - MOST_CHARS),
                "edited": edited,
                "original": task.candidates[place].text[:MOST_CHARS],
                "may_edit": _may_edit(task.candidates[place].text),
                "ticked": [one for one in said.reasons[place] if one in rubric],
            }
        )
    return {
        "task": task.id,
        "prompt": turns,
        "turns_left_out": len(task.prompt) - len(turns),
        "answers": answers,
        "is_compared": parts is not None,
        "is_same": texts[0].strip() == texts[1].strip(),
        "rubric": list(rubric),
        "comment": said.comment,
        "choice": to_pick(said.choice, name, task.id),
    }


def read_said(
    task: ReviewTask,
    name: str,
    pick: Pick,
    rubric: Sequence[str],
    ticked: Mapping[int, Sequence[str]],
    edits: Mapping[int, str | None],
    comment: str,
) -> Said:
    """A filled-in card, as said of the candidates.

    Args:
        ticked: what of the rubric, by the answer's number on the page (1 or 2).
        edits: the texts in the boxes, likewise; None or blank where there is none.
    """
    swapped = is_swapped(task.id, name)
    order = (2, 1) if swapped else (1, 2)
    mended: list[str | None] = []
    for place, number in enumerate(order):
        text, was = _unixed(edits.get(number) or ""), task.candidates[place].text
        is_new = bool(text.strip()) and text.strip() not in _sent_back(was)
        mended.append(text if is_new and _may_edit(was) else None)
    return Said(
        choice=to_choice(pick, name, task.id),
        reasons=tuple(tuple(one for one in rubric if one in ticked.get(n, ())) for n in order),
        comment=_unixed(comment).strip(),
        edits=tuple(mended),
    )


def _may_edit(text: str) -> bool:
    """True for a text that fits into a field of a form, which every answer sends along."""
    return len(text) <= MOST_CHARS and 3 * len(text.encode("utf-8", "replace")) <= MOST_FIELD_BYTES


def _unixed(text: str) -> str:
    """Browsers send every line of a box with CR LF at its end. Half a surrogate pair, which an odd
    encoding of the form may give, cannot be kept."""
    text = text.replace("\r\n", "\n").replace("\r", "\n").replace("\0", "")
    return text.encode("utf-8", "replace").decode()


def _sent_back(text: str) -> tuple[str, str]:
    """What may come back of a text that was left alone: a browser puts U+FFFD for NUL."""
    return _unixed(text).strip(), _unixed(text.replace("\0", "\ufffd")).strip()


def _turns(prompt: Messages) -> list[dict[str, Any]]:
    """The last turns, as many as fit on a page; at least one, if there is one."""
    shown: list[dict[str, Any]] = []
    num_chars = 0
    for message in reversed(prompt):
        turn = _turn(message)
        num_chars += len(turn["text"]) + len(turn["role"])
        if shown and num_chars > MOST_PROMPT_CHARS:
            break
        shown.append(turn)
    return shown[::-1]


def _turn(message: Message) -> dict[str, Any]:
    calls = "\n".join(f"{one.name}({one.arguments})" for one in message.tool_calls)
    text = "\n".join(one for one in (message.content, calls) if one)
    return {
        "role": plain(message.role),
        "text": plain(text[:MOST_CHARS]),
        "chars_left_out": max(0, len(text) - MOST_CHARS),
    }


def _answer_text(completion: Completion) -> str:
    calls = "\n".join(f"{one.name}({one.arguments})" for one in completion.tool_calls)
    return "\n".join(one for one in (completion.text, calls) if one)
