"""The benchmarks of steps and scoring run at toy sizes; what they measure is never asserted, what they count is."""

from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import (
    dpo_step,
    gpu,
    operations,
    profile_step,
    reference_scores,
    results,
    scoring_threads,
    shared_prompt,
    step_memory,
)
from benchmarks.measure import Pair, Taken
from benchmarks.models import HALF_B, ONE_AND_A_HALF_B, TOY, build, resized
from benchmarks.results import Line, Report, faster, of_ceiling, table, write
from benchmarks.shapes import Shape, real_pairs
from prefdata.errors import UserError
from prefdata.logprobs import Tree
from tests.samples import samples_dir

TINY = resized(
    TOY,
    vocab_size=60,
    hidden_size=16,
    intermediate_size=32,
    num_hidden_layers=2,
    num_attention_heads=8,
    num_key_value_heads=4,
    head_dim=2,
)
SHAPE = Shape(6, 4, rows=2)


@pytest.fixture(autouse=True)
def _small_products(monkeypatch: pytest.MonkeyPatch) -> None:
    """The machine's rate in no time."""
    monkeypatch.setattr(operations, "SQUARE", 64)


def seconds(ours: float, theirs: float) -> Pair:
    return Pair(Taken(ours, ours), Taken(theirs, theirs), ours_first=True)


def test_models_have_the_size_that_they_are_named_for() -> None:
    for config, millions in ((TOY, 35), (HALF_B, 494), (ONE_AND_A_HALF_B, 1544)):
        assert round(step_memory.weights(config) / 4e6) == millions


def test_rows_of_a_shape_share_their_prompt_and_nothing_else() -> None:
    first, second = Shape(5, 3, rows=2, branches=4).trees(vocabulary=200)
    assert (len(first.trunk), [len(branch) for branch in first.branches]) == (5, [3] * 4)
    assert len({branch[0] for branch in first.branches}) == 4
    assert list(first.trunk) != list(second.trunk)
    assert str(Shape(5, 3)) == "5/3, 1 pair"
    assert str(Shape(5, 3, branches=4)) == "5/3, 1 prompt with 4 completions"


def test_operations_by_hand() -> None:
    """A prompt of 2 and completions of 2 and 1. The last token of a path predicts nothing and is not run."""
    model, tree = build(TINY), Tree([1, 2], [[3, 4], [5]])
    layer = 16 * (8 * 2) * 2 + 16 * (4 * 2) * 2 + 3 * 16 * 32  # query and output, key and value, gated network
    per_pair = 2 * 2 * (8 * 2)  # of a layer: query by key and weight by value, in all heads
    shared, padded = operations.shared(model, [tree]), operations.padded(model, [tree])
    assert shared.trunk == 2 * 2 * layer * 3
    assert shared.attention == 2 * per_pair * (1 + 2 + 3)
    assert shared.head == 2 * 60 * 16 * 2  # the last token of the prompt predicts both first tokens
    assert padded.trunk == 2 * 2 * layer * (4 + 3)
    assert padded.attention == 2 * per_pair * (1 + 2 + 3 + 4 + 1 + 2 + 3)
    assert padded.head == 2 * 60 * 16 * 3
    assert operations.padded(model, [tree], every=True).head == 2 * 60 * 16 * 7
    assert shared.total == shared.trunk + shared.attention + shared.head


def test_operations_agree_with_those_that_torch_counts() -> None:
    """Of matrices; attention is not among them."""
    from torch.utils.flop_counter import FlopCounterMode

    from prefdata import logprobs
    from prefdata.logprobs.layout import lay_out

    model, trees = build(TINY), SHAPE.trees(60)
    logprobs.forward(model, trees)
    with FlopCounterMode(display=False) as counted:
        logprobs.forward(model, trees)
    found = counted.get_flop_counts()["Global"]
    needed = operations.shared(model, trees)
    one = 2 * 60 * 16  # the model's own head is run on one place, and what it gives is thrown away
    counts = [count for name, count in found.items() if "attention" not in str(name)]
    row = lay_out(trees)
    part = sum(
        module.weight.numel() for module in model.model.layers[-1].mlp.modules() if isinstance(module, torch.nn.Linear)
    )
    left_out = (
        2 * (len(row.tokens) - len(row.predictors)) * part
    )  # of the last layer, which a ceiling does not count on
    assert left_out > 0
    assert sum(counts) == needed.trunk + needed.head + one - left_out


