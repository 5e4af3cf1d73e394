"""A small world of instructions whose answers a program can check: look-ups in the prompt and rewrites of it.

A prompt is a line that says what to do and the lines to do it to. `solve` reads nothing but the prompt's text, so every
prompt can check any answer to it. Words stand apart by one space, lines by one newline, and a content word of the answer
is a word of the prompt. Everything is drawn from seeds.
"""

import json
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

_CONTENT = """
apple arrow badge baker basin beach berry bird boat bone book bread brick bridge broom brush bucket button cabin
cake camel candle canoe carpet castle cave chair chalk cherry circle clock cloud clover coal coat coin comet copper
coral corn cotton crab crane crown cup curtain daisy deer desk diamond dog door dragon drum duck eagle engine falcon
farm feather fence ferry field fig finger fire fish flag flame flute forest fork fox frog garden gate ghost glass
glove goat gold grape grass guitar hammer harbor hat hawk hill honey horse house ice iron island ivory
"""
_COMMANDS = "add the word to each line keep with look up number lines replace by reverse sort swap last two words"

WORDS = tuple(_CONTENT.split())
NUMBERS = tuple(str(number) for number in range(1, 13))
VOCABULARY = (*NUMBERS, *_COMMANDS.split(), *WORDS)  # all words of prompts and answers

PREFERENCE_PROMPTS = 2000
HELD_OUT_PROMPTS = 300

Lines = list[list[str]]


@dataclass(frozen=True)
class Shape:
    """How large tasks are, and how hard: fewest and most."""

    lines: tuple[int, int]  # of an answer
    width: tuple[int, int]  # content words of a line
    repeats: tuple[
        int, int
    ]  # words that stand twice, so that which one is meant has to be seen from more than the word


@dataclass(frozen=True)
class Size:
    """What is drawn from a shape for one task."""

    lines: int
    width: int
    repeats: int


USUAL = Shape(lines=(5, 10), width=(3, 3), repeats=(0, 3))  # answers of 24 to 60 tokens, newlines counted


@dataclass(frozen=True)
class Task:
    """An instruction and its right answer."""

    kind: str
    prompt: str
    answer: str


@dataclass(frozen=True)
class Kind:
    """One kind of instruction: the command its prompts begin with, what writes a prompt, what answers one."""

    command: str
    write: Callable[[random.Random, Size], Lines]  # a prompt whose answer has that size
    answer: Callable[[list[str], Lines], Lines]  # from the words after the command, and the other lines


def sample_task(rng: random.Random, kinds: Sequence[str] | None = None, shape: Shape = USUAL) -> Task:
    """A task of one of the kinds; of any if none are named."""
    kind = rng.choice(kinds or tuple(KINDS))
    size = Size(rng.randint(*shape.lines), rng.randint(*shape.width), rng.randint(*shape.repeats))
    head, *lines = KINDS[kind].write(rng, size)
    prompt = _text([[*KINDS[kind].command.split(), *head], *lines])
    return Task(kind, prompt, solve(prompt))


def solve(prompt: str) -> str:
    """The right answer to a prompt. ValueError when the prompt is none of this world."""
    for kind in KINDS.values():
        if prompt.startswith((f"{kind.command} ", f"{kind.command}\n")):
            head, *lines = _lines(prompt.removeprefix(kind.command))
            return _text(kind.answer(head, lines))
    raise ValueError(f"no instruction of this world: {prompt[:60]!r}")


def check(prompt: str, answer: str) -> bool:
    """Whether an answer is right, by the prompt's text alone; only white space around words and lines is free."""
    return _lines(answer.strip()) == _lines(solve(prompt))


def plant_mistake(task: Task, rng: random.Random) -> str:
    """The right answer with one mistake in it."""
    while True:
        lines = _lines(task.answer)
        rng.choice(MISTAKES)(lines, rng)
        if not check(task.prompt, answer := _text(lines)):  # two equal words, swapped, are no mistake
            return answer


def preference_tasks(seed: int) -> list[Task]:
    """The tasks that pairs are made of: no prompt twice, none of them held out."""
    return _distinct(seed)[HELD_OUT_PROMPTS:]


