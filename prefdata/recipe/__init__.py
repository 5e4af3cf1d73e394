"""Recipes: one TOML file that names source, steps, generation, scores, selection, reference, budget and output.

A recipe is a chain of builds; each reads the version that the one before it made. The sections and their order stand in
`sections`, the file in `reading`, running it in `chain`, and what it would cost in `plan`.
"""

from prefdata.recipe.chain import Done, run
from prefdata.recipe.plan import Plan, plan
from prefdata.recipe.reading import Recipe, Step, read

__all__ = ["Done", "Plan", "Recipe", "Step", "plan", "read", "run"]
