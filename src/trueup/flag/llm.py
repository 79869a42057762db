"""A language model as a flagger, over any OpenAI-compatible endpoint: one question an answer.

It is asked within a budget, what it said is kept, and where it fails the flags are written without
it: a signal may be missing, a step may not.
"""

from collections.abc import Sequence

from trueup.errors import TrueupError
from trueup.judges.config import EndpointConfig
from trueup.judges.llm import Memory
from trueup.judges.questions import GRADE, write_grade_question
from trueup.judges.wire import Endpoint
from trueup.records import Interaction, content_hash

__all__ = ["RUBRIC", "ask"]

BATCH = 16  # questions between two writings of what was said
RUBRIC = (
    "Is this answer right, supported by what was given, and of use? 10 leaves nothing to look at, "
    "1 must be seen by a person."
)


def ask(
    interactions: Sequence[Interaction], config: EndpointConfig, memory: Memory | None
) -> tuple[dict[str, float], int]:
    """Scores by interaction, 0 for a grade of 10 and 1 for a grade of 1, and how many got none.

    A reply that is no grade is asked for again, up to `max_retries`; an endpoint that is down is
    not asked further.
    """
    asked = {
        one.id: write_grade_question(one.prompt, one.completion.text, rubric=RUBRIC)
        for one in interactions
    }
    keys = {one: content_hash([f"flag:{config.model}", text]) for one, text in asked.items()}
    known = memory.remembered(list(keys.values())) if memory else {}
    grades = {one: known[key] for one, key in keys.items() if key in known}
    waiting = [one for one in asked if one not in grades]
    endpoint = Endpoint(config)
    for at in range(0, len(waiting), BATCH):
        part = waiting[at : at + BATCH]
        try:
            said = endpoint.ask(GRADE, [asked[one] for one in part], skip_unreadable=True)
        except TrueupError:
            break
        fresh = {one: grade for one, grade in zip(part, said, strict=True) if grade}
        grades |= fresh
        if memory:
            memory.remember({keys[one]: grade for one, grade in fresh.items()})
    scores = {one: round((10 - int(grade)) / 9, 4) for one, grade in grades.items()}
    return scores, len(asked) - len(scores)
