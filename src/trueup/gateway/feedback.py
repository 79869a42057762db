"""What users say of an answer: `POST /v1/feedback`.

    {"request_id": "chatcmpl-…", "rating": 1, "edit": "a better answer", "comment": "…"}

The promise: a 200 means that it is on disk. The same feedback twice is kept once.
"""

from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, ValidationError, field_validator, model_validator
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from trueup.capture import Recorder
from trueup.errors import RecordNotFound, StorageError
from trueup.gateway.body import as_object, is_text, read_body
from trueup.gateway.durable import durably
from trueup.gateway.errors import RequestError
from trueup.gateway.keys import tenant_of
from trueup.records import Feedback, Interaction
from trueup.store import Store

__all__ = ["FeedbackRoute"]


class _Said(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    request_id: str | None = None
    interaction_id: str | None = None
    rating: Literal[-1, 1] | None = None
    edit: str | None = None
    comment: str | None = None

    @field_validator("rating", mode="before")
    @classmethod
    def _rating_is_a_whole_number(cls, rating: object) -> object:
        if rating is not None and type(rating) is not int:  # True equals 1, and "1" is no thumb
            raise ValueError("Input should be 1 or -1")
        return rating

    @field_validator("edit", "comment")
    @classmethod
    def _text_can_be_kept(cls, text: str | None) -> str | None:
        if text and not is_text(text):
            raise ValueError("Input should be text of whole characters")
        return text

    @field_validator("edit")
    @classmethod
    def _edit_says_something(cls, edit: str | None) -> str | None:
        if edit is not None and not edit.strip():
            raise ValueError("Input should be a better answer: an edit without text is none")
        return edit

    @field_validator("request_id", "interaction_id")
    @classmethod
    def _id_can_be_looked_up(cls, name: str | None) -> str | None:
        if name and ("\0" in name or not is_text(name)):
            raise ValueError("Input should be an id, of whole characters")
        return name

    @model_validator(mode="after")
    def _of_one_answer_something(self) -> Self:
        if bool(self.request_id) == bool(self.interaction_id):
            raise ValueError("either 'request_id' or 'interaction_id'")
        if self.rating is None and self.edit is None and self.comment is None:
            raise ValueError("at least one of 'rating', 'edit' and 'comment'")
        return self


class FeedbackRoute:
    """Finds the interaction and hangs the feedback on it."""

    def __init__(self, store: Store, recorder: Recorder) -> None:
        self._store, self._recorder = store, recorder

    async def post(self, request: Request) -> Response:
        """Answered once the feedback is committed; 404 if no such answer was captured."""
        said = _read(as_object(await read_body(request)))
        kept = await durably(self._keep, said, tenant_of(request.scope))
        return JSONResponse(
            {"id": kept.id, "object": "feedback", "interaction_id": kept.interaction_id}
        )

    def _keep(self, said: _Said, tenant: str | None) -> Feedback:
        is_written = self._recorder.flush()  # a quick user can be ahead of the writer
        if said.request_id:
            whose = {"tenant": tenant} if tenant else {}  # ids of two tenants may be the same
            request_id = self._recorder.known_as(said.request_id)
            found = self._store.last(Interaction, request_id=request_id, **whose)
        else:
            found = next(iter(self._store.get_all(Interaction, [said.interaction_id or ""])), None)
        if found and tenant and found.tenant != tenant:
            found = None  # another tenant's answer: as if there were none
        elif found is None and (said.rating == -1 or said.edit is not None):
            found = self._recalled(said.request_id or said.interaction_id or "", tenant)
        if found is None and not is_written:
            raise StorageError(
                "The answer that this is about may still wait to be written",
                got="a store that is slower than traffic",
                expected="all that was answered before on disk",
                next="send it again in a while",
            )
        if found is None:
            raise RecordNotFound(
                "No such answer was captured",
                got=said.request_id or said.interaction_id,
                expected="the id of a response of this gateway",
                next="check the id; with capture.rate below 1 not every answer is kept, and only a "
                "complaint within capture.recall_s brings one in",
            )
        feedback = Feedback(
            interaction_id=found.id, rating=said.rating, edit=said.edit, comment=said.comment
        )
        return self._recorder.feedback(feedback)

    def _recalled(self, name: str, tenant: str | None) -> Interaction | None:
        """A complaint brings in the answer that it is about, even one that the rate left out."""
        group = self._recorder.recall(name, tenant)
        named = [one for one in group if name in (one.request_id, one.id)]
        return next(iter(named or group), None)


def _read(body: dict[str, object]) -> _Said:
    try:
        return _Said.model_validate(body)
    except ValidationError as error:
        problem = error.errors()[0]
        param = ".".join(map(str, problem["loc"])) or "feedback"
        raise RequestError(
            f"'{param}' cannot be used",
            got=problem.get("input"),
            expected=problem["msg"],
            next="send request_id, and rating (1 or -1), edit or comment",
            param=param,
        ) from None
