"""The client of an endpoint, against a real server that misbehaves."""

from __future__ import annotations

import asyncio
import email.utils
import threading
import time

import pytest

from internvl.filtering.judge_client import EndpointModel, Limits, Prompt, RateLimit, Sampling
from tests.filtering.endpoint import Endpoint, Response, scored

SCHEMA = {"type": "object", "properties": {"score": {"type": "integer"}}}


def prompts(count=1):
    return [Prompt([{"role": "user", "content": f"Number {i}"}], SCHEMA) for i in range(count)]


def ask(server, count=1, *, key_variable=None, **limits):
    limits = Limits(**{"timeout": 5.0, "retries": 3, **limits})
    model = EndpointModel(server.url, "judge-1", Sampling(), limits, key_variable)
    return dict(model.answers(prompts(count)))


def once(first, then=None):
    """Answer the first request in one way and all others in another."""
    return lambda body, number: first if number == 0 else then or scored(8)


@pytest.mark.parametrize(
    "failure",
    [
        Response(status=429, headers={"Retry-After": "0"}),
        Response(status=503, headers={"Retry-After": email.utils.formatdate(usegmt=True)}),
        Response(status=500, headers={"Retry-After": "soon"}),
        Response(content=None),
        Response(drop=True),
    ],
    ids=["429", "503 with a date", "500 with nonsense", "no choices", "dropped"],
)
def test_failure_that_passes_is_tried_again(failure):
    with Endpoint(once(failure)) as server:
        found = ask(server)
    assert '"score": 8' in found[0].text
    assert found[0].tokens == 100
    assert len(server.bodies) == 2


def test_retry_after_is_waited_for(monkeypatch):
    waited, sleep = [], asyncio.sleep

    async def note(seconds):
        waited.append(seconds)
        await sleep(0)

    monkeypatch.setattr(asyncio, "sleep", note)
    with Endpoint(once(Response(status=429, headers={"Retry-After": "17"}))) as server:
        ask(server)
    assert 17.0 in waited


def test_endpoint_that_never_answers_stops_the_run():
    failing = Response(status=503, headers={"Retry-After": "0"})
    with (
        Endpoint(lambda body, number: failing) as server,
        pytest.raises(ConnectionError, match=r"failed 3 times.*status 503"),
    ):
        ask(server, retries=2)
    assert len(server.bodies) == 3


def test_nobody_at_the_address():
    with Endpoint(once(scored(1))) as server:
        pass
    with pytest.raises(ConnectionError, match="See whether the server runs"):
        ask(server, retries=0)


def test_slow_answer_is_tried_again():
    release = threading.Event()

    def answer(body, number):
        if number == 0:
            release.wait(20)
        return scored(9)

    with Endpoint(answer) as server:
        found = ask(server, timeout=0.2)
        release.set()
    assert '"score": 9' in found[0].text
    assert len(server.bodies) == 2


@pytest.mark.parametrize(
    ("status", "error", "message"),
    [
        (401, PermissionError, r"does not accept the key \(TEST_KEY\)"),
        (403, PermissionError, "does not accept the key"),
        (404, ValueError, "does not know the model 'judge-1'"),
    ],
)
def test_what_asking_again_cannot_mend_stops_at_once(monkeypatch, status, error, message):
    monkeypatch.setenv("TEST_KEY", "s3cret")
    with (
        Endpoint(lambda body, number: Response(status=status)) as server,
        pytest.raises(error, match=message) as caught,
    ):
        ask(server, key_variable="TEST_KEY")
    assert len(server.bodies) == 1
    assert "s3cret" not in str(caught.value)


def test_key_is_sent(monkeypatch):
    monkeypatch.setenv("TEST_KEY", "s3cret")
    with Endpoint(once(scored(8))) as server:
        ask(server, key_variable="TEST_KEY")
    assert server.headers[0]["Authorization"] == "Bearer s3cret"


def test_missing_key_is_refused(monkeypatch):
    monkeypatch.delenv("TEST_KEY", raising=False)
    with pytest.raises(ValueError, match="no such environment variable"):
        EndpointModel("http://127.0.0.1/v1", "m", Sampling(), Limits(), "TEST_KEY")


def test_schema_is_asked_for_until_the_endpoint_refuses_it():
    def answer(body, number):
        return Response(status=400) if "response_format" in body else scored(8)

    with Endpoint(answer) as server:
        found = ask(server, 4, concurrency=1)
    assert len(found) == 4
    with_schema = ["response_format" in body for body in server.bodies]
    assert with_schema == [True, False, False, False, False]
    sent = server.bodies[0]["response_format"]["json_schema"]["schema"]
    assert sent == SCHEMA


def test_prompt_that_is_refused_for_itself_is_not_the_end():
    def answer(body, number):
        return Response(status=400) if "Number 1" in str(body) else scored(8)

    with Endpoint(answer) as server:
        found = ask(server, 3, concurrency=1)
    assert [bool(found[place].refused) for place in range(3)] == [False, True, False]
    assert "status 400" in found[1].refused


def test_prompt_that_is_refused_for_itself_leaves_the_schema_on():
    def answer(body, number):
        return Response(status=400) if "Number 0" in str(body) else scored(8)

    with Endpoint(answer) as server:
        found = ask(server, 3, concurrency=1)
    assert found[0].refused
    sent = ["response_format" in body for body in server.bodies]
    assert sent == [True, False, True, True]


def test_schema_is_told_apart_without_retries():
    def answer(body, number):
        return Response(status=400) if "response_format" in body else scored(8)

    with Endpoint(answer) as server:
        assert '"score": 8' in ask(server, retries=0)[0].text


@pytest.mark.parametrize("concurrency", [1, 4])
def test_requests_under_way_reach_the_limit_and_not_more(concurrency):
    def answer(body, number):
        end = time.monotonic() + 5  # until as many are under way as may be
        while server.most_under_way < concurrency and time.monotonic() < end:
            time.sleep(0.005)
        return scored(8)

    with Endpoint(answer) as server:
        found = ask(server, 12, concurrency=concurrency)
    assert sorted(found) == list(range(12))
    assert server.most_under_way == concurrency


def test_answers_come_while_others_are_under_way():
    release = threading.Event()

    def answer(body, number):
        if "Number 0" in str(body):
            release.wait(20)
        return scored(8)

    with Endpoint(answer) as server:
        model = EndpointModel(server.url, "m", Sampling(), Limits(concurrency=2))
        coming = model.answers(prompts(3))
        assert {next(coming)[0], next(coming)[0]} == {1, 2}
        release.set()
        assert next(coming)[0] == 0
        assert list(coming) == []


# ---------------------------------------------------------------------- rates
class Clock:
    """Time that passes only when somebody sleeps."""

    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now

    async def sleep(self, seconds):
        self.now += seconds


def test_rate_lets_the_amount_pass_each_minute():
    clock = Clock()
    rate = RateLimit(120, clock, clock.sleep)

    async def take():
        for _ in range(240):
            await rate.take(1)

    asyncio.run(take())
    assert clock.now - 100 == pytest.approx(120, abs=2)


def test_rate_counts_what_answers_really_took():
    clock = Clock()
    rate = RateLimit(600, clock, clock.sleep)

    async def take():
        await rate.take(100)
        rate.correct(200)
        await rate.take(1)

    asyncio.run(take())
    assert clock.now - 100 == pytest.approx(30, abs=2)


def test_no_rate_never_waits():
    async def nobody(seconds):
        raise AssertionError("it waited")

    rate = RateLimit(None, sleep=nobody)
    asyncio.run(rate.take(10**9))
    rate.correct(5)
