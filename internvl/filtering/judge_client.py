"""An LLM behind an OpenAI-compatible endpoint: vLLM, SGLang, llama.cpp, hosted services.

Requests run concurrently, within limits of requests and tokens a minute, and are repeated where
that can help. What cannot be mended by asking again stops the run with an error that says who
can mend it; answers that came before are kept, so the next run goes on from there.
"""

from __future__ import annotations

import asyncio
import email.utils
import logging
import os
import random
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from internvl.filtering.prompts import Message

logger = logging.getLogger(__name__)

_AGAIN = frozenset((408, 409, 425, 429, 500, 502, 503, 504, 529))
_LONGEST_WAIT = 120.0  # seconds
_CHARACTERS_PER_TOKEN = 3


@dataclass(frozen=True)
class Prompt:
    """One request: what is asked, and the JSON schema of the answer."""

    messages: Sequence[Message]
    schema: Mapping[str, Any]


@dataclass(frozen=True)
class Reply:
    """One answer.

    Attributes:
        text: what the model said; empty if it was not allowed to answer.
        tokens: of the prompt and the answer, as the model counts them; 0 if it does not say.
        refused: why the endpoint will not answer this prompt, such as that it is too long.
    """

    text: str
    tokens: int = 0
    refused: str = ""


@dataclass(frozen=True)
class Sampling:
    """How answers are drawn."""

    temperature: float = 0.0
    max_tokens: int = 256


@dataclass(frozen=True)
class Limits:
    """What an endpoint is asked at most.

    Attributes:
        concurrency: requests under way.
        requests_per_minute: None for any number.
        tokens_per_minute: of prompts and answers; None for any number.
        timeout: seconds that an answer may take.
        retries: of a request that failed in a way that may pass.
    """

    concurrency: int = 16
    requests_per_minute: float | None = None
    tokens_per_minute: float | None = None
    timeout: float = 120.0
    retries: int = 6


class RateLimit:
    """Lets an amount pass each minute, after a first burst of a second's worth.

    Args:
        per_minute: the amount; None lets everything pass.
        clock: seconds, always growing.
        sleep: waits for seconds.
    """

    def __init__(
        self,
        per_minute: float | None,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[Any]] = asyncio.sleep,
    ) -> None:
        self.per_second = None if per_minute is None else per_minute / 60
        self.clock, self.sleep = clock, sleep
        self._free_at = clock()

    async def take(self, amount: float) -> None:
        """Wait until the amount may pass."""
        if self.per_second is None:
            return
        now = self.clock()
        # A place in the queue is taken before waiting, so that nobody overtakes.
        start = max(self._free_at, now - 1)
        self._free_at = start + amount / self.per_second
        if start > now:
            await self.sleep(start - now)

    def correct(self, amount: float) -> None:
        """Count an amount more, or less, than was taken."""
        if self.per_second is not None:
            self._free_at += amount / self.per_second


