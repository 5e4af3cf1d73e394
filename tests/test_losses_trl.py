"""TRL 1.16's losses on the same log-probs: equal where the definitions are, and why not where they aren't.

TRL's own code runs: its trainers' methods, called on a stand-in for the trainer, and on a model that gives the log-probs of
a batch. Where the two differ, `DEPARTURES` says how, and the test that ours is the right side of it is named there.
"""

from collections import defaultdict
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from tests.loss_batches import random_batch, random_pairs
from trainers.objectives import (
    OBJECTIVES,
    Pair,
    ReferencedPair,
    alphapo,
    aot,
    apo_down,
    apo_zero,
    bco_pair,
    cpo,
    discopop,
    dpo,
    dpo_nll_token,
    dpo_norm,
    exo,
    ipo,
    ipo_mean,
    ldpo,
    nca,
    orpo,
    robust,
    rso_hinge,
    simpo,
    sppo_hard,
)
from trainers.objectives.batch import PairWithMeans, PartialPair, ReferencedPairOfStep
from trainers.objectives.weighting import aligned, weights

# loss -> what TRL has under its name or for it, and how it is another one
DEPARTURES = {
    "ipo": "TRL's ipo divides by tokens: it is ipo_mean; on sums it has none for stored pairs",
    "dpo": "TRL's sigmoid ignores label_smoothing: smoothed it is compared with CPO's, which reads it",
    "psi_po": "TRL has none",
    "relative_po": "TRL has none; its rpo_alpha of old was dpo_nll",
    "relative_po_unpaired": "TRL has none",
    "rrhf": "TRL has no loss of rankings",
    "dpo_pl": "TRL has no loss of rankings",
    "odpo": "TRL has none",
    "rdpo": "TRL has none: its ld_alpha is ldpo",
    "slic": "TRL's hinge is RSO's hinge-norm: without a reference it is slic with lam 0 over its margin",
    "rso_sigmoid": "TRL's sigmoid at beta = gamma; its sigmoid_norm is dpo_norm",
    "dpo_nll": "TRL's sft term is a mean over the tokens of a forward: dpo_nll_token where that is the step",
    "cpo": "TRL's likelihood is a token mean, the paper's a sum over the sequence: the preference terms are compared",
    "orpo": "TRL's likelihood covers the prompt: the odds ratio terms are compared",
    "bco_pair": "TRL's has no shift: it is compared with shift none",
    "sppo": "TRL has hard labels alone: sppo_hard",
    "alphapo": "TRL takes powers of probabilities, which overflow: compared where they don't",
    "reward": "not a loss of log-probs",
    "sft": "compared by tests/test_exports_trl.py",
}


