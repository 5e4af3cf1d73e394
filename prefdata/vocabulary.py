"""A model's tokenizer from its folder: loaded and checked, the ids that end an answer, what it does as a digest."""

import hashlib
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from prefdata import models
from prefdata.errors import UserError


def load(name: str, folder: Path, trust_remote_code: bool) -> Any:
    """The fast tokenizer in a folder; `name` is what the user called the model."""
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(str(folder), trust_remote_code=trust_remote_code)
    except Exception as error:  # transformers raises many kinds for a folder that holds no tokenizer
        why = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UserError(
            f"model {name}: {folder} holds no tokenizer that can be loaded ({why}). "
            "Give the folder of a model with its tokenizer.json, or a hub name."
        ) from error
    if not tokenizer.is_fast:
        raise UserError(
            f"model {name} has no fast tokenizer (tokenizer.json): convert it, or give a model that has one."
        )
    # Without its files transformers makes up an empty one from the model's type
    if not set(tokenizer.get_vocab()) - set(tokenizer.get_added_vocab()):
        raise UserError(f"model {name}: {folder} holds no vocabulary. Give a folder with a tokenizer.json in it.")
    return tokenizer


def end_ids(name: str, folder: Path, tokenizer: Any) -> tuple[int, ...]:
    """generation_config.json's eos_token_id, one or several; otherwise the tokenizer's."""
    given = _generation_config(name, folder).get("eos_token_id")
    ids = tokenizer.eos_token_id if given is None else given
    ids = ids if isinstance(ids, list) else [ids]
    if not ids or ids == [None]:
        raise UserError(
            f"The tokenizer of {name} has no end token, so no answer could end: set eos_token in its "
            "tokenizer_config.json, or eos_token_id in generation_config.json."
        )
    unknown = [i for i in ids if not isinstance(i, int) or not 0 <= i < len(tokenizer)]
    if unknown:
        raise UserError(
            f"model {name}: the end ids {unknown} are none of its tokenizer's {len(tokenizer)} tokens. "
            "Correct eos_token_id in its generation_config.json."
        )
    return tuple(sorted(set(ids)))


def max_length(name: str, folder: Path, tokenizer: Any, trust_remote_code: bool) -> int | None:
    """Positions that the model has; without a configuration, or if it sets no limit, what its tokenizer says."""
    if (folder / "config.json").is_file():
        positions = models.max_positions(name, trust_remote_code=trust_remote_code)
        if positions is not None:
            return positions
    length = tokenizer.model_max_length
    return int(length) if length is not None and length < 1e9 else None  # transformers writes "no limit" as 1e30


def digest(tokenizer: Any) -> str:
    """Of what the tokenizer does to text: the same for a tokenizer saved elsewhere, and whatever its padding."""
    behaviour = json.loads(tokenizer.backend_tokenizer.to_str())
    behaviour.pop("truncation", None)
    behaviour.pop("padding", None)
    special = {name: token for name, token in tokenizer.special_tokens_map.items() if name != "pad_token"}
    content = json.dumps({"tokenizer": behaviour, "special_tokens": special}, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(content.encode("utf-8")).hexdigest()


def special_pattern(tokenizer: Any, end_ids: Sequence[int]) -> re.Pattern[str]:
    """Finds the spelling of any special token or end token."""
    added = tokenizer.added_tokens_decoder
    spellings = {token.content for id_, token in added.items() if token.special or id_ in end_ids}
    return re.compile("|".join(re.escape(text) for text in sorted(spellings, key=len, reverse=True)) or "(?!)")


def overlap(one: str, other: str) -> bool:
    """A text could hold both with characters in common, so that which is found depends on what surrounds them."""
    if one in other or other in one:
        return True
    shorter = min(len(one), len(other))
    return any(one[-n:] == other[:n] or other[-n:] == one[:n] for n in range(1, shorter))


def _generation_config(name: str, folder: Path) -> dict[str, Any]:
    path = folder / "generation_config.json"
    if not path.is_file():
        return {}
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"model {name}: {path} cannot be read ({error}). Repair it or remove it.") from error
    if not isinstance(config, dict):
        raise UserError(f"model {name}: {path} is not a JSON object. Repair it or remove it.")
    return config
