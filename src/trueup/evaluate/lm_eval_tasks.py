"""Tasks of EleutherAI's lm-evaluation-harness, by name, on a model of the project.

Gao et al., github.com/EleutherAI/lm-evaluation-harness, the extra `lm-eval`. The harness asks for
two things, log-likelihoods of continuations and greedy text up to a stop string; both come from
the kernels that train and serve, so a task measures exactly the model that would be promoted.

Prompts go to the model as the task writes them, without the chat template, as is the harness's own
default. The answers are not kept: the harness has a cache of its own.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from lm_eval import simple_evaluate
from lm_eval.api.model import TemplateLM
from lm_eval.tasks import TaskManager

from trueup import stats
from trueup.errors import ConfigError
from trueup.models import chat
from trueup.models.head import token_scores
from trueup.models.sampler import SampleRequest, sample
from trueup.models.shared_prompt import Branches, branch_hidden
from trueup.models.stopping import before_stop, stop_watch
from trueup.models.stored import StoredModel
from trueup.progress import Advance, task
from trueup.records import Sampling
from trueup.stats import Interval

__all__ = ["HarnessModel", "TaskScore", "run_tasks"]

BATCH = 8  # pairs in one forward pass
MAX_TOKENS = 256  # of a generation whose task names no limit; the harness's own default
SHARES = ("acc", "exact_match")  # means of zeros and ones, so Wilson's interval is theirs
Z = 1.959963984540054


class TaskScore(NamedTuple):
    """One metric of one task."""

    task: str
    metric: str
    items: int
    score: Interval
    """With Wilson's 95 % interval for shares, else by the harness's standard error; both ends equal
    the estimate where the harness has none."""


class HarnessModel(TemplateLM):
    """A model of ours, as the harness wants one."""

    def __init__(self, model: StoredModel) -> None:
        super().__init__()
        self._model, self._tokenizer = model, model.backbone.tokenizer

    @property
    def eot_token_id(self) -> int:
        """What stands before a continuation without a context."""
        return chat.end_id(self._tokenizer)

    def tok_encode(
        self, string: str, add_special_tokens: bool | None = None, **kwargs: Any
    ) -> list[int]:
        """Token ids, without special tokens: the text is a task's, not a chat."""
        return list(self._tokenizer.encode(string, add_special_tokens=False))

    def _loglikelihood_tokens(
        self, requests: list[tuple[Any, list[int], list[int]]], **kwargs: Any
    ) -> list[tuple[float, bool]]:
        """Sum of log-probs of each continuation, in nats, and whether each of its tokens was the
        likeliest. A context that is too long loses its beginning."""
        found: list[tuple[float, bool]] = []
        with task("log-likelihoods", len(requests)) as advance:
            for at in range(0, len(requests), BATCH):
                part = requests[at : at + BATCH]
                found += self._scored([self._fitting(c, k) for _, c, k in part])
                advance(len(part))
        return found

    def _fitting(self, context: Sequence[int], continuation: Sequence[int]) -> Branches:
        room = self._model.backbone.context - len(continuation)
        if room < 1:
            raise ConfigError(
                "A continuation is longer than the model's context",
                got=len(continuation),
                expected=f"fewer than {self._model.backbone.context} tokens",
                next="leave this task out",
            )
        return Branches(context[-room:], [continuation])

    @torch.no_grad()
    def _scored(self, rows: Sequence[Branches]) -> list[tuple[float, bool]]:
        sizes = [len(row.completions[0]) for row in rows]
        with self._model.acting() as model:
            hidden_ND = branch_hidden(model, rows)
            targets = [token for row in rows for token in row.completions[0]]
            targets_N = torch.tensor(targets, device=hidden_ND.device)
            logprobs = token_scores(model, hidden_ND, targets_N).logprobs
            # the scaling that some families give their logits does not move the largest
            best = model.get_output_embeddings()(hidden_ND).argmax(-1) == targets_N
        return [
            (float(one.sum()), bool(likeliest.all()))
            for one, likeliest in zip(logprobs.split(sizes), best.split(sizes), strict=True)
        ]

    def loglikelihood_rolling(self, requests: list[Any], disable_tqdm: bool = False) -> list[float]:
        """Log-likelihood of whole texts, which fit the context or are refused."""
        rows = [(None, [self.prefix_token_id], self.tok_encode(one.args[0])) for one in requests]
        return [score for score, _ in self._loglikelihood_tokens(rows)]

    def generate_until(self, requests: list[Any], disable_tqdm: bool = False) -> list[str]:
        """Greedy text up to the first stop string; a task's temperature is not followed."""
        found = []
        with task("generations", len(requests)) as advance:
            for at in range(0, len(requests), BATCH):
                for one in requests[at : at + BATCH]:
                    context, asked = one.args
                    found.append(self._generated(context, asked, advance))
        return found

    def _generated(self, context: str, asked: dict[str, Any], advance: Advance) -> str:
        until = asked.get("until") or []
        stop = tuple([until] if isinstance(until, str) else until)
        most = int(asked.get("max_gen_toks") or asked.get("max_tokens") or MAX_TOKENS)
        ids = self.tok_encode(context)[-(self._model.backbone.context - most) :]
        decode: Callable[[Sequence[int]], str] = lambda t: chat.decode(self._tokenizer, t)  # noqa: E731
        with self._model.acting() as model:
            [[drawn]] = sample(
                model,
                [SampleRequest(ids, Sampling(temperature=0.0, max_tokens=most, seed=0))],
                eos_ids=chat.eos_ids(self._tokenizer),
                on_token=stop_watch(decode, stop),
            )
        advance(1)
        return before_stop(decode(drawn.token_ids), stop)


