"""Read second: the nouns of the loop, on one page.

    Interaction ─┬─ Flag ── Label ── PreferencePair ── Dataset ── TrainingRun ─┐
                 └─ Feedback              Release ── GuardReport … ABReport ── Checkpoint

A stage reads records and writes records; nothing else passes between stages. A record is frozen,
its id is a hash of what it says (so the same input twice is the same record once), and it names
the records it was made from. "Why does the model say this?" is then a walk along `parents`.
"""

import hashlib
import json
from datetime import UTC, datetime
from functools import cache
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    FiniteFloat,
    SerializerFunctionWrapHandler,
    model_serializer,
    model_validator,
)

__all__ = [
    "ABReport",
    "AuditCheck",
    "Checkpoint",
    "Completion",
    "Dataset",
    "EvalReport",
    "Feedback",
    "Flag",
    "GuardReport",
    "Interaction",
    "JudgeAudit",
    "Label",
    "Message",
    "Messages",
    "PreferencePair",
    "Record",
    "Release",
    "Report",
    "ReviewTask",
    "SampleSet",
    "Sampling",
    "ToolCall",
    "TrainingRun",
    "Verdict",
    "content_hash",
]

AnnotatorKind = Literal["human", "llm", "code"]


def content_hash(content: Any) -> str:
    """The first 20 hex digits of the SHA-256 of `content` as canonical JSON."""
    text = json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:20]


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="microseconds")


class _Grown(BaseModel):
    """A model whose later fields leave no trace where they say nothing, so that what was written
    before they existed keeps its hash."""

    later: ClassVar[tuple[str, ...]] = ()

    @model_serializer(mode="wrap")
    def _quiet_where_silent(self, plain: SerializerFunctionWrapHandler) -> dict[str, Any]:
        said: dict[str, Any] = plain(self)
        for name, default in _later_defaults(type(self)):
            if getattr(self, name) == default:
                said.pop(name, None)
        return said


@cache
def _later_defaults(kind: type[_Grown]) -> tuple[tuple[str, Any], ...]:
    """Looked up once a class: capture asks for every record, several times."""
    return tuple((name, kind.model_fields[name].default) for name in kind.later)


# --- values: parts of records, with no life of their own -------------------------------------


class Value(BaseModel):
    """A frozen part of a record."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class ToolCall(Value):
    """A function that an answer asks to have called."""

    id: str = ""
    name: str
    arguments: str
    """As the model wrote them: JSON, if all went well."""


class Message(Value, _Grown):
    """One turn of a conversation."""

    later = ("tool_calls", "tool_call_id")

    role: str
    content: str
    tool_calls: tuple[ToolCall, ...] = ()
    tool_call_id: str = ""
    """In a turn of role `tool`: the call it answers."""


Messages = tuple[Message, ...]


class Sampling(Value, _Grown):
    """How a completion was drawn. Temperature 0 is greedy; `seed` None is fresh randomness."""

    later = ("top_k", "min_p", "stop", "best_of")

    temperature: FiniteFloat = Field(default=1.0, ge=0)
    top_p: float = Field(default=1.0, gt=0, le=1)
    top_k: int = Field(default=0, ge=0)
    """Only the k likeliest tokens; 0 is all of them."""
    min_p: float = Field(default=0.0, ge=0, lt=1)
    """Only tokens at least this share as likely as the likeliest."""
    max_tokens: int = Field(default=256, ge=1)
    stop: tuple[Annotated[str, Field(min_length=1)], ...] = ()
    """Strings that end the completion; its text ends before them."""
    best_of: int = Field(default=1, ge=1)
    """Of so many draws this one was picked by a judge."""
    seed: int | None = None

    @property
    def is_plain(self) -> bool:
        """True when tokens were drawn from the model's own distribution, so that the stored
        log-probs are those of the distribution that generated them."""
        is_whole = self.top_p == 1.0 and self.top_k == 0 and self.min_p == 0.0
        return self.temperature == 1.0 and is_whole and not self.stop and self.best_of == 1


class Completion(Value, _Grown):
    """Text a model wrote (or a person, or a file), with all that is known of how.

    `logprobs` are those of the model's own distribution (temperature 1, nothing cut off), one a
    token of `token_ids`, in nats; the end-of-sequence token counts where it was drawn. Without
    `token_ids` they are what somebody else's server told: good for a mean, not for training.
    """

    later = ("tool_calls",)

    text: str
    tool_calls: tuple[ToolCall, ...] = ()
    token_ids: tuple[int, ...] | None = None
    logprobs: tuple[FiniteFloat, ...] | None = None
    finish_reason: Literal["stop", "length", "tool_calls", "content_filter", "unknown"] = "unknown"
    weights: str | None = None
    """Hash of the weights that wrote it; None for people and files."""
    after: str | None = None
    """Digest of the prompt's token ids it was drawn after: template, tokenizer and all."""
    sampling: Sampling | None = None


