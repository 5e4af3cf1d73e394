"""The command line. Each subcommand is one function here; what it needs is imported when it runs.

Add one by writing a function that takes the parsed arguments and returns an exit status, under `@command(...)`: its
name and first line become the subcommand and its help.
"""

import argparse
import math
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from prefdata.errors import UserError, faults_in_words

if TYPE_CHECKING:
    from prefdata.builds.budget import Budget
    from prefdata.builds.job import Job, Outcome
    from prefdata.diff import Difference, SplitDiff
    from prefdata.versions import Version

SOUND, PROBLEMS, BAD_INPUT, INTERRUPTED, BROKEN_PIPE = 0, 1, 2, 130, 141
TERMINAL_ROWS = 100
SHOWN_IDS = 5

Run = Callable[[argparse.Namespace], int]


def hours(text: str) -> float:
    """An argument that is a time span."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not (math.isfinite(value) and value >= 0):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of hours from 0 on")
    return value


def whole_number(text: str) -> int:
    """An argument that counts something."""
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 0 on")
    return int(text)


@dataclass(frozen=True)
class Argument:
    """What `ArgumentParser.add_argument` takes."""

    names: tuple[str, ...]
    options: dict[str, Any]


@dataclass(frozen=True)
class Command:
    """A subcommand."""

    name: str
    help: str
    run: Run
    arguments: tuple[Argument, ...]


COMMANDS: dict[str, Command] = {}


def argument(*names: str, **options: Any) -> Argument:
    """An argument of a subcommand."""
    return Argument(names, options)


def command(*arguments: Argument) -> Callable[[Run], Run]:
    """Make a function a subcommand."""

    def register(run: Run) -> Run:
        name = run.__name__.replace("_", "-")
        COMMANDS[name] = Command(name, (run.__doc__ or "").splitlines()[0].rstrip("."), run, arguments)
        return run

    return register


_VERSION = argument("version", help="vN, a tag, latest, or a path or URL")


@command()
def versions(args: argparse.Namespace) -> int:
    """List the versions."""
    from prefdata import printing, query
    from prefdata import versions as store

    damaged: list[store.DamagedVersion] = []
    found = store.every(args.root, damaged=damaged.append)
    for damage in damaged:
        print(f"prefdata: warning: not listed: {damage}", file=sys.stderr)
    if not found:
        none = "is no version that can be read in" if damaged else "are no versions yet in"
        print(f"there {none} {store.root(args.root)!r}", file=sys.stderr)
        return SOUND
    columns = ["version", "kind", "build", "parents", "rows", "set_aside", "reference", "tags", "created_at"]
    printing.print_arrow(query.versions_table(found, store.tags(args.root)).select(columns))
    return SOUND


@command(_VERSION)
def show(args: argparse.Namespace) -> int:
    """Show what a version is, where it came from and what it holds."""
    from prefdata import printing
    from prefdata import versions as store

    version = store.find(args.version, root=args.root)
    printing.print_table(["what", "value"], _facts(version), title=version.name)
    counts = version.manifest["counts"]
    stages = [
        [stage["stage"], stage["rows_in"], stage["kept"], sum(stage["set_aside"].values())]
        for stage in counts["stages"]
    ]
    printing.print_table(["stage", "rows in", "kept", "set aside"], stages, title="counts")
    reasons = [[stage["stage"], *reason] for stage in counts["stages"] for reason in stage["set_aside"].items()]
    if reasons:
        printing.print_table(["stage", "reason", "rows"], reasons, title="set aside")
    sources = [[source.get(field) for field in _SOURCE] for source in version.manifest["sources"]]
    if sources:
        printing.print_table(_SOURCE, sources, title="sources")
    files = [[entry["path"], entry.get("rows"), entry["bytes"], entry["sha256"]] for entry in version.manifest["files"]]
    printing.print_table(["path", "rows", "bytes", "sha256"], files, title="files")
    return SOUND


_SOURCE = ("name", "format", "rows", "license", "path", "sha256")


def _facts(version: "Version") -> list[tuple[str, Any]]:
    manifest = version.manifest
    rows = {split: n for split, n in manifest["counts"]["rows"].items() if n}
    told: dict[str, Any] = {
        "kind": version.kind,
        "rows": ", ".join(f"{split} {n}" for split, n in rows.items()) or "none",
        "build": manifest["build"],
        "parents": version.parents or None,
        "round": manifest["round"],
        "created at": manifest["created_at"],
        "folder": version.url,
        "logical hash": version.logical_hash,
        "build key": manifest["build_key"],
    }
    from prefdata.diff import flat

    nested = ("config", "seeds", "tokenizer", "generator", "reference", "packages")
    for name in nested:
        told |= flat(name, manifest[name])  # type: ignore[literal-required]
    return list(told.items())


@command(
    argument("version", nargs="*", help="versions to check: vN, a tag, latest, or a path or URL"),
    argument("--all", action="store_true", help="check every version, the tags and the work units"),
)
def verify(args: argparse.Namespace) -> int:
    """Check that versions are what was published: files, counts, ledger, schema.

    Exit status 1 if anything is wrong, 2 if a version is not there; the others are checked all the same.
    """
    from prefdata import versions as store
    from prefdata.storage import Storage

    if args.all == bool(args.version):
        raise UserError("say which versions to check, or --all")
    names = args.version
    if args.all:
        storage = Storage(store.root(args.root))
        names = [f"v{n}" for n in store.numbers(storage) if storage.exists(f"v{n}/{store.MANIFEST}")]
    found = [_verify(name, args.root) for name in names]
    return max([*found, _verify_beside(args.root) if args.all else SOUND], default=SOUND)


def _verify_beside(root: str | None) -> int:
    from prefdata import verify
    from prefdata import versions as store

    problems = verify.verify_beside(store.root(root))
    for problem in problems:
        print(_printable(problem))
    return PROBLEMS if problems else SOUND


def _verify(name: str, root: str | None) -> int:
    from prefdata import verify
    from prefdata import versions as store

    try:
        version = store.find(name, root=root)
        problems, name = verify.verify(version), version.name
    except store.DamagedVersion as damage:
        problems = [str(damage)]
    except UserError as error:
        return _refused(error)
    print(f"{name}: {f'{len(problems)} problem' + 's' * (len(problems) > 1) if problems else 'sound'}")
    for problem in problems:
        print(f"  {problem}")
    return PROBLEMS if problems else SOUND


@command(
    _VERSION,
    argument("table", nargs="*", help="tables to show (default: all)"),
)
def stats(args: argparse.Namespace) -> int:
    """Show the statistics of a version."""
    from prefdata import printing
    from prefdata import versions as store
    from schemas.stats import TABLES

    version = store.find(args.version, root=args.root)
    files = {entry["path"].removeprefix("stats/").removesuffix(".parquet"): entry for entry in version.files("stats")}
    unknown = [name for name in args.table if name not in files]
    if unknown:
        raise UserError(f"{version.name} has no statistics called {unknown[0]!r}; it has: {', '.join(files) or 'none'}")
    known = [name for name in TABLES if name in files]
    for name in args.table or [*known, *sorted(files.keys() - known)]:
        table = version.read(files[name])
        if table.num_rows or args.table:
            printing.print_arrow(table, title=name)
    return SOUND


@command(
    argument(
        "query",
        help="one SQL statement over the views versions, v1, v2, ..., pairs, ledger, lengths, ...; - reads it from stdin",
    ),
    argument(
        "--format",
        choices=("table", "csv", "json", "jsonl", "parquet"),
        help="default: by the name of the output, else table",
    ),
    argument("-o", "--output", metavar="FILE", help="write to a file"),
    argument(
        "--limit",
        type=whole_number,
        metavar="N",
        help=f"rows of a table (default: {TERMINAL_ROWS} on a terminal, else all; 0: all)",
    ),
)
def sql(args: argparse.Namespace) -> int:
    """Answer a question in SQL over all versions; nothing is ever written to them."""
    from prefdata import printing, query

    format_ = args.format or _format_of(args.output)
    if format_ == "parquet" and args.output is None:
        raise UserError("--format parquet needs a file: add -o FILE.parquet")
    if format_ == "table" and args.output is not None:
        raise UserError("a table goes to the screen; for a file choose --format csv, json, jsonl or parquet")
    reader = query.stream(sys.stdin.read() if args.query == "-" else args.query, args.root)
    if format_ == "table":
        _print_answer(reader, args.limit)
    else:
        printing.write(reader, format_, args.output)
    return SOUND


def _format_of(output: str | None) -> str:
    if output is None:
        return "table"
    ending = output.rsplit(".", 1)[-1].lower()
    if ending not in ("csv", "json", "jsonl", "parquet"):
        raise UserError(
            f"the name {output!r} does not say which format it should have; add --format csv, json, jsonl or parquet"
        )
    return ending


def _print_answer(reader: Any, limit: int | None) -> None:
    from prefdata import printing

    most = limit if limit is not None else TERMINAL_ROWS if printing.on_terminal() else 0
    rows: list[Any] = []
    for batch in reader:
        rows.extend(printing.rows_of(batch))
        if most and len(rows) > most:
            break
    printing.print_table(reader.schema.names, rows[:most] if most else rows)
    if most and len(rows) > most:
        print(f"the first {most} rows; --limit 0 shows all", file=sys.stderr)


@command(
    argument("name", nargs="?", help="the tag: letters, digits, and . _ - inside (default: list the tags)"),
    argument("version", nargs="?", help="what it should name: vN, another tag, latest"),
    argument("--delete", metavar="NAME", help="remove a tag; the version stays"),
)
def tag(args: argparse.Namespace) -> int:
    """Give a version a name, move a name to another version, or list the names."""
    from prefdata import printing
    from prefdata import versions as store

    if args.delete is not None:
        if args.name is not None:
            raise UserError("--delete takes one tag and nothing else")
        print(f"{args.delete}: removed, it named {store.untag(args.delete, args.root)}")
    elif args.name is None:
        printing.print_table(["tag", "version"], sorted(store.tags(args.root).items()))
    elif args.version is None:
        raise UserError(f"say which version {args.name!r} should name:  prefdata tag {args.name} VERSION")
    else:
        version, before = store.tag(args.name, args.version, args.root)
        moved = f", moved from {before}" if before not in (None, version.name) else ""
        print(f"{args.name}: names {version.name}{moved}")
    return SOUND


@command(
    argument("old", help="vN, a tag, latest, or a path or URL"),
    argument("new", help="the version to compare it with"),
)
def diff(args: argparse.Namespace) -> int:
    """Tell what differs between two versions: rows, columns, config, seeds, models.

    Exit status 0 if nothing does, 1 if anything does. Log-probs within 1e-4 nats per token count as equal.
    """
    from prefdata import diff as differences
    from prefdata import versions as store

    old, new = store.find(args.old, root=args.root), store.find(args.new, root=args.root)
    found = differences.compare(old, new)
    for line in _difference_lines(found):
        print(_printable(line))
    return PROBLEMS if found.differs else SOUND


def _difference_lines(found: "Difference") -> Iterator[str]:
    old, new = found.logical_hashes
    if old == new:
        yield f"logical hash: equal (same ids, text, tokens and labels): {old}"
    else:
        yield f"logical hash: {old} -> {new}"
    for key, before, after in [*found.facts, *((f"column {name}", *types) for name, *types in found.columns)]:
        yield f"{key}: {before} -> {after}"
    for split in found.splits:
        yield from _split_lines(split)
    if not found.differs:
        yield "no difference"


def _split_lines(split: "SplitDiff") -> Iterator[str]:
    from prefdata.diff import TOLERANCE

    yield (
        f"{split.split}: {split.before} -> {split.after} rows; {len(split.added)} added, {len(split.removed)} removed, "
        f"{len(split.changed)} changed"
    )
    for what, ids in (("added", split.added), ("removed", split.removed), ("changed", split.changed)):
        if ids:
            yield f"  {what}: {_first(ids)}"
    for column, rows in sorted(split.columns.items()):
        yield f"  column {column}: differs in {rows} rows"
    if split.logps_changed:
        yield (
            f"  log-probs: more than {TOLERANCE:g} nats per token apart in {len(split.logps_changed)} rows "
            f"(at most {split.logps_apart:.3g}): {_first(split.logps_changed)}"
        )
    if split.logps_close:
        apart = "" if split.logps_changed else f" (at most {split.logps_apart:.1g})"
        yield f"  log-probs: differ by no more than {TOLERANCE:g} nats per token in {split.logps_close} rows{apart}"


def _first(ids: Sequence[str]) -> str:
    more = len(ids) - SHOWN_IDS
    return ", ".join(ids[:SHOWN_IDS]) + (f" and {more} more" if more > 0 else "")


@command(
    _VERSION,
    argument("--down", action="store_true", help="also show what was made from it"),
)
def lineage(args: argparse.Namespace) -> int:
    """Draw where a version came from, down to its sources and their licences."""
    from prefdata import lineage as tree
    from prefdata import versions as store

    version = store.find(args.version, root=args.root)
    for line in tree.ancestors(version):
        print(_printable(line))
    if args.down:
        print("\nmade from it:")
        for line in tree.descendants(version, args.root):
            print(_printable(line))
    return SOUND


def _printable(line: str) -> str:
    """A line that can't move the cursor, break in two, or fail on a terminal that knows fewer characters."""
    shown = "".join(char if char.isprintable() else ascii(char)[1:-1] for char in line)
    encoding = sys.stdout.encoding or "utf-8"
    try:
        shown.encode(encoding)
    except UnicodeEncodeError:
        plain = shown.translate(str.maketrans("├└│─", "|`|-"))
        return plain.encode(encoding, "backslashreplace").decode(encoding)
    return shown


