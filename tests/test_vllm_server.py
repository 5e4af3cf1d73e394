"""The engine openai against a real vLLM server, and a build whose server is killed.

Skipped where vLLM is not installed, or failed there if PREFDATA_REQUIRE names it.
"""

import math
import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from prefdata import engines, models
from prefdata.builds import generate
from prefdata.builds.job import run
from prefdata.engines import Request, Sampling
from prefdata.engines.openai import OpenAIEngine
from prefdata.errors import UserError
from prefdata.servers import Patience, Servers
from prefdata.tokens import Renderer
from prefdata.verify import verify
from prefdata.work import Work
from tests.prefect_server import Server, wait_for
from tests.test_engines import expected_probs
from tests.test_vllm import assert_greedy_agrees
from tests.tiny_models import random_requests
from tests.tiny_world import WORDS, pair_rows, publish, save_model, table
from tests.vllm_server import VllmServer

ROOT = Path(__file__).parent.parent
VOCABULARY = WORDS + 3
FILTERED = Sampling(temperature=0.7, top_k=20, top_p=0.9, end_ids=(2, 7))
# for a flow whose server is not waited for as long as usual
IMPATIENT_S = 5.0
IMPATIENT = (
    "import sys; from prefdata.servers import client; patience = client.Patience\n"
    f"client.Patience = lambda: patience(gone_s={IMPATIENT_S})\n"
    "from flows.generate import deployable; sys.exit(deployable.main(sys.argv[1:]))"
)


@pytest.fixture(scope="module")
def engine(vllm_server: VllmServer) -> OpenAIEngine:
    loaded = engines.load("openai", vllm_server.model, server=[vllm_server.url])
    assert isinstance(loaded, OpenAIEngine)
    return loaded


def requests_of(count: int) -> list[Request]:
    return random_requests(count, vocabulary=VOCABULARY, longest=40)


def test_greedy_answers_equal_those_of_transformers(engine: OpenAIEngine, vllm_server: VllmServer) -> None:
    greedy = Sampling(temperature=0, end_ids=tuple(range(2, 8)))
    assert assert_greedy_agrees(engine, vllm_server.model, requests_of(60), greedy) >= 57
    assert {sample.finish for sample in engine.generate(requests_of(60), greedy)} == {"stop", "length"}
    three = [replace(request, n=3) for request in requests_of(4)]
    assert len({(one.key, one.index) for one in engine.generate(three, greedy)}) == 12


def test_n_samples_of_a_request_have_the_seeds_after_its_own(engine: OpenAIEngine) -> None:
    requests = [replace(request, n=3) for request in requests_of(20)]
    together = {(one.key, one.index): one.token_ids for one in engine.generate(requests, FILTERED)}
    for index in range(3):
        alone = [replace(request, n=1, seed=request.seed + index) for request in reversed(requests)]
        for sample in engine.generate(alone, FILTERED):
            assert sample.token_ids == together[sample.key, index]
    assert len(set(together.values())) > 40  # prompts with room for one token agree at times


def test_log_probs_are_those_of_the_distribution_drawn_from(engine: OpenAIEngine, vllm_server: VllmServer) -> None:
    model, requests = models.load_model(vllm_server.model, device="cpu"), requests_of(12)
    prompts = {request.key: request.prompt_ids for request in requests}
    for sampling in (Sampling(), FILTERED):
        for sample in engine.generate(requests, sampling):
            ids, start = [*prompts[sample.key], *sample.token_ids], len(prompts[sample.key])
            with torch.no_grad():
                logits = model(torch.tensor([ids])).logits[0, start - 1 : -1]
            wanted = [
                math.log(expected_probs(row, sampling)[token])
                for row, token in zip(logits, sample.token_ids, strict=True)
            ]
            assert sample.token_logps is not None
            np.testing.assert_allclose(sample.token_logps, wanted, atol=2e-3)


def test_a_model_with_another_tokenizer_is_refused(vllm_server: VllmServer, tmp_path: Path) -> None:
    fewer, more = (save_model(tmp_path / str(words) / "tiny", words=words) for words in (WORDS - 5, WORDS + 5))
    for other in (fewer, more, save_shifted(tmp_path / "shifted" / "tiny")):
        with pytest.raises(UserError, match="has another tokenizer than"):
            OpenAIEngine.load(other, server=[vllm_server.url])


def save_shifted(folder: Path) -> str:
    """The same words at other ids."""
    model = save_model(folder, head_size=32)
    path = Path(model) / "tokenizer.json"
    text = path.read_text()
    path.write_text(text.replace('"w1"', '"w_"').replace('"w2"', '"w1"').replace('"w_"', '"w2"'))
    return model


def test_what_the_server_refuses_is_told(vllm_server: VllmServer) -> None:
    (refused,) = Servers([vllm_server.url]).complete([{"prompt": [5], "max_tokens": 500}])
    assert "max_tokens=500 cannot be greater than max_model_len=96" in refused.message
    with pytest.raises(UserError, match="does not serve the model 'other'"):
        Servers([vllm_server.url], model="other").check()


def test_a_build_whose_server_is_killed_fails_soon_and_the_same_command_finishes_it(
    vllm_server: VllmServer, prefect_server: Server, tmp_path: Path
) -> None:
    root = tmp_path / "data"
    tokenizer = {**Renderer.load(vllm_server.model).fingerprint, "max_length": 96}
    publish(root, {"train": table(pair_rows(160, seed=1))}, vllm_server.model, tokenizer=tokenizer)
    flags = f"--model {vllm_server.model} --samples 2 --max-new-tokens 20 --unit-rows 4 --no-with-reference --round 1".split()
    command = [sys.executable, "-c", IMPATIENT, "v1", *flags, "--engine", "openai", "--server", vllm_server.url]
    environment = {**os.environ, **prefect_server.environment, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(
        [*command, "--root", str(root)], cwd=tmp_path, env=environment, stderr=subprocess.PIPE, text=True
    ) as flow:
        wait_for(lambda: flow.poll() is not None or len(list(Work(str(root)).keys())) >= 2, "two units")
        vllm_server.kill()
        killed = time.monotonic()
        try:
            _, told = flow.communicate(timeout=120)
            took = time.monotonic() - killed
        finally:
            flow.kill()
            vllm_server.start()
    assert flow.returncode == 2, told
    assert f"no server is left that answers: {vllm_server.url}/v1" in told
    assert "What is finished is kept" in told
    assert Patience().gone_s + took - IMPATIENT_S < 60
    done = len(list(Work(str(root)).keys()))
    assert 2 <= done < 20
    options = generate.Options(
        source="v1",
        model=(vllm_server.model,),
        samples=2,
        max_new_tokens=20,
        unit_rows=4,
        with_reference=False,
        round=1,
        engine="openai",
        server=(vllm_server.url,),
    )
    outcome = run(generate.Generate(options, str(root)))
    assert outcome.reused == done
    assert outcome.computed > 20
    assert verify(outcome.version) == []
    assert outcome.version.manifest["generator"]["engine"] == "openai"
