"""OpenAssistant's conversation trees, one message a row: of the ranked replies to a message, each two make a pair.

A row says nothing without its tree, so a file is read whole and its messages are joined by id, in whatever order they
come. A pair belongs to all the messages in it: both replies and every turn before them. Rank 0 is the best reply of its
parent. A tree is a group: it stays in one split.
"""

from collections import defaultdict
from collections.abc import Iterator, Mapping
from itertools import combinations

from prefdata.records import Comparison, Message, Parsed, RawRow, SetAside, Several
from prefdata.sources import turns
from prefdata.sources.contradictions import consistent
from prefdata.sources.refusal import Refused, Row, refusable
from schemas import pairs

NAME = "oasst"
KIND = pairs.KIND
NEEDS = "message_id, parent_id, message_tree_id, role (prompter or assistant), text, rank, deleted: one message a row"

ROLES = {"prompter": "user", "assistant": "assistant"}
_ALONE = SetAside("not_compared", "no ranked reply stands beside it, and no compared reply below it")


@refusable
def parse(row: Row) -> SetAside:
    """Whether a row is a message. What it says, only its tree can tell: see `parse_file`."""
    _check(row)
    return _ALONE


def parse_file(rows: Iterator[RawRow]) -> Iterator[tuple[RawRow, Parsed]]:
    """Every message with the pairs that it is part of."""
    held = list(rows)
    tree = _Tree()
    verdicts = [row.value if isinstance(row.value, SetAside) else tree.add(row.value) for row in held]
    tree.compare()
    for row, refused in zip(held, verdicts, strict=True):
        if isinstance(row.value, SetAside):
            yield row, row.value
        else:
            yield row, refused or tree.says(row.value)


class _Tree:
    """The messages of a file by id, and the pairs that each is part of."""

    def __init__(self) -> None:
        self._messages: dict[str, Row] = {}
        self._replies: dict[str, list[str]] = defaultdict(list)
        self._parts: dict[str, list[Comparison | SetAside]] = defaultdict(list)
        self._paths: dict[str, tuple[str, ...] | SetAside] = {}

    def add(self, row: Row) -> SetAside | None:
        """Take a message in, or say why not."""
        try:
            _check(row)
            name = str(row["message_id"])
            if name in self._messages:
                raise Refused("repeated_id", f"message_id {name[:40]}")
        except Refused as refused:
            return refused.aside
        self._messages[name] = row
        if row.get("parent_id") is not None:
            self._replies[str(row["parent_id"])].append(name)
        return None

    def compare(self) -> None:
        """Make the pairs."""
        for parent, replies in self._replies.items():
            ranked = sorted(filter(self._is_ranked, replies), key=self._rank)
            named = [pair for pair in combinations(ranked, 2) if self._rank(pair[0]) != self._rank(pair[1])]
            made = [self._pair(parent, *names) for names in named]
            sound = iter(consistent([pair for pair in made if isinstance(pair, Comparison)]))
            for names, pair in zip(named, made, strict=True):
                part = next(sound) if isinstance(pair, Comparison) else pair
                before = self._path(parent) if isinstance(part, Comparison) else ()
                for name in (*before, *names) if not isinstance(before, SetAside) else names:
                    self._parts[name].append(part)

    def says(self, row: Row) -> Parsed:
        """What a message says that was taken in."""
        name = str(row["message_id"])
        if row.get("deleted"):
            return SetAside("deleted_message", "the message was deleted, and kept in the tree")
        if self._parts[name]:
            return Several(tuple(self._parts[name]), group=str(row["message_tree_id"]))
        path = self._path(name)
        return path if isinstance(path, SetAside) else _ALONE

    def _pair(self, parent: str, better: str, worse: str) -> Comparison | SetAside:
        """The two replies as a pair, or why they are none."""
        path = self._path(parent)
        if isinstance(path, SetAside):
            return path
        before = tuple(self._turn(name) for name in path)
        try:
            prompt, chosen = turns.split_answer((*before, self._turn(better)), "the better reply")
            _, rejected = turns.split_answer((*before, self._turn(worse)), "the worse reply")
        except Refused as refused:
            return refused.aside
        return Comparison(prompt, chosen, rejected)

    def _path(self, name: str) -> tuple[str, ...] | SetAside:
        """A message and all before it, the root first; or why the way to the root is not sound. Each is asked once."""
        way: list[str] = []
        while name not in self._paths:
            message = self._messages.get(name)
            if message is None:
                self._paths[name] = SetAside("parent_missing", f"the message {name[:40]} is not in the file")
            elif message.get("deleted"):
                self._paths[name] = SetAside("deleted_message", f"an earlier turn, {name[:40]}, was deleted")
            elif message.get("parent_id") is None:
                self._paths[name] = (name,)
            else:
                # stands until the way is known: a message that comes before itself finds it
                self._paths[name] = SetAside("parent_missing", f"the message {name[:40]} comes before itself")
                way.append(name)
                name = str(message["parent_id"])
        for name in reversed(way):
            before = self._paths[str(self._messages[name]["parent_id"])]
            self._paths[name] = before if isinstance(before, SetAside) else (*before, name)
        return self._paths[way[0] if way else name]

    def _is_ranked(self, name: str) -> bool:
        message = self._messages[name]
        return message["role"] == "assistant" and message.get("rank") is not None and not message.get("deleted")

    def _rank(self, name: str) -> int:
        return int(self._messages[name]["rank"])  # type: ignore[call-overload, no-any-return]

    def _turn(self, name: str) -> Message:
        message: Mapping[str, object] = self._messages[name]
        return Message(ROLES[str(message["role"])], str(message["text"]))


def _check(row: Row) -> None:
    """Refused unless the row is a message."""
    for name in ("message_id", "message_tree_id", "text"):
        turns.text(row, name)
    if "parent_id" not in row:
        raise Refused("missing_field", "parent_id is absent; at a root it is null")
    names = [turns.text(row, name) for name in ("message_id", "parent_id", "message_tree_id") if row[name] is not None]
    if any("\ud800" <= character <= "\udfff" for name in names for character in name):
        raise Refused("lone_surrogate", "half of a surrogate pair stands alone in an id")
    if not isinstance(row.get("deleted"), bool | None):
        raise Refused("wrong_type", f"deleted is {str(row['deleted'])[:40]!r}, true or false is needed")
    role = turns.text(row, "role")
    if role not in ROLES:
        raise Refused("unknown_role", f"role is {role[:40]!r}, and prompter or assistant is needed")
    rank = row.get("rank")
    if rank is not None and (isinstance(rank, bool) or not isinstance(rank, int | float) or rank != rank // 1):
        raise Refused("wrong_type", f"rank is {str(rank)[:40]!r}, a whole number is needed")
