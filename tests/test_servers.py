"""The client of OpenAI-compatible servers: order, bounds, retries, and servers that fail, hang, are busy, or go."""

import logging
import threading
import time
from email.utils import formatdate
from typing import Any

import pytest

from prefdata.errors import UserError
from prefdata.servers import Patience, Refused, Servers, ServersGone, call
from prefdata.servers.health import Health, retry_after_s
from tests.openai_server import CUT, Answer, Behaviour, OpenAIServer, echo, openai_server

QUICK = Patience(gone_s=1.0, busy_s=2.0, answer_s=1.0, tries=3, first_s=0.01, longest_s=0.05)


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(call, "PROBE_S", 0.3)
    monkeypatch.setattr(call, "QUIET_S", 0.2)
    monkeypatch.setattr(call, "_TICK_S", 0.02)


def stop_at(server: OpenAIServer, number: int) -> None:
    """The server is gone while it works on its request of that number."""
    before = server.behaviour

    def behaviour(path: str, body: dict[str, Any], now: int) -> Answer:
        if now == number:
            server.stop()
        return before(path, body, now)

    server.behaviour = behaviour


def prompts(count: int) -> list[dict[str, Any]]:
    return [{"prompt": [number], "max_tokens": 1} for number in range(count)]


def texts(answers: list[Any]) -> list[str]:
    return [answer["choices"][0]["text"] for answer in answers]


def wanted(count: int) -> list[str]:
    return [f"[{number}]" for number in range(count)]


def at_first(*answers: Answer) -> Behaviour:
    """These answers first, by the order of arrival; then echoes."""
    return lambda path, body, number: answers[number] if number < len(answers) else echo(path, body, number)


def slow(seconds: float) -> Behaviour:
    return lambda path, body, number: Answer(echo(path, body, number).body, after_s=seconds)


def test_answers_come_in_the_order_asked_from_all_servers_within_the_bound() -> None:
    def uneven(path: str, body: dict[str, Any], number: int) -> Answer:
        return Answer(echo(path, body, number).body, after_s=0.002 * (30 - body["prompt"][0]))

    told: list[float] = []
    with openai_server(uneven) as one, openai_server(uneven) as other:
        servers = Servers([one.url, f"{other.url}/v1/"], concurrency=3, patience=QUICK)
        assert texts(servers.complete(prompts(30), tell=told.append)) == wanted(30)
        assert one.asked
        assert other.asked
        assert len(one.asked) + len(other.asked) == 30
        assert max(one.most, other.most) == 3
        assert {body["model"] for _, body in one.asked} == {"m"}
        assert {path for path, _ in other.asked} == {"/v1/completions"}
    assert told == [number / 30 for number in range(1, 31)]
    assert servers.complete([]) == []


def test_conversations_get_replies() -> None:
    with openai_server() as server:
        replies = Servers([server.url]).chat([[{"role": "user", "content": text}] for text in "ab"], temperature=0)
        assert [(reply.text, reply.finish, reply.refused) for reply in replies] == [
            ("a", "stop", None),
            ("b", "stop", None),
        ]
        assert all(body["temperature"] == 0 for _, body in server.asked)


@pytest.mark.parametrize(
    "trouble",
    [
        Answer({"error": {"message": "out of memory"}}, 500),
        Answer("busy", 503),
        Answer({"error": "too many"}, 429),
        Answer("<html>"),
        Answer({}, after_s=1.5),
        CUT,
    ],
    ids=["500", "503", "429", "no JSON", "slow", "cut"],
)
def test_what_fails_is_tried_again(trouble: Answer) -> None:
    with openai_server(at_first(trouble, trouble)) as server:
        servers = Servers([server.url], concurrency=2, patience=QUICK)
        assert texts(servers.complete(prompts(6))) == wanted(6)
        assert len(server.asked) == 8


def test_retry_after_is_honoured() -> None:
    with openai_server(at_first(Answer({}, 429, {"Retry-After": "0.6"}))) as server:
        began = time.monotonic()
        assert texts(Servers([server.url], concurrency=1, patience=QUICK).complete(prompts(2))) == wanted(2)
        assert time.monotonic() - began > 0.6
    assert retry_after_s("7", 0) == 7
    assert retry_after_s(formatdate(1000, usegmt=True), 990) == 10
    assert retry_after_s(formatdate(1000, usegmt=True), 1010) == 0
    assert retry_after_s("soon", 0) is None
    assert retry_after_s(None, 0) is None


