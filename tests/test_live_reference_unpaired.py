"""Stored log-probs are a live reference for losses of judged rows and of rankings too; see test_live_reference.py.

Judged rows are what build-unpaired makes of real pairs, frozen partners included; rankings are real scored completions.
"""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from prefdata import logprobs, models, versions
from prefdata.builds import ingest
from prefdata.builds.job import run
from prefdata.builds.unpaired import BuildUnpaired
from prefdata.builds.unpaired import Options as Unpaired
from tests.samples import samples_dir
from tests.test_live_reference import live
from trainers import data
from trainers.data import RowBatch
from trainers.groups import Groups
from trainers.loss import Reading, parse
from trainers.objectives import OBJECTIVES
from trainers.task import Measured, Task

READ = {"hh_helpful/train.jsonl": 40, "sentiment/imdb_completions.jsonl": 12}
KINDS = {"unpaired": 8, "completions": 3}  # rows of the forward, or prompts
READING = [
    (name, kind)
    for kind in KINDS
    for name, one in sorted(OBJECTIVES.items())
    if kind in one.batch.sides and one.batch.referenced
]


class Scenes:
    """By kind one forward of a policy that has moved a little, and the reference's log-probs stored and live."""

    def __init__(self, folder: Path) -> None:
        samples = samples_dir()
        self.model = str(samples / "models" / "stories260k")
        self.policy, self.reference = models.load_model(self.model), models.load_model(self.model)
        torch.manual_seed(0)
        with torch.no_grad():
            for parameter in self.policy.parameters():
                parameter += 0.02 * parameter.std() * torch.randn_like(parameter)
        self.batches: dict[str, tuple[RowBatch, RowBatch, Measured]] = {}
        root = str(folder / "data")
        for place, count in READ.items():
            (folder / Path(place).parent).mkdir()
            lines = (samples / place).read_text().split("\n")[:count]
            (folder / place).write_text("\n".join(lines) + "\n")
            source = (str(folder / place),)
            run(ingest.Ingest(ingest.Options(source=source, model=self.model, reference=self.model), root))
        run(BuildUnpaired(Unpaired(source="v1"), root))
        for kind, name in (("unpaired", "v3"), ("completions", "v2")):
            self.batches[kind] = self._batch(versions.find(name, root=root), kind, folder)

    def _batch(self, version: versions.Version, kind: str, folder: Path) -> tuple[RowBatch, RowBatch, Measured]:
        reading = Reading.of(kind, *(OBJECTIVES[name].batch for name, of in READING if of == kind))
        values = {name: value for name, value in reading.values.items() if name != "prompt_embedding"}
        read = data.load(version, "train", replace(reading, values=values), folder)
        rows: Any = Groups(read) if reading.grouped else read
        batch = data.collate([rows[int(place)] for place in rows.lengths.argsort()[: KINDS[kind]]])
        made = {**batch.values, "prompt_embedding": torch.eye(len(batch), dtype=torch.float64)}
        stored = replace(batch, values=made if kind == "unpaired" else batch.values)
        measured = Measured.of(stored, logprobs.forward(self.policy, batch.trees).logps)
        return stored, live(stored, self.reference), measured

    def loss_and_norm(self, name: str, kind: str, rows: RowBatch, measured: Measured) -> tuple[float, float]:
        """The mean loss, and the norm of its gradient."""
        (part,) = Task(parse(name, None, ()), kind).parts(rows, measured)
        loss = part.losses.mean()
        gradients = torch.autograd.grad(loss, list(self.policy.parameters()), retain_graph=True)
        return float(loss.detach()), math.sqrt(sum(float(each.double().square().sum()) for each in gradients))


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Scenes:
    return Scenes(tmp_path_factory.mktemp("live"))


@pytest.mark.parametrize(("name", "kind"), READING)
def test_stored_log_probs_give_the_loss_and_gradient_of_a_live_reference(scenes: Scenes, name: str, kind: str) -> None:
    stored, alive, measured = scenes.batches[kind]
    loss, norm = scenes.loss_and_norm(name, kind, stored, measured)
    expected, expected_norm = scenes.loss_and_norm(name, kind, alive, measured)
    assert loss == pytest.approx(expected, abs=1e-5 * max(1.0, abs(expected)))
    assert norm == pytest.approx(expected_norm, abs=1e-5 * max(1.0, expected_norm))
    assert expected_norm > 0


def test_every_judged_row_brings_a_partner_and_both_labels_are_there(scenes: Scenes) -> None:
    stored, _, _ = scenes.batches["unpaired"]
    assert stored.counts == [2] * KINDS["unpaired"]
    assert set(stored.values["label"].tolist()) == {True, False}
