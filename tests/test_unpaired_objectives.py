"""Losses of judged completions: identities, constants, edge cases, and TRL where it computes the same."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.testing import assert_close

from prefdata import exports, logprobs, models
from prefdata.errors import UserError
from prefdata.versions import Version
from tests.loss_batches import picked, random_batch
from tests.tiny_world import publish, save_model, with_reference
from tests.trainer_world import Talk, World
from tests.unpaired_world import judged_table
from trainers import data
from trainers.contract import check, check_rows
from trainers.loss import parse
from trainers.metrics import measure
from trainers.objectives import aot_unpaired, apo_zero_unpaired, bco, dpo, find, kto
from trainers.objectives.aot_unpaired import transport
from trainers.objectives.batch import Judged, JudgedWithMeans, JudgedWithPartner, ReferencedPair
from trainers.objectives.judged_ratios import log_ratio
from trainers.options import Options
from trainers.pools import Pools
from trainers.run import train
from trainers.task import Measured, Task

LN2 = math.log(2)
LOSSES: Any = pytest.mark.parametrize("loss", [kto, apo_zero_unpaired, bco, aot_unpaired])


def judged(ratios: list[float], labels: list[bool], kind: type[Judged] = Judged, **more: float) -> Any:
    """Rows whose log-ratios these are, all of weight 1; `more` are pooled means."""
    ratio = torch.tensor(ratios, dtype=torch.float64)
    zero, count = torch.zeros_like(ratio), torch.ones(len(ratios), dtype=torch.long)
    partner = {"partner": zero, "partner_tokens": count, "ref_partner": zero} if kind is JudgedWithPartner else {}
    means = dict.fromkeys(kind.pools, 0.0) | more
    return kind(
        completion=ratio - 7,
        completion_tokens=count,
        ref_completion=zero - 7,
        label=torch.tensor(labels),
        weight=torch.ones_like(ratio),
        **partner,
        **{name: torch.tensor(value, dtype=torch.float64) for name, value in means.items()},
    )


def slope(loss: Any, lp: Any, **knobs: float) -> Tensor:
    """The gradient of the summed losses in the log-ratios."""
    ratio = lp.completion.clone().requires_grad_()
    loss(replace(lp, completion=ratio), **knobs).sum().backward()
    assert ratio.grad is not None
    return ratio.grad


def doubles(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


# -- where policy equals reference ---------------------------------------------------------------------------------


@pytest.mark.parametrize("beta", [0.05, 0.1, 3.0])
def test_constants_and_slopes_where_policy_equals_reference(beta: float) -> None:
    both = [0.0, 0.0], [True, False]
    steep = doubles(-beta / 4, beta / 4)
    lp = judged(*both, JudgedWithPartner)
    assert_close(kto(lp, beta=beta, desirable_weight=1.3), doubles(1.3 / 2, 0.5))
    assert_close(slope(kto, lp, beta=beta), steep)
    assert_close(apo_zero_unpaired(judged(*both), beta=beta), doubles(0.5, 0.5))
    assert_close(slope(apo_zero_unpaired, judged(*both), beta=beta), steep)
    means = judged(*both, JudgedWithMeans)
    assert_close(bco(means, beta=beta), doubles(LN2, LN2))
    assert_close(slope(bco, means, beta=beta), 2 * steep)
    assert_close(aot_unpaired(judged(*both), beta=beta), doubles(LN2, LN2))


@LOSSES
def test_weights_multiply_or_share_out(loss: Any) -> None:
    lp = random_batch(find(loss.__name__).batch)
    double = replace(lp, weight=2 * lp.weight)
    factor = 1 if loss is aot_unpaired else 2  # a class's own weights add up to 1 there
    assert_close(loss(double), factor * loss(lp))


# -- kto -----------------------------------------------------------------------------------------------------------


def test_a_negative_estimate_is_exactly_0_and_a_positive_one_moves_the_bar() -> None:
    ratios, labels = [0.4, -1.2, 2.0], [True, False, False]
    at_0 = kto(judged(ratios, labels, JudgedWithPartner))
    assert torch.equal(kto(judged(ratios, labels, JudgedWithPartner, divergence=-3.0)), at_0)
    moved = kto(judged([ratio + 3 for ratio in ratios], labels, JudgedWithPartner, divergence=3.0))
    assert_close(moved, at_0)


def test_class_weights_of_kto_are_in_the_precision_of_the_rows() -> None:
    lp = judged([0.3, -0.4], [True, False], JudgedWithPartner)
    weighed = kto(lp, beta=0.1, desirable_weight=1.1, undesirable_weight=0.7)
    assert_close(weighed, doubles(1.1, 0.7) * kto(lp, beta=0.1), atol=1e-12, rtol=0)


def test_flipping_a_label_gives_what_is_missing_to_1() -> None:
    lp = judged([0.4, -1.2, 2.0], [True, False, False], JudgedWithPartner)
    assert_close(kto(replace(lp, label=~lp.label)), 1 - kto(lp))
    # equally weighed, the gradients of one answer under both labels cancel
    twice = judged([0.7, 0.7], [True, False], JudgedWithPartner, divergence=0.3)
    assert_close(slope(kto, twice).sum(), doubles(0.0)[0])


def test_no_gradient_flows_through_the_reference_point() -> None:
    lp = judged([0.4, -1.2], [True, False], JudgedWithPartner)
    partner = (lp.partner + 0.5).requires_grad_()
    total, count = JudgedWithPartner.pools["divergence"](replace(lp, partner=partner))
    assert not total.requires_grad
    assert (total / count).item() == pytest.approx(0.5)
    kto(replace(lp, partner=partner, completion=lp.completion.requires_grad_())).sum().backward()
    assert partner.grad is None


def test_kto_without_a_reference_point_is_apo_zero() -> None:
    lp = random_batch(JudgedWithPartner)
    lp = replace(lp, divergence=torch.zeros((), dtype=torch.float64))
    same = Judged(lp.completion, lp.completion_tokens, lp.ref_completion, lp.label, lp.weight)
    assert_close(kto(lp), apo_zero_unpaired(same))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("ratio", [-1e4, 0.0, 1e4])
@LOSSES
def test_extreme_ratios_are_finite(loss: Any, ratio: float, dtype: torch.dtype) -> None:
    lp = judged([ratio, ratio, 0.0, -ratio], [True, False, True, False], find(loss.__name__).batch)
    lp = replace(lp, **{name: getattr(lp, name).to(dtype) for name in ("completion", "ref_completion", "weight")})
    assert torch.isfinite(loss(lp)).all()
    assert torch.isfinite(slope(loss, lp)).all()
    if loss in (kto, apo_zero_unpaired) and ratio:
        assert_close(slope(loss, lp)[:2].abs().sum().item(), 0.0)  # saturated: ignored, as the docstrings say


def test_diagnostics_show_the_estimate_before_and_after_and_who_is_ignored() -> None:
    lp = judged([100.0, 0.0, -100.0], [True, True, False], JudgedWithPartner, divergence=-2.0)
    means = measure(lp, find("kto"), {"beta": 0.1}).means()
    assert (means["kto/kl_estimate"], means["kto/kl"]) == (-2.0, 0.0)
    assert means["saturation/beyond_6"] == pytest.approx(2 / 3)
    assert means["rewards/chosen"] == pytest.approx(5.0)
    assert means["rewards/rejected"] == pytest.approx(-10.0)
    assert means["rewards/margins"] == pytest.approx(15.0)
    assert means["labels/desirable"] == pytest.approx(2 / 3)


@LOSSES
@pytest.mark.parametrize("label", [True, False])
def test_a_forward_of_one_class_alone_is_legal(loss: Any, label: bool) -> None:
    lp = judged([0.4, -1.2], [label, label], find(loss.__name__).batch)
    losses = loss(replace(lp, completion=lp.completion.requires_grad_()))
    assert torch.isfinite(losses).all()
    losses.sum().backward()  # connected, so that every process has a gradient
    means = measure(lp, find(loss.__name__), {"beta": 0.1}).means()
    assert all(math.isfinite(value) for value in means.values())
    assert "rewards/margins" not in means


# -- bco -----------------------------------------------------------------------------------------------------------


def test_bco_is_above_dpo_whatever_the_shift_is() -> None:
    generator = np.random.default_rng(0)
    for x, y, delta in generator.normal(0, 4, (200, 3)):
        lp = judged([x, y], [True, False], JudgedWithMeans, desirable_mean=delta, undesirable_mean=delta)
        assert bco(lp, beta=1.0).sum() > F.softplus(doubles(y - x))[0]


def test_the_shift_lies_between_the_class_means_and_minimises_the_bound() -> None:
    lp = judged([1.0, 3.0, -1.0], [True, True, False], JudgedWithMeans)
    sums = [pool(lp) for pool in JudgedWithMeans.pools.values()]
    assert [(total / count).item() for total, count in sums] == [2.0, -1.0]
    high, low = 1.7, -0.4
    delta = doubles((high + low) / 2).requires_grad_()
    (torch.exp(-(high - delta)) + torch.exp(low - delta)).sum().backward()
    assert delta.grad is not None
    assert abs(delta.grad.item()) < 1e-12
    moved = replace(lp, desirable_mean=doubles(high)[0], undesirable_mean=doubles(low)[0])
    expected = F.softplus(torch.where(lp.label, -1.0, 1.0) * 0.5 * (log_ratio(lp) - (high + low) / 2))
    assert_close(bco(moved, beta=0.5), expected)


def test_a_wrong_row_keeps_its_gradient() -> None:
    lp = judged([-1e3, 1e3], [True, False], JudgedWithMeans)
    assert_close(slope(bco, lp, beta=0.1), doubles(-0.1, 0.1))


# -- aot -----------------------------------------------------------------------------------------------------------


def sorted_apart(lp: Any, beta: float) -> Tensor:
    """The definition for equal counts: sorted against sorted."""
    ratios = log_ratio(lp)
    return F.softplus(-beta * (ratios[lp.label].sort().values - ratios[~lp.label].sort().values)).mean()


def test_equal_counts_compare_sorted_with_sorted() -> None:
    lp = random_batch(Judged, rows=8)
    lp = replace(lp, label=torch.arange(8) % 2 == 0, weight=torch.ones(8).double())
    assert_close(aot_unpaired(lp, beta=0.3).mean(), sorted_apart(lp, 0.3))


def test_one_row_of_each_is_dpo() -> None:
    lp = judged([0.8, -0.3], [True, False])
    one = torch.ones(1)
    pair = ReferencedPair(doubles(0.8), doubles(-0.3), one, one, doubles(0.0), doubles(0.0))
    assert_close(aot_unpaired(lp, beta=0.4, label_smoothing=0.1).mean(), dpo(pair, beta=0.4, label_smoothing=0.1)[0])


def test_unequal_counts_and_weights_are_rows_repeated() -> None:
    """A row of weight 3 counts as three rows of weight 1, and four rows against two as each of the two twice."""
    lp = judged([1.0, 2.0, 0.3, 0.7, -1.0, 5.0], [True, True, False, False, False, False])
    repeated = picked(lp, torch.tensor([0, 0, 1, 1, 2, 3, 4, 5]))
    assert_close(aot_unpaired(lp, beta=0.3).mean(), sorted_apart(repeated, 0.3))
    weighed = replace(judged([1.0, 2.0, 0.3], [True, True, False]), weight=doubles(3.0, 1.0, 1.0))
    three = judged([1.0, 1.0, 1.0, 2.0] + 4 * [0.3], 4 * [True] + 4 * [False])
    assert_close(aot_unpaired(weighed, beta=0.3).mean(), sorted_apart(three, 0.3))


def test_the_plan_keeps_all_mass_and_ties_are_harmless() -> None:
    lp = judged(4 * [0.5] + 3 * [-0.5], [True] * 4 + [False] * 3)
    desirable, undesirable, mass = transport(log_ratio(lp), lp.label, lp.weight)
    assert mass.sum().item() == pytest.approx(1.0)
    for rows, count in ((desirable, 4), (undesirable, 3)):
        assert_close(torch.zeros(7).double().index_add(0, rows, mass).unique().max(), doubles(1 / count)[0])
    assert_close(aot_unpaired(lp, beta=1.0).mean(), F.softplus(doubles(-1.0))[0])


def test_the_gradient_follows_the_order() -> None:
    lp = random_batch(Judged, rows=6)
    lp = replace(lp, label=torch.arange(6) < 3, weight=torch.ones(6).double())
    ratio = lp.completion.clone().requires_grad_()
    sorted_apart(replace(lp, completion=ratio), 0.3).backward()
    assert_close(slope(aot_unpaired, lp, beta=0.3) / 6, ratio.grad)


# -- from rows to the loss -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_model(tmp_path_factory.mktemp("unpaired") / "model")


@pytest.fixture(scope="module")
def version(model: str, tmp_path_factory: pytest.TempPathFactory) -> Version:
    splits = {"train": judged_table(26, model, seed=1), "test": judged_table(8, model, seed=2)}
    return publish(tmp_path_factory.mktemp("data"), splits, model, kind="unpaired", reference_model=model)


def measured(version: Version, loss: str, policy: Any, folder: Path, rows: int = 6) -> tuple[Task, data.RowBatch, Any]:
    task = Task(parse(loss, None, ()), "unpaired")
    read = data.load(version, "train", task.loss.reading("unpaired"), folder)
    batch = data.collate([read[place] for place in range(rows)])
    return task, batch, Measured.of(batch, logprobs.forward(policy, batch.trees).logps)


def test_stored_partners_hang_on_the_rows_own_prompt(version: Version, model: str, tmp_path: Path) -> None:
    task, batch, found = measured(version, "kto", models.load_model(model), tmp_path)
    lp: Any = task.batch(batch, found)
    assert len(batch.trees[0].branches) == 2
    assert_close(lp.partner, lp.ref_partner, atol=1e-4, rtol=0)  # the policy is the reference
    assert lp.divergence.item() == pytest.approx(0, abs=1e-4)


def test_the_estimate_is_averaged_over_processes_before_it_is_clamped(
    version: Version, model: str, tmp_path: Path
) -> None:
    """Clamped first, a process whose own mean is below 0 would count as 0."""
    task, batch, found = measured(version, "kto", models.load_model(model), tmp_path)

    class Elsewhere(Pools):
        def __call__(self, contract: Any, sums: Tensor, counts: Tensor) -> Tensor:
            return (sums - 60.0) / (counts + 12)  # twelve rows in other processes, with a mean of -5

    shifted = replace(batch, reference=batch.reference - 6)  # type: ignore[operator]
    lp: Any = task.batch(shifted, found, Elsewhere())
    assert lp.divergence.item() == pytest.approx((6 * 6 - 60) / 18, abs=1e-4)
    assert_close(kto(lp), kto(replace(lp, divergence=torch.zeros_like(lp.divergence))))


@pytest.mark.parametrize("loss", ["kto", "bco", "apo_zero_unpaired", "aot_unpaired"])
def test_a_run_learns_from_judged_rows(version: Version, loss: str, tmp_path: Path) -> None:
    said = Talk()
    options = Options(
        data=version.url,
        loss=loss,
        lr=3e-3,
        steps=8,
        batch_size=8,
        accumulate=1,
        dtype="float32",
        out=str(tmp_path / "r"),
    )
    result = train(replace(options, set=("beta=0.5",)), say=said)
    start = 0.5 if loss in ("kto", "apo_zero_unpaired") else LN2
    assert result.before["loss"] == pytest.approx(start, abs=2e-3)
    assert result.after["loss"] < result.before["loss"] - 1e-3
    assert result.after["rewards/margins"] > 0
    assert any("the policy is the stored reference" in line for line in said)


# -- contracts -----------------------------------------------------------------------------------------------------


def refusal(version: Version, loss: str, folder: Path) -> str:
    options = Options(data=version.url, loss=loss, steps=1, dtype="float32", out=str(folder / "run"))
    with pytest.raises(UserError) as refused:
        train(options, say=Talk())
    return str(refused.value)


def test_losses_that_compare_rows_say_so_and_need_two(version: Version, tmp_path: Path) -> None:
    options = Options(data=version.url, loss="aot_unpaired", steps=1, dtype="float32", out=str(tmp_path / "run"))
    said = Talk()
    train(options, say=said)
    assert "so --batch-size" in said.text
    with pytest.raises(UserError, match="--batch-size 1 never has both"):
        train(replace(options, batch_size=1), say=Talk())


def test_one_class_alone_is_refused(model: str, tmp_path: Path) -> None:
    rows = judged_table(6, model, seed=1)
    only = rows.filter(rows["label"])
    version = publish(tmp_path / "data", {"train": only}, model, kind="unpaired", reference_model=model)
    assert "every train row of data version v1 has the label true, and --loss kto" in refusal(version, "kto", tmp_path)


def test_missing_partners_name_the_flow_and_what_needs_none(model: str, tmp_path: Path) -> None:
    rows = judged_table(6, model, seed=1)
    rows = rows.drop_columns([name for name in rows.column_names if "partner" in name])
    version = publish(tmp_path, {"train": rows}, model, kind="unpaired", reference_model=model)
    with pytest.raises(UserError) as refused:
        check(version, parse("kto", None, ()))
    assert "--loss kto reads partner_ids and ref_partner_logps" in str(refused.value)
    assert "python -m flows.build_unpaired v1" in str(refused.value)
    assert "aot_unpaired, apo_zero_unpaired, bco" in str(refused.value)


def test_pairs_are_no_judged_rows_and_the_flow_that_makes_them_is_named(
    model: str, tmp_path: Path, version: Version
) -> None:
    from tests.tiny_world import pair_rows, table

    pairs = publish(tmp_path, {"train": table(pair_rows(3))}, model)
    with pytest.raises(UserError, match=r"python -m flows\.build_unpaired v1"):
        check(pairs, parse("kto", None, ()))
    with pytest.raises(UserError, match="--loss dpo reads pairs, and data version v1 holds unpaired"):
        check(version, parse("dpo", None, ()))


@pytest.mark.parametrize(
    ("column", "values", "said"),
    [
        ("label", pa.array([1, 0, 1, 0], pa.int64()), "column label of data version v1 is int64"),
        ("weight", pa.array([1.0, 0.0, 1.0, -1.0]), "2 rows of data version v1: weight is not above 0"),
        ("weight", pa.array([1.0, math.nan, 1.0, 1.0]), "weight is not finite"),
        ("label", pa.array([True, None, True, False]), "label is missing"),
    ],
)
def test_labels_are_true_or_false_and_weights_above_0(
    version: Version, model: str, column: str, values: pa.Array, said: str
) -> None:
    rows = judged_table(4, model, seed=1)
    rows = rows.set_column(rows.schema.get_field_index(column), column, values)
    with pytest.raises(UserError) as refused:
        check_rows(rows, parse("kto", None, ()).reading("unpaired"), version)
    assert said in str(refused.value)


# -- TRL 1.16 ------------------------------------------------------------------------------------------------------
#
# kto, apo_zero_unpaired: KTOTrainer's loss on the same rows and, for kto, the same partners; see test_exports_trl.py for
#   its own choice of partners, which hangs on the order of the rows.
# aot_unpaired, bco (as bco_pair, whose shift is 0): DPOTrainer's, whose two sides are rows of either class.
# bco with its shift: TRL 1.16 has no BCOTrainer any more, and the one it had took for delta the mean of all rewards since
#   the start, where the paper has the midpoint of two class means.


def trl_settings(folder: Path, **more: Any) -> dict[str, Any]:
    return {
        "output_dir": str(folder / "run"),
        "max_steps": 1,
        "max_length": None,
        "use_cpu": True,
        "bf16": False,
        "gradient_checkpointing": False,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        **more,
    }


def exported(version: Version, folder: Path) -> Any:
    import datasets

    place = exports.export(version, "trl", out=str(folder / "export")).folder
    return datasets.load_dataset(str(place), split="train", cache_dir=str(folder / "cache"))


def first_loss(trainer: Any) -> float:
    found: list[float] = []
    compute = trainer.compute_loss

    def recorded(*args: Any, **kwargs: Any) -> Any:
        loss = compute(*args, **kwargs)
        found.append(loss.item())
        return loss

    trainer.compute_loss = recorded
    trainer.train()
    return found[0]


@pytest.fixture
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A policy that is not the reference. TRL tells its makers of every trainer, unless CI is set."""
    monkeypatch.setenv("CI", "1")
    return save_model(tmp_path / "policy", seed=5)