@pytest.fixture(scope="module", autouse=True)
def quiet() -> Any:
    """TRL tells its makers of every trainer, unless it runs where CI is set."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("CI", "1")
        yield


class Tokens:
    """Per-token log-probs of pairs whose sides differ in length, of the policy and of the reference."""

    def __init__(self, dtype: torch.dtype = torch.float64, rows: int = 5, longest: int = 9) -> None:
        generator = torch.Generator().manual_seed(7)
        self.lengths = torch.randint(1, longest + 1, (2 * rows,), generator=generator)  # chosen, then rejected
        self.mask = torch.arange(longest) < self.lengths[:, None]
        policy, reference = (-2 * torch.rand(2 * rows, longest, generator=generator, dtype=torch.float64) for _ in "pr")
        self.policy = torch.where(self.mask, policy, 0.0).to(dtype)
        self.reference = torch.where(self.mask, reference, 0.0).to(dtype)
        self.collisions = -torch.rand(2 * rows, longest, generator=generator, dtype=torch.float64).to(dtype)

    def pair(self) -> ReferencedPair:
        """As our losses read them."""
        sums = [*self.policy.sum(1).chunk(2), *self.lengths.chunk(2), *self.reference.sum(1).chunk(2)]
        return ReferencedPair(*sums)

    def partial(self) -> PartialPair:
        """The same, with sums over as many tokens as the shorter side has."""
        shorter = torch.minimum(*self.lengths.chunk(2)).repeat(2)
        heads = torch.arange(self.mask.shape[1]) < shorter[:, None]
        cut = [side for values in (self.policy, self.reference) for side in (values * heads).sum(1).chunk(2)]
        names = ("chosen_head", "rejected_head", "ref_chosen_head", "ref_rejected_head")
        return PartialPair(**vars(self.pair()), **dict(zip(names, cut, strict=True)))


def trl_dpo(
    tokens: Tokens, loss: str, *, beta: float = 0.1, weights: tuple[float, ...] = (1.0,), **settings: Any
) -> Tensor:
    """The mean loss of TRL's DPOTrainer; `loss` may be a sum of two with + between them."""
    from trl.trainer.dpo_trainer import DPOTrainer

    given = {
        "label_smoothing": 0.0,
        "f_divergence_type": "reverse_kl",
        "f_alpha_divergence_coef": 0.5,
        "ld_alpha": None,
        "use_weighting": False,
    }
    given |= settings
    names = loss.split("+")
    stand_in: Any = SimpleNamespace(
        **given,
        beta=beta,
        loss_types=names,
        loss_weights=weights,
        accelerator=SimpleNamespace(device="cpu", gather=lambda x: x, gather_for_metrics=lambda x: x),
        model=SimpleNamespace(training=True),
        args=SimpleNamespace(discopop_tau=0.05),
        aux_loss_enabled=False,
        precompute_ref_logps=True,
        _metrics=defaultdict(lambda: defaultdict(list)),
        _total_train_tokens=0,
        _tp_size=1,
    )
    prompt = torch.zeros(len(tokens.mask), 1, dtype=torch.long)
    nothing = torch.zeros_like(tokens.policy)
    gave = SimpleNamespace(
        log_probs=tokens.policy, entropy=nothing, mean_logits=nothing, is_top1=torch.zeros_like(tokens.mask), loss=None
    )
    gave.log_sum_sq_probs = tokens.collisions
    reference = tokens.reference.sum(1)
    if given["ld_alpha"] is not None:  # TRL cuts what it stores when it stores it
        partial = tokens.partial()
        reference = torch.cat(
            [
                getattr(partial, f"{side}_head")
                + given["ld_alpha"] * (getattr(partial, side) - getattr(partial, f"{side}_head"))
                for side in ("ref_chosen", "ref_rejected")
            ]
        )
    inputs = {
        "input_ids": torch.ones(len(tokens.mask), 1 + tokens.mask.shape[1], dtype=torch.long),
        "attention_mask": torch.ones(len(tokens.mask), 1 + tokens.mask.shape[1], dtype=torch.long),
        "completion_mask": torch.cat([prompt, tokens.mask.long()], 1),
        "ref_chosen_logps": reference.chunk(2)[0],
        "ref_rejected_logps": reference.chunk(2)[1],
    }
    found = DPOTrainer._compute_loss(stand_in, lambda **_: gave, inputs, False)
    assert isinstance(found, Tensor)
    return found


def means(lp: ReferencedPair) -> PairWithMeans:
    return PairWithMeans(**vars(lp), chosen_mean=torch.tensor(3.0), rejected_mean=torch.tensor(-1.0))


TOKENS = Tokens()
PAIRS = TOKENS.pair()


@pytest.mark.parametrize(
    ("name", "settings", "ours"),
    [
        ("sigmoid", {"beta": 0.3}, dpo(PAIRS, beta=0.3)),
        ("robust", {"label_smoothing": 0.2}, robust(PAIRS, label_noise=0.2)),
        ("hinge", {"beta": 0.2}, rso_hinge(PAIRS, gamma=0.2)),
        ("ipo", {"beta": 0.3}, ipo_mean(PAIRS, tau=0.3)),
        ("exo_pair", {"label_smoothing": 1e-3}, exo(PAIRS, label_smoothing=1e-3)),
        ("nca_pair", {"beta": 0.3}, nca(PAIRS, beta=0.3)),
        ("bco_pair", {"beta": 0.3}, bco_pair(means(PAIRS), beta=0.3, shift="none")),
        ("sppo_hard", {"beta": 0.1}, sppo_hard(PAIRS, beta=0.1)),
        ("aot", {"beta": 0.3, "label_smoothing": 0.1}, aot(PAIRS, beta=0.3, label_smoothing=0.1)),
        ("apo_zero", {"beta": 0.3}, apo_zero(PAIRS, beta=0.3)),
        ("apo_down", {"beta": 0.3}, apo_down(PAIRS, beta=0.3)),
        ("discopop", {"beta": 0.05}, discopop(PAIRS, beta=0.05)),
        ("sigmoid_norm", {"beta": 5.0}, dpo_norm(PAIRS, beta=5.0)),
        ("sigmoid", {"beta": 0.3, "ld_alpha": 0.4}, ldpo(TOKENS.partial(), beta=0.3, alpha=0.4)),
    ],
    ids=lambda each: each if isinstance(each, str) else "",
)
def test_equal_definitions_give_equal_losses(name: str, settings: dict[str, Any], ours: Tensor) -> None:
    assert_close(trl_dpo(TOKENS, name, **settings).double(), ours.mean(), rtol=1e-6, atol=1e-6)


def test_a_sum_with_trls_sft_term_is_the_token_mean() -> None:
    lp = ReferencedPairOfStep(**vars(PAIRS), mean_chosen_tokens=PAIRS.chosen_tokens.double().mean())
    theirs = trl_dpo(TOKENS, "sigmoid+sft", weights=(1.0, 0.2))
    assert_close(theirs, dpo_nll_token(lp, alpha=0.2).mean())