def run_tasks(
    model: StoredModel, tasks: Sequence[str], *, limit: int | None = None
) -> list[TaskScore]:
    """Run tasks and give every metric of each.

    Args:
        tasks: names the harness knows, or paths of task files (`.yaml`).
        limit: at most so many items a task, the first ones, as the harness takes them.

    Raises:
        ConfigError: the harness has no task of a name.
    """
    files = [Path(name) for name in tasks if name.endswith(".yaml")]
    manager = TaskManager(
        include_path=sorted({str(file.parent) for file in files}) or None,
        include_defaults=len(files) < len(tasks),  # thousands of files, read only if asked for
    )
    names = [Path(name).stem if name.endswith(".yaml") else name for name in tasks]
    if unknown := [name for name in names if not manager.match_tasks([name])]:
        raise ConfigError(
            "lm-evaluation-harness has no task of this name",
            got=unknown[0],
            expected="a task it lists, or the path of a task file whose name is the task's",
            next="list them with 'lm-eval ls tasks'",
        )
    run: Any = simple_evaluate  # its decorator hides its parameters
    found = run(
        HarnessModel(model),
        tasks=list(names),
        limit=limit,
        task_manager=manager,
        bootstrap_iters=0,
        log_samples=False,
    )
    assert found is not None, "one process has all results"
    return [
        _score(name, metric, found)
        for name, metrics in found["results"].items()
        for metric in metrics
        if "," in metric and "_stderr" not in metric
    ]


def _score(name: str, metric: str, found: Any) -> TaskScore:
    value = float(found["results"][name][metric])
    items = int(found["n-samples"].get(name, {}).get("effective", 0))
    kind, _, how = metric.partition(",")
    error = found["results"][name].get(f"{kind}_stderr,{how}")
    interval = Interval(value, value, value)
    if kind in SHARES and items:
        interval = stats.wilson(round(value * items), items) or interval
    elif isinstance(error, float):
        interval = Interval(value, value - Z * error, value + Z * error)
    return TaskScore(name, kind if how == "none" else metric, items, interval)
