"""A recipe's file, read and checked: every key is an option of its build, every value of its type."""

import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import Field, dataclass, fields
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from prefdata.builds import registry
from prefdata.builds.budget import Budget
from prefdata.builds.options import check, kind_of
from prefdata.errors import UserError
from prefdata.recipe.sections import BY_NAME, OTHERS, SECTIONS, Section
from prefdata.versions import tag_problem

VERSION = "version"  # the key of [source] that names a version to begin with, in place of an ingest


@dataclass(frozen=True)
class Step:
    """One build of the chain: `where` names its section, `options` are those that the recipe sets."""

    where: str
    build: str
    options: Mapping[str, Any]

    def chosen(self, source: str | None) -> Any:
        """The build's options, reading this version (None: what the recipe itself names)."""
        given = dict(self.options) if source is None else {**self.options, "source": source}
        return registry.options(self.build)(**given)


@dataclass(frozen=True)
class Recipe:
    """What a file asks for. `version`: where the chain begins, if it does not ingest."""

    name: str
    steps: tuple[Step, ...]
    version: str | None = None
    root: str | None = None
    tag: str | None = None
    max_tokens: int | None = None
    max_rows: int | None = None

    def budget(self) -> Budget | None:
        """A new one, as the recipe says."""
        if self.max_tokens is None and self.max_rows is None:
            return None
        return Budget(self.max_tokens, self.max_rows)


def read(path: str, settings: Sequence[str] = ()) -> Recipe:
    """The recipe in a TOML file.

    settings: SECTION.KEY=VALUE each, in place of what the file says; VALUE as TOML has it, or else a text.

    UserError for what can't be read, names that no section or build has, and values that are not of their type.
    """
    try:
        said = tomllib.loads(Path(path).read_text("utf-8"))
    except OSError as problem:
        raise UserError(f"the recipe {path} can't be read: {problem.strerror}") from problem
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as problem:
        raise UserError(f"the recipe {path} is not TOML: {problem}") from problem
    for setting in settings:
        _set(said, setting)
    return _recipe(Path(path).stem, said)


def _recipe(name: str, said: Mapping[str, Any]) -> Recipe:
    for heading in said:
        _known(heading, (*BY_NAME, *OTHERS), "a recipe has no section")
    version, steps = None, []
    for section in SECTIONS:
        for where, table in _tables(section, said.get(section.name)):
            if section.name == "source" and VERSION in table:
                version = _version(table)
            else:
                steps.append(_step(section, where, table))
    if not steps:
        raise UserError("the recipe names nothing to build; give it a section: " + ", ".join(BY_NAME))
    if "source" not in said:
        raise UserError('the recipe has no [source]: name files to ingest (source = [...]), or version = "vN"')
    others: dict[str, Any] = {}
    for heading in OTHERS:
        others |= _other(heading, said.get(heading, {}))
    return Recipe(name, tuple(steps), version, **others)


def _tables(section: Section, said: Any) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """The tables of a section, each with what errors call it."""
    if said is None:
        return
    several = isinstance(said, list) and all(isinstance(table, Mapping) for table in said)
    if isinstance(said, Mapping):
        yield section.name, said
    elif several and section.several:
        yield from ((f"{section.name}[{number}]", table) for number, table in enumerate(said, 1))
    elif several:
        raise UserError(f"a recipe has one [{section.name}], and this has {len(said)}")
    else:
        raise UserError(f"{section.name} is {said!r}; it must be a section: [{section.name}]")


def _version(table: Mapping[str, Any]) -> str:
    extra = [key for key in table if key != VERSION]
    if extra:
        raise UserError(f"source names a version, which is read as it is; {extra[0]} has nothing to act on")
    if table[VERSION] == "latest":
        raise UserError("source.version is latest, which is another one after each build: name a version or a tag")
    if not isinstance(table[VERSION], str):
        raise UserError(f"source.version is {table[VERSION]!r}, and must be a text: vN, a tag, a path or a URL")
    return str(table[VERSION])


def _step(section: Section, where: str, table: Mapping[str, Any]) -> Step:
    table = dict(table)
    if isinstance(section.builds, str):
        build = section.builds
    else:
        named = table.pop("build", None)
        if named not in section.builds:
            found = "names no build" if named is None else f"has build = {named!r}"
            raise UserError(f"{where} {found}; it can be: {', '.join(section.builds)}")
        build = section.builds[named]
    owner = registry.options(build)
    knobs = {knob.name: knob for knob in fields(owner) if knob.name != "source" or section.name == "source"}
    for key in table:
        _known(key, tuple(knobs), f"{where} has no option")
    given = {key: _typed(f"{where}.{key}", knobs[key], owner, value) for key, value in table.items()}
    step = Step(where, build, given)
    try:
        check(step.chosen(None))
    except UserError as problem:
        raise UserError(f"{where}: {problem}") from problem
    return step


def _typed(name: str, knob: "Field[Any]", owner: type, value: Any) -> Any:
    """The value as the option has it."""
    plain, several = kind_of(knob, owner)
    if several:
        values = value if isinstance(value, list) else [value]
        return tuple(_one(name, plain, each) for each in values)
    return _one(name, plain, value)


def _one(name: str, plain: type, value: Any) -> Any:
    whole = isinstance(value, int) and not isinstance(value, bool)
    if plain is float and whole:
        return float(value)
    if type(value) is not plain:
        words = {str: "a text", int: "a whole number", float: "a number", bool: "true or false"}
        raise UserError(f"{name} is {value!r}, and must be {words.get(plain, plain.__name__)}")
    return value


def _other(section: str, table: Any) -> dict[str, Any]:
    known = OTHERS[section]
    if not isinstance(table, Mapping):
        raise UserError(f"{section} is {table!r}; it must be a section: [{section}]")
    for key in table:
        _known(key, tuple(known), f"{section} has no key")
    found = {key: _one(f"{section}.{key}", known[key], value) for key, value in table.items()}
    for key, value in found.items():
        if isinstance(value, int) and value < 1:
            raise UserError(f"{section}.{key} is {value}, and must be at least 1")
        if key == "tag" and (wrong := tag_problem(value)):
            raise UserError(f"{section}.tag is {value!r}, which can't be a tag: {wrong}")
    return found


def _known(name: str, names: Sequence[str], refusal: str) -> None:
    if name in names:
        return
    near = get_close_matches(name, names, 1)
    meant = f"did you mean {near[0]}? It" if near else "it"
    raise UserError(f"{refusal} {name!r}; {meant} can be: {', '.join(names)}")


def _set(said: dict[str, Any], setting: str) -> None:
    """Put one SECTION.KEY=VALUE in place. Of a section that stands several times, SECTION[N] names one."""
    name, equals, text = setting.partition("=")
    section, dot, key = name.strip().partition(".")
    if not (equals and dot and section and key):
        raise UserError(f"--set {setting!r} is not SECTION.KEY=VALUE, such as generate.samples=8")
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        value = text.strip()
    section, bracket, number = section.partition("[")
    table = said.setdefault(section, {})
    if isinstance(table, list):
        place = number.rstrip("]")
        if not (bracket and place.isdecimal() and 1 <= int(place) <= len(table)):
            raise UserError(
                f"--set {setting!r}: there are {len(table)} of [[{section}]]; say which: {section}[1].{key}"
            )
        table = table[int(place) - 1]
    if not isinstance(table, dict):
        raise UserError(f"{section} is {table!r}; it must be a section: [{section}]")
    table[key] = value
