"""Running a recipe: its builds one after the other, each reading what the one before it made."""

from collections.abc import Callable
from dataclasses import dataclass

from prefdata import versions
from prefdata.builds import registry
from prefdata.builds.job import Job, Outcome
from prefdata.recipe import finished, kinds
from prefdata.recipe.reading import Recipe, Step
from prefdata.versions import Version


@dataclass(frozen=True)
class Done:
    """What a recipe came to."""

    version: Version
    outcomes: tuple[Outcome, ...]

    @property
    def new(self) -> bool:
        """Whether any of its versions was published now."""
        return any(outcome.published for outcome in self.outcomes)


def run(recipe: Recipe, root: str | None, build: Callable[[Step, Job], Outcome]) -> Done:
    """Hand each step's job to `build`, in order, and tag the last version if the recipe says how.

    A step whose version was published before is recognised by its inputs, so a run that was stopped goes on where it was,
    and one that was finished does nothing. UserError for bad input and for faults of the machine; finished units and
    versions stay.
    """
    root = versions.root(recipe.root if root is None else root)
    key = finished.key_of(recipe, root)
    made = finished.find(key, root)
    if made is not None:
        outcomes = [Outcome(version, published=False, computed=0, reused=0) for version in made]
    else:
        outcomes = _built(recipe, root, build)
        finished.keep(key, root, [outcome.version for outcome in outcomes])
    version = outcomes[-1].version
    if recipe.tag is not None and versions.tags(root).get(recipe.tag) != version.name:
        versions.tag(recipe.tag, version.name, root)
    return Done(version, tuple(outcomes))


def _built(recipe: Recipe, root: str, build: Callable[[Step, Job], Outcome]) -> list[Outcome]:
    source = None
    if recipe.version is not None:
        version = versions.find(recipe.version, root=root)
        source = version.url
        kinds.check(recipe.steps, version.kind)
    outcomes: list[Outcome] = []
    for number, step in enumerate(recipe.steps, 1):
        outcome = build(step, registry.job(step.build, step.chosen(source), root))
        outcomes.append(outcome)
        source = outcome.version.name
        kinds.check(recipe.steps[number:], outcome.version.kind)
    return outcomes
