"""One thread that answers with the champion: it batches what arrives and follows each release.

    submit() ──> waiting ──> a running batch ──> pieces while it draws, completions at the end
                               ▲
              store.champion() ┘ asked before a batch begins and before anybody joins it

A batch runs as long as somebody is being answered. Who comes later joins it at the next token if
there is room, in order of arrival; nobody overtakes. A promotion or rollback made by another
process is served without a restart: a batch ends with the weights it began with, nobody joins it
any more, and the next one has the new weights. The promise: what answers is what the release
names. An adapter whose bytes no longer hash to the release's weights is not served, and neither is
anything in its place.

Company does not change answers: greedy tokens are the same alone and in company, log-probs to
1e-4, and a seeded request draws the same tokens. A request that fails before its first token fails
alone or with those that came with it; the network failing at a later one fails the whole batch.
"""

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Literal, NamedTuple

from sqlalchemy.exc import SQLAlchemyError

from trueup.errors import DataError, ModelError, StorageError, TrueupError
from trueup.models import chat
from trueup.models.backbone import Backbone
from trueup.models.pieces import OnPiece, Piece, PieceStream
from trueup.models.sampler import Batch, Drawn, SampleRequest, num_that_fit
from trueup.models.stored import parts_of
from trueup.records import Checkpoint, Completion, Messages, Release, Sampling
from trueup.store import Store

__all__ = ["Engine", "Pending"]

ROLE = "champion"
JOIN_ABOVE = 0.25
"""Share of newcomers from which they join a running batch without waiting for more."""
MAX_BATCH_TOKENS = 16_384
"""Prompt and answer tokens of one batch, padding included: bounds the keys and values held."""

_log = logging.getLogger(__name__)


class Pending:
    """A request that was submitted; `answer` holds its completions once they are drawn."""

    def __init__(
        self,
        prompt_ids: Sequence[int],
        sampling: Sampling,
        num_samples: int,
        streams: list[PieceStream],
    ) -> None:
        self.prompt_ids = tuple(prompt_ids)
        self.sampling = sampling
        self.num_samples = num_samples
        self.arrived = time.monotonic()
        self.answer: Future[list[Completion]] = Future()
        self.is_cancelled = False
        self.weights: str | None = None
        """Who answers; known from the first token on."""
        self._streams = streams  # one a sample, or empty when nobody looks at the text
        self._drawn: dict[int, Completion] = {}
        self._num_left = num_samples

    def cancel(self) -> None:
        """Stop drawing: completions end where they are, with finish reason "unknown"."""
        self.is_cancelled = True
        self.answer.cancel()  # has an effect only while it still waits for a batch

    @property
    def request(self) -> SampleRequest:
        """What the sampler is asked."""
        return SampleRequest(self.prompt_ids, self.sampling, self.num_samples)

    def _hear(
        self, sample_idx: int, token_id: int, logprob: float
    ) -> Literal["stop", "unknown"] | None:
        """Take a token; says whether this completion ends here, and why."""
        is_stopped = False
        if self._streams and not self.is_cancelled:
            stream = self._streams[sample_idx]
            is_stopped = self._tell(lambda: stream.push(token_id, logprob))
        if self.is_cancelled:
            return "unknown"
        return "stop" if is_stopped else None

    def _end(self, sample_idx: int, completion: Completion) -> None:
        self._drawn[sample_idx] = completion
        if self._streams and not self.is_cancelled:
            self._tell(lambda: self._streams[sample_idx].finish(completion))
        if len(self._drawn) == self.num_samples and not self.answer.done():
            self.answer.set_result([self._drawn[i] for i in range(self.num_samples)])

    def _fail(self, error: TrueupError) -> None:
        if not self.answer.done():
            self.answer.set_exception(error)

    def _tell(self, say: Callable[[], bool | None]) -> bool:
        try:
            return bool(say())
        except Exception as error:  # a listener that fell over must not take the batch with it
            _log.warning("A listener failed, its request is given up: %s", error)
            self.is_cancelled = True
            return False