class Verdict(Value):
    """What a gate said. Only `passed` lets a candidate through; what is unknown refuses."""

    gate: str
    status: Literal["passed", "refused", "pending"]
    reason: str
    figures: dict[str, FiniteFloat | None] = {}

    @property
    def passed(self) -> bool:
        """True for `passed` alone."""
        return self.status == "passed"


class AuditCheck(Value):
    """One question put to a judge: what came out, and the line it is held to."""

    name: str
    status: Literal["passed", "failed", "unknown"]
    figure: float | None = None
    low: float | None = None
    high: float | None = None
    """The 95 % interval of the figure, where it has one."""
    threshold: float | None = None
    """None where the figure is shown and decides nothing."""
    num_items: int = 0


# --- records ----------------------------------------------------------------------------------


class Record(BaseModel):
    """A noun of the loop: frozen, content-addressed, with named parents."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    tag: ClassVar[str]
    """Prefix of the id, and the name of the table."""
    indexed: ClassVar[tuple[str, ...]] = ()
    """Fields the store keeps as columns, to select by."""

    id: str = ""
    created_at: str = Field(default_factory=_now)
    """UTC, ISO 8601. Not part of the id."""

    @model_validator(mode="after")
    def _identify(self) -> Self:
        if not self.id:
            object.__setattr__(self, "id", self.expected_id())
        return self

    def expected_id(self) -> str:
        """The id that the contents call for; a record whose `id` differs was tampered with."""
        content = self.model_dump(mode="json", exclude={"id", "created_at"})
        return f"{self.tag}_{content_hash(content)}"

    def parents(self) -> tuple[str, ...]:
        """Ids of the records this one was made from."""
        return ()


class Interaction(Record, _Grown):
    """One request and its answer in production."""

    tag = "interaction"
    indexed = ("source", "request_id", "user", "tenant")
    later = ("tenant", "error", "tools")

    prompt: Messages
    completion: Completion
    source: str
    """`gateway`, or `file:NAME` for an import."""
    request_id: str = ""
    """The server's id of the request; empty for imports, whose contents identify them."""
    model: str = ""
    user: str | None = None
    tenant: str | None = None
    """Whose key the request came with, where a gateway serves several."""
    tools: tuple[dict[str, Any], ...] = ()
    """The functions that the request offered, as it described them."""
    error: str = ""
    """What broke the answer off: `upstream 503`, `timeout`, `client left`. Its text is what was
    said until then, perhaps nothing, and is no example of an answer."""
    input_tokens: int | None = None
    output_tokens: int | None = None
    latency_ms: float | None = None

    @property
    def is_plain(self) -> bool:
        """True for messages in and text out, to the end: nothing broke it off and no tool had a
        part in it. Others are no examples of answers, and their prompts may be half of one."""
        has_calls = self.completion.tool_calls or any(
            one.tool_calls or one.role == "tool" for one in self.prompt
        )
        return not (self.error or self.tools or has_calls)


class Feedback(Record):
    """What a user said of an answer: a thumb, an edit, a comment."""

    tag = "feedback"
    indexed = ("interaction_id",)

    interaction_id: str
    rating: Literal[-1, 1] | None = None
    edit: str | None = None
    comment: str | None = None

    def parents(self) -> tuple[str, ...]:
        return (self.interaction_id,)


