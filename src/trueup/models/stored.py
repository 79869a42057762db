"""The models of a project by name: the champion that serves, and any checkpoint of the store.

One backbone in memory; a checkpoint is an adapter switched on. The weights that come back are
compared with the ones the release names, so what is sampled, trained and judged is what serves.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from trueup.errors import IdentityError, ModelError
from trueup.models import chat
from trueup.models.backbone import Backbone, is_whole
from trueup.models.catalog import folder_of
from trueup.models.config import ModelConfig
from trueup.progress import task
from trueup.records import (
    Checkpoint,
    Completion,
    Messages,
    Release,
    SampleSet,
    Sampling,
    TrainingRun,
)
from trueup.store import Store

__all__ = ["StoredModel", "ensure_champion", "load_backbone", "parts_of", "reward_folder"]

SAMPLE_BATCH = 48  # prompts between two commits


def load_backbone(config: ModelConfig, project: Path) -> Backbone:
    """The project's base model.

    Raises:
        ModelError: it has not been pulled, or is not a model.
    """
    if config.num_threads:
        import torch

        torch.set_num_threads(config.num_threads)
    return Backbone.load(
        folder_of(config.base, relative_to=project), device=config.device, dtype=config.dtype
    )


def ensure_champion(store: Store, backbone: Backbone) -> Release:
    """The release that serves; a project that never released serves the base, on the record.

    Raises:
        IdentityError: the champion's adapter is of another base than the project's.
    """
    release = store.champion()
    if release is None:
        release = Release(action="first", weights=backbone.base_weights, reason="the base model")
        store.release(release)
    return release


class StoredModel:
    """A model of the store, ready to write: the champion, or the checkpoint it is asked for."""

    def __init__(
        self, store: Store, backbone: Backbone, checkpoint_id: str | None, *, role: str = "champion"
    ) -> None:
        """Attach the checkpoint's adapter, or none for the base.

        Raises:
            IdentityError: the files on disk are not the weights the record names.
        """
        self.checkpoint = store.get(Checkpoint, checkpoint_id) if checkpoint_id else None
        self.backbone, self.adapter = backbone, None
        if self.checkpoint:
            self.backbone, self.adapter = parts_of(store, backbone, self.checkpoint)
        self.role = role if self.adapter else None
        self.weights = self.backbone.weights(self.adapter)
        if self.checkpoint and self.checkpoint.weights != self.weights:
            raise IdentityError(
                f"The weights of {self.checkpoint.id} are not the ones that were written",
                got=self.weights,
                expected=self.checkpoint.weights,
                next="restore the folder from a backup, or 'trueup rollback'",
            )
        if self.adapter:
            self.backbone.attach(role, self.adapter)

    @classmethod
    def serving(cls, store: Store, backbone: Backbone) -> "StoredModel":
        """The one that serves now.

        Raises:
            IdentityError: the release names other weights than those found.
        """
        release = ensure_champion(store, backbone)
        model = cls(store, backbone, release.checkpoint_id)
        if model.weights != release.weights:
            raise IdentityError(
                "The project's model is not the champion that was released",
                got=model.weights,
                expected=release.weights,
                next="set model.base back, or start a new project",
            )
        return model

    def fits(self, prompt: Messages, max_tokens: int) -> bool:
        """True where the model can read this prompt and still write `max_tokens`."""
        try:
            size = len(chat.prompt_ids(self.backbone.tokenizer, prompt))
        except ModelError:
            return False
        return size + max_tokens <= self.backbone.context

    def samples(
        self,
        store: Store,
        prompts: Sequence[Messages],
        sampling: Sampling,
        *,
        num_samples: int,
        name: str,
        keep_every: int = SAMPLE_BATCH,
    ) -> list[tuple[Completion, ...]]:
        """As `complete`, but drawn once: what these weights said before is read from the store.

        Guard and A/B test look at the same answers, and the champion's gold answers of last week
        are this week's. Written every `keep_every` prompts, so a killed call goes on from there.
        """
        found = {
            one.prompt: one.completions
            for one in store.each(SampleSet, weights=self.weights)
            if one.sampling == sampling and len(one.completions) == num_samples
        }
        missing = [p for p in dict.fromkeys(prompts) if p not in found]
        with task(name, len(missing)) as advance:
            for at in range(0, len(missing), keep_every):
                batch = missing[at : at + keep_every]
                drawn = self.backbone.complete(
                    batch,
                    sampling,
                    role=self.role,
                    weights=self.weights,
                    num_samples=num_samples,
                    on_progress=advance,
                )
                sets = [
                    SampleSet(
                        prompt=p, completions=tuple(c), weights=self.weights, sampling=sampling
                    )
                    for p, c in zip(batch, drawn, strict=True)
                ]
                store.add_all(sets)
                found.update({one.prompt: one.completions for one in sets})
        return [found[p] for p in prompts]

    def complete(
        self,
        prompts: Sequence[Messages],
        sampling: Sampling,
        *,
        num_samples: int = 1,
        name: str = "sample",
    ) -> list[list[Completion]]:
        """`num_samples` completions for each prompt, in the prompts' order."""
        with task(name, len(prompts)) as advance:
            return self.backbone.complete(
                prompts,
                sampling,
                role=self.role,
                weights=self.weights,
                num_samples=num_samples,
                on_progress=advance,
            )

    def acting(self) -> Any:
        """Context manager: the network in this role."""
        return self.backbone.acting_as(self.role)


def parts_of(
    store: Store, backbone: Backbone, checkpoint: Checkpoint
) -> tuple[Backbone, Path | None]:
    """The base a checkpoint stands on, and its adapter; None for one that was trained whole and
    is a base itself.

    Raises:
        IdentityError: the record's path leads out of the store.
        ModelError: it is a reward model, which scores and does not answer.
    """
    folder = _inside(store.folder, checkpoint.path)
    if any(run.method == "reward" for run in store.get_all(TrainingRun, [checkpoint.run_id])):
        raise ModelError(
            "A reward model does not answer, so it cannot be guarded, judged or served",
            got=checkpoint.id,
            expected="a checkpoint that was trained to answer",
            next="name another checkpoint; 'trueup status' lists them",
        )
    if is_whole(folder):
        return backbone.sibling(folder), None
    if checkpoint.base_weights != backbone.base_weights:
        # its base may be an earlier champion that was trained whole
        below = store.last(Checkpoint, weights=checkpoint.base_weights)
        if below and is_whole(_inside(store.folder, below.path)):
            return backbone.sibling(_inside(store.folder, below.path)), folder
    return backbone, folder


def reward_folder(store: Store, checkpoint: Checkpoint) -> Path:
    """Where a reward checkpoint's members are.

    Raises:
        IdentityError: the record's path leads out of the store.
        ModelError: it was trained to answer, not to score.
    """
    if not any(r.method == "reward" for r in store.get_all(TrainingRun, [checkpoint.run_id])):
        raise ModelError(
            "This checkpoint answers and does not score",
            got=checkpoint.id,
            expected="a checkpoint that was trained with --method reward",
            next="train one, or name another; 'trueup status' lists them",
        )
    return _inside(store.folder, checkpoint.path)


def _inside(folder: Path, relative: str) -> Path:
    """A path of the store, which may not lead out of it."""
    path = (folder / relative).resolve()
    if not path.is_relative_to(folder):
        raise IdentityError(
            "A checkpoint's path leads out of the store",
            got=relative,
            expected=f"a folder below {folder}",
            next="do not use this store; somebody changed it",
        )
    return path
