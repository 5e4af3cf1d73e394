"""A model of 20,000 parameters with its tokenizer, and versions of random rows for it, made in a second."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from prefdata import logprobs, models, reference, versions
from prefdata.records import Message
from prefdata.tokens import Renderer
from schemas import completions, pairs

WORDS = 60


def save_model(folder: Path, *, seed: int = 0, positions: int = 64, words: int = WORDS, head_size: int = 16) -> str:
    """A random Llama and a tokenizer of `words` whole words."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import WhitespaceSplit
    from transformers import PreTrainedTokenizerFast

    from tests.tiny_models import save_llama

    vocabulary = {"<unk>": 0, "<s>": 1, "</s>": 2, **{f"w{i}": i + 3 for i in range(words)}}
    tokenizer = Tokenizer(WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = WhitespaceSplit()
    save_llama(folder, vocabulary=len(vocabulary), positions=positions, head_size=head_size, seed=seed)
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="<unk>", bos_token="<s>", eos_token="</s>", model_max_length=positions
    ).save_pretrained(folder)
    return str(folder)


def pair_rows(count: int, *, seed: int = 0, masked: bool = False) -> list[dict[str, Any]]:
    """Pairs with a rule to learn: chosen answers repeat the prompt's first word, rejected ones are noise."""
    generator = np.random.default_rng(seed)
    return [_pair(generator, f"{seed}-{number}", masked) for number in range(count)]


def _pair(generator: np.random.Generator, name: str, masked: bool) -> dict[str, Any]:
    prompt = generator.integers(3, WORDS + 3, generator.integers(2, 8)).tolist()
    chosen = [prompt[0]] * int(generator.integers(2, 7)) + [2]
    rejected = [*generator.integers(3, WORDS + 3, generator.integers(2, 9)).tolist(), 2]
    row = {
        **_common(name, prompt),
        "chosen": _turn(chosen),
        "rejected": _turn(rejected),
        "chosen_ids": chosen,
        "rejected_ids": rejected,
        "chosen_tokens": len(chosen),
        "rejected_tokens": len(rejected),
        "shared_prefix": 0,
        "chosen_content_start": 0,
        "chosen_finish": "stop",
        "rejected_finish": "stop",
    }
    if masked:
        row["chosen_loss_mask"] = [False] + [True] * (len(chosen) - 1)
        row["chosen_tokens"] = len(chosen) - 1
    return row


def scored(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The pairs with scores, chosen higher by another difference in each, and with a preference probability."""
    for number, row in enumerate(rows):
        difference = 0.4 + number % 5
        row |= {"chosen_score": difference, "rejected_score": 0.0, "margin": difference}
        row["preference"] = 0.6 + 0.05 * (number % 7)
    return rows


def completion_rows(count: int, *, seed: int = 0) -> list[dict[str, Any]]:
    """The chosen sides alone."""
    rows = []
    for pair in pair_rows(count, seed=seed):
        row = _common(pair["row_id"], pair["prompt_ids"])
        row |= {
            "completion": pair["chosen"],
            "completion_ids": pair["chosen_ids"],
            "completion_tokens": pair["chosen_tokens"],
        }
        rows.append(row | {"completion_content_start": 0, "completion_finish": "stop"})
    return rows


def _common(name: str, prompt: list[int]) -> dict[str, Any]:
    text = " ".join(f"w{i - 3}" for i in prompt)
    return {
        "row_id": name,
        "prompt_id": name,
        "prompt": [Message("user", text).as_dict()],
        "prompt_ids": prompt,
        "prompt_tokens": len(prompt),
        "method": "test",
        "source": "test",
    }


def _turn(ids: list[int]) -> list[dict[str, str]]:
    return [Message("assistant", " ".join(f"w{i - 3}" for i in ids[:-1])).as_dict()]


def table(rows: list[dict[str, Any]], kind: str = "pairs") -> pa.Table:
    """Rows under the schema of their kind."""
    schema = {"pairs": pairs.BASE, "completions": completions.BASE}[kind]
    return pa.Table.from_pylist(rows, schema=schema)


def with_reference(rows: pa.Table, model: str) -> pa.Table:
    """The rows with the model's log-probs."""
    return reference.attach(rows, logprobs.score(models.load_model(model), reference.trees(rows)))


def reference_entry(model: str) -> dict[str, Any]:
    """What a manifest says of a reference."""
    description = models.describe(model)
    return {**description, "fingerprint": reference.fingerprint(description)}


def publish(
    root: Path,
    splits: dict[str, pa.Table],
    model: str,
    *,
    kind: str = "pairs",
    reference_model: str | None = None,
    tokenizer: dict[str, Any] | None = None,
) -> versions.Version:
    """A real version of these rows."""
    schema = next(iter(splits.values())).schema
    fields: dict[str, Any] = {
        "kind": kind,
        "build": "test",
        "build_key": "test",
        "config": {},
        "seeds": {},
        "round": 0,
        "parents": [],
        "sources": [],
        "tokenizer": tokenizer or Renderer.load(model).fingerprint,
        "generator": None,
        "reference": reference_entry(reference_model) if reference_model else None,
    }
    with versions.Staging(str(root), schema, "test") as staging:
        for split, rows in splits.items():
            staging.add(split, rows)
            made = [
                {"row_id": row_id, "status": "kept", "stage": "publish", "made": [row_id]}
                for row_id in rows["row_id"].to_pylist()
            ]
            staging.ledger(versions.ledger_lines(made))
        staging.flush()
        return staging.publish(staging.manifest(["publish"], fields))
