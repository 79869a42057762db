"""Best of N at inference: draw more than was asked for, answer with what a judge likes best.

It buys with compute what training buys with a run: on average the score of the best of N, at most
ln N - (N - 1) / N nats from the model's own distribution. Nothing is streamed while it is drawn,
because until all are there nobody knows which it will be.

The promise: a judge that fails costs the choice, not the answer. Then the first one drawn is
given, which is an ordinary sample, and a counter says how often.
"""

import logging
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor

from trueup.judges import Judge
from trueup.records import Completion, Messages

__all__ = ["BestOf"]

AT_ONCE = 4  # requests whose answers are being judged

_log = logging.getLogger(__name__)


class BestOf:
    """Picks each choice among N draws of its own."""

    def __init__(self, judge: Judge, num_draws: int) -> None:
        self.judge, self.num_draws = judge, num_draws
        self.failures = 0
        """Times the judge failed and the first draw was given."""
        self._pool = ThreadPoolExecutor(AT_ONCE, thread_name_prefix="trueup-best-of")

    def picked(
        self, prompt: Messages, drawn: "Future[list[Completion]]"
    ) -> "Future[list[Completion]]":
        """What to answer with, once everything is drawn: one of every `num_draws` in a row."""
        found: Future[list[Completion]] = Future()
        found.set_running_or_notify_cancel()

        def judge() -> None:
            try:
                found.set_result(self._pick(prompt, drawn.result()))
            except BaseException as error:
                found.set_exception(error)

        drawn.add_done_callback(lambda _: self._pool.submit(judge))
        return found

    def close(self) -> None:
        """Judge what waits, then stop."""
        self._pool.shutdown()

    def _pick(self, prompt: Messages, drawn: Sequence[Completion]) -> list[Completion]:
        size = self.num_draws
        return [
            self._best(prompt, drawn[at : at + size]).model_copy(
                update={"sampling": _marked(drawn[at], size)}
            )
            for at in range(0, len(drawn), size)
        ]

    def _best(self, prompt: Messages, group: Sequence[Completion]) -> Completion:
        try:
            scores = self.judge.rank(prompt, group).scores
            return group[max(range(len(group)), key=lambda i: scores[i])]
        except Exception as error:  # a judge is somebody else's code or server
            self.failures += 1
            if self.failures == 1:
                _log.warning("The judge of best-of-%d failed: %s (said once)", len(group), error)
            return group[0]


def _marked(completion: Completion, num_draws: int) -> object:
    """The sampling settings, saying that this is the best of so many."""
    drawn = completion.sampling
    return drawn.model_copy(update={"best_of": num_draws}) if drawn else None