@pytest.mark.parametrize("loss", ["kto", "apo_zero_unpaired"])
def test_trl_gives_the_same_on_the_same_rows_and_partners(
    version: Version, loss: str, elsewhere: str, tmp_path: Path
) -> None:
    from transformers import AutoTokenizer
    from trl import KTOConfig

    from examples.with_trl.stored_reference import StoredReferenceKTOTrainer

    config = KTOConfig(
        **trl_settings(tmp_path, per_device_train_batch_size=6, loss_type=loss, beta=0.3, undesirable_weight=1.2)
    )
    policy = models.load_model(elsewhere)
    trainer = StoredReferenceKTOTrainer(
        policy, config, exported(version, tmp_path), processing_class=AutoTokenizer.from_pretrained(elsewhere)
    )
    task, batch, found = measured(version, loss, models.load_model(elsewhere), tmp_path)
    lp: Any = task.batch(batch, found)
    weights = torch.where(lp.label, 1.0, 1.2).double()
    assert lp.weight.tolist() == [1.0] * 6
    ours = find(loss).loss(replace(lp, weight=weights), beta=0.3)
    if loss == "kto":
        assert abs(lp.divergence.item()) > 0.01
        assert_close(kto(lp, beta=0.3, undesirable_weight=1.2), ours)
    assert first_loss(trainer) == pytest.approx(ours.mean().item(), abs=1e-4)