@command(
    argument("--dry-run", action="store_true", help="only say what would be removed"),
    argument(
        "--older-than",
        type=hours,
        default=24.0,
        metavar="HOURS",
        help="leave what was touched within these hours (default: 24); with few, let no build run meanwhile",
    ),
    argument("--work", action="store_true", help="also remove finished work units, which later builds then recompute"),
)
def gc(args: argparse.Namespace) -> int:
    """Remove what killed builds left: stale claims, their files, temporary files. No version is touched."""
    from prefdata import gc as collector
    from prefdata import versions as store
    from prefdata.storage import Storage

    storage = Storage(store.root(args.root))
    found = collector.plan(storage, older_than_s=args.older_than * 3600, now=time.time(), with_work=args.work)
    total = 0
    for leftover in found.leftovers:
        gone = leftover.bytes if args.dry_run else collector.remove(storage, leftover)
        print(_printable(f"{'would remove' if args.dry_run else 'removed'} {leftover.what}, {gone:,} bytes"))
        total += gone
    for reason in found.kept:
        print(_printable(f"left {reason}"))
    print(f"{'would remove' if args.dry_run else 'removed'} {total:,} bytes in all")
    return SOUND


@command(
    argument("recipe", metavar="FILE", help="a TOML file; see recipes/ and docs/recipes.md"),
    argument(
        "--set",
        action="append",
        default=[],
        metavar="SECTION.KEY=VALUE",
        help="in place of what the file says, such as generate.samples=8; may be given again",
    ),
    argument("--dry-run", action="store_true", help="only tell what it would make and cost"),
)
def build(args: argparse.Namespace) -> int:
    """Build what a recipe says: source, steps, generation, scores, selection, reference.

    What is finished is kept: the same command goes on where it was stopped, and does nothing once all is there. --dry-run
    computes nothing and prints rows, tokens, engine time and disk of every step.
    """
    from prefdata import printing
    from prefdata import recipe as recipes

    read = recipes.read(args.recipe, args.set)
    if args.dry_run:
        found = recipes.plan(read, args.root)
        printing.print_table(*found.table(), title=read.name)
        for note in found.notes(read):
            print(_printable(note))
        return SOUND
    budget = read.budget()
    done = recipes.run(read, args.root, lambda step, job: _built(step.where, job, budget))
    version = done.version
    made = f"{version.name} is ready" if done.new else f"nothing was done: {version.name} is what this recipe makes"
    print(_printable(f"{made}. Look at it with:  prefdata show {version.name}"))
    return SOUND


