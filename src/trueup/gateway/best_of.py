"""Best of N at inference: draw more than was asked for, answer with what a judge likes best.

It buys with compute what training buys with a run: on average the score of the best of N, at most
ln N - (N - 1) / N nats from the model's own distribution. Nothing is streamed while it is drawn,
because until all are there nobody knows which it will be.

The promise: a judge that fails, is late or never returns costs the choice, not the answer. Then
the first one drawn is given, which is an ordinary sample, and a counter says how often.
"""

import logging
import math
import threading
import time
from collections.abc import Sequence
from concurrent.futures import Future, InvalidStateError

from trueup.judges import Judge
from trueup.records import Completion, Messages

__all__ = ["BestOf"]

AT_ONCE = 32  # requests whose answers are being judged; beyond it the first draw is given

_log = logging.getLogger(__name__)


class BestOf:
    """Picks each choice among N draws of its own."""

    def __init__(self, judge: Judge, num_draws: int, *, timeout_s: float) -> None:
        self.judge, self.num_draws, self.timeout_s = judge, num_draws, timeout_s
        self.failures = 0
        """Answers whose judge failed or was late, so that the first draws were given."""
        self._asking = 0
        self._lock = threading.Lock()

    def picked(
        self, prompt: Messages, drawn: "Future[list[Completion]]"
    ) -> "Future[list[Completion]]":
        """What to answer with, once everything is drawn: one of every `num_draws` in a row."""
        found: Future[list[Completion]] = Future()
        found.set_running_or_notify_cancel()
        drawn.add_done_callback(lambda _: self._begin(prompt, drawn, found))
        return found

    def close(self) -> None:
        """Wait for what is being judged, as long as an answer may take."""
        deadline = time.monotonic() + self.timeout_s
        while self._asking and time.monotonic() < deadline:
            time.sleep(0.01)

    def _begin(
        self, prompt: Messages, drawn: "Future[list[Completion]]", found: "Future[list[Completion]]"
    ) -> None:
        if drawn.cancelled() or drawn.exception():
            error = drawn.exception() if not drawn.cancelled() else None
            found.set_exception(error or RuntimeError("the request was cancelled"))
            return
        answers = drawn.result()
        with self._lock:
            is_busy = self._asking >= AT_ONCE
            self._asking += not is_busy
        if is_busy:
            self._give_up(answers, found, "too many answers are being judged")
            return
        # daemons: a judge that never returns holds up neither the answer nor the server's end
        late = threading.Timer(
            self.timeout_s,
            lambda: self._give_up(answers, found, f"no choice within {self.timeout_s:g} s"),
        )
        late.daemon = True
        late.start()

        def judge() -> None:
            try:
                _settle(found, self._pick(prompt, answers))
            except (
                BaseException
            ) as error:  # somebody else's code: sys.exit must not cost the answer
                self._give_up(answers, found, f"{type(error).__name__}: {error}")
            finally:
                late.cancel()
                with self._lock:
                    self._asking -= 1

        threading.Thread(target=judge, daemon=True, name="trueup-best-of").start()

    def _pick(self, prompt: Messages, drawn: Sequence[Completion]) -> list[Completion]:
        size = self.num_draws
        return [self._best(prompt, drawn[at : at + size]) for at in range(0, len(drawn), size)]

    def _best(self, prompt: Messages, group: Sequence[Completion]) -> Completion:
        scores = self.judge.rank(prompt, group).scores
        if len(scores) != len(group) or not all(map(math.isfinite, scores)):
            raise ValueError(f"{len(scores)} scores for {len(group)} answers, or not finite ones")
        return _marked(group[max(range(len(group)), key=lambda i: scores[i])], len(group))

    def _give_up(
        self, drawn: Sequence[Completion], found: "Future[list[Completion]]", why: str
    ) -> None:
        """Answer with the first draws, unless there is an answer already."""
        if not _settle(found, list(drawn[:: self.num_draws])):
            return
        with self._lock:
            self.failures += 1
            is_first = self.failures == 1
        if is_first:
            _log.warning(
                "Best-of-%d answers with the first draw: %s (said once)", self.num_draws, why
            )


def _settle(found: "Future[list[Completion]]", answer: list[Completion]) -> bool:
    """True where this was the first answer."""
    try:
        found.set_result(answer)
    except InvalidStateError:
        return False
    return True


def _marked(completion: Completion, num_draws: int) -> Completion:
    """The completion, saying that it is the best of so many."""
    drawn = completion.sampling
    if drawn is None:
        return completion
    marked = drawn.model_copy(update={"best_of": num_draws})
    return completion.model_copy(update={"sampling": marked})
