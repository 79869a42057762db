"""What is asked of a Label Studio, the same of a real one and of its recorded answers."""

import json
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from trueup.errors import ConfigError
from trueup.label import LabelConfig, settle
from trueup.label.label_studio import LabelStudio, erase, pull, push
from trueup.label.votes import VoteBook, choice_of
from trueup.privacy import erase_user
from trueup.records import Completion, Interaction, Label, Message, ReviewTask
from trueup.store import Store

__all__ = ["SCENARIOS", "World"]

KEY = "LABEL_STUDIO_API_KEY"


class World(NamedTuple):
    """A server, real or recorded, the tokens of its people, and a store of one's own."""

    url: str
    ann: str
    bob: str
    pat: str
    folder: Path
    keys: pytest.MonkeyPatch

    def settings(self, project: str, **more: Any) -> LabelConfig:
        studio = {"url": self.url, "project": project, "batch_size": 2, **more}
        return LabelConfig.model_validate({"judge": "people", "label_studio": studio})

    def server(self, config: LabelConfig, token: str = "") -> LabelStudio:
        self.keys.setenv(KEY, token or self.ann)
        return LabelStudio(config.label_studio)

    def call(self, token: str, method: str, path: str, body: Any = None) -> Any:
        """A request as a person's browser would make it."""
        headers = {"Authorization": f"Token {token}", "Content-Type": "application/json"}
        data = None if body is None else json.dumps(body).encode()
        asked = urllib.request.Request(self.url + path, data, headers, method=method)
        with urllib.request.urlopen(asked) as answer:
            said = answer.read()
        return json.loads(said) if said else None


def task(n: int, *, gold: tuple[float, float] | None = None) -> ReviewTask:
    return ReviewTask(
        prompt=(Message(role="user", content=f"<b>Question</b> {n}?\n=1+1 \u2028 né 🙂"),),
        candidates=(Completion(text=f"good {n} </View>"), Completion(text=f"bad {n} $prompt")),
        source="loop",
        gold=gold,
    )


def choices(said: str) -> dict[str, Any]:
    return {
        "from_name": "vote",
        "to_name": "prompt",
        "type": "choices",
        "value": {"choices": [said]},
    }


def click(side: str) -> dict[str, Any]:
    value = {"selected": side}
    return {"from_name": "pair", "to_name": "answer_1", "type": "pairwise", "value": value}


def note(text: str) -> dict[str, Any]:
    value = {"text": [text]}
    return {"from_name": "comment", "to_name": "prompt", "type": "textarea", "value": value}


def there(world: World, token: str, project: int) -> dict[str, dict[str, Any]]:
    """The tasks a person sees, by our id."""
    path = f"/api/tasks?project={project}&page=1&page_size=50&fields=all"
    return {one["data"]["task_id"]: one for one in world.call(token, "GET", path)["tasks"]}


def annotate(world: World, token: str, seen: dict[str, Any], *said: Any, **more: Any) -> int:
    body = {"result": list(said), **more}
    return world.call(token, "POST", f"/api/tasks/{seen['id']}/annotations/", body)["id"]


def key_of(seen: dict[str, Any], begins: str) -> str:
    """The key for the answer that begins so, where it stands on the screen."""
    return "1" if seen["data"]["answer_1"].startswith(begins) else "2"


def said(store: Store) -> dict[tuple[str, str], Any]:
    """What counts, by prompt's number and annotator."""
    standing = VoteBook(store).standing()
    return {
        (store.get(ReviewTask, key).prompt[0].content[16:17], name): choice_of(one)
        for key, by in standing.items()
        for name, one in by.items()
    }


