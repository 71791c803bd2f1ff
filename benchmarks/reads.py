"""Reading batches of features: the store against one HDF5 dataset a clip, as the authors read.

Batches of 256 random clips at the real shape. Warm: the system's cache holds all. Cold: it holds
nothing of the files. How fast memory is copied to memory, and what the disk gives past all caches,
are the limits. Each clip of HDF5 is single precision, as the authors keep it, and is put into a
batch as their loader does. "Shipped" is the C library's allocator as it is, "tuned" one that never
gives memory back to the system.
"""

from __future__ import annotations

import mmap
import os
import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import h5py
import numpy as np
import numpy.typing as npt
import torch

from avbench.features.store import FeatureStore
from benchmarks import timing
from benchmarks.synthetic import table_benchmark, write_store

READERS = 8


def forget(*paths: Path) -> None:
    """Make the system's cache let go of files."""
    for path in paths:
        file = os.open(path, os.O_RDONLY)
        os.fsync(file)
        os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(file)


def cold(way: Callable[[], object], *paths: Path) -> Callable[[list[timing.Sample]], None]:
    """Return what reads files that no cache holds, and adds the time of that."""

    def run(samples: list[timing.Sample]) -> None:
        forget(*paths)
        with timing.timed(samples):
            way()

    return run


def directly(path: Path, size: int) -> Callable[[npt.NDArray[np.int64]], None]:
    """Return what reads rows of a file past the system's cache, which wants whole pages."""
    page = mmap.PAGESIZE
    file = os.open(path, os.O_RDONLY | os.O_DIRECT)
    rooms = [mmap.mmap(-1, size // page * page) for _ in range(READERS)]
    pool = ThreadPoolExecutor(READERS)

    def share(rows: npt.NDArray[np.int64], room: mmap.mmap) -> None:
        for row in rows:
            os.preadv(file, [room], int(row) * size // page * page)

    def read(rows: npt.NDArray[np.int64]) -> None:
        list(pool.map(share, np.array_split(np.sort(rows), READERS), rooms))

    return read


def measure(folder: Path, clips: int, batch: int, runs: int) -> None:
    """Print a table of both ways, warm and cold."""
    tokens = (8 * 196, 768)
    benchmark = table_benchmark(folder, clips, classes=2, steps=1)
    write_store(folder / "store", benchmark)
    store = FeatureStore.open(folder / "store")
    single = folder / "visual.h5"
    with h5py.File(single, "w") as file:
        for row, clip_id in enumerate(store.clip_ids):
            file[clip_id] = store.read(row)[1].astype(np.float32)
    order = np.random.default_rng(1)
    buffer = np.empty((batch, *tokens), np.float16)

    def hdf5() -> torch.Tensor:
        with h5py.File(single, "r") as file:
            rows = order.permutation(clips)[:batch]
            clips_read = [torch.from_numpy(file[store.clip_ids[row]][()]) for row in rows]
        return torch.stack(clips_read)

    def ours() -> object:
        return store.visual(order.permutation(clips)[:batch], buffer)

    held = store.visual(np.arange(batch))
    pool = ThreadPoolExecutor(READERS)

    def copied(some: npt.NDArray[np.int64], out: npt.NDArray[np.float16]) -> None:
        np.take(held, some, axis=0, out=out, mode="clip")

    def memory() -> None:
        shares = (np.array_split(x, READERS) for x in (order.permutation(batch), buffer))
        list(pool.map(copied, *shares))

    ways = {"HDF5, a clip at a time": hdf5, "store": ours}
    warm = timing.by_turns({**ways, "the memory alone": memory}, runs)
    stored = folder / "store" / "visual.npy"
    cold_ways = dict(zip(ways, (cold(hdf5, single), cold(ours, stored)), strict=True))
    with suppress(OSError):  # a file system that knows no reads past its cache
        past_caches = directly(stored, int(np.prod(tokens)) * 2)
        cold_ways["the disk alone"] = cold(
            lambda: past_caches(order.permutation(clips)[:batch]), stored
        )
    samples: dict[str, list[timing.Sample]] = {name: [] for name in cold_ways}
    for _ in range(runs):
        for name, way in cold_ways.items():
            way(samples[name])
    rows = []
    for cache, found in (("warm", warm), ("cold", samples)):
        first = next(iter(found.values()))
        for name, each in found.items():
            rate = timing.spread([batch / sample.wall for sample in each], 0)
            rows.append([cache, name, rate, *timing.ratios(first, each)])
    print(timing.table(["cache", "way", "clips/s", "CPU, times less", "wall, times less"], rows))


def main() -> None:
    """Measure and print Markdown tables."""
    parser = timing.arguments(__doc__, "few clips, two turns")
    parser.add_argument("--clips", type=int, default=1000)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--folder", type=Path, help="on the disk to measure; needs 8 MB a clip")
    parser.add_argument("--one", action="store_true", help="with the allocator as it is")
    options = parser.parse_args()
    clips, batch, runs = (24, 8, 2) if options.quick else (options.clips, 256, options.runs)
    if options.one:
        with tempfile.TemporaryDirectory(dir=options.folder) as folder:
            measure(Path(folder), clips, batch, runs)
        return
    for allocator, environment in (("shipped", {}), ("tuned", timing.TUNED)):
        given = ["--one", "--clips", str(clips), "--runs", str(runs)]
        given += ["--quick"] * options.quick
        given += ["--folder", str(options.folder)] if options.folder else []
        found = timing.alone("benchmarks.reads", *given, environment=environment)
        print(f"{allocator}:\n\n{found}")


if __name__ == "__main__":
    main()
