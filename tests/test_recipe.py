"""Recipes: a file to a chain of builds, its plan, its budget, and what is refused."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from prefdata import cli, recipe, versions
from prefdata.builds import registry
from prefdata.builds.budget import Budget, BudgetReached
from prefdata.builds.job import Job, Outcome, run
from prefdata.errors import UserError
from prefdata.recipe import estimates, finished, kinds
from prefdata.recipe.plan import Line, _size, _span
from prefdata.recipe.sections import SECTIONS
from prefdata.verify import verify
from tests import tiny_world
from tests.test_builds import write_pairs

Write = Callable[[str], str]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return tiny_world.save_model(tmp_path_factory.mktemp("model") / "m", positions=96)


@pytest.fixture
def root(tmp_path: Path) -> str:
    return str(tmp_path / "data")


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def written(text: str) -> str:
        (tmp_path / "recipe.toml").write_text(text)
        return str(tmp_path / "recipe.toml")

    return written


@pytest.fixture
def chain(tmp_path: Path, model: str) -> str:
    source = write_pairs(tmp_path / "pairs.jsonl", 24)
    return f"""
[source]
source = {json.dumps(str(source))}
model = {json.dumps(model)}
test_fraction = 0.2

[[select]]
build = "paired"

[[select]]
build = "sapo-negatives"
segment_tokens = 3

[output]
tag = "mine"
"""


def built(path: str, root: str, *settings: str, budget: Budget | None = None) -> recipe.Done:
    def one(step: recipe.Step, job: Job) -> Outcome:
        return run(job, budget=budget)

    return recipe.run(recipe.read(path, settings), root, one)


def test_every_build_of_a_section_is_known_and_estimated() -> None:
    named = [
        name
        for section in SECTIONS
        for name in ([section.builds] if isinstance(section.builds, str) else section.builds.values())
    ]
    assert set(named) == set(estimates.ESTIMATES) >= set(registry.NAMES)


def test_every_build_of_the_registry_is_a_deployment() -> None:
    import flows

    assert set(registry.NAMES) == set(flows.DEPLOYMENTS)


def test_a_chain_is_built_tagged_and_found_again(write: Write, chain: str, root: str) -> None:
    done = built(write(chain), root)
    assert [outcome.version.manifest["build"] for outcome in done.outcomes] == [
        "ingest", "build-paired", "build-sapo-negatives",
    ]  # fmt: skip
    assert [parent["version"] for parent in done.version.manifest["parents"]] == [done.outcomes[1].version.name]
    assert versions.tags(root) == {"mine": done.version.name}
    assert done.new
    assert not any(verify(outcome.version) for outcome in done.outcomes)
    again = built(write(chain), root)
    assert again.version.name == done.version.name
    assert not again.new
    assert not any(outcome.computed for outcome in again.outcomes)


def test_a_changed_selection_runs_no_model(write: Write, chain: str, root: str) -> None:
    built(write(chain), root)
    other = built(write(chain), root, "select[1].bands=2")
    assert other.new
    assert [outcome.computed for outcome in other.outcomes][:2] == [0, 0]


def test_the_same_file_drives_the_flow(write: Write, chain: str, root: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from flows import build as flow

    read = recipe.read(write(chain))
    direct = recipe.run(read, root, lambda step, job: run(job))
    monkeypatch.setattr(flow, "build_job", lambda job, budget: run(job, budget=budget))
    monkeypatch.setattr(flow, "get_run_logger", lambda: None)
    assert flow._build(write(chain), None, root) == direct.version.name


def test_the_plan_counts_what_the_build_then_makes(write: Write, chain: str, root: str) -> None:
    read = recipe.read(write(chain))
    planned = recipe.plan(read, root)
    assert not versions.every(root)
    done = built(write(chain), root)
    rows = [sum(outcome.version.manifest["counts"]["rows"].values()) for outcome in done.outcomes]
    assert [line.version for line in planned.lines] == [None] * 3
    assert [line.rows for line in planned.lines[:2]] == rows[:2]
    assert planned.lines[2].rows >= rows[2]
    assert planned.tokens > 0
    after = recipe.plan(read, root)
    assert [line.version for line in after.lines] == [outcome.version.name for outcome in done.outcomes]
    assert [line.rows for line in after.lines] == rows
    assert after.tokens == 0


def test_the_plans_tokens_are_those_of_scoring(write: Write, chain: str, root: str, tmp_path: Path) -> None:
    """With no generation in between, the plan's tokens are what the budget then counts."""
    only_paired = chain.replace('[[select]]\nbuild = "sapo-negatives"\nsegment_tokens = 3\n', "")
    planned = recipe.plan(recipe.read(write(only_paired)), root)
    budget = Budget()
    built(write(only_paired), root, budget=budget)
    assert planned.tokens == pytest.approx(budget.spent, rel=0.02)