@pytest.mark.parametrize("loss_type", ["aot_unpaired", "bco_pair"])
def test_trl_gives_the_same_on_pairs_taken_apart(world: World, loss_type: str, elsewhere: str, tmp_path: Path) -> None:
    from transformers import AutoTokenizer
    from trl import DPOConfig

    from examples.with_trl.stored_reference import StoredReferenceDPOTrainer

    rows = world.version.table("train").slice(0, 5)
    config = DPOConfig(
        **trl_settings(
            tmp_path,
            per_device_train_batch_size=5,
            loss_type=loss_type,
            beta=0.3,
            train_sampling_strategy="sequential",
            label_smoothing=0.1 if loss_type == "aot_unpaired" else 0.0,
        )
    )
    given = exported(world.version, tmp_path).select(range(5))
    trainer = StoredReferenceDPOTrainer(
        models.load_model(elsewhere), config, given, processing_class=AutoTokenizer.from_pretrained(elsewhere)
    )
    sums = with_reference(rows, elsewhere)
    ratios = [
        [new - old for new, old in zip(sums[name].to_pylist(), rows[name].to_pylist(), strict=True)]
        for name in ("ref_chosen_logps", "ref_rejected_logps")
    ]
    both, labels = ratios[0] + ratios[1], 5 * [True] + 5 * [False]
    if loss_type == "aot_unpaired":
        ours = aot_unpaired(judged(both, labels), beta=0.3, label_smoothing=0.1).mean()
    else:
        ours = bco(judged(both, labels, JudgedWithMeans), beta=0.3).sum() / 5
    assert first_loss(trainer) == pytest.approx(ours.item(), abs=1e-4)