class Flag(Record):
    """How weak an interaction looks to a flagger. Every examined interaction gets one."""

    tag = "flag"
    indexed = ("interaction_id", "flagger", "raised")

    interaction_id: str
    flagger: str
    """Name and version, `signals/1`."""
    score: float = Field(ge=0, le=1)
    raised: bool
    """True where the score called for a label."""
    reasons: tuple[str, ...] = ()
    signals: dict[str, float] = {}

    def parents(self) -> tuple[str, ...]:
        return (self.interaction_id,)


class ReviewTask(Record):
    """Completions of one prompt, put before people. Their labels name it, and are settled into
    one."""

    tag = "task"
    indexed = ("interaction_id", "source")

    prompt: Messages
    candidates: tuple[Completion, ...] = Field(min_length=1)
    """Two, for the pages that compare. The order in which a person sees them is theirs."""
    interaction_id: str | None = None
    source: str = ""
    """`loop`, or `file:NAME` for an import."""
    gold: tuple[FiniteFloat, ...] | None = None
    """The scores that are known beforehand, for a gold question: it measures the annotator, and
    teaches nothing."""

    def parents(self) -> tuple[str, ...]:
        return (self.interaction_id,) if self.interaction_id else ()


class Label(Record, _Grown):
    """One annotator's scores for one or more completions of a prompt.

    Scores compare within a label only: higher is better, equal is a tie. A single candidate
    is unpaired signal, +1 desirable and -1 not (KTO). What a person's answer to a task looks like
    is said in `trueup.label.votes`.
    """

    tag = "label"
    indexed = ("interaction_id", "annotator", "annotator_kind", "source", "task_id")
    later = ("task_id", "vote_ids", "comment", "replaces")

    prompt: Messages
    candidates: tuple[Completion, ...] = Field(min_length=1)
    scores: tuple[FiniteFloat, ...]
    annotator: str
    annotator_kind: AnnotatorKind
    interaction_id: str | None = None
    source: str = ""
    """`file:NAME` for an import, whose file is the label's parent."""
    reasons: tuple[tuple[str, ...], ...] = ()
    task_id: str = ""
    """The review task it answers. Such a label without `vote_ids` is one vote among several: what
    is paired is the label that they were settled into."""
    vote_ids: tuple[str, ...] = ()
    """The labels that this one was settled from."""
    comment: str = ""
    replaces: str = ""
    """The label by the same annotator that it takes the place of: a vote that was changed, or what
    was settled before. That one counts no more, and is no parent of this."""

    @model_validator(mode="after")
    def _one_score_each(self) -> Self:
        if len(self.scores) != len(self.candidates):
            raise ValueError(f"{len(self.scores)} scores for {len(self.candidates)} candidates")
        return self

    @property
    def is_vote(self) -> bool:
        """True for one of several labels of a task that wait to be settled."""
        return bool(self.task_id) and not self.vote_ids

    def parents(self) -> tuple[str, ...]:
        return tuple(one for one in (self.interaction_id, self.task_id, *self.vote_ids) if one)


class PreferencePair(Record):
    """One prompt, the completion that was preferred, the one that was not, and who says so."""

    tag = "pair"
    indexed = ("prompt_hash",)

    prompt: Messages
    chosen: Completion
    rejected: Completion
    margin: float = Field(ge=0)
    """Difference of the two scores in the label's own unit."""
    label_ids: tuple[str, ...] = Field(min_length=1)
    prompt_hash: str = ""

    def parents(self) -> tuple[str, ...]:
        return self.label_ids