def test_times_come_from_the_last_run_of_the_model(write: Write, chain: str, root: str) -> None:
    from prefdata.builds.speeds import Speeds

    read = recipe.read(write(chain))
    guessed = recipe.plan(read, root).lines[1]
    assert guessed.seconds is not None
    assert not guessed.known
    name = recipe.plan(read, root)
    Speeds(root).keep("reference", _recorded(read), 100.0)
    line = recipe.plan(read, root).lines[1]
    assert line.known
    assert line.seconds == pytest.approx(name.lines[1].tokens / 100, rel=0.01)


def _recorded(read: recipe.Recipe) -> str:
    from prefdata import models

    return models.resolve(read.steps[0].options["model"]).name


@pytest.mark.parametrize(
    ("budget", "told"), [("max_tokens = 200", "max_tokens is 200"), ("max_rows = 30", "max_rows is 30")]
)
def test_a_budget_stops_it_and_a_larger_one_goes_on(
    write: Write, chain: str, root: str, budget: str, told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write(f"{chain}\n[budget]\n{budget}\n")
    assert cli.main(["build", path, "--root", root, "--dry-run"]) == 0
    assert told.split(" is ")[0] in capsys.readouterr().out
    with pytest.raises(BudgetReached, match=told):
        built(path, root, budget=recipe.read(path).budget())
    kept = len(versions.every(root))
    done = built(path, root)
    assert kept < 3
    assert sum(outcome.reused for outcome in done.outcomes) + kept > 0
    assert done.new


def test_the_command_line(write: Write, chain: str, root: str, capsys: pytest.CaptureFixture[str]) -> None:
    path = write(chain)
    assert cli.main(["build", path, "--root", root, "--dry-run"]) == 0
    planned = capsys.readouterr().out
    assert "build-sapo-negatives" in planned
    assert "tokens to compute" in planned
    assert not versions.every(root)
    assert cli.main(["build", path, "--root", root]) == 0
    assert "v3 is ready" in capsys.readouterr().out


def test_a_finished_build_says_so_at_once(
    write: Write, chain: str, root: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write(chain)
    built(path, root)
    assert cli.main(["build", path, "--root", root]) == 0
    assert "nothing was done: v3" in capsys.readouterr().out
    assert not _modules_of(path, root) & {
        "torch",
        "transformers",
    }  # the first of which takes more than the three seconds


def _modules_of(path: str, root: str) -> set[str]:
    code = (
        f"import sys; from prefdata import cli; cli.main(['build', {path!r}, '--root', {root!r}]); print(*sys.modules)"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(run.stdout.splitlines()[-1].split())


def test_a_changed_file_is_not_taken_for_a_finished_one(write: Write, chain: str, root: str, tmp_path: Path) -> None:
    first = built(write(chain), root)
    write_pairs(tmp_path / "pairs.jsonl", 25, seed=5)
    assert built(write(chain), root).version.name != first.version.name


def test_a_tag_that_names_another_version_by_now_is_read_anew(write: Write, chain: str, root: str) -> None:
    built(write(chain), root)
    for number in (1, 3):
        versions.tag("start", f"v{number}", root)
        done = built(write('[source]\nversion = "start"\n[steps]\nexact = "rows"\n'), root)
        assert done.version.manifest["parents"][0]["version"] == f"v{number}"


def test_a_file_that_changes_during_a_build_is_read_by_the_next(
    write: Write, chain: str, root: str, tmp_path: Path
) -> None:
    def one(step: recipe.Step, job: Job) -> Outcome:
        outcome = run(job)
        if step.build == "ingest":
            write_pairs(tmp_path / "pairs.jsonl", 25, seed=5)
        return outcome

    first = recipe.run(recipe.read(write(chain)), root, one)
    assert built(write(chain), root).version.name != first.version.name


@pytest.mark.parametrize("scorer", ["reward_model:{}", "mine=verifier:grading:check", "lexicon"])
def test_scorers_that_changed_are_not_taken_for_what_was_run(
    scorer: str, write: Write, chain: str, root: str, tmp_path: Path, model: str
) -> None:
    copied = tmp_path / "rm"
    shutil.copytree(model, copied)
    text = chain.replace("[[select]]", f"[score]\nscorer = {json.dumps(scorer.format(copied))}\n[[select]]", 1)
    read = recipe.read(write(text))
    before = finished.key_of(read, root)
    (copied / "config.json").write_text("{}")
    after = finished.key_of(read, root)
    assert (before == after and before is not None) is (scorer == "lexicon")


SOURCES = {
    "pairs": {"prompt": "w1", "chosen": "w2 w3", "rejected": "w4"},
    "completions": {"prompt": "w1", "completion": "w2 w3"},
    "unpaired": {"prompt": "w1", "completion": "w2 w3", "label": True},
    "prompts": {"prompt": "w1"},
}


def test_what_each_build_reads_is_what_it_takes(write: Write, root: str, tmp_path: Path, model: str) -> None:
    for kind, row in SOURCES.items():
        source = tmp_path / f"{kind}.jsonl"
        source.write_text("".join(json.dumps(row | {"prompt": f"w1 w{n}"}) + "\n" for n in range(9)))
        text = f"[source]\nsource = {json.dumps(str(source))}\nmodel = {json.dumps(model)}\n"
        version = built(write(text), root).version
        assert version.kind == kind
        for build, reads in kinds.READS.items():
            refusal = ""
            try:
                asked = {"scorer": ("lexicon",)} if build == "score-rewards" else {}
                registry.job(build, registry.options(build)(source=version.name, **asked), root)
            except UserError as problem:
                refusal = str(problem)
            assert (f"holds {kind}, and this reads" in refusal) is (kind not in reads), (build, refusal)


def test_a_build_that_cannot_read_what_is_made_is_refused_before_anything_is_computed(
    write: Write, chain: str, root: str
) -> None:
    path = write(f'{chain}\n[[select]]\nbuild = "rejection-samples"\n')
    with pytest.raises(
        UserError, match=r"select\[3\] \(build-rejection-samples\) reads completions, and .* holds pairs"
    ):
        recipe.plan(recipe.read(path), root)
    with pytest.raises(UserError, match=r"reads completions"):
        built(path, root)
    path = write(chain.replace("[[select]]", '[score]\nscorer = "lexicon"\n[[select]]', 1))
    with pytest.raises(UserError, match="lexicon does not score pairs, which the version before score holds"):
        recipe.plan(recipe.read(path), root)
    assert [version.name for version in versions.every(root)] == ["v1"]  # the source, whose kind is known by then


def test_a_removed_version_is_built_again(write: Write, chain: str, root: str) -> None:
    first = built(write(chain), root)
    shutil.rmtree(Path(root) / first.version.name)
    assert built(write(chain), root).new


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("[source", "is not TOML"),
        ("[sorce]\nsource = 'x'", "no section 'sorce'; did you mean source"),
        ("[source]\nsource = 'x'\nmodle = 'm'", "source has no option 'modle'; did you mean model"),
        ("[source]\nsource = 'x'\ntest_fraction = 'half'", "source.test_fraction is 'half', and must be a number"),
        ("[source]\nsource = 'x'\ntest_fraction = true", "source.test_fraction is True, and must be a number"),
        ("[source]\nsource = 'x'\n[select]\nrule = 'max_min'", "select names no build; it can be: paired"),
        ("[source]\nsource = 'x'\n[select]\nbuild = 'pairs'", "select has build = 'pairs'; it can be: paired"),
        ("[source]\nsource = 'x'\n[select]\nbuild = 'paired'\nrule = 'best'", "select: rule is 'best'; it can be:"),
        ("[source]\nsource = 'x'\n[select]\nbuild = 'paired'\nsource = 'v1'", "select has no option 'source'"),
        ("[[source]]\nsource = 'x'\n[[source]]\nsource = 'y'", r"a recipe has one \[source\], and this has 2"),
        ("[reference]\n", r"no \[source\]"),
        ("[output]\ntag = 'x'", "names nothing to build"),
        ("[source]\nsource = 'x'\n[output]\ntag = 'v3'", "output.tag is 'v3', which can't be a tag: it reads like a version"),
        ("[source]\nversion = 'latest'\n[reference]", "source.version is latest"),
        ("[source]\nversion = 'v1'\nmodel = 'm'\n[reference]", "model has nothing to act on"),
        ("[source]\nsource = 'x'\n[budget]\nmax_tokens = 0", "budget.max_tokens is 0, and must be at least 1"),
        ("[source]\nsource = 'x'\n[generate]\nsamples = -1", "generate: samples is -1, and must be at least 0"),
    ],
)  # fmt: skip
def test_what_is_refused(write: Write, root: str, text: str, told: str, capsys: pytest.CaptureFixture[str]) -> None:
    path = write(text)
    with pytest.raises(UserError, match=told):
        recipe.read(path)
    assert cli.main(["build", path, "--root", root]) == 2
    assert "Traceback" not in capsys.readouterr().err


@pytest.mark.parametrize(
    ("setting", "told"),
    [
        ("samples=8", "not SECTION.KEY=VALUE"),
        ("select.rule=max_min", r"2 of \[\[select\]\]"),
        ("select[3].rule=x", "there are 2"),
    ],
)
def test_settings_that_name_nothing(write: Write, chain: str, setting: str, told: str) -> None:
    with pytest.raises(UserError, match=told):
        recipe.read(write(chain), [setting])


def test_settings_have_tomls_values_or_texts(write: Write, chain: str) -> None:
    read = recipe.read(write(chain), ["select[1].rule=adjacent", "select[2].negatives=2", 'output.tag="other"'])
    assert (read.steps[1].options["rule"], read.steps[2].options["negatives"], read.tag) == ("adjacent", 2, "other")


def test_a_missing_file_is_told(root: str) -> None:
    with pytest.raises(UserError, match="can't be read: No such file"):
        recipe.read("nowhere.toml")


def test_estimates_by_hand() -> None:
    """64 prompts of 10 tokens, answers of 20: eight samples of each written and scored."""
    from prefdata.builds import generate

    read = estimates.Expected("prompts", 64, 64, 10, 20, "m", None)
    made, costs = estimates.generated(read, generate.Options(samples=8))
    assert (made.rows, made.kind, made.reference) == (512, "completions", "m")
    assert [(cost.stage, cost.tokens) for cost in costs] == [
        ("generate", 64 * (10 + 8 * 20)),
        ("reference", 64 * 10 + 512 * 20),
    ]
    again, costs = estimates.ESTIMATES["build-paired"](made, registry.options("build-paired")())
    assert (again.rows, costs) == (64, [])


def test_sizes_and_spans_are_told_in_words() -> None:
    def line(seconds: float | None, known: bool = True, tokens: int = 1) -> Any:
        return Line("select", "build-paired", None, 1, tokens, seconds, 0, known)

    assert [_span(each) for each in (line(1), line(600), line(9000), line(1, False), line(None), line(0, True, 0))] == [
        "1 s", "10 min", "2.5 h", "~1 s", "?", "-",
    ]  # fmt: skip
    assert [_size(amount) for amount in (10, 4096, 5 * 1024**3)] == ["10 bytes", "4 KiB", "5 GiB"]
