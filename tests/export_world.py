"""What tests of exports share: a tiny chat model, and versions of each kind that were ingested for it."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prefdata.builds.ingest import Ingest, Options
from prefdata.builds.job import run
from prefdata.versions import Version
from tests.tiny_models import save_llama
from tests.tokenizers_small import build

DATE = {"date_string": "26 Jul 2024"}
TOOLS = [{"type": "function", "function": {"name": "look_up", "parameters": {"type": "object", "properties": {}}}}]
QUESTION = {"role": "user", "content": "What is the answer?"}
CALL = {
    "role": "assistant",
    "content": None,
    "tool_calls": [
        {
            "id": "c1",
            "type": "function",
            "function": {"name": "look_up", "arguments": '{"word": "été", "n": [1, null]}'},
        }
    ],
}
RESULT = {"role": "tool", "content": '{"found": "42"}', "tool_call_id": "c1"}
SYSTEM = {"role": "system", "content": "You are a helpful assistant."}
TALK = [
    SYSTEM,
    QUESTION,
    {"role": "assistant", "content": "That is 41."},
    {"role": "user", "content": '{"sure": null}'},
]


def text_pairs(count: int) -> list[dict[str, Any]]:
    """Pairs of short texts, some with scores, a preference, a long conversation, or JSON for text."""
    rows: list[dict[str, Any]] = [
        {"prompt": f"Question {n}?", "chosen": f"The sea is {n}.\nAnd blue: 你好", "rejected": f"The dog is {n * n}."}
        for n in range(count)
    ]
    rows[0] |= {"chosen_score": 0.1 + 0.2, "rejected_score": -1e-300}
    rows[1] |= {"preference": 2 / 3}
    rows[2] |= {"prompt": TALK, "chosen": '{"a": [1, null]}'}
    return rows


def tool_pairs() -> list[dict[str, Any]]:
    """A prompt with a call and its result, and a prompt that two calls answer."""
    functions = [{"name": "look_up", "arguments": {"word": word}} for word in ("sea", "dog")]
    calls = [{**CALL, "tool_calls": [{"type": "function", "function": function}]} for function in functions]
    return [
        {"prompt": [QUESTION, CALL, RESULT], "chosen": "It is 42.", "rejected": "It is 41.", "tools": TOOLS},
        {"prompt": [QUESTION], "chosen": [calls[0]], "rejected": [calls[1]], "tools": TOOLS},
    ]


def judged(count: int) -> list[dict[str, Any]]:
    """Answers that were called good or bad, in no order that the labels follow."""
    rows: list[dict[str, Any]] = [
        {"prompt": f"Question {n}?", "completion": f"The fox is {n * 7}.", "label": n % 3 != 0} for n in range(count)
    ]
    rows[1] |= {"weight": 0.5}
    return rows


def demonstrations(count: int) -> list[dict[str, Any]]:
    """Answers to imitate, the first at the end of a talk."""
    rows: list[dict[str, Any]] = [{"prompt": f"Question {n}?", "completion": f"It is {n}."} for n in range(count)]
    rows[0] = {"messages": [*TALK, {"role": "assistant", "content": "Yes."}], "score": 1.5}
    return rows


@dataclass(frozen=True)
class World:
    """A model and versions that have it for their reference."""

    model: str
    root: str
    pairs: Version
    unpaired: Version
    completions: Version


def save_chat_model(folder: Path, *, seed: int = 0, style: str = "llama3") -> str:
    """A random Llama with a tokenizer and a template in the style of a published model."""
    from transformers import AutoTokenizer

    build(folder, style)
    ends = json.loads((folder / "generation_config.json").read_text())["eos_token_id"]
    words = len(AutoTokenizer.from_pretrained(str(folder)))
    save_llama(folder, vocabulary=words, positions=512, seed=seed, eos_token_id=ends)
    return str(folder)


def ingested(root: Path | str, source: Path, rows: list[dict[str, Any]] | None = None, **options: Any) -> Version:
    """A version of a source; of these rows, written there first, if any are given."""
    if rows is not None:
        source.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return run(Ingest(Options(source=(str(source),), **options), str(root))).version


def make_world(folder: Path) -> World:
    """A version of each kind."""
    model = save_chat_model(folder / "model")
    root = folder / "data"
    options = {"model": model, "reference": model, "template_args": json.dumps(DATE), "license": "mit"}
    sources = {
        "pairs": [*text_pairs(20), *tool_pairs()],
        "unpaired": judged(20),
        "completions": demonstrations(8),
    }
    made = {
        kind: ingested(root, folder / f"{kind}.jsonl", rows, test_fraction=0.2, **options)
        for kind, rows in sources.items()
    }
    return World(model, str(root), **made)
