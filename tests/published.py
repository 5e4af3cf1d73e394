"""Small versions for tests that read them: published through the store, as builds do."""

from typing import Any

import pyarrow as pa

from prefdata import logical, versions
from prefdata.builds import finish
from schemas.ledger import KEPT, SET_ASIDE

STAGES = ("read", "gate", "publish")
TOKENIZER = {"name": "toy", "digest": "d" * 64, "template": "{{ a page long }}", "template_digest": "e" * 64}


def message(role: str, content: str) -> dict[str, Any]:
    return {"role": role, "content": content, "name": None, "tool_calls": None, "tool_call_id": None}


def pair(
    chosen: list[int],
    rejected: list[int],
    *,
    prompt: str = "p",
    text: tuple[str, str] | None = None,
    logps: tuple[list[float], list[float]] | None = None,
    **columns: Any,
) -> dict[str, Any]:
    """A row of pairs with reference log-probs; `logps` gives both sides' values, one per token."""
    agree = [a == b for a, b in zip(chosen, rejected, strict=False)]
    chosen_logps, rejected_logps = logps or ([-1.0] * len(chosen), [-1.0] * len(rejected))
    chosen_text, rejected_text = text or (str(chosen), str(rejected))
    row = {
        "row_id": f"{prompt}{chosen}{rejected}",
        "prompt_id": prompt,
        "prompt": [message("user", prompt)],
        "chosen": [message("assistant", chosen_text)],
        "rejected": [message("assistant", rejected_text)],
        "prompt_ids": [1, 2, 3],
        "chosen_ids": chosen,
        "rejected_ids": rejected,
        "prompt_tokens": 3,
        "chosen_tokens": len(chosen),
        "rejected_tokens": len(rejected),
        "shared_prefix": agree.index(False) if False in agree else len(agree),
        "chosen_content_start": 0,
        "chosen_finish": "stop",
        "rejected_finish": "stop",
        "method": "human",
        "source": "here",
        "ref_chosen_token_logps": chosen_logps,
        "ref_rejected_token_logps": rejected_logps,
        "ref_chosen_logps": sum(chosen_logps),
        "ref_rejected_logps": sum(rejected_logps),
    }
    return row | columns


def completion(ids: list[int], *, prompt: str = "p", **columns: Any) -> dict[str, Any]:
    """A row of completions with reference log-probs of -2 nats per token."""
    row = {
        "row_id": f"{prompt}{ids}",
        "prompt_id": prompt,
        "prompt": [message("user", prompt)],
        "completion": [message("assistant", str(ids))],
        "prompt_ids": [1],
        "completion_ids": ids,
        "prompt_tokens": 1,
        "completion_tokens": len(ids),
        "completion_content_start": 0,
        "completion_finish": "stop",
        "method": "sampled",
        "source": "here",
        "ref_completion_token_logps": [-2.0] * len(ids),
        "ref_completion_logps": -2.0 * len(ids),
    }
    return row | columns


def rows_table(kind: str, rows: list[dict[str, Any]], *, reference: bool = True, segments: bool = False) -> pa.Table:
    extras = [logical.SEGMENT[kind]] if segments else []
    extras += [logical.REFERENCE[kind]] if reference else []
    return pa.Table.from_pylist(rows, schema=logical.schema_of(kind, *extras))


def publish(
    root: Any,
    kind: str = "pairs",
    *,
    train: list[dict[str, Any]] | None = None,
    test: list[dict[str, Any]] | None = None,
    set_aside: int = 1,
    reference: bool = True,
    segments: bool = False,
    **fields: Any,
) -> versions.Version:
    """The next version below a root."""
    given = {"train": [pair([1, 2], [1, 3])] if train is None and kind == "pairs" else train or [], "test": test or []}
    schema = rows_table(kind, [], reference=reference, segments=segments).schema
    lines: list[dict[str, Any]] = [
        {"row_id": f"bad{number}", "status": SET_ASIDE, "stage": "gate", "reason": "chosen_empty"}
        for number in range(set_aside)
    ]
    with versions.Staging(str(root), schema, "key") as staging:
        for split, rows in given.items():
            staging.add(split, rows_table(kind, rows, reference=reference, segments=segments))
            lines += [
                {"row_id": f"in-{row['row_id']}", "status": KEPT, "stage": "publish", "made": [row["row_id"]]}
                for row in rows
            ]
        staging.ledger(versions.ledger_lines(lines))
        return finish.publish(staging, STAGES, manifest_fields(kind, reference) | fields)


def manifest_fields(kind: str, reference: bool) -> dict[str, Any]:
    return {
        "kind": kind,
        "build": "ingest",
        "build_key": "key",
        "config": {"paths": ["rows.jsonl"]},
        "seeds": {"split": 0},
        "round": 0,
        "parents": [],
        "sources": [{"name": "here", "rows": 3, "format": "explicit", "license": "MIT", "sha256": "f" * 64}],
        "tokenizer": TOKENIZER,
        "generator": None,
        "reference": {"name": "models/tiny", "digest": "a" * 64, "dtype": "float32"} if reference else None,
    }
