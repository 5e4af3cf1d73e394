"""A stage of builds: prompts as vectors. A unit is keyed by the texts that it reads and the model's fingerprint."""

import hashlib
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
import pyarrow as pa

from prefdata.builds.job import Unit
from prefdata.work import Tables, Work, unit_key
from schemas.embeddings import COLUMN, EMBEDDED

NAME = "embeddings"


class EmbeddingStage:
    """Embeds each prompt of a batch of rows once, with one model, loaded at the first unit that needs it."""

    name = NAME

    def __init__(
        self, batches: Callable[[], Iterable[pa.Table]], model: dict[str, Any], loading: dict[str, Any]
    ) -> None:
        self._batches = batches
        self._fingerprint = model["fingerprint"]
        self._loading = loading
        self._model: Any = None
        self.runs = str(model["name"])

    def units(self) -> Iterator[Unit]:
        """One unit per batch that holds rows."""
        for rows in self._batches():
            if rows.num_rows:
                texts = _texts(rows)
                yield Unit(self._key(texts), rows.num_rows, texts)

    def compute(self, unit: Unit) -> Tables:
        """Vectors by the text's hash."""
        from prefdata.reference import embeddings

        texts: dict[str, str] = {_name(text): text for text in unit.inputs}
        if self._model is None:
            self._model = embeddings.load(**self._loading)
        vectors, tokens = self._model.embed(list(texts.values()), unit.tell)
        unit.spend(tokens)
        return {NAME: pa.table({"text": list(texts), COLUMN: _lists(vectors)})}

    def close(self) -> None:
        """Let go of the model."""
        self._model = None

    def attached(self, rows: pa.Table, work: Work) -> pa.Table:
        """Rows with their vectors, from the finished unit."""
        texts = _texts(rows)
        stored = work.result(self._key(texts))[NAME]
        place = {name: number for number, name in enumerate(stored["text"].to_pylist())}
        vectors = stored[COLUMN].combine_chunks().take(pa.array([place[_name(text)] for text in texts]))
        field = EMBEDDED.field(COLUMN)
        index = rows.schema.get_field_index(COLUMN)
        return rows.append_column(field, vectors) if index < 0 else rows.set_column(index, field, vectors)

    def _key(self, texts: list[str]) -> str:
        return unit_key(NAME, {"model": self._fingerprint}, list(dict.fromkeys(map(_name, texts))))


def sound(rows: pa.Table) -> np.ndarray[Any, np.dtype[np.bool_]]:
    """Which rows have a vector that is finite and not 0, so that it has a direction."""
    vectors = np.asarray(rows[COLUMN].combine_chunks().flatten(), np.float64).reshape(rows.num_rows, -1)
    size = np.linalg.norm(vectors, axis=1)
    good: np.ndarray[Any, np.dtype[np.bool_]] = np.isfinite(size) & (size > 0)
    return good


def _texts(rows: pa.Table) -> list[str]:
    """What is read of each prompt: its turns' texts, one after the other."""
    return ["\n".join(turn["content"] or "" for turn in turns) for turns in rows["prompt"].to_pylist()]


def _name(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def _lists(vectors: np.ndarray[Any, Any]) -> pa.Array:
    offsets = np.arange(len(vectors) + 1) * vectors.shape[1]
    return pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), pa.array(vectors.reshape(-1), pa.float32()))
