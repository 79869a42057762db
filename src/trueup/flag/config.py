"""What makes an interaction worth a label."""

from pydantic import Field

from trueup.config import StageConfig
from trueup.judges.config import EndpointConfig

__all__ = ["FlagConfig", "SelectConfig"]


class SelectConfig(StageConfig):
    """Which interactions go to people besides the weak-looking ones."""

    random: float = Field(default=0.0, ge=0, le=1)
    """Share of all examined interactions drawn by chance, whatever their score: the only labels
    from which a rate over all traffic can be told. A few hundred labels make it useful."""

    uncertain: float = Field(default=0.0, ge=0, le=1)
    """Share of each call's interactions whose score is nearest under the threshold."""

    diverse: float = Field(default=0.0, ge=0, le=1)
    """Share of each call's interactions furthest from everything that is selected already, by the
    embeddings of their prompts."""


class FlagConfig(StageConfig):
    """Thresholds of the signals, and what else is asked."""

    threshold: float = Field(default=0.5, gt=0, le=1)
    """An interaction is flagged when its score reaches this. The score is the worst signal's."""

    max_ungrounded: float = Field(default=0.34, gt=0, le=1)
    """Share of content words missing from the given context at which the signal reaches 0.5."""

    outlier_z: float = Field(default=2.0, gt=0)
    """Robust z-score of a log-prob figure, against all examined traffic, at which its signal
    reaches 0.5."""

    min_similarity: float = Field(default=0.0, ge=0, lt=1)
    """Cosine to the nearest sentence of the context at which the answer's furthest sentence reaches
    0.5. 0 leaves it out: it costs a pass of the embedder over every context. 0.4 suits MiniLM."""

    nli_model: str = ""
    """A folder with a model of natural language inference (transformers sequence classification,
    safetensors), which then says whether answers follow from their context. Empty asks none."""

    toxic_words: str = ""
    """A text file with a word or phrase a line, in place of the shipped list."""

    consistency_samples: int = Field(default=0, ge=0, le=32)
    """Answers the champion draws to each prompt to see whether it says the same again. 0 draws
    none; 5 to 10 are usual, and cost as many answers for every interaction."""

    consistency_tokens: int = Field(default=64, ge=1)
    """Longest of those answers, in tokens."""

    learned: bool = True
    """Use the project's own flagger where one was trained (`trueup flag train`)."""

    worth_a_label: float = Field(default=0.5, gt=0, lt=1)
    """Chance that an answer is weak, by the learned flagger, at which its score reaches 0.5."""

    min_labels: int = Field(default=30, ge=5)
    """Weak and fine answers, each, without which no flagger is learned."""

    retrain_every: int = Field(default=0, ge=0)
    """A turn learns the flagger again after so many more labels; 0 leaves it to
    `trueup flag train`."""

    llm_budget: int = Field(default=0, ge=0)
    """Interactions that a language model is asked about in one call, those with the highest scores
    under the threshold first. 0 asks none."""

    endpoint: EndpointConfig = EndpointConfig()
    """Where that language model is."""

    select: SelectConfig = SelectConfig()
    """Which interactions go to people besides."""
