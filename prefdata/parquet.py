"""Parquet bytes to tables, on the calling thread alone."""

from collections.abc import Sequence

import pyarrow as pa
import pyarrow.parquet as pq


def read(data: bytes, columns: Sequence[str] | None = None) -> pa.Table:
    """The table of a Parquet file, or some of its columns.

    `pq.read_table` goes through a scanner that starts threads even when told not to, and a process that ends while one
    of them still runs aborts instead of exiting (apache/arrow#34314). The reader beneath it starts none.
    """
    return pq.ParquetFile(pa.BufferReader(data)).read(None if columns is None else list(columns), use_threads=False)


def rows(data: bytes) -> int:
    """How many rows a Parquet file says it holds."""
    count: int = pq.ParquetFile(pa.BufferReader(data)).metadata.num_rows
    return count
