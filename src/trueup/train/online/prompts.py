"""The prompts that an online run answers."""

from collections import Counter
from collections.abc import Callable, Sequence

from trueup.errors import ModelError, TrainingError
from trueup.models import chat
from trueup.models.backbone import Backbone
from trueup.records import Dataset, Label, Messages, PreferencePair, content_hash
from trueup.store import Store
from trueup.train.config import TrainConfig
from trueup.train.online.rollouts import Prompt

__all__ = ["prompts_of", "sides"]


def prompts_of(
    store: Store,
    config: TrainConfig,
    dataset: Dataset,
    backbone: Backbone,
    is_held_out: Callable[[Messages], bool],
) -> tuple[list[Prompt], Counter[str]]:
    """The data set's prompts as tokens, each once, and those left out counted by reason.

    Raises:
        TrainingError: none is left.
    """
    found: list[Messages] = [*dataset.prompts]
    found += [one.prompt for one in store.get_all(PreferencePair, dataset.pair_ids)]
    found += [one.prompt for one in store.get_all(Label, dataset.label_ids)]
    prompts, skipped = [], Counter[str]()
    for messages in dict.fromkeys(found):
        made = _prompt(messages, config, backbone, is_held_out)
        if isinstance(made, str):
            skipped[made] += 1
        else:
            prompts.append(made)
    if not prompts:
        raise TrainingError(
            "The data set has no prompt to answer",
            got=dict(skipped) or "no prompts",
            expected="prompts that are not held out and leave room for an answer",
            next="import traffic or prompts first, or lower train.online.max_tokens",
        )
    return prompts, skipped


def sides(prompts: Sequence[Prompt], share: float) -> tuple[list[Prompt], list[Prompt]]:
    """Prompts to learn on and prompts to measure on, by their hash, as `data.held_out` does."""
    parts: tuple[list[Prompt], list[Prompt]] = ([], [])
    for prompt in prompts:
        digest = content_hash([m.model_dump() for m in prompt.messages])
        parts[int(digest[:8], 16) / 16**8 < share].append(prompt)
    return parts


def _prompt(
    messages: Messages,
    config: TrainConfig,
    backbone: Backbone,
    is_held_out: Callable[[Messages], bool],
) -> Prompt | str:
    if is_held_out(messages):
        return "held out"
    try:
        token_ids = tuple(chat.prompt_ids(backbone.tokenizer, messages))
    except ModelError:
        return "refused by the chat template"
    if len(token_ids) + config.online.max_tokens > backbone.context:
        return "no room for an answer in the model's context"
    if len(token_ids) > config.max_tokens:
        return "longer than train.max_tokens"
    return Prompt(messages, token_ids)
