"""The review page as one app. Every page also answers as JSON: its address with `.json`, or
`Accept: application/json`; the first page is `/index.json`.

    GET  /                    the next task                              annotator
    GET  /task/ID             one that is theirs, again
    POST /task/ID             an answer, or a skip
    POST /undo                take the last one back
    GET  /mine                what they did
    GET  /team                progress, agreement                        lead
    POST /team/assign         give tasks to people, or back to the pool
    GET  /second-look         tasks people disagree on
    GET  /second-look/ID      one of them, with the votes
    GET  /people  POST /people[/NAME]  who may log in                    admin
    GET  /login  POST /login  POST /logout  GET|POST /password           everybody

Every form carries the session's token; a form from elsewhere is refused.
"""

import hmac
import json
import secrets
from functools import cache
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import urlsplit

from fastapi import Depends, FastAPI, Form, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, RedirectResponse, Response
from fastapi.staticfiles import StaticFiles
from starlette.exceptions import HTTPException

from trueup.errors import DataError, RecordNotFound, TrueupError
from trueup.label.config import LabelConfig
from trueup.label.votes import SECOND_LOOK
from trueup.privacy import Scrub
from trueup.records import ReviewTask
from trueup.review.agreement import Reader, copied, disagreements
from trueup.review.card import Pick, as_pick, card, read_said, to_pick
from trueup.review.config import ReviewConfig
from trueup.review.desk import Desk, Said
from trueup.review.guard import Guard
from trueup.review.people import ROLES, People, Person, Role, Session, TooManyAttempts, as_role
from trueup.store import Store
from trueup.web.page import plain

__all__ = ["create_app"]

HERE = Path(__file__).parent
COOKIE = "trueup_review"
LOGIN_COOKIE = "trueup_review_login"
MOST_LISTED = 200
MOST_SHOWN = 200
"""Characters of a prompt in a list."""


class NotLoggedIn(Exception):
    """The page is for people who are."""


def create_app(
    store: Store,
    config: ReviewConfig,
    label: LabelConfig | None = None,
    *,
    scrub: Scrub | None = None,
) -> FastAPI:
    """The app; the store is the caller's to close.

    Args:
        label: how many people answer each task of the open pool, and whose votes count.
        scrub: what takes out of comments and edits what must not be written.
    """
    label = label or LabelConfig()
    app = FastAPI(
        title="trueup review",
        docs_url=None,
        redoc_url=None,
        openapi_url=None,
        redirect_slashes=False,  # such a redirect would go wherever the Host header says
    )
    app.state.store, app.state.config, app.state.overlap = store, config, label.overlap
    app.state.people = People(store, session_h=config.session_h)
    app.state.desk = Desk(store, config, label, scrub=scrub)
    app.state.reader = Reader()
    app.mount("/static", StaticFiles(directory=HERE / "static"))
    for add in (_doors, _work, _leads, _admins):
        add(app)
    app.add_exception_handler(NotLoggedIn, _to_login)
    app.add_exception_handler(HTTPException, _http_error)
    app.add_exception_handler(RequestValidationError, _unreadable)
    app.add_exception_handler(TrueupError, _trueup_error)
    app.add_middleware(Guard)
    return app


# --- who asks -----------------------------------------------------------------------------------


def _session(request: Request) -> Session:
    people: People = request.app.state.people
    session = people.session(request.cookies.get(COOKIE))
    if session is None:
        raise NotLoggedIn
    return session


def _at_least(role: Role) -> Any:
    def check(session: Annotated[Session, Depends(_session)]) -> Session:
        if not session.person.may(role):
            raise HTTPException(403, f"This page is for people with the role {role}.")
        return session

    return Depends(check)


def _form_token(
    request: Request,
    session: Annotated[Session, Depends(_session)],
    csrf: Annotated[str, Form()] = "",
) -> None:
    _same_origin(request)
    if not _is_same(csrf or request.headers.get("x-csrf-token", ""), session.csrf):
        raise HTTPException(403, "This form is not from this session. Load the page again.")


