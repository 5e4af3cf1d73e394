"""RSO from end to end: scored draws, those that statistical rejection sampling accepts as pairs, and its losses on them."""

from pathlib import Path

import pytest

from prefdata import versions
from prefdata.builds import rejection
from prefdata.builds.job import run
from tests.scored_world import make_world
from tests.trainer_world import Talk
from trainers.options import Options
from trainers.run import train


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> versions.Version:
    """Of twelve prompts with five scored draws each."""
    world = make_world(tmp_path_factory.mktemp("rso"), prompts=12)
    run(rejection.job(rejection.Options(source=world.version.name, accept=4), world.root))
    return versions.find("latest", root=world.root, kinds=("pairs",))


@pytest.mark.parametrize(("loss", "start"), [("rso_hinge", 1.0), ("rso_sigmoid", 0.693147), ("odpo", None)])
def test_accepted_pairs_are_trained_on_as_they_come(
    pairs: versions.Version, tmp_path: Path, loss: str, start: float | None
) -> None:
    options = Options(data=pairs.url, loss=loss, out=str(tmp_path / "run"), steps=8, lr=3e-3, dtype="float32")
    result = train(options, say=Talk())
    assert result.finished
    if start is not None:  # the policy starts as the reference
        assert result.before["loss"] == pytest.approx(start, abs=1e-5)
    assert result.train["rewards/margins"] > 0
