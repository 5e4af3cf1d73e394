"""--loss, --weights and --set as one loss: sums of terms, whose knob is meant, and what makes no sense."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from prefdata import models
from prefdata.errors import UserError
from tests.tiny_world import pair_rows, publish, table, with_reference
from tests.trainer_world import Talk, World, make_world, rows_of, task_of
from trainers import data
from trainers.loop import step
from trainers.loss import Reading, parse
from trainers.objectives import Demonstration, ReferencedPair
from trainers.objectives.batch import PreferredPair
from trainers.options import Options
from trainers.run import train
from trainers.task import Task

PLAIN = {"divergence": "reverse_kl", "divergence_alpha": 0.5}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return make_world(tmp_path_factory.mktemp("sums"), plain=20, held_out=6)


@pytest.fixture
def options(world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Options:
    monkeypatch.chdir(tmp_path)
    return replace(world.options, steps=3)


def test_one_objective_is_itself() -> None:
    loss = parse("dpo", None, ["beta=0.3"])
    assert loss.name == "dpo"
    assert loss.knobs() == {"beta": 0.3, "label_smoothing": 0.0, **PLAIN}
    assert loss.weights() == [1.0]
    assert parse("dpo", None, ["dpo.beta=0.3"]).knobs() == loss.knobs()


def test_a_sum_reads_what_all_of_its_terms_read() -> None:
    loss = parse("dpo+sft", "1,0.2", ["beta=0.3"])
    assert loss.name == "dpo+sft"
    assert loss.weights() == [1.0, 0.2]
    assert loss.kinds == ("pairs",)
    assert loss.referenced
    assert loss.reading("pairs") == Reading(("chosen", "rejected"), {}, referenced=True)
    assert loss.reading("pairs") == Reading.of("pairs", Demonstration, ReferencedPair, ReferencedPair)
    assert loss.knobs() == {"dpo": {"beta": 0.3, "label_smoothing": 0.0, **PLAIN}, "sft": {}}


@pytest.mark.parametrize(
    ("loss", "weights", "settings", "said"),
    [
        ("dpo+dpo", None, [], "names dpo twice"),
        ("dpo+nothing", None, [], "there is no such loss"),
        ("dpo+sft", "1", [], "are 1 numbers, and --loss dpo+sft has 2 terms"),
        ("dpo+sft", "1,much", [], "give numbers with commas"),
        ("dpo+sft", "1,0", [], "must be above 0"),
        ("dpo+simpo", None, ["beta=1"], "say --set dpo.beta=1 or --set simpo.beta=1"),
        ("dpo+sft", None, ["gamma=1"], "no term has a knob called 'gamma': dpo has beta=0.1"),
        ("dpo+sft", None, ["ipo.tau=1"], "there is no term 'ipo'; the terms are dpo and sft"),
        ("dpo+sft", None, ["dpo.beta=0"], "must be above 0"),
    ],
)
def test_a_sum_that_makes_no_sense_is_one_sentence(
    loss: str, weights: str | None, settings: list[str], said: str
) -> None:
    with pytest.raises(UserError) as refused:
        parse(loss, weights, settings)
    assert said in str(refused.value)


def test_the_gradient_of_a_sum_is_the_weighted_sum_of_gradients(world: World, tmp_path: Path) -> None:
    def gradient(task: Task) -> torch.Tensor:
        model = models.load_model(world.model)
        rows = data.load(world.version, "train", task.loss.reading("pairs"), tmp_path)
        batch = data.collate([rows[place] for place in range(7)])
        outcome = step(model, batch, task)
        outcome.share([task.items(term, batch) for term in task.loss.terms]).backward()
        return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])

    whole = gradient(Task(parse("dpo+sft", "1,0.2", ()), "pairs"))
    parts = gradient(task_of("dpo")) + 0.2 * gradient(task_of("sft"))
    assert float((whole - parts).norm()) <= 1e-6 * float(parts.norm())


def test_tokens_of_a_term_are_those_of_its_own_sides(world: World, tmp_path: Path) -> None:
    task = Task(parse("dpo+sft", None, ()), "pairs")
    rows = data.load(world.version, "train", task.loss.reading("pairs"), tmp_path)
    batch = data.collate([rows[place] for place in range(5)])
    pairs, imitation = task.loss.terms
    assert task.items(pairs, batch) == 5
    assert task.items(imitation, batch) == sum(rows[place].sides[0].tokens for place in range(5))


def test_a_run_logs_the_sum_and_its_terms(options: Options) -> None:
    result = train(replace(options, loss="dpo+sft", weights="1,0.2"), say=Talk())
    assert result.folder.name == "v1-dpo+sft-1"
    for metrics in (result.before, result.after):
        assert metrics["loss"] == pytest.approx(metrics["loss/dpo"] + 0.2 * metrics["loss/sft"])
        assert metrics["loss/sft"] == pytest.approx(metrics["nll_loss"])


def test_values_of_a_row_come_with_it(world: World, tmp_path: Path) -> None:
    batch_reading = Reading.of("pairs", PreferredPair)
    rows = data.load(world.version, "train", batch_reading, tmp_path)
    batch = data.collate([rows[place] for place in range(3)])
    assert batch.values["preference"].tolist() == [0.6, 0.65, 0.7]
    plain = publish(tmp_path / "plain", {"train": with_reference(table(pair_rows(3)), world.model)}, world.model)
    batch = data.collate([*map(data.load(plain, "train", batch_reading, tmp_path).__getitem__, range(3))])
    assert batch.values["preference"].tolist() == [1.0] * 3  # absent: sure


def test_a_term_that_reads_one_side_gives_what_it_gives_alone(world: World, tmp_path: Path) -> None:
    both = rows_of(world.version, "dpo", tmp_path)
    one = rows_of(world.version, "sft", tmp_path)
    model = models.load_model(world.model)
    picked = range(12)
    alone = step(model, data.collate([one[place] for place in picked]), task_of("sft")).losses
    task = Task(parse("dpo+sft", None, ()), "pairs")
    together = step(model, data.collate([both[place] for place in picked]), task).parts[1].losses
    torch.testing.assert_close(together, alone)