def _same_origin(request: Request) -> None:
    origin = request.headers.get("origin")
    if origin and urlsplit(origin).netloc != request.headers.get("host"):
        raise HTTPException(403, "This form is from another site.")


def _is_same(given: str, known: str) -> bool:
    # a form may name an encoding that gives half a surrogate pair
    return hmac.compare_digest(given.encode("utf-8", "replace"), known.encode("utf-8", "replace"))


def _address(request: Request) -> str:
    return request.client.host if request.client else ""


Asker = Annotated[Session, Depends(_session)]
Lead = Annotated[Session, _at_least("lead")]
Admin = Annotated[Session, _at_least("admin")]
TOKEN = [Depends(_form_token)]
Words = Annotated[list[str], Form()]
Text = Annotated[str, Form()]
# 10,000 characters by the box, which counts the end of a line once and sends it as two
Comment = Annotated[str, Form(max_length=20_000)]


# --- pages --------------------------------------------------------------------------------------


def _wants_json(request: Request) -> bool:
    if getattr(request.state, "as_json", False):
        return True
    accept = request.headers.get("accept", "")
    return "application/json" in accept and "text/html" not in accept


def _is_part(request: Request) -> bool:
    """True where a script on the page asks for a part of it."""
    return request.headers.get("hx-request") == "true"


def _page(
    request: Request,
    template: str,
    data: dict[str, Any],
    session: Session | None = None,
    *,
    status: int = 200,
) -> Response:
    """The data as a page, or as its JSON twin."""
    if _wants_json(request):
        return _json({**data, "csrf": session.csrf if session else data.get("csrf", "")}, status)
    person = session.person if session else None
    html = _template(template).render(
        data, person=person, csrf=session.csrf if session else data.get("csrf", "")
    )
    return HTMLResponse(html.encode("utf-8", "replace"), status_code=status)


def _json(data: dict[str, Any], status: int = 200) -> Response:
    # ASCII, so that half a surrogate pair in a model's text is no error
    return Response(json.dumps(data), status_code=status, media_type="application/json")


def _to(request: Request, path: str, data: dict[str, Any] | None = None) -> Response:
    """After a form: on to another page; a program is told where."""
    if _wants_json(request):
        return _json({**(data or {}), "next": path})
    return RedirectResponse(path, status_code=303)


@cache
def _template(name: str) -> Any:
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("trueup.review"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["plain"] = plain
    return environment.get_template(name)


def _to_login(request: Request, _: Exception) -> Response:
    if _wants_json(request) or _is_part(request):
        return _json({"error": "You are not logged in.", "next": "/login"}, 401)
    return RedirectResponse("/login", status_code=303)


def _message(request: Request, status: int, what: str, hint: str = "") -> Response:
    if _wants_json(request) or _is_part(request):
        return _json({"error": what, "hint": hint}, status)
    session = request.app.state.people.session(request.cookies.get(COOKIE))
    return _page(request, "message.html", {"what": what, "hint": hint}, session, status=status)


def _http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    what = "There is no such page." if error.status_code == 404 else str(error.detail)
    return _message(request, error.status_code, what)


def _unreadable(request: Request, _: Exception) -> Response:
    return _message(request, 422, "This form could not be read.", "Load the page again.")


def _trueup_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, TrueupError)
    status = 422
    if isinstance(error, RecordNotFound):
        status = 404
    elif isinstance(error, TooManyAttempts):
        status = 429
    elif not isinstance(error, DataError):
        status = 503
    what = f"{error.what}." if status != 503 else "The store cannot be used at the moment."
    response = _message(request, status, what, error.next if status != 503 else "Try again.")
    if status == 429:
        response.headers["Retry-After"] = "300"
    return response


# --- doors: in and out ----------------------------------------------------------------------------


