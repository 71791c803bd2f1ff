"""The feature store: what goes in comes out, and nothing half done or damaged does."""

from __future__ import annotations

import json
import pickle
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from torch.utils.data import DataLoader

from avbench.features.store import FeatureStore, create, hash_preset
from avbench.types import AvbenchError
from tests.helpers.loading import collate

DIM, FRAMES, CELLS = 8, 2, 3
IDS = ["b", "-a", "c_1", "d"]
PRESET = {"name": "p", "version": 1}


def features(n: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    return rng.normal(size=(n, DIM)), rng.normal(size=(n, FRAMES * CELLS, DIM))


def write(folder: Path, ids: Sequence[str] = IDS, seed: int = 0) -> None:
    audio, visual = features(len(ids), seed)
    with create(
        folder,
        preset=PRESET,
        fingerprint="f",
        clip_ids=ids,
        dim=DIM,
        frames=FRAMES,
        cells=CELLS,
    ) as writer:
        for row in reversed(range(len(ids))):
            writer.write(row, audio[row], visual[row])


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "features" / "p"
    write(folder)
    return folder


def test_what_goes_in_comes_out_in_half_precision(folder: Path) -> None:
    store = FeatureStore.open(folder)
    audio, visual = features(len(IDS))
    rows = np.arange(len(store))
    np.testing.assert_array_equal(store.audio(rows), audio.astype(np.float16))
    np.testing.assert_array_equal(store.visual(rows), visual.astype(np.float16))
    assert (store.dim, store.frames, store.cells) == (DIM, FRAMES, CELLS)
    assert store.clip_ids == tuple(IDS)
    assert (store.preset, store.preset_name, store.fingerprint) == (PRESET, "p", "f")
    assert store.preset_hash == hash_preset({"version": 1, "name": "p"})


def test_order_and_duplicates_are_kept_and_absent_clips_marked(folder: Path) -> None:
    store = FeatureStore.open(folder)
    assert store.rows_of(["d", "nobody", "b", "d"]).tolist() == [3, -1, 0, 3]
    rows = np.array([3, 0, 3])
    np.testing.assert_array_equal(store.audio(rows), features(4)[0][rows].astype(np.float16))
    np.testing.assert_array_equal(store.visual(rows), features(4)[1][rows].astype(np.float16))


def test_a_copy_reads_the_same_file_when_the_original_is_closed(
    folder: Path, tmp_path: Path
) -> None:
    write(tmp_path / "other", seed=1)
    store, rows = FeatureStore.open(folder), np.arange(len(IDS))
    expected = store.visual(rows)
    pickled = pickle.dumps(store)
    del store
    other = FeatureStore.open(tmp_path / "other")  # now has the numbers of the closed files
    np.testing.assert_array_equal(pickle.loads(pickled).visual(rows), expected)
    assert not np.array_equal(other.visual(rows), expected)


def test_a_copy_is_found_from_another_folder(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder.parent)
    store = FeatureStore.open(Path("p"))
    monkeypatch.chdir(tmp_path)
    rows = np.arange(len(IDS))
    again = pickle.loads(pickle.dumps(store))
    np.testing.assert_array_equal(again.audio(rows), store.audio(rows))


def test_a_copy_of_features_that_were_replaced_is_refused(folder: Path) -> None:
    pickled = pickle.dumps(FeatureStore.open(folder))
    write(folder, seed=1)
    with pytest.raises(AvbenchError, match="p: holds other features than it did: open it again"):
        pickle.loads(pickled)


@pytest.mark.parametrize("start", ["fork", pytest.param("spawn", marks=pytest.mark.slow)])
def test_workers_of_a_data_loader_read_the_features(folder: Path, start: str) -> None:
    store = FeatureStore.open(folder)
    # So many that several threads read them.
    order = np.random.default_rng(0).integers(len(store), size=20_000)
    expected = store.visual(order)
    loader = DataLoader(
        order.tolist(),
        batch_size=len(order),
        num_workers=1,
        collate_fn=collate(store),
        multiprocessing_context=start,
        timeout=60,
    )
    (batch,) = loader
    np.testing.assert_array_equal(batch.numpy(), expected)


def test_single_precision_is_kept(tmp_path: Path) -> None:
    audio, visual = features(len(IDS))
    with create(
        tmp_path / "p",
        preset=PRESET,
        fingerprint="f",
        clip_ids=IDS,
        dim=DIM,
        frames=FRAMES,
        cells=CELLS,
        dtype="float32",
    ) as writer:
        for row in range(len(IDS)):
            writer.write(row, 1e5 * audio[row], visual[row])
    store = FeatureStore.open(tmp_path / "p")
    rows = np.array([2, 0, 1, 3])
    np.testing.assert_array_equal(store.audio(rows), (1e5 * audio[rows]).astype(np.float32))
    np.testing.assert_array_equal(store.visual(rows), visual[rows].astype(np.float32))
    assert (store.dtype, store.damaged()) == (np.float32, [])


@pytest.mark.parametrize(("name", "row"), [("audio.npy", 0), ("visual.npy", 2), ("visual.npy", 3)])
def test_one_wrong_bit_is_found_and_its_clip_named(folder: Path, name: str, row: int) -> None:
    assert FeatureStore.open(folder).damaged() == []
    size = DIM * 2 if name == "audio.npy" else FRAMES * CELLS * DIM * 2
    content = bytearray((folder / name).read_bytes())
    content[128 + row * size + size - 1] ^= 1
    (folder / name).write_bytes(content)
    assert FeatureStore.open(folder).damaged() == [IDS[row]]


def test_checksums_that_were_changed_too_are_found(folder: Path, tmp_path: Path) -> None:
    write(tmp_path / "other", seed=3)
    for name in ("audio.npy", "visual.npy", "index.parquet"):
        (folder / name).write_bytes((tmp_path / "other" / name).read_bytes())
    with pytest.raises(AvbenchError, match=r"index\.parquet: not what was written"):
        FeatureStore.open(folder).damaged()


def test_a_store_without_checksums_of_clips_is_read_and_checked_as_a_whole(folder: Path) -> None:
    """As early versions wrote it."""
    index = pq.read_table(folder / "index.parquet").drop_columns("sha256")
    pq.write_table(index, folder / "index.parquet")
    info = json.loads((folder / "store.json").read_text())
    (folder / "store.json").write_text(json.dumps({k: v for k, v in info.items() if k != "dtype"}))
    assert FeatureStore.open(folder).dtype == np.float16
    assert FeatureStore.open(folder).damaged() == []
    content = bytearray((folder / "visual.npy").read_bytes())
    content[-1] ^= 1
    (folder / "visual.npy").write_bytes(content)
    with pytest.raises(AvbenchError, match=r"visual\.npy: not what was written"):
        FeatureStore.open(folder).damaged()


def test_files_are_plain_arrays_anyone_can_read(folder: Path) -> None:
    array = np.load(folder / "visual.npy", mmap_mode="r", allow_pickle=False)
    assert array.shape == (4, 6, 8)
    assert array.dtype == np.float16
    assert array.flags.c_contiguous


def test_a_run_that_stops_leaves_the_old_store_and_nothing_else(folder: Path) -> None:
    with (
        pytest.raises(KeyboardInterrupt),
        create(
            folder, preset=PRESET, fingerprint="g", clip_ids=["x"], dim=8, frames=2, cells=3
        ) as writer,
    ):
        writer.write(0, np.ones(8), np.ones((6, 8)))
        raise KeyboardInterrupt
    assert FeatureStore.open(folder).fingerprint == "f"
    assert [path.name for path in folder.parent.iterdir()] == ["p"]


def test_a_new_store_replaces_the_old_one(folder: Path) -> None:
    write(folder, ["x"], seed=1)
    assert FeatureStore.open(folder).clip_ids == ("x",)


def test_a_forgotten_clip_is_named(tmp_path: Path) -> None:
    with (
        pytest.raises(AvbenchError, match="clip y"),
        create(
            tmp_path / "p",
            preset=PRESET,
            fingerprint="f",
            clip_ids=["x", "y"],
            dim=8,
            frames=2,
            cells=3,
        ) as writer,
    ):
        writer.write(0, np.ones(8), np.ones((6, 8)))
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("value", [np.nan, np.inf, 1e6])
@pytest.mark.parametrize("part", ["audio", "visual"])
def test_values_that_are_not_finite_are_refused(tmp_path: Path, part: str, value: float) -> None:
    given = {"audio": np.ones(8), "visual": np.ones((6, 8))}
    given[part].flat[3] = value
    with (
        pytest.raises(AvbenchError, match=f"{part} features of clip x: not finite"),
        create(
            tmp_path / "p", preset=PRESET, fingerprint="f", clip_ids=["x"], dim=8, frames=2, cells=3
        ) as writer,
    ):
        writer.write(0, **given)


def test_a_wrong_shape_is_refused(tmp_path: Path) -> None:
    with (
        pytest.raises(AvbenchError, match=r"clip x: shape \(7,\), not \(8,\)"),
        create(
            tmp_path / "p", preset=PRESET, fingerprint="f", clip_ids=["x"], dim=8, frames=2, cells=3
        ) as writer,
    ):
        writer.write(0, np.ones(7), np.ones((6, 8)))


def test_no_store_says_how_to_make_one(tmp_path: Path) -> None:
    with pytest.raises(AvbenchError, match="run avbench prepare toy-ci"):
        FeatureStore.open(tmp_path / "p", remedy="run avbench prepare toy-ci")


@pytest.mark.parametrize("name", ["audio.npy", "visual.npy", "index.parquet", "store.json"])
def test_a_damaged_file_is_named(folder: Path, name: str) -> None:
    path = folder / name
    whole = path.read_bytes()
    for damaged in (b"", whole[:40], whole[:-1] if name != "store.json" else whole[:-9]):
        path.write_bytes(damaged)
        with pytest.raises(AvbenchError, match=name):
            FeatureStore.open(folder)
    path.unlink()
    with pytest.raises(AvbenchError):
        FeatureStore.open(folder)


@pytest.mark.parametrize(
    "change",
    [
        {"dim": 9},
        {"frames": "2"},
        {"clips_hash": "0"},
        {"format": 2},
        {"preset": {}},
        {"dtype": "int8"},
    ],
)
def test_a_wrong_description_is_refused(folder: Path, change: dict[str, object]) -> None:
    info = json.loads((folder / "store.json").read_text())
    (folder / "store.json").write_text(json.dumps(info | change))
    with pytest.raises(AvbenchError, match=str(folder)):
        FeatureStore.open(folder)


def test_a_width_that_is_not_the_preset_s_is_refused(folder: Path) -> None:
    info = json.loads((folder / "store.json").read_text())
    preset = info["preset"] | {"dim": 768}
    changed = {"preset": preset, "preset_hash": hash_preset(preset)}
    (folder / "store.json").write_text(json.dumps(info | changed))
    with pytest.raises(AvbenchError, match="width 8, but its preset has 768"):
        FeatureStore.open(folder)


def test_another_store_s_index_is_refused(folder: Path, tmp_path: Path) -> None:
    write(tmp_path / "other", ["b", "-a", "c_1", "e"])
    (folder / "index.parquet").write_bytes((tmp_path / "other" / "index.parquet").read_bytes())
    with pytest.raises(AvbenchError, match=r"index\.parquet"):
        FeatureStore.open(folder)
