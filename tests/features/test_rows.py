"""Rows of an array: every batch is what NumPy would give, however the file gives it."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from fsspec.implementations.local import LocalFileSystem
from hypothesis import given
from hypothesis import strategies as st

from avbench.features import rows as module
from avbench.features.rows import RowReader
from avbench.types import AvbenchError

COUNT = 40
ARRAY = np.random.default_rng(0).normal(size=(COUNT, 3, 5)).astype("<f2")


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("rows") / "array.npy"
    np.save(path, ARRAY)
    return path


@pytest.fixture(autouse=True)
def shared(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small files go the way of large ones: in several pieces."""
    monkeypatch.setattr(module, "_AT_A_TIME", 3 * ARRAY[0].nbytes)


def reader(path: Path) -> RowReader:
    return RowReader(LocalFileSystem(), str(path), ARRAY.shape, ARRAY.dtype)


@given(st.lists(st.integers(0, COUNT - 1), max_size=2 * COUNT))
def test_any_rows_in_any_order(path: Path, rows: list[int]) -> None:
    wanted = np.array(rows, dtype=np.int64)
    np.testing.assert_array_equal(reader(path).read(wanted), ARRAY[wanted])


def test_a_buffer_is_filled_and_used_again(path: Path) -> None:
    out = np.full((4, 3, 5), np.nan, "<f2")
    for rows in (np.array([7, 6, 30, 8]), np.array([1, 1, 2, 0])):
        assert reader(path).read(rows, out) is out
        np.testing.assert_array_equal(out, ARRAY[rows])


def test_neighbours_are_read_by_one_call(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def preadv(file: int, buffers: list[np.ndarray], at: int) -> int:
        calls.append(len(buffers))
        return os_preadv(file, buffers, at)

    os_preadv = os.preadv
    monkeypatch.setattr(os, "preadv", preadv)
    reader(path).read(np.array([12, 4, 11, 30, 10]))
    assert sorted(calls) == [1, 1, 3]


@pytest.mark.parametrize("most", [1, 7, 30, 31, 59])
def test_a_system_that_gives_less_than_asked(
    path: Path, monkeypatch: pytest.MonkeyPatch, most: int
) -> None:
    def preadv(file: int, buffers: list[np.ndarray], at: int) -> int:
        content = os.pread(file, min(most, sum(len(b) for b in buffers)), at)
        given, left = len(content), content
        for buffer in buffers:
            part, left = left[: len(buffer)], left[len(buffer) :]
            buffer[: len(part)] = np.frombuffer(part, np.uint8)
        return given

    monkeypatch.setattr(os, "preadv", preadv)
    rows = np.array([5, 3, 4, 4, 20])
    np.testing.assert_array_equal(reader(path).read(rows), ARRAY[rows])


def test_large_batches_are_read_by_several_threads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    array = np.random.default_rng(1).normal(size=(64, 100, 200)).astype("<f4")
    np.save(tmp_path / "large.npy", array)
    large = RowReader(LocalFileSystem(), str(tmp_path / "large.npy"), array.shape, array.dtype)
    rows = np.random.default_rng(2).permutation(64)
    np.testing.assert_array_equal(large.read(rows), array[rows])


@pytest.mark.parametrize("out", [np.empty((3, 3, 5), "<f4"), np.empty((3, 5, 3), "<f2").mT])
def test_a_buffer_that_does_not_fit(path: Path, out: np.ndarray) -> None:
    with pytest.raises(ValueError, match="3 contiguous rows of float16"):
        reader(path).read(np.arange(3), out)


@pytest.mark.parametrize("rows", [[-1], [COUNT], [0, COUNT + 5]])
def test_rows_that_are_not_there(path: Path, rows: list[int]) -> None:
    with pytest.raises(IndexError, match="0 to 39"):
        reader(path).read(np.array(rows))


def test_a_file_that_became_shorter_is_named(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", ARRAY)
    opened = reader(tmp_path / "a.npy")
    os.truncate(tmp_path / "a.npy", 500)
    np.testing.assert_array_equal(opened.read(np.array([1])), ARRAY[[1]])
    with pytest.raises(AvbenchError, match=r"a\.npy: cannot be read \(cut short\)"):
        opened.read(np.arange(COUNT))


@pytest.mark.parametrize(
    "array", [ARRAY[:, :, :4], ARRAY.astype("<f4"), np.asfortranarray(ARRAY), ARRAY[:5]]
)
def test_another_array_is_refused(tmp_path: Path, array: np.ndarray) -> None:
    np.save(tmp_path / "a.npy", array)
    with pytest.raises(ValueError, match="holds"):
        reader(tmp_path / "a.npy")


def test_files_are_closed(path: Path) -> None:
    before = len(list(Path("/proc/self/fd").iterdir()))
    for _ in range(20):
        reader(path)
    assert len(list(Path("/proc/self/fd").iterdir())) <= before + 1