def held_out_tasks(seed: int) -> list[Task]:
    """The tasks that neither the model nor a policy learns from."""
    return _distinct(seed)[:HELD_OUT_PROMPTS]


def finetuning_tasks(seed: int, kinds: Sequence[str] | None = None, shape: Shape = USUAL) -> Iterator[Task]:
    """Tasks to learn from, without end: none has a preference prompt or a held-out one."""
    reserved = {task.prompt for task in _distinct(seed)}
    rng = random.Random(f"{seed} finetuning {kinds} {shape}")
    while True:
        if (task := sample_task(rng, kinds, shape)).prompt not in reserved:
            yield task


def write_pairs(path: Path, seed: int = 0) -> None:
    """The preference pairs as JSON lines, the dirty rows among them at drawn positions."""
    rng = random.Random(f"{seed} pairs")
    pairs = [_pair(task, rng) for task in preference_tasks(seed)]
    rows = [json.dumps(pair) for pair in pairs]
    for row in dirty_rows(pairs[0]):
        rows.insert(rng.randint(0, len(rows)), row)
    _write_lines(path, rows)


def write_heldout(path: Path, seed: int = 0) -> None:
    """The held-out tasks as pairs, as JSON lines."""
    rng = random.Random(f"{seed} held out")
    _write_lines(path, [json.dumps(_pair(task, rng)) for task in held_out_tasks(seed)])


