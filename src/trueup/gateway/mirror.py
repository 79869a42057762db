"""Traffic that somebody else answered: `POST /v1/capture`.

    {"request": {…}, "response": {…}, "request_id": "…", "latency_ms": 12.5, "feedback": {…}}

Both bodies are as OpenAI's API writes them. One such object, a list of them, or one a line
(`application/x-ndjson`). The promise: what the answer calls captured is on disk, all of it in one
transaction; each entry is answered for, in order; the same traffic sent twice is kept once, and
what was erased stays away.
"""

import json
from typing import Any

from pydantic import ValidationError
from sqlalchemy.exc import SQLAlchemyError
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from trueup.capture import Kept, Recorder
from trueup.capture.openai_form import Sender, read_interactions
from trueup.capture.shapes import Skip
from trueup.errors import TrueupError
from trueup.gateway.body import is_text, read_body
from trueup.gateway.durable import durably
from trueup.gateway.errors import RequestError
from trueup.gateway.keys import tenant_of
from trueup.records import Feedback, Interaction

__all__ = ["MirrorRoute"]

ROUTE = "/v1/capture"
FIELDS = {"request", "response", "request_id", "user", "tenant", "latency_ms", "error", "feedback"}


class MirrorRoute:
    """Reads mirrored traffic and answers after the commit."""

    def __init__(self, recorder: Recorder) -> None:
        self._recorder = recorder

    async def post(self, request: Request) -> Response:
        """200 with a result an entry; 400 if none of them can be used, 503 if the store cannot
        take them now (then none was kept: send them again)."""
        body = await read_body(request)
        is_lines = "ndjson" in request.headers.get("content-type", "")
        tenant = tenant_of(request.scope)
        results = await durably(self._keep, body, is_lines, tenant)
        captured = sum("ids" in one for one in results)
        skipped = sum("skipped" in one for one in results)
        return JSONResponse(
            {
                "object": "capture",
                "captured": captured,
                "skipped": skipped,
                "rejected": len(results) - captured - skipped,
                "results": results,
            }
        )

    def _keep(self, body: bytes, is_lines: bool, tenant: str | None) -> list[dict[str, Any]]:
        results: list[dict[str, Any]] = []
        groups: list[list[Interaction]] = []
        said: list[dict[str, Any] | None] = []
        places: list[int] = []
        for entry in _entries(body, is_lines):
            try:
                group, feedback = _read(entry, tenant)
            except Skip as skip:
                results.append({"error": skip.reason})
            else:
                places.append(len(results))
                results.append({})
                groups.append(group)
                said.append(feedback)
        if not groups:
            raise RequestError(
                "Nothing of this can be captured",
                got=results[0]["error"] if results else "no entries",
                expected='{"request": {…}, "response": {…}} as OpenAI writes them, or a list',
                next="mend the entries; see docs/capture.md",
            )
        kept = self._recorder.keep(groups, route=ROUTE)
        for place, one, group, feedback in zip(places, kept, groups, said, strict=True):
            results[place] = self._settled(one, group, feedback)
        return results

    def _settled(
        self, kept: Kept, group: list[Interaction], feedback: dict[str, Any] | None
    ) -> dict[str, Any]:
        """What an entry is answered. Its interactions are on disk, and so are those of others:
        what goes wrong from here on is this entry's alone."""
        ids, why = kept
        is_complaint = feedback and (feedback.get("rating") == -1 or "edit" in feedback)
        try:
            if is_complaint and why == "rate":
                ids = tuple(one.id for one in self._recorder.recall(group[0].id))
                why = "" if ids else why
        except (TrueupError, SQLAlchemyError) as error:
            return {"error": _told(error)}
        result: dict[str, Any] = {"skipped": why} if why else {"ids": list(ids)}
        if feedback and not why and ids:
            try:
                thumb = self._recorder.feedback(Feedback(interaction_id=ids[0], **feedback))
                result["feedback_id"] = thumb.id
            except (TrueupError, SQLAlchemyError) as error:
                result["feedback_error"] = _told(error)
        return result


def _told(error: Exception) -> str:
    return error.what if isinstance(error, TrueupError) else type(error).__name__


def _entries(body: bytes, is_lines: bool) -> list[Any]:
    if is_lines:
        return [_json(line) for line in body.splitlines() if line.strip()]
    value = _json(body)
    if isinstance(value, Skip):
        raise RequestError("The request body is not JSON", got=value.got, expected="{…} or […]")
    return value if isinstance(value, list) else [value]


def _json(text: bytes) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        return Skip("not JSON", str(error))


def _read(entry: object, tenant: str | None) -> tuple[list[Interaction], dict[str, Any] | None]:
    """The interactions of an entry, and what was said of them."""
    if isinstance(entry, Skip):
        raise entry
    if not isinstance(entry, dict):
        raise Skip("entry is not an object")
    if unknown := sorted(map(str, entry.keys() - FIELDS)):
        raise Skip(f"unknown field '{unknown[0]}'"[:100])
    for name in ("request_id", "user", "tenant", "error"):
        if not isinstance(entry.get(name) or "", str):
            raise Skip(f"{name} is not text")
    latency = entry.get("latency_ms")
    is_number = isinstance(latency, int | float) and not isinstance(latency, bool)
    if latency is not None and not (is_number and 0 <= latency < 1e12):
        raise Skip("latency_ms is no number of milliseconds")
    sender = Sender(
        source="mirror",
        request_id=entry.get("request_id") or "",
        user=entry.get("user") or None,
        tenant=tenant or entry.get("tenant") or None,  # a key's word goes before its bearer's
        latency_ms=latency,
        error=entry.get("error") or "",
    )
    group = read_interactions(entry.get("request"), entry.get("response"), sender)
    return group, _feedback(entry.get("feedback"))


def _feedback(said: object) -> dict[str, Any] | None:
    if said is None:
        return None
    if not isinstance(said, dict) or not said or said.keys() - {"rating", "edit", "comment"}:
        raise Skip("feedback is not a rating, an edit or a comment")
    if type(said.get("rating", 1)) is not int:  # True equals 1, and is no thumb
        raise Skip("rating is neither 1 nor -1")
    if isinstance(said.get("edit"), str) and not said["edit"].strip():
        raise Skip("edit is empty: leave it out, or say what is better")
    try:
        Feedback.model_validate({"interaction_id": "none", **said}, strict=True)
    except ValidationError as error:
        raise Skip(f"feedback cannot be used: {error.errors()[0]['msg']}") from None
    if not all(is_text(said.get(name) or "") for name in ("edit", "comment")):
        raise Skip("text is not valid Unicode")
    return {name: value for name, value in said.items() if value is not None} or None
