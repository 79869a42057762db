"""A project: a folder with `trueup.toml`, a store, and one model in memory when it is needed."""

import copy
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from trueup.ab.config import ABConfig
from trueup.capture.config import CaptureConfig
from trueup.config import StageConfig, apply_overrides, read_toml, validate
from trueup.evaluate.config import EvaluateConfig
from trueup.flag.config import FlagConfig
from trueup.gateway.config import ServeConfig
from trueup.guard.config import GuardConfig
from trueup.label.config import LabelConfig
from trueup.models.backbone import Backbone
from trueup.models.config import EmbedderConfig, ModelConfig
from trueup.models.embedder import Embedder, resolve_embedder
from trueup.models.stored import StoredModel, load_backbone
from trueup.pair.config import PairConfig
from trueup.privacy import Scrub, Scrubber
from trueup.privacy.config import PrivacyConfig
from trueup.promote.config import PromoteConfig
from trueup.records import Checkpoint
from trueup.review.config import ReviewConfig
from trueup.rounds.config import RoundsConfig
from trueup.shift.config import ShiftConfig
from trueup.store import Store
from trueup.store.config import StoreConfig
from trueup.store.engine import address
from trueup.suite import SuitePrompt, read_suite
from trueup.train.config import TrainConfig
from trueup.vectors.config import VectorsConfig

if TYPE_CHECKING:
    from trueup.capture.beside import WriterProcess
    from trueup.vectors import Index

__all__ = ["Config", "Project"]


class Config(StageConfig):
    """Every setting of a project, a section a stage, in loop order."""

    store: StoreConfig = StoreConfig()
    model: ModelConfig = ModelConfig()
    embedder: EmbedderConfig = EmbedderConfig()
    serve: ServeConfig = ServeConfig()
    capture: CaptureConfig = CaptureConfig()
    vectors: VectorsConfig = VectorsConfig()
    privacy: PrivacyConfig = PrivacyConfig()
    flag: FlagConfig = FlagConfig()
    label: LabelConfig = LabelConfig()
    review: ReviewConfig = ReviewConfig()
    pair: PairConfig = PairConfig()
    shift: ShiftConfig = ShiftConfig()
    train: TrainConfig = TrainConfig()
    guard: GuardConfig = GuardConfig()
    evaluate: EvaluateConfig = EvaluateConfig()
    ab: ABConfig = ABConfig()
    promote: PromoteConfig = PromoteConfig()
    rounds: RoundsConfig = RoundsConfig()


class Project:
    """What every door opens first. Nothing heavy is loaded before it is asked for."""

    def __init__(self, folder: Path | str, overrides: tuple[str, ...] = ()) -> None:
        """Read `trueup.toml` and open the store beside it.

        Raises:
            ConfigError: a setting is wrong; StorageError: the folder cannot be written.
        """
        self.folder = Path(folder).resolve()
        raw = apply_overrides(read_toml(self.folder / "trueup.toml"), overrides)
        self.config = validate(Config, raw, source="trueup.toml")
        self.store = Store(self.folder / ".trueup", url=address(self.config.store))

    @cached_property
    def backbone(self) -> Backbone:
        """The base model, loaded at first use."""
        return load_backbone(self.config.model, self.folder)

    @cached_property
    def suite(self) -> list[SuitePrompt]:
        """The held-out prompts."""
        return read_suite(self.folder / self.config.ab.prompts)

    @cached_property
    def embedder(self) -> Embedder:
        """What turns texts into vectors, loaded at first use."""
        return resolve_embedder(self.config.embedder, relative_to=self.folder)

    @cached_property
    def vectors(self) -> "Index":
        """The index of captured traffic under the project's embedder."""
        from trueup.vectors import open_index

        return open_index(self.store, self.config.vectors, self.embedder.id)

    @cached_property
    def scrub(self) -> Scrub | None:
        """What records pass before they are written; None where the settings ask for nothing."""
        asked = self.config.privacy
        if asked.scrubber == "off" and not asked.pseudonyms:
            return None
        return Scrubber(asked, self.store)

    def writer(self) -> "WriterProcess | None":
        """A new process that writes captures with this project's settings; None where a thread of
        the gateway does: beside the local model, or where `capture.beside` says so."""
        from trueup.capture.beside import WriterProcess, WriterSetup

        asked = self.config
        if not (asked.serve.has_upstream and asked.capture.beside):
            return None
        url = address(asked.store)
        return WriterProcess(WriterSetup(self.store.folder, url, asked.capture, asked.privacy))

    def forget(self, ids: Sequence[str]) -> None:
        """Take the vectors of erased interactions out of the index, every embedder's."""
        from trueup.vectors import erase_vectors

        erase_vectors(self.store, self.config.vectors, ids)

    def with_store(self, folder: Path) -> "Project":
        """The same settings, prompts and model with another store: for a trial that leaves no
        trace in this one."""
        other = copy.copy(self)
        other.store = Store(folder)
        other.__dict__.pop("vectors", None)
        return other

    def champion(self) -> StoredModel:
        """The model that serves."""
        return StoredModel.serving(self.store, self.backbone)

    def base(self) -> StoredModel:
        """The base model as it came, without any adapter."""
        return StoredModel(self.store, self.backbone, None, role="base")

    def candidate(self, checkpoint: Checkpoint) -> StoredModel:
        """A checkpoint, in a role of its own."""
        return StoredModel(self.store, self.backbone, checkpoint.id, role="candidate")

    def released(self, checkpoint_id: str | None) -> StoredModel:
        """What an earlier release served, in a role of its own; None is the base."""
        return StoredModel(self.store, self.backbone, checkpoint_id, role="earlier")
