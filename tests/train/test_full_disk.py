"""Training on a disk that fills up: an error a person can act on, nothing lost, and the next run,
with room, comes to the weights of one that was never stopped.

The disk is a real one. How much room is left decides what does not fit any more: the record of the
run, a reference log-prob, a saved state, the adapter, its card, the record of the checkpoint.
"""

import json
import sys
from pathlib import Path

from tiny_project import MakeProject, environment, sha256

from mounts import on_a_disk_of

CHILD = """
import json, shutil, sys
from pathlib import Path
from tiny_project import CONFIG, sha256
from trueup.errors import StorageError
from trueup.models.backbone import Backbone
from trueup.models.stored import StoredModel
from trueup.records import Checkpoint, Dataset, PreferencePair
from trueup.store import Store
from trueup.train import run

disk, before, model = map(Path, sys.argv[1:4])
backbone = Backbone.load(model)


def fill(room_kb):
    with (disk / "ballast").open("wb", buffering=0) as file:
        try:
            while True:
                file.write(b"x" * 1024)
        except OSError:
            file.truncate(max(0, file.tell() - room_kb * 1024))


def records(store):
    return [one.id for kind in (PreferencePair, Dataset, Checkpoint) for one in store.all(kind)]


for room_kb, every, has_cache in json.loads(sys.argv[4]):
    config = CONFIG.model_copy(update={"beta": 0.3, "save_every_steps": every})
    store = Store(shutil.copytree(before, disk / "store"))
    if not has_cache:
        shutil.rmtree(store.folder / "cache")
    champion, dataset = StoredModel.serving(store, backbone), store.all(Dataset)[0]
    known, error = records(store), None
    fill(room_kb)
    try:
        run(store, config, dataset, champion)
    except StorageError as caught:
        error = str(caught)
    kept, num_new = records(store)[: len(known)] == known, store.count(Checkpoint) - 1
    states = [place.name for place in store.folder.glob("runs/*/step-*")]
    (disk / "ballast").unlink()
    again = run(store, config, dataset, champion)
    earlier, later = (store.folder / one.path for one in store.all(Checkpoint))
    print(json.dumps({
        "error": error,
        "kept": kept,
        "num_new": num_new,
        "states": states,
        "earlier": sha256(earlier / "adapter_model.safetensors"),
        "later": sha256(later / "adapter_model.safetensors"),
        "left": [place.name for place in store.folder.glob("runs/*")],
        "folders": sorted(place.name for place in store.folder.glob("checkpoints/*")),
    }))
    store.close()
    shutil.rmtree(store.folder)
"""
CASES = [
    (4000, 2, True),  # plenty
    *((room, 2, True) for room in (0, 40, 96, 180, 240)),
    *((room, 0, True) for room in (24, 40, 56, 64, 96)),
    *((room, 0, False) for room in (8, 16, 24, 40)),
]
"""Room in kB; steps between two saved states; whether the log-probs were computed before."""


def test_a_full_disk_stops_training_with_nothing_lost_and_room_finishes_it(
    make_project: MakeProject, tmp_path: Path
) -> None:
    project = make_project()
    first = sha256(project.adapter(project.train()))
    project.store.close()
    (disk := tmp_path / "disk").mkdir()
    folders = map(str, (disk, project.store.folder, project.champion.backbone.folder))
    command = [sys.executable, "-c", CHILD, *folders, json.dumps(CASES)]
    done = on_a_disk_of("8m", disk, command, env=environment())
    assert done.returncode == 0, done.stderr
    whole, *stopped = found = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(found) == len(CASES)
    assert whole["error"] is None
    for one in found:
        assert one["kept"] and one["earlier"] == first
        assert one["num_new"] == (0 if one["error"] else 1)
        assert one["later"] == whole["later"], "with room, the weights of a run never stopped"
        assert one["left"] == [] and one["folders"] == whole["folders"]
    errors = [one["error"] for one in stopped if one["error"]]
    assert len(errors) > len(stopped) / 2
    assert all("free some space" in error for error in errors)
    for what in ("database or disk is full", "No space left on device", "The log-probs in"):
        assert any(what in error for error in errors), what
    assert ["step-000002"] in [one["states"] for one in stopped], "one resumed from a whole state"
