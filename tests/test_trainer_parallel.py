"""One run in two processes over gloo: the weights of one process with twice the batch, one folder, one voice."""

import errno
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from prefdata.errors import UserError
from tests.tiny_world import pair_rows, publish, table
from tests.trainer_world import Started, Talk, World, arguments, rows_of, stop_after, weights
from trainers import checkpoints, runs, steps
from trainers.options import Options
from trainers.processes import Elsewhere, Processes, joined, speaks
from trainers.run import train

PROJECT = Path(__file__).parents[1]
RUN = "run"

COSTS = ("runtime", "seconds", "memory")  # what is not the same twice


def options_of(small_world: World) -> Options:
    """On into a second epoch."""
    return replace(small_world.options, steps=5, save_every=2, eval_every=2)


def halved(options: Options) -> Options:
    """For two processes, what one process with twice the batch does."""
    return replace(options, batch_size=options.batch_size // 2)


@pytest.fixture(scope="module")
def two(small_world: World, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two processes that nothing interrupts."""
    folder = tmp_path_factory.mktemp("two")
    started = Started(folder, halved(replace(options_of(small_world), out=RUN)), processes=2)
    assert started.wait() == [0, 0], started.said()
    assert started.said(1) == ""
    return folder / RUN


def assert_equal_weights(one: dict[str, Tensor], other: dict[str, Tensor]) -> None:
    """To 1e-6 of each weight's norm: what float32 keeps of sums in another order."""
    assert one.keys() == other.keys()
    for name, value in one.items():
        assert float((value - other[name]).norm()) <= 1e-6 * float(value.norm()), name


# -- who reads what ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("batch_tokens", [None, 120])
@pytest.mark.parametrize("size", [1, 2, 3])
@pytest.mark.parametrize("rows", [1, 5, 8, 69])
def test_every_row_is_read_once_an_epoch_in_equally_many_micro_batches(
    rows: int, size: int, batch_tokens: int | None
) -> None:
    lengths = np.random.default_rng(0).integers(1, 99, rows)
    order = steps.EpochOrder(lengths, seed=0, rows_per_step=2 * 2 * size)
    shares = [
        list(steps.MicroBatches(order, 2, batch_tokens=batch_tokens, rank=rank, size=size)) for rank in range(size)
    ]
    assert {len(share) for share in shares} == {len(steps.MicroBatches(order, 2))}
    for cuts, expected in zip(zip(*shares, strict=True), order.steps(), strict=True):
        assert len({len(cut) for cut in cuts}) == 1
        assert sorted(row for cut in cuts for batch in cut for row in batch) == sorted(expected)
        for batch in (batch for cut in cuts for batch in cut):
            if batch_tokens is None:
                assert len(batch) <= 2
            else:
                assert len(batch) < 2 or lengths[batch].sum() <= batch_tokens
    assert sorted(row for share in shares for cut in share for batch in cut for row in batch) == list(range(rows))


def test_an_epoch_has_an_order_of_its_own_through_the_loader(small_world: World, tmp_path: Path) -> None:
    rows = rows_of(small_world.version, "sft", tmp_path)
    loader = steps.Loader(rows, steps.MicroBatches(steps.EpochOrder(rows.lengths, 0, 8), 4))

    def read(epoch: int) -> list[str]:
        loader.set_epoch(epoch)
        return [row_id for step in loader for batch in step.batches for row_id in batch.row_ids]

    assert read(0) != read(1)
    assert sorted(read(0)) == sorted(read(1))


# -- equal to one process ------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_torchrun_gives_the_weights_of_one_process_with_twice_the_batch(
    small_world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """sft counts tokens, and 5 rows in steps of 4 leave a process without a row in every second step."""
    monkeypatch.chdir(tmp_path)
    few = publish(
        tmp_path / "few", {"train": table(pair_rows(5)), "test": table(pair_rows(3, seed=1))}, small_world.model
    )
    options = replace(options_of(small_world), data=few.url, loss="sft", steps=4, accumulate=1)
    one = train(replace(options, out="one"), say=Talk())
    line = [*arguments(halved(options))]
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "-m", "trainers.run", *line],
        env=os.environ | {"PYTHONPATH": str(PROJECT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("done: 4 steps") == 1
    assert "in 2 processes" in done.stdout
    assert [path.name for path in Path("runs").iterdir()] == ["v1-sft-1"]
    assert_equal_weights(weights("one"), weights("runs/v1-sft-1"))
    result = runs.read(Path("runs/v1-sft-1"))
    assert result is not None
    for part, expected in (("before", one.before), ("after", one.after), ("train", one.train)):
        own = {name: value for name, value in result[part].items() if not any(word in name for word in COSTS)}
        assert own == pytest.approx({name: expected[name] for name in own}, rel=1e-5, abs=1e-6)


@pytest.mark.slow
def test_a_pair_loss_too(small_world: World, two: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert_equal_weights(weights(train(options_of(small_world), say=Talk()).folder), weights(two))


@pytest.mark.slow
def test_an_adapter_in_micro_batches_with_recomputed_activations_too(
    small_world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    changes = {"lora_rank": 4, "merge": True, "gradient_checkpointing": True, "batch_size": 2, "accumulate": 4}
    options = replace(options_of(small_world), **changes, early_stop=9)  # type: ignore[arg-type]
    one = train(replace(options, out="one"), say=Talk())
    started = Started(tmp_path, halved(replace(options, out=RUN)), processes=2)
    assert started.wait() == [0, 0], started.said()
    assert_equal_weights(weights("one"), weights(RUN))
    result = runs.read(Path(RUN))
    assert result is not None
    assert result["best_step"] == one.best_step


# -- going on ------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_two_killed_processes_go_on_and_end_in_the_same_weights(small_world: World, two: Path, tmp_path: Path) -> None:
    options = halved(replace(options_of(small_world), out=RUN))
    started = Started(tmp_path, options, processes=2)
    while started.running and not checkpoints.path(tmp_path / RUN, 2).exists():
        time.sleep(0.001)
    assert started.kill()
    again = Started(tmp_path, options, processes=2)
    assert again.wait() == [0, 0], again.said()
    assert "going on with the unfinished run" in again.said()
    assert "from checkpoint-" in again.said()
    assert (tmp_path / RUN / "model.safetensors").read_bytes() == (two / "model.safetensors").read_bytes()


def test_a_run_of_another_number_of_processes_is_another_run(
    small_world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    stopped = train(options_of(small_world), say=stop_after(1))
    content = (stopped.folder / "run.json").read_text()
    (stopped.folder / "run.json").write_text(content.replace('"processes": 1', '"processes": 2'))
    with pytest.raises(UserError, match="processes: 2 then, 1 now"):
        train(replace(options_of(small_world), out=str(stopped.folder)), say=Talk())
    talk = Talk()
    assert train(options_of(small_world), say=talk).folder != stopped.folder
    assert "runs/v1-dpo-1 is this run in 2 processes, unfinished" in talk.text


# -- one voice -----------------------------------------------------------------------------------------------------


def fails_in_the_second() -> None:
    """What only the second process meets."""
    from prefdata import models

    def gone(*_: object, **__: object) -> None:
        raise UserError("the model is gone from here.")

    if os.environ["RANK"] == "1":
        models.load_model = gone  # type: ignore[assignment]


def not_finite_in_the_second() -> None:
    """A row of the second process whose loss is not finite."""
    from prefdata import logprobs

    true_forward = logprobs.forward

    def forward(model: torch.nn.Module, trees: object, **asked: object) -> logprobs.Scores:
        scores = true_forward(model, trees, **asked)  # type: ignore[arg-type]
        if not model.training:
            return scores
        return replace(scores, logps=(scores.logps[0] * float("nan"), *scores.logps[1:]))

    if os.environ["RANK"] == "1":
        logprobs.forward = forward


def no_space_in_the_second() -> None:
    """A full disk where the second process copies its rows."""

    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    if os.environ["RANK"] == "1":
        tempfile.mkstemp = full  # type: ignore[assignment]


def no_memory_in_the_second() -> None:
    """A device that the second process fills up in a step, while the first waits for its gradient."""
    from prefdata import logprobs

    true_forward = logprobs.forward

    def forward(model: torch.nn.Module, trees: object, **asked: object) -> logprobs.Scores:
        if model.training:
            raise torch.OutOfMemoryError("out of memory")
        return true_forward(model, trees, **asked)  # type: ignore[arg-type]

    if os.environ["RANK"] == "1":
        logprobs.forward = forward


@pytest.mark.parametrize(
    ("before", "said", "left"),
    [
        (no_space_in_the_second, "stopped by the machine: no space left on device", False),
        (fails_in_the_second, "the model is gone from here.", False),
        (not_finite_in_the_second, "the loss is not finite at step 1, from row ", True),
    ],
)
def test_an_error_of_one_process_ends_all_with_one_message(
    small_world: World, tmp_path: Path, before: Callable[[], None], said: str, left: bool
) -> None:
    started = Started(tmp_path, halved(replace(options_of(small_world), out=RUN)), processes=2, before=before)
    codes = started.wait()
    lines = [line for rank in (0, 1) for line in started.said(rank).splitlines()]
    assert sorted(codes, key=str) == [0, 2]
    assert len([line for line in lines if said in line]) == 1
    assert "Traceback" not in "".join(lines)
    assert (tmp_path / RUN).exists() == left


def test_a_process_that_is_gone_is_one_sentence_of_the_other(small_world: World, tmp_path: Path) -> None:
    started = Started(
        tmp_path, halved(replace(options_of(small_world), out=RUN)), processes=2, before=no_memory_in_the_second
    )
    assert started.wait() == [2, 2]
    assert started.said(1).startswith("the device has no memory for 2 rows at once. Give a smaller --batch-tokens")
    assert "another process of the run stopped, and this one with it; the same command goes on" in started.said(0)
    assert not any("Traceback" in started.said(rank) for rank in (0, 1))


def test_what_both_processes_find_wrong_is_said_once(small_world: World, tmp_path: Path) -> None:
    started = Started(tmp_path, replace(options_of(small_world), steps=-1), processes=2)
    assert started.wait() == [2, 0]
    assert started.said(0) == "--steps is -1; it must be above 0.\n"
    assert started.said(1) == ""


def test_several_processes_without_torchrun_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.delenv("MASTER_ADDR", raising=False)
    with pytest.raises(UserError, match="start several processes with torchrun"), joined():
        pass


def test_more_processes_than_gpus_are_refused_in_all_of_them_and_by_one_voice(monkeypatch: pytest.MonkeyPatch) -> None:
    """One that went on would wait for the others."""
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    told = {"WORLD_SIZE": "3", "LOCAL_WORLD_SIZE": "3", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}
    for name, value in told.items():
        monkeypatch.setenv(name, value)
    for rank in ("0", "1", "2"):
        monkeypatch.setenv("RANK", rank)
        monkeypatch.setenv("LOCAL_RANK", rank)
        with (
            pytest.raises(
                UserError, match="3 processes here, and there are 2 GPUs: give --nproc_per_node 2"
            ) as refused,
            joined(),
        ):
            pass
        assert isinstance(refused.value, Elsewhere) == (rank != "0")


def test_a_world_size_that_is_empty_is_one_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "")
    with joined() as processes:
        assert processes == Processes()
    assert speaks()