def _built(where: str, job: "Job", budget: "Budget | None") -> "Outcome":
    """Run a job with a bar, and tell what came of it."""
    from prefdata.builds.job import run
    from prefdata.builds.progress import Bars

    for notice in job.notices:
        print(_printable(f"{where}: {notice}"), file=sys.stderr)
    with closing(Bars(where)) as bars:
        outcome = run(job, watcher=bars, budget=budget)
    print(_printable(f"{where}: {outcome.sentence()}"), file=sys.stderr)
    return outcome


@command(
    argument(
        "target", metavar="WHAT", help="a version (vN, a tag, latest, a path or URL), or a run folder (runs/NAME)"
    ),
    argument(
        "-o",
        "--out",
        metavar="FILE",
        help="default: beside the versions, in reports and a folder named like theirs; report.html in a run folder; -: the standard output",
    ),
)
def report(args: argparse.Namespace) -> int:
    """Write a page about a version or a training run: warnings, origin, ledger, plots, rows, curves.

    It is one HTML file that loads nothing: open it in a browser, or send it to someone.
    """
    from prefdata import report as reports

    made = reports.report(args.target, root=args.root, out=args.out)
    if args.out == "-":
        sys.stdout.buffer.write(made.html.encode("utf-8"))  # whatever the terminal's encoding
        return SOUND
    where = reports.write(made)
    warnings = "no warnings" if not made.alarms else f"{made.alarms} warning{'s' * (made.alarms > 1)}"
    print(_printable(f"{where}: {warnings}"))
    return SOUND