class Engine:
    """Answers requests with whatever the store names as champion, many at a time."""

    def __init__(
        self,
        backbone: Backbone,
        store: Store,
        *,
        max_batch_rows: int = 48,
        company_wait_s: float = 0.02,
        join_wait_s: float | None = None,
    ) -> None:
        """Start the thread. From here on the backbone belongs to it.

        Args:
            max_batch_rows: completions drawn side by side; also the most one request may ask for.
            company_wait_s: how long the first request of a batch waits for others. Later ones
                join at the next token.
            join_wait_s: how long a few who come later wait for company before they join a running
                batch; by default 1 s on a CPU and not at all elsewhere.
        """
        self.max_batch_rows = max_batch_rows
        self.context = int(backbone.model.config.max_position_embeddings)
        if join_wait_s is None:  # a prefill takes a CPU as long as several tokens of everybody
            join_wait_s = 1.0 if backbone.device.type == "cpu" else 0.0
        self._join_wait_s = join_wait_s
        self._backbone, self._store, self._company_wait_s = backbone, store, company_wait_s
        self._eos_ids = chat.eos_ids(backbone.tokenizer)
        self._served: _Served | None = None
        self._waiting: deque[Pending] = deque()
        self._running: dict[int, Pending] = {}
        self._num_taken = 0
        self._changed = threading.Condition()
        self._is_closed = False
        self._warned_of_store = False
        self._thread = threading.Thread(target=self._run, name="trueup-engine", daemon=True)
        self._thread.start()

    # --- asking ---------------------------------------------------------------------------------

    def submit(
        self,
        prompt: Messages,
        sampling: Sampling,
        *,
        num_samples: int = 1,
        on_piece: OnPiece | None = None,
    ) -> Pending:
        """Queue a request; its `answer` is a future of `num_samples` completions.

        An answer that would outgrow the model's context is cut there: `max_tokens` is lowered,
        also in the sampling settings that the completion carries.

        Args:
            on_piece: for streaming; called on the engine's thread, so it must be quick.

        Raises:
            DataError: the template refuses the prompt, or it does not fit the model.
            ModelError: the engine is closed.
        """
        ids = self._prompt_ids(prompt, num_samples)
        room = self.context - len(ids)
        sampling = sampling.model_copy(update={"max_tokens": min(sampling.max_tokens, room)})
        streams = (
            [
                PieceStream(self._decode, on_piece or _nobody, i, sampling.stop)
                for i in range(num_samples)
            ]
            if on_piece or sampling.stop
            else []
        )
        pending = Pending(ids, sampling, num_samples, streams)
        with self._changed:
            if self._is_closed:
                raise _closed()
            self._waiting.append(pending)
            self._changed.notify_all()
        return pending

    def champion_weights(self) -> str:
        """The weights that the next batch will be answered with. Hashes them unless they serve now.

        Raises:
            ModelError: the champion cannot be served; the message says why.
        """
        release, served = self._release(), self._served
        if served and served.release_id == _id(release):
            return served.weights
        return self._verified(release).weights

    def token_text(self, token_id: int) -> str:
        """One token as text, special tokens by name; half a character shows as U+FFFD."""
        return str(self._backbone.tokenizer.decode([token_id]))

    def close(self) -> None:
        """Stop: running answers end where they are, waiting ones fail. Twice is as good as once."""
        with self._changed:
            self._is_closed = True
            waiting, self._waiting = list(self._waiting), deque()
            for pending in self._running.values():
                pending.is_cancelled = True
            self._changed.notify_all()
        for pending in waiting:
            if pending.answer.set_running_or_notify_cancel():
                pending._fail(_closed())
        self._thread.join()

    def _prompt_ids(self, prompt: Messages, num_samples: int) -> list[int]:
        if not 1 <= num_samples <= self.max_batch_rows:
            raise DataError(
                "This many completions of one prompt cannot be drawn",
                got=num_samples,
                expected=f"1 to {self.max_batch_rows}",
                next="ask several times",
            )
        try:
            ids = chat.prompt_ids(self._backbone.tokenizer, prompt)
        except ModelError as error:  # here it is the request that is at fault, not the model
            raise DataError(
                error.what, got=error.got, expected=error.expected, next=error.next
            ) from error
        if not 0 < len(ids) < self.context:
            raise DataError(
                "The prompt does not fit the model's context",
                got=f"{len(ids)} tokens",
                expected=f"1 to {self.context - 1} tokens",
                next="shorten the conversation",
            )
        return ids

    def _decode(self, token_ids: Sequence[int]) -> str:
        return chat.decode(self._backbone.tokenizer, token_ids)

    # --- answering: the engine's thread -----------------------------------------------------------

    def _run(self) -> None:
        while (first := self._first()) is not None:
            try:
                self._answer(first)
            except Exception as error:  # these requests fail; the next ones get their chance
                self._fail(self._running, error)

    def _first(self) -> "dict[int, Pending] | None":
        """Wait for requests to begin a batch with, and a moment for company; None once closed."""
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._is_closed)
            deadline = time.monotonic() + self._company_wait_s
            while self._num_rows_waiting() < self.max_batch_rows and not self._is_closed:
                if not self._changed.wait(max(0.0, deadline - time.monotonic())):
                    break
            if self._is_closed:
                return None
            return self._take(
                num_that_fit(
                    (pending.request for pending in self._waiting),
                    max_rows=self.max_batch_rows,
                    max_places=MAX_BATCH_TOKENS,
                )
            )

    def _num_rows_waiting(self) -> int:
        return sum(pending.num_samples for pending in self._waiting)

    def _take(self, num: int) -> "dict[int, Pending]":
        """The first `num` who wait, by a key, those aside who left. The lock is held."""
        taken = {}
        for _ in range(min(num, len(self._waiting))):
            pending = self._waiting.popleft()
            if pending.answer.set_running_or_notify_cancel():
                self._num_taken += 1
                taken[self._num_taken] = pending
        self._running |= taken
        return taken

    def _answer(self, first: "dict[int, Pending]") -> None:
        """Run one batch until nobody is left in it."""
        if not first:
            return
        served = self._follow_champion()
        with served.backbone.acting_as(served.role) as model:
            batch = Batch(
                model,
                eos_ids=self._eos_ids,
                on_token=lambda key, *token: self._running[key]._hear(*token),
                on_done=lambda key, *sample: self._end(served, key, *sample),
                max_rows=self.max_batch_rows,
                max_places=MAX_BATCH_TOKENS,
            )
            self._begin(batch, served, first)
            is_open = True
            while batch.num_rows:
                with self._changed:
                    is_time = is_open and self._is_time(batch)
                    num = batch.takes(p.request for p in self._waiting) if is_time else 0
                if num and (is_open := self._is_current(served)):
                    with self._changed:  # only those who came before the store was asked
                        newcomers = self._take(num)
                    self._begin(batch, served, newcomers)
                batch.step()

    def _is_time(self, batch: Batch) -> bool:
        """True where letting those who wait join is worth a prefill: they are many, or have waited
        long enough. Prompts that begin alike cost less together. The lock is held."""
        if not self._waiting:
            return False
        num_samples = sum(p.num_samples for p in self._waiting)
        waited_s = time.monotonic() - self._waiting[0].arrived
        return num_samples >= JOIN_ABOVE * batch.num_rows or waited_s >= self._join_wait_s

    def _begin(self, batch: Batch, served: "_Served", newcomers: "dict[int, Pending]") -> None:
        """Have the batch take in newcomers. A prompt that fails fails those it came with."""
        if not newcomers:
            return
        for pending in newcomers.values():
            pending.weights = served.weights
        try:
            begun = batch.prefill([(key, p.request) for key, p in newcomers.items()])
        except Exception as error:
            self._fail(newcomers, error)
        else:
            batch.join(begun)

    def _end(self, served: "_Served", key: int, sample_idx: int, drawn: Drawn) -> None:
        """One completion has ended. What goes wrong with it is its own request's affair."""
        pending = self._running[key]
        pending._num_left -= 1
        if not pending._num_left:
            self._forget([key])
        try:
            completion = served.backbone.completion(
                drawn, pending.prompt_ids, served.weights, pending.sampling
            )
        except Exception as error:
            _log.exception("An answer was drawn and could not be written down")
            pending.is_cancelled = True
            pending._fail(_failure(error))
        else:
            pending._end(sample_idx, completion)

    def _fail(self, requests: "dict[int, Pending]", error: Exception) -> None:
        requests = dict(requests)
        self._forget(requests)
        if not isinstance(error, TrueupError):
            _log.error("A batch of %d requests failed", len(requests), exc_info=error)
            error = _failure(error)
        for pending in requests.values():
            pending._fail(error)

    def _forget(self, keys: Iterable[int]) -> None:
        with self._changed:
            for key in keys:
                self._running.pop(key, None)

    # --- following the champion -------------------------------------------------------------------

    def _follow_champion(self) -> "_Served":
        """Make the network the champion, and say what it is now."""
        try:
            release = self._release()
        except StorageError as error:
            # what serves was verified when it was attached; an unreadable store does not undo that
            if self._served is None:
                raise ModelError(
                    "The champion is not known",
                    got=error.got,
                    expected="a readable store",
                    next=error.next,
                ) from error
            self._warn_of_store(error)
            return self._served
        if self._served and self._served.release_id == _id(release):
            return self._served
        self._served = None  # a switch that fails must not leave half of it in service
        verified = self._verified(release)
        if verified.adapter:
            verified.backbone.attach(ROLE, verified.adapter)
        else:
            verified.backbone.detach(ROLE)
        role = ROLE if verified.adapter else None
        self._served = _Served(_id(release), verified.weights, role, verified.backbone)
        return self._served

    def _is_current(self, served: "_Served") -> bool:
        """False once another release serves, or what the store says of it makes no sense."""
        try:
            return _id(self._release()) == served.release_id
        except StorageError as error:
            self._warn_of_store(error)
            return True
        except ModelError:
            return False

    def _warn_of_store(self, error: StorageError) -> None:
        if not self._warned_of_store:
            _log.warning("The champion as last read goes on serving: %s (said once)", error)
        self._warned_of_store = True

    def _release(self) -> Release | None:
        """The champion's release.

        Raises:
            StorageError: the store cannot be read.
            ModelError: what the store says of the champion makes no sense.
        """
        try:
            return self._store.champion()
        except SQLAlchemyError as error:
            raise StorageError(
                f"The store in {self._store.folder} could not be read",
                got=str(error).splitlines()[0],
                expected="a store that opens",
                next="check the folder and the disk",
            ) from error
        except DataError as error:
            raise _refusal(str(error), "a champion whose records can be read") from error

    def _verified(self, release: Release | None) -> "_Verified":
        """Where the release's adapter is, once its bytes were found to be the release's weights."""
        if release is None:
            return _Verified(self._backbone.base_weights, None, self._backbone)
        try:
            adapter, backbone = None, self._backbone
            if release.checkpoint_id:
                checkpoint = self._store.get(Checkpoint, release.checkpoint_id)
                backbone, adapter = parts_of(self._store, self._backbone, checkpoint)
            weights = backbone.weights(adapter)
        except (OSError, ValueError, SQLAlchemyError) as error:
            raise _refusal(str(error), f"the adapter of release {release.id}") from error
        if weights != release.weights:
            raise _refusal(f"{weights} in {adapter or backbone.folder}", release.weights)
        return _Verified(weights, adapter, backbone)


class _Served(NamedTuple):
    """What the network is at the moment."""

    release_id: str | None
    weights: str
    role: str | None
    backbone: Backbone


class _Verified(NamedTuple):
    weights: str
    adapter: Path | None
    backbone: Backbone


def _nobody(_: Piece) -> None:
    """Listens to a request that does not stream."""


def _id(release: Release | None) -> str | None:
    return release.id if release else None


def _refusal(got: str, expected: str) -> ModelError:
    return ModelError(
        "The champion cannot be served",
        got=got,
        expected=expected,
        next="restore the checkpoint's folder from a backup, or return with 'trueup rollback'",
    )


def _failure(error: Exception) -> TrueupError:
    failure = TrueupError(
        "The model failed while it answered",
        got=f"{type(error).__name__}: {error}",
        expected="an answer",
        next="try again; the server's log has the traceback",
    )
    failure.__cause__ = error
    return failure


def _closed() -> ModelError:
    return ModelError("The engine is closed", expected="a running server", next="start it again")
