"""What IPO and DPO make of preferences over three answers (Azar et al. 2023, arXiv:2310.12036, section 5.4).

    python -m examples.ipo_bandit --out ipo_bandit.html

No prompt and no network: a policy is the softmax of three logits, its reference uniform, and the losses are those that
trainers.run trains with. Writes a page with curves by training step and prints where each run ends.

    total    a > b, b > c, a > c     DPO goes to a alone whatever tau is, IPO does not
    cycle    a > b, b > c, c > a     both stay uniform
    printed  a > b, b > a            as the paper prints its last data set: c is never compared, and nothing moves
    losing   a > b, b > a, b > c     what its figure and text show: DPO sends c, which never wins, to 0 whatever tau is
"""

import argparse
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

import torch
from markupsafe import Markup
from torch import Tensor

from prefdata.report.charts import Curve, curves
from trainers.objectives import ReferencedPair, dpo, ipo

ANSWERS = "abc"
# winner and loser of each observed comparison
DATA: Mapping[str, Sequence[str]] = {
    "total": ("ab", "bc", "ac"),
    "cycle": ("ab", "bc", "ca"),
    "printed": ("ab", "ba"),
    "losing": ("ab", "ba", "bc"),
}
TAUS = (0.1, 0.5, 1.0, 5.0, 10.0)
STEPS, LR, BATCH = 18_000, 0.01, 9
POINTS = 60  # of a curve

# a pair and tau, which may be a tensor that fits the pair's fields, to losses
Losses = Callable[[ReferencedPair, Tensor], Tensor]
LOSSES: Mapping[str, Losses] = {
    "dpo": lambda lp, tau: dpo(lp, beta=tau),  # type: ignore[arg-type]  # one run for each tau, all at once
    "ipo": lambda lp, tau: ipo(lp, tau=tau),  # type: ignore[arg-type]
}


@dataclass(frozen=True)
class Run:
    """Logits of every tau and seed; `path` holds those of some steps on the way."""

    logits: Tensor  # (seeds, taus, 3)
    steps: list[int]
    path: Tensor  # (steps, seeds, taus, 3)

    @property
    def policy(self) -> Tensor:
        """(taus, 3) probabilities, a mean over seeds."""
        return self.logits.softmax(-1).mean(0)


def pairs(logits: Tensor, winners: Tensor, losers: Tensor) -> ReferencedPair:
    """Comparisons (..., n) of a policy's answers, with the uniform reference."""
    policy = logits.log_softmax(-1)
    uniform = torch.full((), -math.log(len(ANSWERS)), dtype=logits.dtype).expand(winners.shape)
    one = torch.ones_like(winners)
    return ReferencedPair(policy.gather(-1, winners), policy.gather(-1, losers), one, one, uniform, uniform)


def train(
    loss: Losses,
    data: Sequence[str],
    taus: Sequence[float] = TAUS,
    *,
    steps: int = STEPS,
    lr: float = LR,
    batch: int | None = None,
    seeds: int = 1,
) -> Run:
    """Adam from the uniform policy, on all comparisons at every step, or on `batch` drawn with replacement."""
    compared = torch.tensor([[ANSWERS.index(answer) for answer in pair] for pair in data])
    temperatures = torch.tensor(taus, dtype=torch.float64)[:, None]
    logits = torch.zeros(seeds, len(taus), len(ANSWERS), dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.Adam([logits], lr=lr, foreach=False)
    generator = torch.Generator().manual_seed(0)
    every = max(1, steps // POINTS)
    kept, path = [0], [logits.detach().clone()]
    for step in range(1, steps + 1):
        drawn = compared.expand(seeds, -1, 2)
        if batch is not None:
            drawn = compared[torch.randint(len(data), (seeds, batch), generator=generator)]
        winners, losers = (drawn[:, None, :, side].expand(-1, len(taus), -1) for side in (0, 1))
        optimizer.zero_grad()
        loss(pairs(logits, winners, losers), temperatures).mean(-1).sum().backward()
        optimizer.step()
        if step % every == 0 or step == steps:
            kept.append(step)
            path.append(logits.detach().clone())
    return Run(logits.detach(), kept, torch.stack(path))


def closed_form(data: Sequence[str], tau: float) -> Tensor:
    """(3,) IPO's optimum: least squares on the differences of logits, which the graph of comparisons' Laplacian solves.

    An answer that nothing is compared with keeps the logit that it starts from, the mean of all.
    """
    size = len(ANSWERS)
    laplacian, wins = torch.zeros(size, size, dtype=torch.float64), torch.zeros(size, dtype=torch.float64)
    for winner, loser in (tuple(map(ANSWERS.index, pair)) for pair in data):
        step = torch.zeros(size, dtype=torch.float64)
        step[winner], step[loser] = 1.0, -1.0
        laplacian += step.outer(step)
        wins += step
    optimum: Tensor = (torch.linalg.pinv(laplacian) @ wins / (2 * tau)).softmax(0)
    return optimum


def figures(name: str, loss: str, run: Run, taus: Sequence[float]) -> list[Markup]:
    """Probabilities of the answers by step, one plot for each tau."""
    probabilities = run.path.softmax(-1)
    seeds = probabilities.shape[1]
    drawn = []
    for place, tau in enumerate(taus):
        found = probabilities[:, :, place]
        lines = [
            Curve(f"answer {answer}", css, run.steps, found[:, :, number].mean(1).tolist())
            for number, (answer, css) in enumerate(zip(ANSWERS, ("chosen", "plain", "rejected"), strict=True))
        ]
        last = found[-1, :, 0]
        spread = 1.96 * float(last.std()) / math.sqrt(seeds) if seeds > 1 else 0.0
        note = f"a ends at {float(last.mean()):.4f} ± {spread:.4f} (95 % over {seeds} seeds)."
        drawn.append(curves(f"{loss}, {name}, tau {tau:g}", lines, note))
    return [figure for figure in drawn if figure is not None]


def page(drawn: Sequence[Markup]) -> str:
    """One file that loads nothing."""
    style = resources.files("prefdata.report").joinpath("templates/report.css").read_text("utf-8")
    return Markup(
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>IPO bandit</title><style>{}</style></head>'
        '<body><header class="top"><h1>IPO and DPO on three answers</h1></header><main><div class="plots">{}</div></main>'
        "</body></html>\n"
    ).format(Markup(style), Markup("").join(drawn))


def main(arguments: Sequence[str] | None = None) -> None:
    """Train, print and draw."""
    line = argparse.ArgumentParser(prog="python -m examples.ipo_bandit", description=(__doc__ or "").partition("\n")[0])
    line.add_argument("--out", default="ipo_bandit.html", help="the page to write")
    line.add_argument("--steps", type=int, default=STEPS)
    line.add_argument("--seeds", type=int, default=10, help="runs that draw other comparisons")
    given = line.parse_args(arguments)
    drawn: list[Markup] = []
    for name in ("total", "losing"):
        for loss, function in LOSSES.items():
            run = train(function, DATA[name], steps=given.steps, batch=BATCH, seeds=given.seeds)
            drawn += figures(name, loss, run, TAUS)
            for tau, policy in zip(TAUS, run.policy.tolist(), strict=True):
                optimum = closed_form(DATA[name], tau).tolist() if loss == "ipo" else []
                told = f"   optimum {' '.join(f'{each:.4f}' for each in optimum)}" if optimum else ""
                print(f"{loss} {name:7} tau {tau:<4g}  {' '.join(f'{each:.4f}' for each in policy)}{told}")
    Path(given.out).write_text(page(drawn), "utf-8")
    print(f"curves: {given.out}")


if __name__ == "__main__":
    main()