@command(
    _VERSION,
    argument(
        "--to",
        required=True,
        metavar="TARGET",
        help="trl, llama-factory or openai (each in its own layout), jsonl (every column), or hf (the version itself)",
    ),
    argument(
        "-o",
        "--out",
        metavar="FOLDER",
        help="a folder that is not there yet (default: VERSION-TARGET in exports, beside the versions)",
    ),
    argument(
        "--split",
        action="append",
        default=[],
        metavar="NAME",
        help="export this split only; may be given again (default: all)",
    ),
    argument("--push", metavar="OWNER/NAME", help="then put the folder into this data set of the Hugging Face hub"),
    argument("--private", action="store_true", help="make that data set a private one"),
)
def export(args: argparse.Namespace) -> int:
    """Write a version in the layout that another trainer or service reads.

    What the target has no place for is counted with the reason in _export.json, and told. The same export again is found.
    """
    from prefdata import exports
    from prefdata import versions as store

    if args.private and args.push is None:
        raise UserError("--private is about the data set that --push names: give both, or neither")
    api = None
    if args.push is not None:
        from prefdata.exports import push

        api = push.hub_api(args.push)
    version = store.find(args.version, root=args.root)
    with _rows_done(version, args.split) as progress:
        made = exports.export(version, args.to, out=args.out, splits=args.split, progress=progress)
    held = ", ".join(f"{split} {rows:,}" for split, rows in made.rows.items())
    print(_printable(f"{made.folder}: {held}{', already there' if made.was_there else ''}"))
    if made.left_out:
        told = ", ".join(f"{reason} {rows:,}" for reason, rows in made.left_out.items())
        print(_printable(f"left out, as {args.to} can't hold them: {told}"), file=sys.stderr)
    if args.push is not None:
        pushed = push.push(made.folder, args.push, api, private=args.private, message=f"{version.name} for {args.to}")
        print(_printable(f"{pushed.url}{': already there' if pushed.was_there else ''}"))
    return SOUND