def test_a_reach_is_met_by_the_median() -> None:
    pairs = [seconds(1, 4), seconds(1, 5), seconds(1, 9)]
    assert faster("step", "TRL", pairs, 5.0).met
    assert not faster("step", "TRL", pairs, 5.1).met
    assert faster("step", "TRL", pairs, None).met is None
    assert of_ceiling("step", "padded", pairs, ceiling=5.5, reach=0.9).met
    assert not of_ceiling("step", "padded", pairs, ceiling=5.6, reach=0.9).met
    assert "5.00 (4.00 to 9.00) times: 1.00 s against 5.00 s" in faster("step", "TRL", pairs, 5.0).text()


def test_results_stand_between_their_marks(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(f"before\n{results.BEGIN}\nold\n{results.END}\nafter\n")
    report = Report("Steps", [Line("step", "TRL", "5 times", "at least 4", True)], ["- more"])
    for _ in range(2):
        write([report], ["machine: fast"], page)
    text = page.read_text()
    assert text.startswith("before\n")
    assert text.endswith("- more\n\n" + results.END + "\nafter\n")
    assert "old" not in text
    assert text.count("| step | TRL | 5 times | at least 4 | yes |") == 1
    (tmp_path / "other.md").write_text("nothing")
    with pytest.raises(UserError, match="no place for results"):
        write([report], [], tmp_path / "other.md")


def test_the_page_has_a_place_for_results(tmp_path: Path) -> None:
    copy = tmp_path / "benchmarks.md"
    copy.write_text(results.PAGE.read_text())
    write([Report("Nothing", [])], [], copy)


def check(report: Report, lines: int) -> None:
    assert len(report.lines) == lines
    assert len(table(report.lines).splitlines()) == lines + 2


def test_a_step_runs_on_both_sides_with_equal_losses() -> None:
    check(dpo_step.run(1, TINY, [(SHAPE, 5.0), (Shape(9, 3), None)], real_steps=0), 4)


def test_a_step_with_other_losses_is_no_measurement(monkeypatch: pytest.MonkeyPatch) -> None:
    other = dpo_step.examples
    monkeypatch.setattr(dpo_step, "examples", lambda trees, sums: other(trees, [[a + 1, b] for a, b in sums]))
    with pytest.raises(UserError, match="losses differ by"):
        dpo_step.run(1, TINY, [(SHAPE, None)], real_steps=0)


def test_real_pairs_are_those_that_fit() -> None:
    samples = samples_dir()
    trees = real_pairs(samples / dpo_step.REAL["HH"], samples / "tokenizers" / "gpt2", rows=6, longest=300)
    assert 0 < len(trees) <= 6
    assert all(tree.depth <= 300 and len(tree.branches) == 2 for tree in trees)


def test_scoring_runs_on_all_sides_with_equal_sums() -> None:
    check(reference_scores.run(1, TINY, SHAPE, Shape(6, 4, branches=5)), 3)
    check(scoring_threads.run(1, TINY, SHAPE), 1)


def test_shared_prompts_are_measured_against_their_ceiling() -> None:
    report = shared_prompt.run(1, {"tiny": TINY}, [SHAPE, Shape(6, 3, branches=4)])
    check(report, 2)
    assert "ceiling" in report.details[0]


def test_memory_is_that_of_a_process_of_its_own() -> None:
    assert 0 < step_memory.peak("ours", resized(TINY, vocab_size=300), Shape(4, 2)) < 2**30


def test_what_grows_with_the_weights_alone_does_not_grow_with_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    def peak(side: str, config: Any, shape: Shape) -> int:
        own = 6 * step_memory.weights(config)
        return own if side == "ours" else own + 4 * config.vocab_size * shape.rows * shape.completion

    monkeypatch.setattr(step_memory, "peak", peak)
    report = step_memory.run(TINY, (50, 500), [Shape(4, 2), Shape(4, 2, rows=2)])
    assert [line.met for line in report.lines] == [True, None, None]
    assert "6.0 times it; with twice the tokens 6.0 times" in report.lines[0].measured
    monkeypatch.setattr(step_memory, "peak", lambda side, *rest: peak("theirs", *rest))
    assert step_memory.run(TINY, (50, 500), [Shape(4, 2), Shape(4, 20, rows=2)]).lines[0].met is False


def test_the_costs_are_listed() -> None:
    report = profile_step.run(TINY, SHAPE, SHAPE)
    assert sum("aten::" in part for part in report.details) == 2


def test_the_gpu_benchmark_refuses_without_one(capsys: pytest.CaptureFixture[str]) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    assert results.command(gpu.run, []) == 2
    assert "finds no GPU" in capsys.readouterr().err


def test_the_gpu_benchmark_runs_where_it_is_told_to() -> None:
    check(gpu.run(1, "cpu", {"tiny": TINY}, SHAPE, Shape(6, 4, branches=3)), 2)