def _doors(app: FastAPI) -> None:
    people: People = app.state.people
    config: ReviewConfig = app.state.config

    def cookie(response: Response, name: str, value: str) -> None:
        response.set_cookie(name, value, httponly=True, samesite="lax", secure=config.https)

    def ask(request: Request, error: str = "", status: int = 200) -> Response:
        token = request.cookies.get(LOGIN_COOKIE) or secrets.token_urlsafe(32)
        data = {"csrf": token, "error": error, "is_empty": not people.all()}
        response = _page(request, "login.html", data, status=status)
        cookie(response, LOGIN_COOKIE, token)
        return response

    @app.get("/login")
    def login(request: Request) -> Response:
        if people.session(request.cookies.get(COOKIE)):
            return _to(request, "/")
        return ask(request)

    @app.post("/login")
    def log_in(request: Request, name: Text = "", password: Text = "", csrf: Text = "") -> Response:
        _same_origin(request)
        known = request.cookies.get(LOGIN_COOKIE, "")
        if not known or not _is_same(csrf, known):
            return ask(request, "This form had expired. Please try again.", 403)
        try:
            token = people.log_in(name, password, address=_address(request))
        except TooManyAttempts as error:
            response = ask(request, f"{error.what}. Next: {error.next}.", 429)
            response.headers["Retry-After"] = "300"
            return response
        if token is None:
            return ask(request, "The name or the password is not right.", 401)
        response = _to(request, "/")
        cookie(response, COOKIE, token)
        response.delete_cookie(LOGIN_COOKIE)
        return response

    @app.post("/logout", dependencies=TOKEN)
    def log_out(request: Request) -> Response:
        people.log_out(request.cookies.get(COOKIE))
        response = _to(request, "/login")
        response.delete_cookie(COOKIE)
        return response

    @app.get("/password")
    def password(request: Request, session: Asker) -> Response:
        return _page(request, "password.html", {"error": ""}, session)

    @app.post("/password", dependencies=TOKEN)
    def change_password(
        request: Request, session: Asker, old: Text = "", new: Text = ""
    ) -> Response:
        name = session.person.name
        try:
            if people.log_in(name, old, address=_address(request)) is None:
                raise DataError("The present password is not right")
            people.change(name, password=new, by=name)
        except DataError as error:
            expected = f"; expected {error.expected}" if error.expected else ""
            data = {"error": f"{error.what}{expected}."}
            return _page(request, "password.html", data, session, status=422)
        return _to(request, "/login")

    @app.get("/health")
    def health() -> Response:
        return _json({"status": "ok"})


# --- the work -----------------------------------------------------------------------------------


