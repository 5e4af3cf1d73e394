"""Stored log-probs are a live reference: the same loss and the same gradient, for every loss that reads them.

A real trained model is the reference and real pairs are the rows. The policy is that model moved a little, so that losses
are not what they are for any data. The live reference runs beside the policy, on the same batch, as it would in a trainer
that has both; transformers' own forward confirms what it gives.
"""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn.utils.rnn import pad_sequence

from prefdata import logprobs, models, versions
from prefdata.builds import ingest
from prefdata.builds.job import run
from tests.samples import samples_dir
from trainers import data
from trainers.data import RowBatch
from trainers.loss import Reading, parse
from trainers.objectives import OBJECTIVES
from trainers.objectives.batch import Batch
from trainers.task import Measured, Task

ROWS = 6  # the shortest of these
READ = 40
READING = sorted(name for name, one in OBJECTIVES.items() if "pairs" in one.batch.sides and one.batch.referenced)


class Scene:
    """One forward of the policy, and the reference's log-probs stored and live."""

    def __init__(self, folder: Path) -> None:
        samples = samples_dir()
        (folder / "hh").mkdir()
        lines = (samples / "hh_helpful" / "train.jsonl").read_text().split("\n")[:READ]
        (folder / "hh" / "train.jsonl").write_text("\n".join(lines) + "\n")
        model = str(samples / "models" / "stories260k")
        options = ingest.Options(source=(str(folder / "hh"),), model=model, reference=model)
        run(ingest.Ingest(options, str(folder / "data")))
        version = versions.find("latest", root=str(folder / "data"))
        contracts: list[type[Batch]] = [OBJECTIVES[name].batch for name in READING]
        reading = replace(Reading.of("pairs", *contracts), values={}, rules=())
        rows = data.load(version, "train", reading, folder)
        batch = data.collate([rows[int(place)] for place in rows.lengths.argsort()[:ROWS]])
        scores = torch.linspace(0.5, 3.0, len(batch), dtype=torch.float64)
        values = {"chosen_score": scores, "rejected_score": scores * 0, "preference": scores.sigmoid()}
        values["prompt_embedding"] = torch.eye(len(batch), dtype=torch.float64)
        self.stored = replace(batch, values=values)
        self.policy = models.load_model(model)
        torch.manual_seed(0)
        with torch.no_grad():
            for parameter in self.policy.parameters():
                parameter += 0.02 * parameter.std() * torch.randn_like(parameter)
        self.reference = models.load_model(model)
        self.live = live(self.stored, self.reference)
        self.measured = Measured.of(self.stored, logprobs.forward(self.policy, batch.trees).logps)

    def loss_and_norm(self, name: str, rows: RowBatch) -> tuple[float, float]:
        """The mean loss, and the norm of its gradient."""
        (part,) = Task(parse(name, None, ()), "pairs").parts(rows, self.measured)
        loss = part.losses.mean()
        gradients = torch.autograd.grad(loss, list(self.policy.parameters()), retain_graph=True)
        return float(loss.detach()), math.sqrt(sum(float(each.double().square().sum()) for each in gradients))


@torch.no_grad()
def live(rows: RowBatch, model: Any) -> RowBatch:
    """The rows with log-probs of this model in the place of the stored ones."""
    found = pad_sequence(list(logprobs.forward(model, rows.trees).logps), batch_first=True).double()
    return replace(rows, token_reference=found, reference=torch.where(rows.scored, found, 0.0).sum(1))


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Scene:
    return Scene(tmp_path_factory.mktemp("live"))


@pytest.mark.parametrize("name", READING)
def test_stored_log_probs_give_the_loss_and_gradient_of_a_live_reference(scene: Scene, name: str) -> None:
    loss, norm = scene.loss_and_norm(name, scene.stored)
    expected, expected_norm = scene.loss_and_norm(name, scene.live)
    assert loss == pytest.approx(expected, abs=1e-5 * max(1.0, abs(expected)))
    assert norm == pytest.approx(expected_norm, abs=1e-5 * max(1.0, expected_norm))
    assert expected_norm > 0


@torch.no_grad()
def test_the_live_reference_is_what_transformers_gives(scene: Scene) -> None:
    place = 0
    for tree in scene.stored.trees:
        for branch in tree.branches:
            ids = torch.tensor([[*tree.trunk, *branch]])
            logits = scene.reference(ids).logits[0, len(tree.trunk) - 1 : -1].double()
            alone = logits.log_softmax(-1).gather(1, ids[0, len(tree.trunk) :, None])[:, 0]
            assert scene.live.token_reference is not None
            torch.testing.assert_close(scene.live.token_reference[place, : len(branch)], alone, atol=2e-5, rtol=0)
            place += 1


def test_the_policy_is_not_the_reference(scene: Scene) -> None:
    assert scene.live.reference is not None
    assert float((scene.measured.sums.detach() - scene.live.reference).abs().mean()) > 1e-2