@pytest.mark.parametrize("status", [500, 200])
def test_a_request_that_always_fails_ends_the_call(status: int) -> None:
    def bad(path: str, body: dict[str, Any], number: int) -> Answer:
        return Answer("oh", status) if body["prompt"] == [3] else echo(path, body, number)

    with openai_server(bad) as server, pytest.raises(UserError, match=f"{server.url}.*3 tries") as failed:
        Servers([server.url], patience=QUICK).complete(prompts(5))
    assert "\n" not in str(failed.value)
    assert sum(body["prompt"] == [3] for _, body in server.asked) == 3


def test_a_server_that_dies_in_the_middle_is_told_of_while_another_goes_on(caplog: Any) -> None:
    with openai_server(slow(0.02)) as one, openai_server(slow(0.03)) as other:
        stop_at(one, 10)
        servers = Servers([one.url, other.url], concurrency=2, patience=QUICK)
        with caplog.at_level(logging.WARNING):
            assert texts(servers.complete(prompts(90))) == wanted(90)
        assert f"{one.url}/v1 is gone" in caplog.text
        assert one.asked
        caplog.clear()
        assert texts(servers.complete(prompts(4))) == wanted(4)  # and it is not given up again
        assert "is gone" not in caplog.text


@pytest.mark.parametrize("how", ["stop", "freeze", "fail"])
def test_the_last_server_that_goes_ends_the_call(how: str) -> None:
    with openai_server(slow(0.01)) as server:

        def go() -> None:
            if how == "stop":
                server.stop()
            elif how == "freeze":
                server.frozen.set()
            else:
                server.behaviour = lambda *_: Answer("no upstream", 502)

        answered = []
        stream = Servers(
            [server.url], concurrency=2, patience=Patience(1.0, tries=3, first_s=0.01, longest_s=0.1)
        ).each("/completions", prompts(2000))
        answered.append(next(stream))
        go()
        began = time.monotonic()
        with pytest.raises(ServersGone, match=f"no server is left that answers: {server.url}/v1 .* for 1 s") as gone:
            answered.extend(stream)
        assert 0.5 < time.monotonic() - began < 10
        assert "\n" not in str(gone.value)
        assert 1 < len(answered) < 2000


def test_what_a_frozen_server_was_asked_goes_to_another() -> None:
    with openai_server() as one, openai_server(slow(0.01)) as other:
        one.frozen.set()
        servers = Servers([one.url, other.url], model="m", concurrency=2, patience=Patience(0.8, first_s=0.01))
        assert texts(servers.complete(prompts(10))) == wanted(10)
        assert len(other.asked) == 10


def test_a_server_that_comes_back_is_asked_again(monkeypatch: Any, caplog: Any) -> None:
    monkeypatch.setattr(call, "GONE_PROBES_S", 0.1)
    with openai_server(slow(0.02)) as one, openai_server(slow(0.02)) as other:
        one.frozen.set()
        servers = Servers([one.url, other.url], model="m", concurrency=1, patience=QUICK)
        threading.Timer(1.3, one.frozen.clear).start()
        assert texts(servers.complete(prompts(80))) == wanted(80)
        assert f"{one.url}/v1 is gone" in caplog.text
        assert f"{one.url}/v1 is back" in caplog.text
        assert len(one.asked) > 10


def test_a_server_that_is_busy_for_ever_is_gone() -> None:
    with openai_server(lambda *_: Answer({"error": {"message": "quota"}}, 429)) as server:
        with pytest.raises(ServersGone, match=r"busy .429: quota., for 2 s"):
            Servers([server.url], patience=QUICK).complete(prompts(3))
        server.behaviour = lambda *_: Answer({}, 429, {"Retry-After": "3600"})
        with pytest.raises(ServersGone, match="asks to wait for 3600 s"):
            Servers([server.url], patience=QUICK).complete(prompts(3))