def _work(app: FastAPI) -> None:
    store: Store = app.state.store
    desk: Desk = app.state.desk
    config: ReviewConfig = app.state.config

    def shown(
        task: ReviewTask | None, name: str, said: Said | None = None
    ) -> dict[str, Any] | None:
        return card(task, name, config.rubric, said) if task else None

    def work_data(task: ReviewTask | None, name: str, said: Said | None = None) -> dict[str, Any]:
        ahead = desk.next_for(name, besides=[task.id]) if task else None
        return {
            "card": shown(task, name, said),
            "ahead": shown(ahead, name),
            "progress": desk.progress(name)._asdict(),
            "guidelines": config.guidelines,
            "action": "/task/",
            "votes": None,
        }

    def work(
        request: Request, session: Session, task: ReviewTask | None, said: Said | None = None
    ) -> Response:
        name = session.person.name
        template = "part.html" if _is_part(request) else "work.html"
        return _page(request, template, work_data(task, name, said), session)

    @app.get("/")
    def next_task(request: Request, session: Asker) -> Response:
        return work(request, session, desk.next_for(session.person.name))

    @app.get("/task/{task_id}")
    def one(request: Request, task_id: str, session: Asker) -> Response:
        task = theirs(session, task_id)
        return work(request, session, task, desk.said(session.person.name, task))

    @app.post("/task/{task_id}", dependencies=TOKEN)
    def answer(
        request: Request,
        task_id: str,
        session: Asker,
        choice: Annotated[str, Form()] = "",
        reasons_1: Words = [],  # noqa: B006  FastAPI copies it
        reasons_2: Words = [],  # noqa: B006
        edit_1: Text = "",
        edit_2: Text = "",
        comment: Comment = "",
    ) -> Response:
        name, task = session.person.name, theirs(session, task_id)
        if choice == "skip":
            desk.skip(name, task)
        elif pick := as_pick(choice):
            said = read_said(
                task,
                name,
                pick,
                config.rubric,
                {1: reasons_1, 2: reasons_2},
                {1: edit_1, 2: edit_2},
                comment,
            )
            desk.answer(name, task, said)
        else:
            raise HTTPException(422, "An answer is missing.")
        if _is_part(request):
            return work(request, session, desk.next_for(name))
        return _to(request, "/", {"task": task_id, "choice": choice})

    @app.post("/undo", dependencies=TOKEN)
    def undo(request: Request, session: Asker) -> Response:
        undone = desk.undo(session.person.name)
        if undone is None:
            raise HTTPException(409, "There is nothing to take back.")
        task, said = undone
        if _is_part(request):
            return work(request, session, task, said)
        return _to(request, f"/task/{task.id}", {"task": task.id})

    @app.get("/mine")
    def mine(request: Request, session: Asker) -> Response:
        name = session.person.name
        deeds = [
            {
                "task": one.task_id,
                # as it stood on the page: the candidates' own order says too much
                "choice": to_pick(one.choice, name, one.task_id) or "skip",
                "at": one.at,
                "comment": one.comment,
                "num_edits": one.num_edits,
            }
            for one in desk.history(name, MOST_LISTED)
        ]
        return _page(request, "mine.html", {"deeds": deeds}, session)

    def theirs(session: Session, task_id: str) -> ReviewTask:
        if not desk.is_theirs(session.person.name, task_id):
            raise HTTPException(404)
        return store.get(ReviewTask, task_id)


# --- leads and admins -----------------------------------------------------------------------------


