"""A version of scored completions of any size, made in vectorised pieces: a tiny model, four answers a prompt, ties among them."""

from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from prefdata import logical, models, reference, versions
from prefdata.tokens import Renderer
from prefdata.versions import Version, ledger_lines
from schemas import completions
from schemas.ledger import KEPT

ANSWERS = 4  # of a prompt
WORDS = 500
LEVELS = 9  # different scores: half points from 1 to 5, as judges give them, so that many are ties
_MEAN_PROMPT, _MEAN_ANSWER = 24, 40
_PIECE = 8192  # prompts made at once


def save_model(folder: Path) -> str:
    """A random Llama of a few thousand parameters with a tokenizer of whole words. No forward is run with it."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import WhitespaceSplit
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    words = {"<unk>": 0, "<s>": 1, "</s>": 2, **{f"w{number}": number + 3 for number in range(WORDS)}}
    tokenizer = Tokenizer(WordLevel(words, unk_token="<unk>"))
    tokenizer.pre_tokenizer = WhitespaceSplit()
    config = LlamaConfig(
        vocab_size=len(words), hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=1
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="<unk>", bos_token="<s>", eos_token="</s>", model_max_length=512
    ).save_pretrained(folder)
    return str(folder)


def publish(root: Path, rows: int, model: str, *, seed: int = 0) -> Version:
    """So many completions, scored, with log-probs under the model's name."""
    description = models.describe(model)
    schema = logical.schema_of(completions.KIND, completions.OPTIONAL, completions.REFERENCE)
    fields: dict[str, Any] = {
        "kind": completions.KIND,
        "build": "made",
        "build_key": "made",
        "config": {},
        "seeds": {"seed": seed},
        "round": 0,
        "parents": [],
        "sources": [],
        "tokenizer": Renderer.load(model).fingerprint,
        "generator": None,
        "reference": {**description, "fingerprint": reference.fingerprint(description)},
    }
    with versions.Staging(str(root), schema, "made") as staging:
        for piece in _pieces(rows, seed):
            staging.add("train", piece.select(schema.names))
            made = piece["row_id"].to_pylist()
            staging.ledger(
                ledger_lines(
                    {"row_id": f"s{name}", "status": KEPT, "stage": "publish", "made": [name]} for name in made
                )
            )
        staging.flush()
        return staging.publish(staging.manifest(["publish"], fields))


def _pieces(rows: int, seed: int) -> Iterator[pa.Table]:
    schema = logical.schema_of(completions.KIND, completions.OPTIONAL, completions.REFERENCE)
    for start in range(0, rows // ANSWERS, _PIECE):
        prompts = min(_PIECE, rows // ANSWERS - start)
        rng = np.random.default_rng((seed, start))
        asked = _lists(rng, prompts, _MEAN_PROMPT, end=False)
        answered = _lists(rng, prompts * ANSWERS, _MEAN_ANSWER, end=True)
        of_prompt = pa.array(np.repeat(np.arange(prompts), ANSWERS))
        prompt_ids = asked.take(of_prompt)
        names = [f"{seed:08x}{start + number:056x}" for number in range(prompts)]
        count = prompts * ANSWERS
        logps = -rng.exponential(2.0, len(answered.values)).astype(np.float32)
        sums = np.add.reduceat(logps.astype(np.float64), answered.offsets.to_numpy()[:-1]).astype(np.float32)
        columns = {
            "row_id": pa.array([f"{seed + 1:08x}{start * ANSWERS + number:056x}" for number in range(count)]),
            "prompt_id": pa.array(names).take(of_prompt),
            "prompt": _turns("user", asked).take(of_prompt),
            "completion": _turns("assistant", answered),
            "prompt_ids": prompt_ids,
            "completion_ids": answered,
            "prompt_tokens": _lengths(prompt_ids),
            "completion_tokens": _lengths(answered),
            "completion_content_start": pa.array(np.zeros(count, np.int32)),
            "completion_finish": pa.array(["stop"] * count),
            "score": pa.array(1 + rng.integers(LEVELS, size=count) / 2),
            "method": pa.array(["model"] * count),
            "source": pa.array(["made"] * count),
            "generator": pa.array(["made"] * count),
            "ref_completion_token_logps": pa.ListArray.from_arrays(answered.offsets, pa.array(logps)),
            "ref_completion_logps": pa.array(sums),
        }
        arrays = [columns.get(field.name, pa.nulls(count, field.type)).cast(field.type) for field in schema]
        yield pa.Table.from_arrays(arrays, schema=schema)


def _lists(rng: np.random.Generator, rows: int, mean: int, *, end: bool) -> pa.ListArray:
    """Lists of token ids of random lengths; `end`: with the end token behind."""
    lengths = rng.integers(mean // 2, mean * 3 // 2, rows) + end
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
    values = rng.integers(3, WORDS + 3, offsets[-1]).astype(np.int32)
    if end:
        values[offsets[1:] - 1] = 2
    return pa.ListArray.from_arrays(pa.array(offsets), pa.array(values))


def _lengths(lists: pa.ListArray) -> pa.Array:
    return pa.array(np.diff(lists.offsets.to_numpy()).astype(np.int32))


def _turns(role: str, lists: pa.ListArray) -> pa.Array:
    """One message a row, whose words are the tokens."""
    words = np.array([*["", "", ""], *(f"w{number}" for number in range(WORDS))], dtype=object)
    offsets, values = lists.offsets.to_numpy(), lists.values.to_numpy()
    texts = [" ".join(words[values[start:end]]).strip() for start, end in pairwise(offsets)]
    return pa.array([[{"role": role, "content": text}] for text in texts], completions.BASE.field("completion").type)