class Dataset(Record, _Grown):
    """A frozen list of pairs. Its id is its hash: other pairs, another data set."""

    tag = "dataset"
    later = ("prompts", "interaction_ids")

    pair_ids: tuple[str, ...]
    label_ids: tuple[str, ...] = ()
    """Unpaired labels, for methods that learn from single answers."""
    prompts: tuple[Messages, ...] = ()
    """Prompts alone, for methods that draw their own answers."""
    interaction_ids: tuple[str, ...] = ()
    """Where those prompts came from, if from traffic."""
    source: str
    """`loop`, or `file:NAME`."""
    skipped: dict[str, int] = {}
    """Labels that gave no pair, counted by reason."""

    def parents(self) -> tuple[str, ...]:
        return (*self.pair_ids, *self.label_ids, *self.interaction_ids)


class TrainingRun(Record):
    """The decision to train: what on, from where, against which reference, how."""

    tag = "run"
    indexed = ("dataset_id",)

    dataset_id: str
    method: str
    config: dict[str, Any]
    base_weights: str
    start_weights: str
    """The champion's: training starts from exactly what is served."""
    ref_weights: str
    template: str
    """Hash of the chat template."""

    def parents(self) -> tuple[str, ...]:
        return (self.dataset_id,)


class Checkpoint(Record):
    """Weights that came out of a run: safetensors and a JSON card in the store's folder."""

    tag = "checkpoint"
    indexed = ("run_id", "weights")

    run_id: str
    path: str
    """Relative to the store's folder."""
    weights: str
    base_weights: str
    metrics: dict[str, Any] = {}

    def parents(self) -> tuple[str, ...]:
        return (self.run_id,)


class SampleSet(Record):
    """What some weights answered to a prompt outside traffic: for guard, evaluate and A/B."""

    tag = "samples"
    indexed = ("weights",)

    prompt: Messages
    completions: tuple[Completion, ...]
    weights: str
    sampling: Sampling


class Report(Record):
    """What a gate measured, its verdict, and examples a person should look at."""

    indexed = ("checkpoint_id", "champion")

    checkpoint_id: str
    champion: str
    """Weights the candidate was held against."""
    verdict: Verdict
    config: dict[str, Any] = {}
    details: dict[str, Any] = {}

    def parents(self) -> tuple[str, ...]:
        return (self.checkpoint_id,)


class GuardReport(Report):
    """Length, entropy, drift and diversity of the candidate against its reference."""

    tag = "guard"


class EvalReport(Report):
    """The gold set, candidate against champion."""

    tag = "eval"


class ABReport(Report):
    """Head-to-head on held-out prompts, judged by a scorer that did not label."""

    tag = "ab"

    @property
    def scorer(self) -> tuple[str, str]:
        """Id and version of who voted: one that was mended is another."""
        return self.config.get("scorer_id", ""), self.config.get("scorer_version", "")


class JudgeAudit(Record):
    """What a judge was found to be worth. One whose newest audit was refused may not label."""

    tag = "audit"
    indexed = ("judge", "source")

    judge: str
    """Id of the judge, as on the labels it writes."""
    source: str
    """`built-in`, or `file:NAME` where people's labels were asked for, too."""
    verdict: Verdict
    checks: tuple[AuditCheck, ...] = ()
    config: dict[str, Any] = {}
    details: dict[str, Any] = {}
    previous: str | None = None
    """The audit of the same judge before this one, so that finding the same again is news."""

    def parents(self) -> tuple[str, ...]:
        return (self.previous,) if self.previous else ()


class Release(Record, _Grown):
    """A move of the alias `champion`, or a person's approval of one."""

    tag = "release"
    indexed = ("weights",)
    later = ("approved_by",)

    action: Literal["first", "promote", "rollback", "approve"]
    weights: str
    checkpoint_id: str | None = None
    """None is the base model itself."""
    previous: str | None = None
    """The release that was champion before; a rollback returns to it."""
    restores: str | None = None
    """For a rollback: the release whose weights serve again; for an approval, the one signed."""
    approved_by: str = ""
    """For an approval: the person; `created_at` is when."""
    report_ids: tuple[str, ...] = ()
    reason: str = ""

    def parents(self) -> tuple[str, ...]:
        linked = (self.checkpoint_id, self.previous, self.restores, *self.report_ids)
        return tuple(one for one in linked if one)