class EndpointModel:
    """Asks an endpoint.

    Args:
        base_url: up to and with "/v1".
        model: name that the endpoint knows.
        sampling: how answers are drawn.
        limits: of what is asked.
        key_variable: environment variable with the API key; None for none.

    Raises:
        ImportError: httpx2 is not installed.
        ValueError: the environment variable is not set.
    """

    def __init__(
        self, base_url: str, model: str, sampling: Sampling, limits: Limits,
        key_variable: str | None = None,
    ) -> None:  # fmt: skip
        try:
            import httpx2
        except ImportError as error:
            raise ImportError("an endpoint needs httpx2: pip install 'internvl[filter]'") from error
        self._http = httpx2
        self.url = base_url.rstrip("/") + "/chat/completions"
        self.model, self.sampling, self.limits = model, sampling, limits
        self.name = f"{base_url} {model}"
        self._headers = {}
        if key_variable is not None:
            if not os.environ.get(key_variable):
                raise ValueError(
                    f"judge.key_variable is {key_variable!r}, but there is no such environment "
                    "variable; set it to the key of the endpoint."
                )
            self._headers["Authorization"] = f"Bearer {os.environ[key_variable]}"
        self._key_variable = key_variable
        self._requests = RateLimit(limits.requests_per_minute)
        self._tokens = RateLimit(limits.tokens_per_minute)
        self._schemas = True
        self._jitter = random.Random()  # only of waiting times

    def answers(self, prompts: Sequence[Prompt]) -> Iterator[tuple[int, Reply]]:
        """(place of the prompt, answer), as the answers come.

        Raises:
            ConnectionError: the endpoint did not answer, however often it was asked.
            PermissionError: it does not accept the key.
            ValueError: it does not know the model or the address.
        """
        loop = asyncio.new_event_loop()
        found: asyncio.Queue[tuple[int, Reply] | None] = asyncio.Queue()
        task = loop.create_task(self._ask_all(prompts, found))
        try:
            while (each := loop.run_until_complete(_next(found, task))) is not None:
                yield each
        finally:
            task.cancel()
            with suppress(asyncio.CancelledError):
                loop.run_until_complete(task)
            loop.close()

    async def _ask_all(self, prompts: Sequence[Prompt], found: asyncio.Queue) -> None:
        places = iter(range(len(prompts)))
        count = self.limits.concurrency
        async with self._http.AsyncClient(
            headers=self._headers, timeout=self.limits.timeout,
            limits=self._http.Limits(max_connections=count, max_keepalive_connections=count),
        ) as client:  # fmt: skip

            async def work() -> None:
                for place in places:  # shared: each takes the next that nobody has
                    await found.put((place, await self._ask(client, prompts[place])))

            try:
                async with asyncio.TaskGroup() as group:
                    for _ in range(min(count, len(prompts))):
                        group.create_task(work())
            except ExceptionGroup as several:
                raise several.exceptions[0] from None
        await found.put(None)

    async def _ask(self, client: Any, prompt: Prompt) -> Reply:
        """Ask until there is an answer or no hope."""
        guess = _tokens_of(prompt) + self.sampling.max_tokens
        for attempt in range(self.limits.retries + 1):
            await self._requests.take(1)
            await self._tokens.take(guess)
            try:
                response = await self._post(client, prompt)
            except self._http.TransportError as error:
                problem, wait = f"{type(error).__name__}: {error}", None
            else:
                if response.status_code == 200:
                    reply = _reply(response)
                    if reply is not None:
                        self._tokens.correct(reply.tokens - guess if reply.tokens else 0)
                        return reply
                    problem, wait = f"no chat completion: {response.text:.200}", None
                elif response.status_code in _AGAIN:
                    problem = f"status {response.status_code}: {response.text:.200}"
                    wait = _retry_after(response.headers.get("retry-after"))
                else:
                    return self._give_up(response)
            if attempt < self.limits.retries:
                seconds = min(_LONGEST_WAIT, self._backoff(attempt) if wait is None else wait)
                logger.warning("%s: %s; again in %.1f s", self.url, problem, seconds)
                await asyncio.sleep(seconds)
        raise ConnectionError(
            f"{self.url} failed {self.limits.retries + 1} times, the last time with {problem}. See "
            "whether the server runs; answers so far are kept, so run again."
        )

    async def _post(self, client: Any, prompt: Prompt) -> Any:
        """Send a request; once more, without the schema, where that may be what is refused."""
        if self._schemas:
            response = await client.post(self.url, json=self._body(prompt, with_schema=True))
            if response.status_code not in (400, 422):
                return response
            await self._requests.take(1)
        response = await client.post(self.url, json=self._body(prompt, with_schema=False))
        if self._schemas and response.status_code == 200:
            self._schemas = False  # else it was the prompt itself, such as a too long one
        return response

    def _body(self, prompt: Prompt, *, with_schema: bool) -> dict[str, Any]:
        body: dict[str, Any] = {
            "model": self.model,
            "messages": list(prompt.messages),
            "temperature": self.sampling.temperature,
            "max_tokens": self.sampling.max_tokens,
        }
        if with_schema:
            named = {"name": "answer", "strict": True, "schema": prompt.schema}
            body["response_format"] = {"type": "json_schema", "json_schema": named}
        return body

    def _give_up(self, response: Any) -> Reply:
        """An answer that will not change: of this prompt, or of the endpoint as a whole."""
        status, text = response.status_code, response.text[:300]
        if status in (401, 403):
            where = self._key_variable or "judge.key_variable names no environment variable with it"
            raise PermissionError(f"{self.url} does not accept the key ({where}): {status} {text}")
        if status in (404, 405):
            raise ValueError(
                f"{self.url} does not know the model {self.model!r} or this address: {status} "
                f"{text}; judge.base_url ends in /v1, judge.model is a name of the endpoint."
            )
        return Reply("", refused=f"status {status}: {text}")

    def _backoff(self, attempt: int) -> float:
        return 0.5 * 2.0**attempt * self._jitter.uniform(0.5, 1.0)


async def _next(found: asyncio.Queue, task: asyncio.Task) -> Any:
    """The next answer; an exception of the task once no answer is left."""
    getting = asyncio.ensure_future(found.get())
    await asyncio.wait([getting, task], return_when=asyncio.FIRST_COMPLETED)
    if not getting.done() and task.done() and found.empty():
        getting.cancel()
        task.result()
        return None
    return await getting


def _reply(response: Any) -> Reply | None:
    """The answer that a response holds, None if it holds none."""
    try:
        body = response.json()
        text = body["choices"][0]["message"]["content"]
        tokens = (body.get("usage") or {}).get("total_tokens") or 0
    except (ValueError, LookupError, TypeError, AttributeError):
        return None
    return Reply(text if isinstance(text, str) else "", int(tokens))


def _retry_after(value: str | None) -> float | None:
    """Seconds of a Retry-After header: a number or a date."""
    if value is None:
        return None
    with suppress(ValueError):
        return max(0.0, float(value))
    with suppress(TypeError, ValueError):
        return max(0.0, email.utils.parsedate_to_datetime(value).timestamp() - time.time())
    return None


def _tokens_of(prompt: Prompt) -> int:
    """A guess, from which the rate limit starts."""
    return sum(len(message["content"]) for message in prompt.messages) // _CHARACTERS_PER_TOKEN
