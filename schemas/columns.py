"""How a column is declared: an Arrow field that carries its own sentence, so the file on disk explains itself."""

import pyarrow as pa

TOKEN_IDS = pa.list_(pa.int32())
TOKEN_LOGPS = pa.list_(pa.float32())
TOKEN_MASK = pa.list_(pa.bool_())

MESSAGE = pa.struct(
    [
        pa.field("role", pa.string()),
        pa.field("content", pa.string()),
        pa.field("name", pa.string()),
        pa.field("tool_calls", pa.string()),
        pa.field("tool_call_id", pa.string()),
    ]
)
MESSAGES = pa.list_(MESSAGE)

SCORES = pa.list_(pa.struct([pa.field("scorer", pa.string()), pa.field("score", pa.float64())]))


def column(name: str, type_: pa.DataType, meaning: str, *, nullable: bool = True) -> pa.Field:
    """A field whose meaning (with its unit) is stored in the file beside it."""
    return pa.field(name, type_, nullable=nullable, metadata={"meaning": meaning})


def required(name: str, type_: pa.DataType, meaning: str) -> pa.Field:
    """A field that never holds a null."""
    return column(name, type_, meaning, nullable=False)
