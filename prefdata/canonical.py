"""The canonical form (see `prefdata.identity`) of whole columns at once: rows are named by the million.

Each function equals `identity.canonical` of the row's value, which tests hold it to.
"""

import hashlib
from collections.abc import Iterable

import polars as pl
import pyarrow as pa

# what JSON escapes in a string, as Python's encoder writes it
_ESCAPES = {
    "\\": "\\\\",
    '"': '\\"',
    "\n": "\\n",
    "\r": "\\r",
    "\t": "\\t",
    "\b": "\\b",
    "\f": "\\f",
    **{chr(code): f"\\u{code:04x}" for code in range(0x20) if chr(code) not in "\n\r\t\b\f"},
}
_TURN = ("content", "name", "role", "tool_call_id", "tool_calls")  # sorted, as canonical keys are


def texts(column: pl.Series) -> pl.Series:
    """Strings; null stays null."""
    return ('"' + column.str.replace_many(list(_ESCAPES), list(_ESCAPES.values()), leftmost=True) + '"').alias(
        column.name
    )


def whole_numbers(column: pl.Series) -> pl.Series:
    """Lists of whole numbers."""
    return "[" + column.cast(pl.List(pl.String)).list.join(",") + "]"


def turns(column: pl.Series) -> pl.Series:
    """Lists of messages, as `Message.from_mapping` reads them: what is not said is left out, but role and content are ""."""
    turn = column.explode(empty_as_null=False, keep_nulls=False).struct.unnest()
    turn = turn.with_columns(pl.col("role", "content").fill_null(""))
    fields = [(f'"{name}":' + texts(turn[name])).alias(name) for name in _TURN if name in turn.columns]
    said = pl.DataFrame(fields).select(said="{" + pl.concat_str(pl.all(), separator=",", ignore_nulls=True) + "}")[
        "said"
    ]
    owner = pl.Series(range(len(column)), dtype=pl.Int64).repeat_by(column.list.len()).explode(empty_as_null=False)
    joined = (
        pl.DataFrame({"owner": owner, "said": said})
        .group_by("owner", maintain_order=True)
        .agg(pl.col("said").str.join(","))
    )
    every = pl.DataFrame({"owner": pl.Series(range(len(column)), dtype=pl.Int64)})
    found = every.join(joined, on="owner", how="left", maintain_order="left")["said"].fill_null("")
    return "[" + found + "]"


def objects(columns: dict[str, pl.Series]) -> pl.Series:
    """Objects with these keys, each already in its canonical form; a null leaves its key out."""
    fields = [(f'"{name}":' + columns[name]).alias(name) for name in sorted(columns)]
    return pl.DataFrame(fields).select(made="{" + pl.concat_str(pl.all(), separator=",", ignore_nulls=True) + "}")[
        "made"
    ]


def digests(canonical: Iterable[str]) -> list[str]:
    """sha256 hex of each."""
    sha256 = hashlib.sha256
    return [sha256(text.encode()).hexdigest() for text in canonical]


def series(column: pa.ChunkedArray | pa.Array) -> pl.Series:
    """An Arrow column for these functions."""
    found = pl.from_arrow(column)
    assert isinstance(found, pl.Series)
    return found