def test_a_request_that_is_refused_is_its_own_answer() -> None:
    def too_long(path: str, body: dict[str, Any], number: int) -> Answer:
        if "long" in str(body):
            return Answer({"error": {"message": "maximum context length is 8"}}, 400)
        return echo(path, body, number)

    with openai_server(too_long) as server:
        servers = Servers([server.url], patience=QUICK)
        refused, fine = servers.complete([{"prompt": "long"}, {"prompt": "x"}])
        assert refused == Refused(f"{server.url}/v1", 400, "maximum context length is 8")
        assert fine["choices"][0]["text"] == "x"
        (reply,) = servers.chat([[{"role": "user", "content": "long"}]])
        assert (reply.text, "maximum context length" in (reply.refused or "")) == ("", True)


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        (Answer({"error": "who are you"}, 401), "wants another key .401: who are you.: .*--api-key-env"),
        (Answer({"error": "no such path"}, 404), "refuses /v1/completions .404: no such path"),
        (Answer("", 301, {"Location": "http://there"}), "sends its clients to http://there"),
    ],
)
def test_what_is_wrong_for_every_request_ends_the_call_at_once(answer: Answer, why: str) -> None:
    with openai_server(lambda *_: answer) as server, pytest.raises(UserError, match=why):
        Servers([server.url], concurrency=1).complete(prompts(3))
    assert len(server.asked) == 1


def test_the_key_comes_from_the_variable_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MY_KEY", raising=False)
    with pytest.raises(UserError, match="environment variable MY_KEY, which is not set"):
        Servers(["http://there"], api_key_env="MY_KEY")
    monkeypatch.setenv("MY_KEY", "secret\n")
    monkeypatch.setenv("OPENAI_API_KEY", "another")
    with openai_server() as server:
        Servers([server.url], api_key_env="MY_KEY").complete(prompts(1))
        Servers([server.url]).complete(prompts(1))
        assert server.keys == ["Bearer secret", None]


def test_the_model_is_the_one_served_or_the_one_named() -> None:
    with openai_server() as one, openai_server(models=("a", "b")) as two:
        assert Servers([one.url]).model == "m"
        assert [entry["id"] for entry in Servers([two.url], model="b").check()[f"{two.url}/v1"]] == ["a", "b"]
        with pytest.raises(UserError, match=f"{two.url}/v1 serves 2 models, so say which .*: a, b"):
            Servers([two.url]).check()
        with pytest.raises(UserError, match=f"{one.url}/v1 does not serve the model 'a'; it serves: m"):
            Servers([one.url, two.url], model="a").check()


def test_servers_that_are_not_there_are_told_at_the_start(caplog: Any) -> None:
    with openai_server() as one, openai_server() as other:
        other.stop()
        assert list(Servers([one.url, other.url], patience=QUICK).check()) == [f"{one.url}/v1"]
        assert f"{other.url}/v1 does not answer" in caplog.text
        with pytest.raises(ServersGone, match=f"no server answers: {other.url}/v1"):
            Servers([other.url], patience=QUICK).check()


@pytest.mark.parametrize("bad", ["host:8000", "http://", "ftp://host", "", "http://host:port"])
def test_addresses_that_are_none_are_refused(bad: str) -> None:
    with pytest.raises(UserError, match="server"):
        Servers([bad])
    with pytest.raises(UserError, match="no server is named"):
        Servers([])


def test_a_password_in_a_url_is_in_no_message() -> None:
    with pytest.raises(ServersGone) as gone:
        Servers(["http://me:secret@127.0.0.1:9"], patience=QUICK).check()
    assert "secret" not in str(gone.value)


def test_a_call_that_is_dropped_ends() -> None:
    with openai_server(slow(0.01)) as server:
        stream = Servers([server.url], concurrency=2).each("/completions", prompts(1000))
        next(stream)
        stream.close()  # type: ignore[attr-defined]
        assert not [thread for thread in threading.enumerate() if thread.name == "servers"]
        assert len(server.asked) < 100


def test_pauses_double_and_only_one_of_many_failures_counts() -> None:
    patience = Patience(gone_s=40.0, first_s=1.0, longest_s=8.0)
    for failures, whole in ((1, 1), (2, 2), (3, 4), (4, 8), (50, 8)):
        assert all(whole / 2 <= patience.pause(failures) <= whole for _ in range(20))
    health = Health(patience, alive_at=0.0)
    for _ in range(10):
        health.troubled("failing", "500", 100.0)
    assert 100.5 <= health.paused_until <= 101
    assert health.gone(139.9) is None
    assert health.gone(140.0) == "500, for 40 s"
    health.troubled("busy", "429", 140.5, wait_s=0.0)
    assert health.paused_until > 140.9
    health.works(141.0)
    assert health.gone(1000.0) is None
