"""How far a policy has gone from its start, against divergences that are worked out over the whole vocabulary."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoTokenizer

from prefdata import models
from prefdata.engines import Sampling
from tests.trainer_world import Talk, World, rows_of
from trainers import drift, policy, train
from trainers import plan as planning
from trainers.drift import Start
from trainers.options import Options
from trainers.probe import Probe
from trainers.processes import Processes


@pytest.fixture
def rows(world: World, tmp_path: Path) -> Any:
    return Probe.of(rows_of(world.version, "dpo", tmp_path), most=6).rows


@pytest.fixture
def model(world: World) -> Any:
    return models.load_model(world.model).eval()


def moved(model: Any, by: float = 0.3) -> Any:
    """The model, somewhere else."""
    torch.manual_seed(7)
    with torch.no_grad():
        for weight in model.parameters():
            weight += by * torch.randn_like(weight) * weight.std()
    return model


def test_the_start_has_not_drifted(model: Any, rows: Any) -> None:
    start = Start.of(model, rows)
    found = start.measure(model)
    assert len(start.answers) == len(rows)
    assert found["probe/start_kl"] == found["probe/kl_to_start"] == found["probe/length_drift"] == 0
    assert 0 < found["probe/answer_tokens"] <= start.most


def test_both_divergences_are_those_of_the_whole_vocabulary(model: Any, world: World) -> None:
    """Every token once, counted as often as the start draws it: then means are expectations."""
    ids = torch.tensor([[1, 7, 9, 23]])
    with torch.no_grad():
        p, q = (
            of(ids).logits[0, -1].double().log_softmax(-1).numpy()
            for of in (model, moved(models.load_model(world.model).eval()))
        )
    forward, reverse = drift.divergences(p, q)
    assert (reverse >= 0).all()
    assert (np.exp(p) * forward).sum() == pytest.approx((np.exp(p) * (p - q)).sum())
    assert (np.exp(p) * reverse).sum() == pytest.approx((np.exp(q) * (q - p)).sum())
    assert (np.exp(p) * reverse).sum() > 1e-4


def test_estimates_are_means_over_the_tokens_of_all_answers(model: Any, rows: Any) -> None:
    start = Start.of(model, rows)
    other = moved(model)
    gaps = []
    for each in start.answers:
        ids = torch.tensor([each.prompt_ids + each.ids])
        with torch.no_grad():
            logps = other(ids).logits[0].log_softmax(-1)
        behind = range(len(each.prompt_ids) - 1, ids.shape[1] - 1)
        gaps += [logp - float(logps[at, ids[0, at + 1]]) for logp, at in zip(each.logps, behind, strict=True)]
    assert start.measure(other)["probe/start_kl"] == pytest.approx(np.mean(gaps), abs=1e-5)


def test_what_was_drawn_is_kept_and_read_whole(model: Any, rows: Any, tmp_path: Path) -> None:
    start = Start.of(model, rows)
    start.write(tmp_path)
    read = Start.read(tmp_path)
    assert read == start
    assert read.measure(moved(model))["probe/kl_to_start"] > 0
    (tmp_path / drift.FILE).write_text('{"answers": [')
    assert Start.read(tmp_path) is None
    assert Start.read(tmp_path / "nowhere") is None


def test_a_prompt_without_room_is_left_out(model: Any, rows: Any) -> None:
    prompts = {"long": [5] * model.config.max_position_embeddings, "short": [5]}
    found = drift.answers(model, prompts, 8, Sampling(temperature=0))
    assert [sample.key for sample in found] == ["short"]
    assert Start((), 8).measure(model) == {}


def test_a_run_keeps_the_answers_of_its_start(options: Options) -> None:
    result = train.train(replace(options, steps=2, epochs=None, lr=1e-3), say=Talk())
    kept = Start.read(result.folder)
    assert kept is not None
    assert kept.answers
    assert result.before["probe/start_kl"] == 0 < result.after["probe/kl_to_start"]


def test_answers_end_where_the_rows_do(options: Options, world: World, tmp_path: Path) -> None:
    """Also where the model's own settings name no end."""
    folder = tmp_path / "endless"
    model = models.load_model(world.model)
    AutoTokenizer.from_pretrained(world.model).save_pretrained(folder)
    model.generation_config.eos_token_id = None
    model.save_pretrained(folder)
    made = planning.make(replace(options, model=str(folder)), planning.versions(options), Processes(), Talk())
    assert policy.load(made, Talk()).generation_config.eos_token_id == list(made.renderer.end_ids)