def test_weights_are_trls_where_none_is_clamped() -> None:
    # likelier answers than the policy's own count more than once in TRL, and once here
    mean = (aligned(TOKENS.policy, TOKENS.collisions, TOKENS.mask)).exp()
    unclamped = (mean.chunk(2)[0] * mean.chunk(2)[1] * dpo(PAIRS)).mean()
    assert_close(trl_dpo(TOKENS, "sigmoid", use_weighting=True), unclamped)
    lower = Tokens()
    lower.policy = torch.where(lower.mask, lower.policy - 1.0, 0.0)
    own = weights(*aligned(lower.policy, lower.collisions, lower.mask).chunk(2))
    assert own.max() < 1
    assert_close(trl_dpo(lower, "sigmoid", use_weighting=True), (own * dpo(lower.pair())).mean())


@pytest.mark.parametrize("theirs", ["forward_kl", "js_divergence", "alpha_divergence"])
@pytest.mark.parametrize(
    ("name", "ours"),
    [("sigmoid", dpo), ("sigmoid_norm", dpo_norm), ("robust", robust), ("hinge", rso_hinge), ("discopop", discopop)],
)
def test_divergences_are_trls(theirs: str, name: str, ours: Any) -> None:
    tokens = Tokens(torch.float32)
    beta, knob = 0.2, "gamma" if name == "hinge" else "beta"
    divergence = theirs.removesuffix("_divergence")
    expected = trl_dpo(
        tokens,
        name,
        beta=beta,
        f_divergence_type=theirs,
        f_alpha_divergence_coef=0.3,
        label_smoothing=0.1 if name == "robust" else 0.0,
    )
    found = ours(tokens.pair(), **{knob: beta}, divergence=divergence, divergence_alpha=0.3).mean()
    assert_close(found, expected, rtol=1e-5, atol=1e-5)


def trl_cpo(chosen: Tensor, rejected: Tensor, **settings: Any) -> Tensor:
    """One loss per pair of TRL's CPOTrainer."""
    from trl.experimental.cpo.cpo_trainer import CPOTrainer

    given = {"label_smoothing": 0.0, "alpha": 0.0, "loss_type": "sigmoid", "simpo_gamma": 0.5, "beta": 0.1, **settings}
    stand_in: Any = SimpleNamespace(**given, accelerator=SimpleNamespace(device="cpu"))
    found = CPOTrainer.cpo_loss(stand_in, chosen, rejected)[0]
    assert isinstance(found, Tensor)
    return found


def test_reference_free_losses_are_trls() -> None:
    lp: Pair = random_batch(Pair)
    chosen, rejected = lp.chosen / lp.chosen_tokens, lp.rejected / lp.rejected_tokens
    assert_close(trl_cpo(lp.chosen, lp.rejected, label_smoothing=0.1), cpo(lp, alpha=0.0, label_smoothing=0.1))
    assert_close(
        trl_cpo(chosen, rejected, loss_type="simpo", beta=2.5, simpo_gamma=1.2), simpo(lp, beta=2.5, gamma=1.2)
    )
    bent = trl_cpo(chosen, rejected, loss_type="simpo", beta=2.5, simpo_gamma=1.2, alpha=0.3)
    assert_close(bent, alphapo(lp, beta=2.5, gamma=1.2, alpha=0.3))


def test_smoothed_dpo_is_trls_smoothed_loss_of_log_ratios() -> None:
    lp = random_pairs()
    theirs = trl_cpo(lp.chosen - lp.ref_chosen, lp.rejected - lp.ref_rejected, label_smoothing=0.2, beta=0.3)
    assert_close(dpo(lp, beta=0.3, label_smoothing=0.2), theirs)


def test_ipo_on_sums_is_trls_loss_of_sums_without_a_reference() -> None:
    lp = replace(random_pairs(), ref_chosen=torch.zeros(7).double(), ref_rejected=torch.zeros(7).double())
    assert_close(ipo(lp, tau=0.3), trl_cpo(lp.chosen, lp.rejected, loss_type="ipo", beta=0.3))


def test_the_odds_ratio_is_trls() -> None:
    from trl.experimental.orpo.orpo_trainer import ORPOTrainer

    lp: Pair = random_batch(Pair)
    chosen, rejected = lp.chosen / lp.chosen_tokens, lp.rejected / lp.rejected_tokens
    stand_in: Any = SimpleNamespace(beta=0.25, accelerator=SimpleNamespace(device="cpu"))
    theirs = ORPOTrainer.odds_ratio_loss(stand_in, chosen, rejected)[0]
    assert_close((orpo(lp, lam=0.25) + chosen).float(), -theirs, rtol=1e-5, atol=1e-5)


def test_departures_are_of_losses_that_there_are() -> None:
    assert set(DEPARTURES) <= set(OBJECTIVES)
