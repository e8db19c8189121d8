"""The LLM as a judge of samples (report section 4.3, Figure 8).

    sample -> domain (text only; by configuration, or asked) -> quality 0-10, flagged below 7
           -> repetition 0-10 ................................. flagged below 3

An answer that cannot be used is asked for again, with what was wrong with it. What has no usable
answer in the end is `unjudged`: a flag like any other, so a person sees it.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, Protocol

from tqdm.auto import tqdm

from internvl.filtering import judge_answers, prompts
from internvl.filtering.judge_cache import AnswerCache
from internvl.filtering.judge_client import EndpointModel, Limits, Prompt, Reply, Sampling
from internvl.filtering.judging import UNJUDGED, Assessment
from internvl.filtering.prompts import DOMAINS, Domain, Kind, Question
from internvl.filtering.verdict import Record, Verdict
from internvl.settings import build

logger = logging.getLogger(__name__)

CACHE = "judge-cache"


@dataclass(frozen=True)
class JudgeConfig:
    """The key `judge` of a configuration.

    Attributes:
        model: name of the model at the endpoint; without `base_url` a folder, Hub id or GGUF file
            of a model that runs in this process.
        base_url: of an OpenAI-compatible endpoint, up to and with "/v1".
        key_variable: environment variable with the key of the endpoint.
        quality: samples with a lower score are flagged; 7 in the report.
        repetition: likewise; 3 in the report.
        domains: domain by name or pattern of a dataset; the LLM is asked about samples of others.
        max_characters: of a sample that the LLM sees; the middle of a longer one is left out.
        temperature: 0 for the most likely answer.
        max_tokens: of an answer; more for models that think before they answer.
        attempts: at an answer that can be used.
        concurrency: requests under way.
        requests_per_minute: None for any number.
        tokens_per_minute: None for any number.
        timeout: seconds that an answer may take.
        retries: of a request that failed in a way that may pass.
        batch: samples at a time, in this process.
        dtype: of a model in this process.
        device_map: of a model in this process.
        cache: folder of answers that several runs may share; of the run if not given.
    """

    model: str
    base_url: str | None = None
    key_variable: str | None = None
    quality: float = 7.0
    repetition: float = 3.0
    domains: Mapping[str, str] = field(default_factory=dict)
    max_characters: int = 12_000
    temperature: float = 0.0
    max_tokens: int = 256
    attempts: int = 3
    concurrency: int = 16
    requests_per_minute: float | None = None
    tokens_per_minute: float | None = None
    timeout: float = 120.0
    retries: int = 6
    batch: int = 8
    dtype: str = "auto"
    device_map: str = "auto"
    cache: str | None = None

    def __post_init__(self) -> None:
        """Refuse what no judge could do."""
        for name in ("max_characters", "max_tokens", "attempts", "concurrency", "batch"):
            if getattr(self, name) < 1:
                raise ValueError(f"judge.{name} is {getattr(self, name)}; expected at least 1.")
        if unknown := sorted(set(self.domains.values()) - set(DOMAINS)):
            raise ValueError(f"judge.domains names {unknown}; expected some of {list(DOMAINS)}.")


def read_judge_config(value: Mapping[str, Any]) -> JudgeConfig:
    """Read the key `judge` of a configuration.

    Raises:
        ValueError: unknown keys, no model, or values that no judge could have.
    """
    if not isinstance(value.get("model"), str):
        raise ValueError(f"judge.model is {value.get('model')!r}; expected the name of an LLM.")
    config: JudgeConfig = build(JudgeConfig, value, "judge")
    return config


class Model(Protocol):
    """What answers prompts."""

    name: str

    def answers(self, prompts: Sequence[Prompt]) -> Iterator[tuple[int, Reply]]:
        """(place of the prompt, answer), in any order, one for each."""
        ...


@dataclass
class _Open:
    """A question on its way to an answer."""

    question: Question
    record: Record
    messages: list[prompts.Message]
    domain: Domain | None = None
    why: str = ""


class Judge:
    """Asks an LLM about samples.

    Args:
        model: what answers.
        config: thresholds and limits.
        cache: answers that were given before.
    """

    def __init__(self, model: Model, config: JudgeConfig, cache: AnswerCache) -> None:
        self.model, self.config, self.cache = model, config, cache
        self.asked = self.cached = self.tokens = 0

    def assess(
        self, records: Iterable[Record], kinds: Callable[[Record], Sequence[Kind]]
    ) -> Iterator[Assessment]:
        """Assessments in any order, one for each sample and kind.

        Args:
            records: the samples.
            kinds: what is asked about each.

        Raises:
            ConnectionError: the endpoint does not answer.
            PermissionError: it does not accept the key.
            ValueError: it does not know the model.
        """
        pairs = [(record, kind) for record in records for kind in kinds(record)]
        domains = self._domains([record for record, kind in pairs if kind == "quality"])
        waiting = []
        for record, kind in pairs:
            domain = domains[record.key] if kind == "quality" else None
            if kind == "quality" and domain is None:
                yield Assessment(record.key, kind, None, None, "its domain is not known")
                continue
            waiting.append(self._open(kind, record, domain))
        for each, found in self._settled(waiting, judge_answers.read_score):
            assert each.question != "domain"
            score, reason = (found.score, found.reason) if found else (None, each.why)
            yield Assessment(each.record.key, each.question, score, each.domain, reason)
        logger.info(
            "judge: %d answers, %d more from the cache, %d tokens",
            self.asked, self.cached, self.tokens,
        )  # fmt: skip

    def verdict(self, assessment: Assessment) -> Verdict | None:
        """The verdict of an assessment, None if the score reaches its threshold."""
        if assessment.score is None:
            note = f"The LLM gave no usable answer on {assessment.kind}: {assessment.reason}"
            return Verdict(UNJUDGED, 0.0, 0.0, None, note[:400])
        threshold = getattr(self.config, assessment.kind)
        if assessment.score >= threshold:
            return None
        by = f" ({assessment.domain})" if assessment.domain else ""
        note = f"The LLM scored its {assessment.kind}{by}: {assessment.reason}"
        return Verdict(f"llm_{assessment.kind}", assessment.score, threshold, None, note[:400])

    # ------------------------------------------------------------------ asking
    def _domains(self, records: Sequence[Record]) -> dict[str, Domain | None]:
        """The domain of each sample, by key: as configured, else as the LLM says."""
        found: dict[str, Domain | None] = {}
        unknown = []
        for record in records:
            named = [d for p, d in self.config.domains.items() if fnmatchcase(record.dataset, p)]
            if named:
                found[record.key] = named[0]  # type: ignore[assignment]
            else:
                unknown.append(self._open("domain", record, None))
        for each, domain in self._settled(unknown, judge_answers.read_domain):
            found[each.record.key] = domain
        return found

    def _open(self, question: Question, record: Record, domain: Domain | None) -> _Open:
        asked = prompts.messages(
            question, record, domain=domain or "general", most=self.config.max_characters
        )
        return _Open(question, record, asked, domain)

    def _settled(
        self, waiting: list[_Open], read: Callable[[str], Any]
    ) -> Iterator[tuple[_Open, Any]]:
        """(question, what was read from its answer or None), each once there is no more to ask."""
        for attempt in range(self.config.attempts):
            last, failed = attempt == self.config.attempts - 1, []
            for each, reply in self._replies(waiting):
                try:
                    found = None if reply.refused else read(reply.text)
                    each.why = reply.refused
                except judge_answers.Unusable as error:
                    each.why = f"{error} It said {reply.text[:100]!r}."
                    if not last:
                        each.messages = prompts.again(each.messages, reply.text, str(error))
                        failed.append(each)
                        continue
                    found = None
                yield each, found
            waiting = failed

    def _replies(self, waiting: Sequence[_Open]) -> Iterator[tuple[_Open, Reply]]:
        """Answers from the cache, then from the model."""
        rest = []
        for each in waiting:
            kept = self.cache.get(self._key(each))
            if kept is None:
                rest.append(each)
                continue
            self.cached += 1
            yield each, Reply(kept["text"], refused=kept["refused"])
        asked = [Prompt(each.messages, prompts.schema(each.question)) for each in rest]
        bar = tqdm(total=len(rest), desc="answers", leave=False, disable=None)
        with bar:
            for place, reply in self.model.answers(asked) if asked else ():
                each = rest[place]
                self.cache.put(self._key(each), text=reply.text, refused=reply.refused)
                self.asked += 1
                self.tokens += reply.tokens
                bar.update()
                yield each, reply

    def _key(self, each: _Open) -> str:
        """What an answer depends on."""
        sampling = (self.config.temperature, self.config.max_tokens)
        return f"{self.model.name} {sampling} {prompts.fingerprint(each.messages)}"


def make_judge(value: Mapping[str, Any], folder: Path) -> Judge:
    """The judge of a configuration.

    Args:
        value: the key `judge`.
        folder: output of the run, which holds the answers unless `judge.cache` says where.

    Raises:
        ValueError: unknown keys, or values that no judge could have.
        ImportError: what it needs is not installed.
    """
    config = read_judge_config(value)
    sampling = Sampling(config.temperature, config.max_tokens)
    model: Model
    if config.base_url is not None:
        limits = Limits(
            config.concurrency, config.requests_per_minute, config.tokens_per_minute,
            config.timeout, config.retries,
        )  # fmt: skip
        model = EndpointModel(config.base_url, config.model, sampling, limits, config.key_variable)
    else:
        from internvl.filtering.judge_local import LocalModel

        model = LocalModel(
            config.model, sampling, batch=config.batch, dtype=config.dtype,
            device_map=config.device_map,
        )  # fmt: skip
    cache = Path(config.cache) if config.cache else folder / "work" / CACHE
    return Judge(model, config, AnswerCache(cache))