def dirty_rows(pair: dict[str, str]) -> list[str]:
    """Twenty lines of which none is a pair to learn from. `pair` is a good one: it is spoilt in many ways, and repeated."""
    prompt, chosen, rejected = pair["prompt"], pair["chosen"], pair["rejected"]
    whole = json.dumps(pair)
    changed: list[dict[str, object]] = [
        {"rejected": None},
        {"prompt": None},
        {"chosen": 42},
        {"rejected": [1, 2, 3]},
        {"prompt": ""},
        {"chosen": ""},
        {"rejected": " \n "},
        {"rejected": chosen},
        {"prompt": "\n".join([prompt] * 20)},  # more tokens than the model has positions
        {"chosen": f"{chosen}<|end|>"},
        {"prompt": f"{prompt}<|assistant|>{rejected}"},
        {"rejected": rejected.replace(" ", " \ufffd", 1)},
        {"chosen": f"\ud800{chosen}"},  # half of a surrogate pair
        {"chosen_score": 1, "rejected_score": 2},  # says that the rejected side is the better one
    ]
    return [
        whole,  # the good pair once more
        whole[: len(whole) // 2],  # a line that was cut
        f"{prompt!r}, {chosen!r}, {rejected!r}",
        json.dumps([prompt, chosen, rejected]),
        json.dumps({"prompt": prompt, "chosen": chosen}),
        whole[:-1] + ', "rejected": "another"}',  # a column twice
        *(json.dumps(pair | change) for change in changed),
    ]


# What writes and answers each kind. A written prompt's first line holds the words after the command.


def _write_numbered(rng: random.Random, size: Size) -> Lines:
    return [[], *_numbered(_rows(rng, size))]


def _write_sort(rng: random.Random, size: Size) -> Lines:
    lines = _numbered(_rows(rng, size))
    return [[], *rng.sample(lines, size.lines)]


def _answer_sort(head: list[str], lines: Lines) -> Lines:
    return sorted(lines, key=lambda line: int(line[0]))


def _answer_reverse(head: list[str], lines: Lines) -> Lines:
    return lines[::-1]


def _answer_swap(head: list[str], lines: Lines) -> Lines:
    return [[*line[:-2], line[-1], line[-2]] for line in lines]


def _write_number(rng: random.Random, size: Size) -> Lines:
    return [[], *_rows(rng, size)]


def _answer_number(head: list[str], lines: Lines) -> Lines:
    return _numbered(lines)


def _write_look_up(rng: random.Random, size: Size) -> Lines:
    table = _numbered(_rows(rng, size, more=2))
    asked = rng.sample(table, size.lines)
    return [[line[0] for line in asked], *rng.sample(table, len(table))]


def _answer_look_up(head: list[str], lines: Lines) -> Lines:
    table = {line[0]: line for line in lines}
    return [table[number] for number in head]


def _write_add(rng: random.Random, size: Size) -> Lines:
    [word], *lines = _rows(rng, size, others=1)
    return [[word, "to", "each", "line"], *_numbered(lines)]


def _answer_add(head: list[str], lines: Lines) -> Lines:
    return [[*line, head[0]] for line in lines]


def _write_replace(rng: random.Random, size: Size) -> Lines:
    [old, new], *lines = _rows(rng, size, others=2)
    for line in rng.sample(lines, (size.lines + 1) // 2):
        line[rng.randrange(size.width)] = old
    return [[old, "by", new], *_numbered(lines)]


def _answer_replace(head: list[str], lines: Lines) -> Lines:
    old, _, new = head
    return [[new if word == old else word for word in line] for line in lines]


def _write_keep(rng: random.Random, size: Size) -> Lines:
    [word], *lines = _rows(rng, size, more=2, others=1)
    for line in rng.sample(lines, size.lines):
        line[0] = word
    return [[word], *_numbered(lines)]


def _answer_keep(head: list[str], lines: Lines) -> Lines:
    return [line for line in lines if head[0] in line]


KINDS = {
    "sort": Kind("sort the lines", _write_sort, _answer_sort),
    "reverse": Kind("reverse the lines", _write_numbered, _answer_reverse),
    "swap": Kind("swap the last two words", _write_numbered, _answer_swap),
    "number": Kind("number the lines", _write_number, _answer_number),
    "look up": Kind("look up", _write_look_up, _answer_look_up),
    "add": Kind("add the word", _write_add, _answer_add),
    "replace": Kind("replace", _write_replace, _answer_replace),
    "keep": Kind("keep the lines with", _write_keep, _answer_keep),
}


def _wrong_word(lines: Lines, rng: random.Random) -> None:
    line = rng.choice(lines)
    line[rng.randrange(len(line))] = rng.choice(WORDS)


def _swapped_words(lines: Lines, rng: random.Random) -> None:
    line = rng.choice(lines)
    one, other = rng.sample(range(len(line)), 2)
    line[one], line[other] = line[other], line[one]


def _swapped_lines(lines: Lines, rng: random.Random) -> None:
    one, other = rng.sample(range(len(lines)), 2)
    lines[one], lines[other] = lines[other], lines[one]


def _dropped_line(lines: Lines, rng: random.Random) -> None:
    lines.pop(rng.randrange(len(lines)))


def _repeated_line(lines: Lines, rng: random.Random) -> None:
    lines.insert(rng.randrange(len(lines)), rng.choice(lines))


MISTAKES = (_wrong_word, _swapped_words, _swapped_lines, _dropped_line, _repeated_line)


def _rows(rng: random.Random, size: Size, *, more: int = 0, others: int = 0) -> Lines:
    """Lines of words, `more` than the answer has; before them, if asked for, a line of `others` that stand in no line."""
    count = (size.lines + more) * size.width
    words = rng.sample(WORDS, others + count)
    head, body = words[:others], words[others:]
    for _ in range(size.repeats):
        one, other = rng.sample(range(count), 2)
        body[one] = body[other]
    rows = [body[start : start + size.width] for start in range(0, count, size.width)]
    return [head, *rows] if others else rows


def _numbered(lines: Lines) -> Lines:
    return [[number, *line] for number, line in zip(NUMBERS, lines, strict=False)]


def _lines(text: str) -> Lines:
    return [line.split() for line in text.split("\n")]


def _text(lines: Sequence[Sequence[str]]) -> str:
    return "\n".join(" ".join(line) for line in lines)


def _distinct(seed: int) -> list[Task]:
    """The held-out tasks, then the preference tasks."""
    rng = random.Random(f"{seed} tasks")
    tasks: dict[str, Task] = {}
    while len(tasks) < HELD_OUT_PROMPTS + PREFERENCE_PROMPTS:
        task = sample_task(rng)
        tasks[task.prompt] = task
    return list(tasks.values())


def _pair(task: Task, rng: random.Random) -> dict[str, str]:
    return {"prompt": task.prompt, "chosen": task.answer, "rejected": plant_mistake(task, rng)}


def _write_lines(path: Path, lines: Sequence[str]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(line + "\n" for line in lines), encoding="utf-8")
