"""Parquet of strangers, decoded in a process of its own, within limits.

Whatever a file does to the decoder (a crash, all memory there is, a loop without end) it does to
that process alone.
"""

from __future__ import annotations

import json
import re
import resource
import subprocess
import sys
from functools import cache
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

MOST_SEEDS = 100
_COLUMN = re.compile(r"seed-(0|[1-9][0-9]{0,9})")
_MEMORY = 512 * 2**20  # bytes, beyond what the process has when it starts
_SECONDS = 20  # of computing, for a file

Decoded = tuple[tuple[int, ...], npt.NDArray[np.int16]]


class _Decoder:
    """The other process, and the two pipes to it."""

    def __init__(self) -> None:
        their_requests, self.requests = Pipe(duplex=False)
        self.answers, their_answers = Pipe(duplex=False)
        with their_requests, their_answers:
            self.process = subprocess.Popen(
                [sys.executable, "-P", "-m", __name__],
                stdin=their_requests.fileno(),
                stdout=their_answers.fileno(),
                stderr=subprocess.DEVNULL,
            )

    def ask(self, data: bytes, rows: int) -> tuple[dict[str, Any], bytes]:
        self.requests.send_bytes(str(rows).encode())
        self.requests.send_bytes(data)
        return json.loads(self.answers.recv_bytes()), self.answers.recv_bytes()

    def end(self) -> None:
        self.process.kill()
        self.process.wait()
        self.requests.close()
        self.answers.close()


@cache  # starting one takes longer than decoding a file
def _running() -> _Decoder:
    return _Decoder()


def decode(data: bytes, rows: int) -> Decoded:
    """Decode predictions of a board.

    Args:
        data: A Parquet file, of anybody.
        rows: How many rows it must have.

    Returns:
        The seeds, and the class indices they predict, (S, rows).

    Raises:
        ValueError: If it is not such a file, or cannot be decoded within 512 MiB and 20 s.
    """
    if _running().process.poll() is not None:
        _running.cache_clear()
    try:
        answer, values = _running().ask(data, rows)
    except (EOFError, OSError):
        _running().end()
        _running.cache_clear()
        raise ValueError(f"not decoded within {_MEMORY >> 20} MiB and {_SECONDS} s") from None
    if "why" in answer:
        raise ValueError(answer["why"])
    seeds = tuple(answer["seeds"])
    return seeds, np.frombuffer(values, dtype=np.int16).reshape(len(seeds), rows)


def _serve() -> None:
    """Answer until nobody asks any more."""
    with Connection(0, writable=False) as requests, Connection(1, readable=False) as answers:
        pa.set_cpu_count(1)
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        most = pages * resource.getpagesize() + _MEMORY
        resource.setrlimit(resource.RLIMIT_AS, (most, most))
        resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        _, hard = resource.getrlimit(resource.RLIMIT_CPU)
        while True:
            try:
                rows, data = int(requests.recv_bytes()), requests.recv_bytes()
            except EOFError:
                return
            used = resource.getrusage(resource.RUSAGE_SELF)
            soft = int(used.ru_utime + used.ru_stime) + _SECONDS + 1
            resource.setrlimit(resource.RLIMIT_CPU, (soft, hard))
            try:
                seeds, values = _decoded(data, rows)
                answers.send_bytes(json.dumps({"seeds": seeds}).encode())
                answers.send_bytes(values.tobytes())
            except (pa.ArrowException, OSError, ValueError, LookupError, MemoryError) as error:
                why = (str(error).splitlines() or ["corrupt"])[0][:120]
                answers.send_bytes(json.dumps({"why": why}).encode())
                answers.send_bytes(b"")


def _decoded(data: bytes, rows: int) -> Decoded:
    """Decode a file; nothing is read before its own account of its size fits."""
    with pq.ParquetFile(pa.BufferReader(data)) as file:
        seeds = _seeds(file.schema_arrow)
        size = file.metadata.num_rows
        if size != rows:
            raise ValueError(f"{size:,} rows, but there must be {rows:,}")
        _check_sizes(file.metadata, rows)
        table = file.read(use_threads=False)
    values = np.empty((len(seeds), rows), dtype=np.int16)
    for number, (seed, column) in enumerate(zip(seeds, table.columns, strict=True)):
        if column.null_count or len(column) != rows:
            raise ValueError(f"seed {seed} has no prediction for some clips")
        values[number] = np.asarray(column)
    return seeds, values


def _seeds(schema: pa.Schema) -> tuple[int, ...]:
    matches = [_COLUMN.fullmatch(name) for name in schema.names]
    if not 1 <= len(matches) <= MOST_SEEDS or not all(matches):
        raise ValueError(f"columns must be seed-0 and the like, at most {MOST_SEEDS}")
    if any(field.type != pa.int16() for field in schema):
        raise ValueError("class indices must be int16")
    seeds = tuple(int(match[1]) for match in matches if match)
    if list(seeds) != sorted({*seeds}) or seeds[-1] >= 2**31:
        raise ValueError("seeds must be different and ascending")
    return seeds


def _check_sizes(metadata: pq.FileMetaData, rows: int) -> None:
    """Refuse what would unfold to more than the predictions can be."""
    if metadata.num_row_groups != 1:
        raise ValueError(f"{metadata.num_row_groups} row groups, not 1")
    # Not column by column: Arrow aborts the process where metadata of a column is broken.
    if metadata.row_group(0).total_byte_size > metadata.num_columns * (8 * rows + 10_000):
        raise ValueError("a column unfolds to more than its rows")


if __name__ == "__main__":
    _serve()
