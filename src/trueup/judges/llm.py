"""A language model as a judge, over any OpenAI-compatible endpoint.

Candidates meet in pairs. Every pair is asked in both orders and a verdict that changes with the
order is a tie: many judges favour whatever stands first, and small ones say "A" every time. A
candidate's score is its share of points, a win one and a tie a half.
"""

import asyncio
import itertools
import json
import os
import re
from collections.abc import Sequence
from typing import Any

from trueup.errors import UpstreamError
from trueup.judges.base import Ranking
from trueup.judges.config import EndpointConfig
from trueup.records import AnnotatorKind, Completion, Messages, content_hash

__all__ = ["LLMJudge", "parse_verdict"]

_PROMPT = """You compare two answers to the same conversation.

[Conversation]
{conversation}
[End of conversation]

[Answer A]
{first}
[End of answer A]

[Answer B]
{second}
[End of answer B]

{rubric}
Reply with JSON only: {{"winner": "A"}}, {{"winner": "B"}} or {{"winner": "tie"}}."""


class LLMJudge:
    """Ranks answers by asking a model about every pair, in both orders."""

    kind: AnnotatorKind = "llm"

    def __init__(self, config: EndpointConfig) -> None:
        self._config = config
        self.id = f"llm:{config.model}/{content_hash([_PROMPT, config.rubric])[:8]}"

    def rank(self, prompt: Messages, candidates: Sequence[Completion]) -> Ranking:
        """Share of points of each candidate against all others, in [0, 1].

        Raises:
            UpstreamError: the endpoint is down, or its verdicts stay unreadable after retries.
        """
        if len(candidates) == 1:
            return Ranking((0.5,), ((),))
        pairs = list(itertools.combinations(range(len(candidates)), 2))
        leads = asyncio.run(self._ask_all(prompt, candidates, pairs))
        points = [0.0] * len(candidates)
        for (i, j), lead in zip(pairs, leads, strict=True):
            points[i] += (1 + lead) / 2
            points[j] += (1 - lead) / 2
        games = len(candidates) - 1
        return Ranking(tuple(p / games for p in points), tuple(() for _ in candidates))

    async def _ask_all(
        self, prompt: Messages, candidates: Sequence[Completion], pairs: list[tuple[int, int]]
    ) -> list[int]:
        """For each pair +1, 0 or -1 from the first one's side."""
        import aiohttp

        key = os.environ.get(self._config.api_key_env)
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        patience = aiohttp.ClientTimeout(total=self._config.timeout_s)
        room = asyncio.Semaphore(self._config.concurrency)
        async with aiohttp.ClientSession(headers=headers, timeout=patience) as session:

            async def ask(first: int, second: int) -> str:
                body = _question(
                    prompt, candidates[first].text, candidates[second].text, self._config
                )
                async with room:
                    return await self._verdict(session, body)

            asked = [ask(*order) for i, j in pairs for order in ((i, j), (j, i))]
            verdicts = await asyncio.gather(*asked)
        return [_agreed(verdicts[2 * k], verdicts[2 * k + 1]) for k in range(len(pairs))]

    async def _verdict(self, session: Any, body: dict[str, Any]) -> str:
        import aiohttp

        url, problem = f"{self._config.base_url.rstrip('/')}/chat/completions", ""
        for attempt in range(self._config.max_retries + 1):
            if attempt:
                await asyncio.sleep(0.2 * 2**attempt)
            try:
                async with session.post(url, json=body) as response:
                    if response.status != 200:
                        problem = f"HTTP {response.status}: {(await response.text())[:120]}"
                        continue
                    answer = (await response.json())["choices"][0]["message"]["content"]
                    verdict = parse_verdict(answer)
                    if verdict:
                        return verdict
                    problem = f"an unreadable verdict: {answer[:80]!r}"
            except (
                aiohttp.ClientError,
                TimeoutError,
                KeyError,
                IndexError,
                ValueError,
                TypeError,
            ) as error:
                problem = f"{type(error).__name__}: {error}"
        raise UpstreamError(
            f"The judge at {self._config.base_url} gave no verdict",
            got=problem,
            expected='{"winner": "A" | "B" | "tie"}',
            next="check that the server is up (label.endpoint in trueup.toml); labels so far are kept",
        )


def parse_verdict(answer: str) -> str | None:
    """`A`, `B` or `tie` from a judge's reply: JSON anywhere in it, or one bare word."""
    for match in re.finditer(r"\{[^{}]*\}", answer):
        try:
            winner = str(json.loads(match[0]).get("winner", "")).strip().lower()
        except json.JSONDecodeError:
            continue
        if winner in ("a", "b", "tie"):
            return winner if winner == "tie" else winner.upper()
    bare = answer.strip().strip(".\"'*").lower()
    return {"a": "A", "b": "B", "tie": "tie"}.get(bare)


def _question(prompt: Messages, first: str, second: str, config: EndpointConfig) -> dict[str, Any]:
    conversation = "\n".join(f"{m.role}: {m.content}" for m in prompt)
    content = _PROMPT.format(
        conversation=conversation, first=first, second=second, rubric=config.rubric
    )
    return {
        "model": config.model,
        "temperature": 0,
        "max_tokens": 16,
        "messages": [{"role": "user", "content": content}],
    }


def _agreed(forward: str, backward: str) -> int:
    """+1 or -1 where both orders name the same answer, else 0."""
    if (forward, backward) == ("A", "B"):
        return 1
    return -1 if (forward, backward) == ("B", "A") else 0
