"""The engine openai: what it asks of servers and gives back, what it refuses before it draws, and builds through it."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from prefdata import engines
from prefdata.builds import generate, sapo_negatives
from prefdata.builds.job import Outcome, run
from prefdata.engines import EngineDied, Sample, Sampling
from prefdata.engines.openai import OpenAIEngine
from prefdata.errors import UserError
from prefdata.servers import Patience, ServersGone
from prefdata.verify import verify
from prefdata.work import Work
from tests.fake_vllm_server import FakeVllm
from tests.openai_server import Answer, Behaviour, OpenAIServer, openai_server
from tests.tiny_models import random_requests
from tests.tiny_world import WORDS, pair_rows, publish, save_model, table

VOCABULARY = WORDS + 3
SAMPLING = Sampling(0.8, 20, 0.9, (2, 7, 9))
PLAIN = Sampling(end_ids=(2,))
QUICK = Patience(gone_s=1.0, tries=2, first_s=0.01, longest_s=0.1)
REQUESTS = [
    replace(request, n=1 + number % 3)
    for number, request in enumerate(random_requests(12, vocabulary=VOCABULARY, longest=20))
]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_model(tmp_path_factory.mktemp("openai") / "tiny")


@pytest.fixture(scope="module")
def server(model: str) -> Iterator[OpenAIServer]:
    with openai_server(FakeVllm(model), models=(entry(),)) as running:
        yield running


def entry(**given: Any) -> dict[str, Any]:
    return {"id": "served", "root": "/elsewhere/tiny", "max_model_len": 64, **given}


def load(model: str, *servers: OpenAIServer, **options: Any) -> OpenAIEngine:
    urls = [server.url for server in servers]
    engine = engines.load("openai", model, server=urls, **{"patience": QUICK, **options})
    assert isinstance(engine, OpenAIEngine)
    return engine


def sorted_samples(samples: Iterator[Sample]) -> list[Sample]:
    return sorted(samples, key=lambda one: (one.key, one.index))


@pytest.mark.parametrize("sampling", [SAMPLING, PLAIN, replace(PLAIN, temperature=0)])
def test_samples_are_those_that_the_servers_model_draws(model: str, server: OpenAIServer, sampling: Sampling) -> None:
    with openai_server(server.behaviour, models=({"id": "/other/tiny"},)) as second:
        drawn = sorted_samples(load(model, server, second).generate(REQUESTS, sampling))
        assert {body["model"] for path, body in second.asked if path == "/v1/completions"} == {"/other/tiny"}
    wanted = sorted_samples(engines.load("transformers", model, device="cpu").generate(REQUESTS, sampling))
    assert [(one.key, one.index, one.token_ids, one.finish) for one in drawn] == [
        (one.key, one.index, one.token_ids, one.finish) for one in wanted
    ]
    assert len(drawn) == sum(request.n for request in REQUESTS)
    for one, other in zip(drawn, wanted, strict=True):
        assert one.token_logps == (None if sampling.greedy else pytest.approx(other.token_logps, abs=1e-4))


def test_log_probs_of_another_distribution_are_not_kept(model: str, caplog: pytest.LogCaptureFixture) -> None:
    with openai_server(FakeVllm(model, raw=True), models=(entry(),)) as server:
        engine = load(model, server)
        assert all(one.token_logps is None for one in engine.generate(REQUESTS, SAMPLING))
        assert "--logprobs-mode processed_logprobs" in caplog.text
        assert all(one.token_logps is not None for one in engine.generate(REQUESTS, PLAIN))


def test_requests_that_do_not_fit_a_server_are_refused_before_it_is_asked(model: str, server: OpenAIServer) -> None:
    with openai_server(server.behaviour, models=(entry(max_model_len=20),)) as small:
        engine, asked = load(model, server, small), len(small.asked)
        with pytest.raises(UserError, match="positions and the servers take 20"):
            engine.generate([replace(REQUESTS[0], max_new_tokens=30)], PLAIN)
        assert len(small.asked) == asked


def test_another_tokenizer_is_refused(model: str, tmp_path: Path) -> None:
    for words in (WORDS - 1, WORDS + 1):
        other = save_model(tmp_path / str(words) / "tiny", words=words)
        with openai_server(FakeVllm(other), models=(entry(),)) as server:
            with pytest.raises(UserError, match=f"server {server.url}/v1 has another tokenizer than {model}"):
                load(model, server)
            assert [path for path, _ in server.asked] == ["/detokenize"]  # and nothing was drawn


def test_another_model_is_refused_unless_it_is_named(model: str, server: OpenAIServer) -> None:
    other = ({"id": "a", "root": "/models/a"}, {"id": "b"})
    with openai_server(server.behaviour, models=other) as there:
        with pytest.raises(
            UserError, match=rf"no server serves the model {model}; there are: a at .*, b at .*--served-model"
        ):
            load(model, there)
        engine = load(model, there, server, served_model="b")  # the other one does not know that name
        list(engine.generate(REQUESTS, PLAIN))
        assert {body["model"] for path, body in there.asked} == {"b"}
        with pytest.raises(UserError, match="no server serves by the name c"):
            load(model, there, served_model="c")


def changed(behaviour: Behaviour, change: Callable[[dict[str, Any]], None]) -> Behaviour:
    """The first choice of each completion changed."""

    def answer(path: str, body: dict[str, Any], number: int) -> Answer:
        given = behaviour(path, body, number)
        if path == "/v1/completions":
            change(given.body["choices"][0])
        return given

    return answer


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (lambda choice: choice.pop("token_ids"), "has no token_ids: stored rows are token ids, .* vllm serve MODEL"),
        (lambda choice: choice.update(token_ids=[5], finish_reason="stop"), "do not end .*--generation-config vllm"),
        (lambda choice: choice.update(token_ids=[5], finish_reason="length"), "cuts answers at 1 tokens where"),
        (lambda choice: choice.update(prompt_token_ids=[1]), "changed the prompt"),
        (lambda choice: choice["logprobs"].update(token_logprobs=[-9999.0]), "not finite"),
    ],
)
def test_answers_that_are_not_what_was_asked_for_are_refused(
    model: str, server: OpenAIServer, change: Any, why: str
) -> None:
    requests = [replace(request, max_new_tokens=9) for request in REQUESTS]
    with (
        openai_server(changed(server.behaviour, change), models=(entry(),)) as bad,
        pytest.raises(UserError, match=why) as refused,
    ):
        list(load(model, bad).generate(requests, PLAIN))
    assert "\n" not in str(refused.value)


def test_a_server_that_ends_answers_itself_may_do_better_next_time(model: str, server: OpenAIServer) -> None:
    behaviour = changed(server.behaviour, lambda choice: choice.update(finish_reason="abort"))
    with openai_server(behaviour, models=(entry(),)) as bad, pytest.raises(EngineDied, match="abort"):
        list(load(model, bad).generate(REQUESTS, PLAIN))


@pytest.mark.parametrize(
    ("answers", "why"),
    [
        ({"/detokenize": Answer({}, 404)}, "has no /detokenize.*vllm serve MODEL"),
        (
            {"/v1/completions": Answer({"error": {"message": "Unknown argument: top_k"}}, 400)},
            "Unknown argument.*vllm serve",
        ),
    ],
)
def test_other_kinds_of_servers_are_refused_with_what_is_needed(
    model: str, server: OpenAIServer, answers: dict[str, Answer], why: str
) -> None:
    def plain(path: str, body: dict[str, Any], number: int) -> Answer:
        return answers.get(path) or server.behaviour(path, body, number)

    with openai_server(plain, models=(entry(),)) as other, pytest.raises(UserError, match=why):
        load(model, other)


def test_servers_are_named_for_this_engine_alone() -> None:
    with pytest.raises(UserError, match=r"needs to know where servers are: .*--server"):
        engines.remote("openai", server=())
    with pytest.raises(UserError, match="the engine vllm asks none: say --engine openai"):
        engines.remote("vllm", server=("http://there",))
    assert engines.remote("vllm", server=(), concurrency=3) == {}


# -- builds --------------------------------------------------------------------------------------------------------


class World:
    def __init__(self, folder: Path, model: str) -> None:
        from prefdata.tokens import Renderer

        self.root, self.model = str(folder / "data"), model
        tokenizer = {**Renderer.load(model).fingerprint, "max_length": 24}
        publish(folder / "data", {"train": table(pair_rows(24, seed=1))}, model, tokenizer=tokenizer)

    def generate(self, **options: Any) -> Outcome:
        given = {"source": "v1", "model": (self.model,), "samples": 2, "max_new_tokens": 6, "unit_rows": 4, **options}
        return run(generate.Generate(generate.Options(**{"round": 1, **given}), self.root))

    def negatives(self, **options: Any) -> Outcome:
        given = {"source": "v1", "unit_rows": 8, "model": self.model, **options}
        return run(sapo_negatives.BuildSapoNegatives(sapo_negatives.Options(**given), self.root))


@pytest.fixture
def world(tmp_path: Path, model: str) -> World:
    return World(tmp_path, model)


@pytest.mark.parametrize("build", ["generate", "negatives"])
def test_builds_through_a_server_make_what_the_engine_behind_it_makes(
    world: World, server: OpenAIServer, build: str
) -> None:
    build_version = getattr(world, build)
    outcome = build_version(engine="openai", server=(server.url,))
    version = outcome.version
    assert verify(version) == []
    assert version.manifest["generator"]["engine"] == "openai"
    assert not version.manifest["generator"]["batch_invariant"]
    assert server.url not in str(version.manifest)
    local = (
        build_version().version
    )  # answers and log-probs one by one there, in a batch here, so equal but for rounding
    assert version.table("train")["row_id"].to_pylist() == local.table("train")["row_id"].to_pylist()
    with openai_server(server.behaviour, models=(entry(),)) as second:
        again = build_version(engine="openai", server=(second.url, server.url), concurrency=3)
    assert (again.version.name, again.computed) == (
        version.name,
        0,
    )  # where servers are is no part of what was asked for


def test_each_of_several_models_is_asked_of_its_own_servers(world: World, server: OpenAIServer, tmp_path: Path) -> None:
    second = save_model(tmp_path / "second", seed=7)
    with openai_server(FakeVllm(second), models=({"id": "second"},)) as other:
        servers = {"engine": "openai", "server": (server.url, other.url)}
        made = world.generate(model=(world.model, second), **servers).version
        assert any(path == "/v1/completions" for path, _ in other.asked)
    local = world.generate(model=(world.model, second)).version
    columns = ["row_id", "generator"]
    assert made.table("train", columns) == local.table("train", columns)


@pytest.mark.parametrize("build", ["generate", "negatives"])
def test_a_server_that_dies_in_a_build_ends_it_and_what_is_finished_is_kept(
    world: World, server: OpenAIServer, build: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("prefdata.servers.client.Patience", lambda: QUICK)

    def dies(path: str, body: dict[str, Any], number: int) -> Answer:
        if number == 15:
            dying.stop()
        return server.behaviour(path, body, number)

    build_version = getattr(world, build)
    with openai_server(dies, models=(entry(),)) as dying:
        with pytest.raises(ServersGone, match=f"{dying.url}/v1 .*What is finished is kept"):
            build_version(engine="openai", server=(dying.url,))
        with pytest.raises(ServersGone, match=f"no server answers: {dying.url}/v1"):
            build_version(engine="openai", server=(dying.url,))
    done = len(list(Work(world.root).keys()))
    assert done > 0
    outcome = build_version(engine="openai", server=(dying.url, server.url))
    assert outcome.reused == done
    assert verify(outcome.version) == []