@contextmanager
def _rows_done(version: "Version", splits: Sequence[str]) -> Iterator[Callable[[int], object]]:
    """A bar for whoever waits at a terminal."""
    from tqdm import tqdm

    rows = version.manifest["counts"]["rows"]
    total = sum(rows.get(split, 0) for split in splits or rows)
    with tqdm(total=total, unit=" rows", leave=False, disable=not sys.stderr.isatty()) as bar:
        yield bar.update


def _root_option() -> argparse.ArgumentParser:
    """It may stand before or after the command, so where it is not given it must not overwrite the other."""
    parent = argparse.ArgumentParser(add_help=False)
    where = "where versions live: a folder or URL (default: $PREFDATA_ROOT, else ./data)"
    parent.add_argument("--root", metavar="DIR", default=argparse.SUPPRESS, help=where)
    return parent


def parser() -> argparse.ArgumentParser:
    """The whole command line."""
    about = "Preference data in versions: list, check and query them."
    whole = argparse.ArgumentParser(prog="prefdata", description=about, parents=[_root_option()])
    whole.set_defaults(root=None)
    commands = whole.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for each in COMMANDS.values():
        sub = commands.add_parser(each.name, help=each.help, description=each.run.__doc__, parents=[_root_option()])
        for each_argument in each.arguments:
            sub.add_argument(*each_argument.names, **each_argument.options)
        sub.set_defaults(run=each.run)
    return whole


def _refused(error: UserError) -> int:
    print(f"prefdata: {error}", file=sys.stderr)
    return BAD_INPUT


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    args = parser().parse_args(argv)
    try:
        with faults_in_words():
            status: int = args.run(args)
            sys.stdout.flush()
    except UserError as error:
        return _refused(error)
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:
        # whoever read us has seen enough; the interpreter must not try to flush once more on its way out
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return BROKEN_PIPE
    return status