def _leads(app: FastAPI) -> None:
    store: Store = app.state.store
    desk: Desk = app.state.desk
    people: People = app.state.people
    reader: Reader = app.state.reader
    config: ReviewConfig = app.state.config

    def team_data() -> dict[str, Any]:
        said, apart, num_gold = desk.read(
            lambda known: (copied(known), disagreements(known), len(known.gold))
        )
        found = reader.figures(said)
        given = desk.open_assignments()
        rows = {one["name"]: one for one in found.people}
        blank = {"num_votes": 0, "num_gold": 0, "gold_right": None, "ties": 0}
        team = [
            {**blank, **rows.pop(one.name, {}), "name": one.name, "role": one.role}
            for one in people.all()
            if one.is_active or one.name in rows or one.name in given
        ]
        team += [{**one, "role": ""} for one in rows.values()]  # votes from elsewhere
        for one in team:
            one["num_assigned"] = given.get(one["name"], 0)
        return {
            "alpha": found.alpha,
            "num_shared": found.num_shared,
            "team": team,
            "pairs": found.pairs,
            "num_apart": sum(not one.settled_by for one in apart),
            "progress": desk.progress("")._asdict(),
            "num_gold": num_gold,
            "overlap": app.state.overlap,
        }

    @app.get("/team")
    def team(request: Request, session: Lead) -> Response:
        template = "figures.html" if _is_part(request) else "team.html"
        return _page(request, template, team_data(), session)

    @app.post("/team/assign", dependencies=TOKEN)
    def assign(
        request: Request,
        session: Lead,
        names: Words = [],  # noqa: B006  FastAPI copies it
        num: Annotated[int, Form(ge=1, le=100_000)] = 20,
        release: Text = "",
    ) -> Response:
        active = {one.name for one in people.all() if one.is_active}
        if release:
            return _to(request, "/team", {"released": desk.release(release)})
        if not names or set(names) - active:
            raise HTTPException(422, "Say who gets the tasks: people who may log in.")
        new = desk.assign(desk.unassigned(num, names), names, session.person.name)
        return _to(request, "/team", {"assigned": new})

    @app.get("/second-look")
    def apart(request: Request, session: Lead) -> Response:
        found = desk.read(disagreements)
        tasks = {
            one.id: one
            for one in store.get_all(ReviewTask, [one.task_id for one in found[:MOST_LISTED]])
        }
        rows = [
            {
                "task": one.task_id,
                "prompt": _start(tasks[one.task_id].prompt[-1].content),
                "votes": _votes_as_seen(session.person, one.task_id, one.votes),
                "settled_by": one.settled_by,
            }
            for one in found[:MOST_LISTED]
            if one.task_id in tasks and tasks[one.task_id].prompt
        ]
        return _page(request, "second_look.html", {"rows": rows, "num": len(found)}, session)

    @app.get("/second-look/{task_id}")
    def look(request: Request, task_id: str, session: Lead) -> Response:
        task = store.get(ReviewTask, task_id)
        name = session.person.name
        votes = desk.read(lambda known: dict(known.votes.get(task_id, {})))
        said = {who: one.choice for who, one in votes.items() if who != name}
        data = {
            "card": card(task, name, config.rubric, desk.said(name, task)),
            "ahead": None,
            "progress": desk.progress(name)._asdict(),
            "guidelines": config.guidelines,
            "action": "/second-look/",
            "votes": _votes_as_seen(session.person, task_id, said),
        }
        return _page(request, "work.html", data, session)

    @app.post("/second-look/{task_id}", dependencies=TOKEN)
    def settle(
        request: Request,
        task_id: str,
        session: Lead,
        choice: Annotated[Pick, Form()],
        reasons_1: Words = [],  # noqa: B006
        reasons_2: Words = [],  # noqa: B006
        edit_1: Text = "",
        edit_2: Text = "",
        comment: Comment = "",
    ) -> Response:
        task, name = store.get(ReviewTask, task_id), session.person.name
        ticked, edits = {1: reasons_1, 2: reasons_2}, {1: edit_1, 2: edit_2}
        said = read_said(task, name, choice, config.rubric, ticked, edits, comment)
        desk.answer(name, task, said, source=SECOND_LOOK)
        return _to(request, "/second-look", {"task": task_id, "choice": choice})


def _start(text: str) -> str:
    return plain(text if len(text) <= MOST_SHOWN else text[: MOST_SHOWN - 1].rstrip() + "…")


def _votes_as_seen(person: Person, task_id: str, votes: dict[str, Any]) -> list[dict[str, Any]]:
    """Votes in the order in which this person sees the two answers."""
    return [
        {"name": name, "choice": to_pick(choice, person.name, task_id)}
        for name, choice in votes.items()
    ]


def _admins(app: FastAPI) -> None:
    people: People = app.state.people

    @app.get("/people")
    def everybody(request: Request, session: Admin) -> Response:
        return listed(request, session)

    @app.post("/people", dependencies=TOKEN)
    def add(
        request: Request, session: Admin, name: Text = "", password: Text = "", role: Text = ""
    ) -> Response:
        by = session.person.name
        return attempt(request, session, lambda: people.add(name, password, as_role(role), by=by))

    @app.post("/people/{name}", dependencies=TOKEN)
    def change(
        request: Request,
        session: Admin,
        name: str,
        role: Text = "",
        password: Text = "",
        active: Text = "",
    ) -> Response:
        return attempt(
            request,
            session,
            lambda: people.change(
                name,
                role=as_role(role) if role else None,
                password=password or None,
                is_active=active == "yes" if active else None,
                by=session.person.name,
            ),
        )

    def attempt(request: Request, session: Session, change: Any) -> Response:
        try:
            change()
        except DataError as error:
            expected = f"; expected {error.expected}" if error.expected else ""
            return listed(request, session, f"{error.what}{expected}.", 422)
        return _to(request, "/people")

    def listed(request: Request, session: Session, error: str = "", status: int = 200) -> Response:
        data = {"people": [one._asdict() for one in people.all()], "roles": ROLES, "error": error}
        return _page(request, "people.html", data, session, status=status)