def the_way_there_and_back(world: World) -> None:
    """Push and pull, twice each; ties; two people; an edit; a deletion."""
    store = Store(world.folder)
    tasks = [task(n) for n in range(8)]
    store.add_all([*tasks, task(8, gold=(1, 0))])
    config = world.settings("there and back", annotators={"ann@example.org": "Ann"})
    server = world.server(config)

    first = push(store, config, server)
    assert (first.new, first.known) == (9, 0)
    assert push(store, config, server) == (first.project, 0, 9)
    seen = there(world, world.ann, first.project)
    assert len(seen) == 9
    orders = {one["data"]["order"] for one in seen.values()}
    assert orders == {"12", "21"}
    assert all(
        set(one["data"]) == {"task_id", "prompt", "answer_1", "answer_2", "order"}
        for one in seen.values()
    )
    assert seen[tasks[0].id]["data"]["prompt"] == tasks[0].prompt[0].content

    at = [seen[one.id] for one in tasks]
    ids = [annotate(world, world.ann, at[n], choices(key_of(at[n], "good"))) for n in range(2)]
    annotate(world, world.bob, at[0], choices(key_of(at[0], "bad")), note("=no"))
    annotate(world, world.ann, at[2], choices("tie"))
    annotate(world, world.ann, at[3], choices("both bad"))
    annotate(world, world.ann, at[4], click("left" if key_of(at[4], "bad") == "1" else "right"))
    annotate(world, world.ann, at[5], choices("1"), click("right"))
    annotate(world, world.ann, at[6], was_cancelled=True)
    annotate(world, world.ann, at[7], note("no idea"))

    done = pull(store, server)
    assert (done.seen, done.new, done.known, done.withdrawn) == (9, 6, 0, 0)
    assert done.skipped == {"contradicts itself": 1, "skipped by the annotator": 1, "no vote": 1}
    expected = {
        ("0", "Ann"): "first",
        ("0", "bob@example.org"): "second",
        ("1", "Ann"): "first",
        ("2", "Ann"): "tie",
        ("3", "Ann"): "both bad",
        ("4", "Ann"): "second",
    }
    assert said(store) == expected
    assert [one.comment for one in store.each(Label, annotator="bob@example.org")] == ["=no"]
    again = pull(store, server)
    assert (again.new, again.known, again.withdrawn) == (0, 6, 0)

    path = f"/api/annotations/{ids[1]}/"
    world.call(world.ann, "PATCH", path, {"result": [choices(key_of(at[1], "bad"))]})
    world.call(world.ann, "DELETE", f"/api/annotations/{ids[0]}/")
    third = pull(store, server)
    assert (third.new, third.withdrawn) == (1, 1)
    assert said(store)["1", "Ann"] == "second"
    assert ("0", "Ann") not in said(store)
    assert pull(store, server)[1:4] == (0, 5, 0)
    assert len(settle(store, config).written) == 5
    store.close()


def a_personal_access_token_is_refreshed(world: World) -> None:
    """It is traded for one of five minutes, and for another where that one is refused."""
    config = world.settings("personal")
    server = world.server(config, world.pat)
    project = server.project()
    server._access = "one.that.expired"
    assert server.project() == project
    assert server._access != "one.that.expired"


def what_the_server_refuses_is_said(world: World) -> None:
    """Wrong tokens, and a project that somebody else made."""
    config = world.settings("refused")
    for token in ("0" * 40, "a.b.c"):
        with pytest.raises(ConfigError, match=r"refused (GET|POST) /api/.*401: .*Next: make a new"):
            world.server(config, token).project()
    theirs = "<View><Text name='t' value='$t'/></View>"
    world.call(world.ann, "POST", "/api/projects/", {"title": "theirs", "label_config": theirs})
    with pytest.raises(ConfigError, match="not one that trueup made"):
        world.server(world.settings("theirs")).project()


def what_was_erased_is_deleted_there(world: World) -> None:
    """The task and its annotation go; another one stays; nothing comes back."""
    store = Store(world.folder)
    one = Interaction(
        prompt=task(0).prompt, completion=Completion(text="x"), source="gateway", user="ann"
    )
    fields = task(0).model_dump() | {"interaction_id": one.id, "id": ""}
    theirs = ReviewTask.model_validate(fields)
    store.add_all([one, theirs, task(1)])
    config = world.settings("erased")
    server = world.server(config)
    project = push(store, config, server).project
    seen = there(world, world.ann, project)
    for one in seen.values():
        annotate(world, world.ann, one, choices("tie"))
    assert pull(store, server).new == 2
    assert erase(store, server) == 0
    erase_user(store, "ann")
    assert erase(store, server) == 1 and erase(store, server) == 0
    assert set(there(world, world.ann, project)) == {task(1).id}
    assert push(store, config, server) == (project, 0, 0)
    assert pull(store, server) == (1, 0, 1, 0, {})
    assert [one.task_id for one in store.all(Label)] == [task(1).id]


SCENARIOS: dict[str, Callable[[World], None]] = {
    one.__name__: one
    for one in (
        the_way_there_and_back,
        a_personal_access_token_is_refreshed,
        what_the_server_refuses_is_said,
        what_was_erased_is_deleted_there,
    )
}
