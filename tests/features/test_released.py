"""The authors' files: what is in them comes out, in little memory, and nothing in them runs."""

from __future__ import annotations

import io
import os
import pickle
import signal
import subprocess
import sys
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import h5py
import numpy as np
import pytest

from avbench.features.released import archive, importer
from avbench.features.released.archive import AUDIO, VISUAL, VISUAL_HDF5, Inflated, Pieces
from avbench.features.released.dictionary import Refused, read_items
from avbench.features.released.importer import Imported, import_released
from avbench.features.store import FeatureStore
from avbench.manifests.benchmark import Benchmark
from avbench.types import AvbenchError, UsageError, silent

DIM, TOKENS = 768, 1568


@pytest.fixture
def benchmark(tiny: Callable[..., Benchmark]) -> Benchmark:
    return tiny(classes=2, classes_per_step=1, per_class=5)


def sound(clip_id: str) -> np.ndarray:
    return np.random.default_rng(sum(clip_id.encode())).normal(size=DIM).astype(np.float32)


def sight(clip_id: str) -> np.ndarray:
    part = np.random.default_rng(sum(clip_id.encode()) + 1).normal(size=(98, DIM))
    return np.tile(part.astype(np.float32), (16, 1))


def write_audio(folder: Path, ids: list[str]) -> Path:
    path = folder / "audio_pretrained_feature" / AUDIO
    path.parent.mkdir(parents=True, exist_ok=True)
    np.save(path, {i: sound(i) for i in ids}, allow_pickle=True)  # type: ignore[arg-type]
    return path


def write_visual(folder: Path, ids: list[str]) -> Path:
    path = folder / "visual_pretrained_feature" / VISUAL
    path.parent.mkdir(parents=True, exist_ok=True)
    np.save(path, {i: sight(i) for i in ids}, allow_pickle=True)  # type: ignore[arg-type]
    return path


def write_hdf5(folder: Path, ids: list[str], **options: Any) -> Path:
    path = folder / "visual_pretrained_feature" / VISUAL_HDF5
    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w") as file:
        for clip_id in ids:
            file.create_dataset(clip_id, data=sight(clip_id), **options)
    return path


def shuffled(benchmark: Benchmark) -> list[str]:
    return [str(i) for i in np.random.default_rng(0).permutation(benchmark.manifest.clip_ids)]


def run(benchmark: Benchmark, *files: Path) -> Imported:
    return import_released(benchmark, files, report=silent)


def check(store: FeatureStore, ids: list[str] | tuple[str, ...]) -> None:
    assert store.clip_ids == tuple(ids)
    assert (store.dim, store.frames, store.cells) == (DIM, 8, 196)
    for row, clip_id in enumerate(ids):
        np.testing.assert_array_equal(store.read(row)[0], sound(clip_id).astype(np.float16))
        np.testing.assert_array_equal(store.read(row)[1], sight(clip_id).astype(np.float16))


KILLED = """
import sys, time
from pathlib import Path
from avbench.features.released import importer
from avbench.manifests.benchmark import Benchmark
from avbench.types import silent

importer._TOGETHER = 2
cast = importer.unfinished.Unfinished.cast

def slow(self, clip_id, *features):
    print(clip_id, flush=True)
    time.sleep(float(sys.argv[3]))
    return cast(self, clip_id, *features)

importer.unfinished.Unfinished.cast = slow
importer.import_released(Benchmark.load(sys.argv[1]), [Path(sys.argv[2])], report=silent)
"""


@pytest.mark.slow
@pytest.mark.parametrize("write", [write_visual, write_hdf5])
def test_an_import_killed_again_and_again_ends_with_the_same_bytes(
    tiny: Callable[..., Benchmark], tmp_path: Path, write: Callable
) -> None:
    benchmark = tiny(classes=2, classes_per_step=1, per_class=10)
    ids = shuffled(benchmark)
    write_audio(tmp_path / "AVE", ids)
    write(tmp_path / "AVE", ids[::-1])
    released = benchmark.home / "features" / "released"
    command = [sys.executable, "-c", KILLED, str(benchmark.spec.path), str(tmp_path / "AVE")]

    def contents() -> dict[str, bytes]:
        return {path.name: path.read_bytes() for path in released.iterdir()}

    assert len(run(benchmark, tmp_path / "AVE").store) == 20
    whole = contents()
    released.rename(tmp_path / "whole")
    written: list[str] = []
    for clips in (3, 1, 6):
        with subprocess.Popen([*command, "0.05"], stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout
            written += [process.stdout.readline() for _ in range(clips)]
            process.send_signal(signal.SIGKILL)
            written += process.stdout.readlines()
        assert process.returncode == -signal.SIGKILL
        assert not released.exists()
    rest = subprocess.run([*command, "0"], capture_output=True, text=True, check=True)
    written += rest.stdout.splitlines(True)
    # Each kill costs no more than the batch at work.
    assert {line.strip() for line in written} == {*ids}
    assert 20 <= len(written) <= 20 + 3 * 2
    assert contents() == whole
    assert {path.name for path in released.parent.iterdir()} == {".lock", "released"}


def test_other_files_are_not_gone_on_with(
    benchmark: Benchmark, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ids = benchmark.manifest.clip_ids
    write_audio(tmp_path / "AVE", list(ids))
    path = write_hdf5(tmp_path / "AVE", list(ids))
    monkeypatch.setattr(importer, "_TOGETHER", 2)

    def stopping(what: str, done: int, total: int) -> None:
        if what == "features" and done == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        import_released(benchmark, [tmp_path / "AVE"], report=stopping)
    with h5py.File(path, "r+") as file:
        file[ids[0]][...] = 1.0
    os.utime(path, (1, 1))
    assert np.all(run(benchmark, tmp_path / "AVE").store.read(0)[1] == 1.0)
    assert {p.name for p in (benchmark.home / "features").iterdir()} == {".lock", "released"}


@pytest.mark.parametrize("write", [write_visual, write_hdf5])
def test_a_folder_in_any_order(benchmark: Benchmark, tmp_path: Path, write: Callable) -> None:
    ids = shuffled(benchmark)
    write_audio(tmp_path / "AVE", ids)
    write(tmp_path / "AVE", ids[::-1])
    seen: list[tuple[str, int, int]] = []
    imported = import_released(
        benchmark, [tmp_path / "AVE"], report=lambda *progress: seen.append(progress)
    )
    check(imported.store, benchmark.manifest.clip_ids)
    assert (imported.missing, imported.strangers) == ({}, 0)
    assert seen[-1] == ("features", 10, 10)
    store = FeatureStore.of(benchmark, "released")
    assert store.preset_name == "released"
    assert store.preset["clip_seconds"] == 1.0
    assert store.fingerprint == benchmark.manifest.fingerprint


def test_files_one_by_one(benchmark: Benchmark, tmp_path: Path) -> None:
    ids = shuffled(benchmark)
    files = write_hdf5(tmp_path, ids, compression="lzf"), write_audio(tmp_path, ids)
    check(run(benchmark, *files).store, benchmark.manifest.clip_ids)


def in_parts(path: Path, count: int) -> list[Path]:
    content, parts = path.read_bytes(), []
    size = -(-len(content) // count)
    for number in range(count):
        parts.append(path.with_name(f"{path.name}.part{number + 1}"))
        parts[-1].write_bytes(content[number * size : (number + 1) * size])
    path.unlink()
    return parts


@pytest.mark.slow
@pytest.mark.parametrize("write", [write_visual, write_hdf5])
@pytest.mark.parametrize(
    ("method", "parts"),
    [(zipfile.ZIP_STORED, 3), (zipfile.ZIP_DEFLATED, 3), (zipfile.ZIP_STORED, 1)],
)
def test_a_zip_in_parts_is_read_without_joining_it(
    benchmark: Benchmark, tmp_path: Path, write: Callable, method: int, parts: int
) -> None:
    ids = shuffled(benchmark)
    with zipfile.ZipFile(tmp_path / "AVE.zip", "w", method, compresslevel=1) as packed:
        for file in (write_audio(tmp_path / "a", ids), write(tmp_path / "a", ids)):
            packed.write(file, f"data/AVE/{file.parent.name}/{file.name}")
        # None of these is ever unpacked, wherever they point to.
        packed.writestr("../../outside.txt", "hello")
        packed.writestr("/absolute.npy", "hello")
        packed.writestr(f"__MACOSX/._{AUDIO}", "hello")
    before = {path for path in tmp_path.rglob("*") if path.is_file()}
    files = in_parts(tmp_path / "AVE.zip", parts)
    imported = run(benchmark, *files)
    check(imported.store, benchmark.manifest.clip_ids)
    after = {path for path in tmp_path.rglob("*") if path.is_file()}
    assert after - before == set(files)
    assert {path.name for path in Path(imported.store.place).parent.iterdir()} == {
        ".lock",
        "released",
    }


def test_pieces_are_one_file(tmp_path: Path) -> None:
    content = bytes(np.random.default_rng(0).integers(0, 256, 1000, np.uint8))
    (tmp_path / "whole").write_bytes(content)
    parts = in_parts(tmp_path / "whole", 7)
    with Pieces([(part, 0, part.stat().st_size) for part in parts]) as pieces:
        assert pieces.read() == content
        inside = io.BufferedReader(pieces.cut(130, 500))
        for start, count in ((0, 500), (7, 11), (490, 50), (500, 3)):
            inside.seek(start)
            assert inside.read(count) == content[130:630][start : start + count]
        assert inside.seek(-5, os.SEEK_END) == 495
        inside.close()


@pytest.mark.parametrize(("piece", "apart"), [(50, 100), (1000, 3000), (2**16, 2**26)])
def test_a_deflated_file_is_read_in_any_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, piece: int, apart: int
) -> None:
    monkeypatch.setattr(archive, "_PACKED_AT_A_TIME", piece)
    monkeypatch.setattr(archive, "_STATES_APART", apart)
    rng = np.random.default_rng(0)
    content = bytes(rng.integers(0, 5, 20_000, np.uint8)) + bytes(5000)
    packer = zlib.compressobj(wbits=-zlib.MAX_WBITS)
    (tmp_path / "packed").write_bytes(packer.compress(content) + packer.flush())
    size = (tmp_path / "packed").stat().st_size
    with Inflated(Pieces([(tmp_path / "packed", 0, size)]), len(content)) as inflated:
        for _ in range(300):
            start, count = int(rng.integers(len(content))), int(rng.integers(1, 3000))
            inflated.seek(start)
            assert io.BytesIO(content[start:]).read(count).startswith(inflated.read(count))
            assert inflated.tell() > start
        inflated.seek(0)
        assert inflated.readall() == content
    with Inflated(Pieces([(tmp_path / "packed", 0, size // 2)]), len(content)) as inflated:
        inflated.seek(-1, os.SEEK_END)
        with pytest.raises(EOFError):
            inflated.read(1)


def test_what_is_missing_and_what_is_strange_is_said(benchmark: Benchmark, tmp_path: Path) -> None:
    ids = list(benchmark.manifest.clip_ids)
    write_audio(tmp_path, [i for i in ids if i not in ("c0-001", "c0-002")] + ["stranger"])
    write_hdf5(tmp_path, [i for i in ids if i not in ("c0-002", "c1-000")] + ["other"])
    imported = run(benchmark, tmp_path)
    assert imported.missing == {
        "no audio features": ["c0-001"],
        "no visual features": ["c1-000"],
        "no features": ["c0-002"],
    }
    assert imported.strangers == 2
    check(imported.store, [i for i in ids if i not in ("c0-001", "c0-002", "c1-000")])


def test_files_of_another_benchmark(benchmark: Benchmark, tmp_path: Path) -> None:
    write_audio(tmp_path, ["x"])
    write_hdf5(tmp_path, ["x"])
    with pytest.raises(AvbenchError, match="no features of tiny: its ids are such as x"):
        run(benchmark, tmp_path)


def test_files_that_are_not_there(benchmark: Benchmark, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no file or folder"):
        run(benchmark, tmp_path / "nowhere")
    with pytest.raises(AvbenchError, match=f"no {AUDIO} in what was given"):
        run(benchmark, tmp_path)
    ids = list(benchmark.manifest.clip_ids)
    write_audio(tmp_path, ids)
    with pytest.raises(AvbenchError, match=f"no {VISUAL} or {VISUAL_HDF5}"):
        run(benchmark, tmp_path)
    write_visual(tmp_path, ids)
    write_hdf5(tmp_path, ids)
    with pytest.raises(AvbenchError, match="both there"):
        run(benchmark, tmp_path)
    write_audio(tmp_path / "again", ids)
    with pytest.raises(AvbenchError, match="which"):
        run(benchmark, tmp_path)


# ---- dictionaries ----


def dictionary(content: Any, protocol: int = 4) -> io.BytesIO:
    """A .npy file whose pickle is of anything."""
    file = io.BytesIO()
    header = {"descr": "|O", "fortran_order": False, "shape": ()}
    np.lib.format.write_array_header_1_0(file, header)
    file.write(content if isinstance(content, bytes) else pickle.dumps(content, protocol))
    file.seek(0)
    return file


def boxed(content: Any) -> np.ndarray:
    box = np.empty((), dtype=object)
    box[()] = content
    return box


@pytest.mark.parametrize("count", [0, 1, 2, 1001, 2500])
@pytest.mark.parametrize("protocol", [3, 4])
def test_dictionaries_of_any_size(count: int, protocol: int) -> None:
    rng = np.random.default_rng(count)
    given = {f"-id_{i}": rng.normal(size=(3, 2)).astype(np.float32) for i in range(count)}
    read = list(read_items(dictionary(boxed(given), protocol), (3, 2)))
    assert [name for name, _ in read] == list(given)
    for name, array in read:
        np.testing.assert_array_equal(array, given[name])


@pytest.mark.parametrize("dtype", ["<f2", "<f4", "<f8", ">f4", ">f8"])
@pytest.mark.parametrize("order", ["C", "F"])
def test_floats_of_any_kind(dtype: str, order: Any) -> None:
    values = np.arange(6).reshape(3, 2).astype(dtype, order=order)
    ((_, read),) = read_items(dictionary(boxed({"a": values})), (3, 2))
    np.testing.assert_array_equal(read, values)


class Touch:
    """When unpickled, makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self.path,))


class Shell(Touch):
    """When unpickled, runs a command."""

    def __reduce__(self) -> tuple[Any, ...]:
        return (os.system, (f"touch {self.path}",))


class Built(Touch):
    """When unpickled, is given a state."""

    def __reduce__(self) -> tuple[Any, ...]:
        return (dict, (), {"a": 1})


A = np.zeros((3, 2), np.float32)


@pytest.mark.parametrize("protocol", [0, 1, 2, 3, 4, 5])
@pytest.mark.parametrize("kind", [Touch, Shell, Built])
def test_a_hostile_pickle_runs_nothing(tmp_path: Path, kind: type[Touch], protocol: int) -> None:
    mark = tmp_path / "ran"
    bad = kind(mark)
    hostile = [bad, {"a": bad}, boxed(bad), boxed({"a": bad}), boxed({"a": A, "b": bad}), [A, bad]]
    hostile += [boxed({"a": boxed(bad)}), {bad: A} if kind is Built else boxed([bad, {"a": A}])]
    for content in hostile:
        with pytest.raises(Refused):
            list(read_items(dictionary(content, protocol), (3, 2)))
    assert not mark.exists()


def raw(*opcodes: bytes) -> bytes:
    return b"\x80\x04" + b"".join(opcodes)


HOSTILE = {
    "global": raw(b"cos\nsystem\n", b"\x8c\x02ls", b"\x85R."),
    "dotted": raw(b"\x8c\x05numpy", b"\x8c\x11ndarray.__class__", b"\x93."),
    "instance": raw(b"(ios\nsystem\n."),
    "object": raw(b"(cos\nsystem\no."),
    "newobj": raw(b"cnumpy\nndarray\n", b")\x81."),
    "extension": raw(b"\x82\x01."),
    "persistent": raw(b"Pname\n."),
    "array called": raw(b"cnumpy\nndarray\n", b"K\x01\x85R."),
    "dtype of an object": raw(b"cnumpy\ndtype\n", b"}\x85R."),
    "dtype called empty": raw(b"cnumpy\ndtype\n", b")R."),
    "huge bytes": raw(b"\x8e" + (2**62).to_bytes(8, "little") + b"x."),
    "huge text": raw(b"\x8d" + (2**62).to_bytes(8, "little") + b"x."),
    "long name": raw(b"X" + (5000).to_bytes(4, "little") + b"x" * 5000 + b"."),
    "huge number": raw(b"\x8b" + (2**31 - 1).to_bytes(4, "little") + b"x."),
    "many marks": raw(b"(" * 100_000 + b"."),
    "many memories": raw(b"N" + b"".join(b"r" + i.to_bytes(4, "little") for i in range(10)) + b"."),
    "memory of nothing": raw(b"h\x05."),
    "empty stack": raw(b"R."),
    "build of nothing": raw(b"b."),
    "pop": raw(b"N0."),
    "put on nothing": raw(b"\x94."),
    "tuple without mark": raw(b"t."),
    "append to nothing": raw(b"a."),
    "text": b"hello world, this is no pickle",
    "nothing": b"",
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_instructions_are_refused(name: str) -> None:
    with pytest.raises(Refused):
        list(read_items(dictionary(HOSTILE[name]), (3, 2)))


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (boxed({"a": A.T}), r"a has shape \(2, 3\), not \(3, 2\)"),
        (boxed({"a": A.astype(int)}), "a is not of floats"),
        (boxed({"a": A.astype(complex)}), "a is not of floats"),
        (boxed({"a": A, 7: A + 1}), "without a name"),
        (boxed({"a": 1.5}), "BINFLOAT"),
        (boxed({"a": "text"}), "something else than one array"),
        (boxed({"a": A, "b": A}), "something else than one array"),
        (boxed({"a": {"b": A}}), "something else than one array"),
        (boxed([A]), "without a name|dictionary"),
        (boxed(A), "dictionary|name"),
        ({"a": A}, "dictionary"),
        (A, "something else than arrays of numbers"),
    ],
)
def test_other_contents_are_refused(content: Any, why: str) -> None:
    with pytest.raises(Refused, match=why):
        list(read_items(dictionary(content), (3, 2)))


def test_a_damaged_dictionary_is_refused() -> None:
    whole = dictionary(boxed({f"c{i}": A + i for i in range(5)})).getvalue()
    for length in range(0, len(whole) - 1, 7):
        with pytest.raises(Refused):
            list(read_items(io.BytesIO(whole[:length]), (3, 2)))


def test_bytes_that_turned_never_run_nor_raise_anything_else() -> None:
    whole = dictionary(boxed({f"c{i}": A + i for i in range(3)})).getvalue()
    rng = np.random.default_rng(0)
    for _ in range(3000):
        content = bytearray(whole)
        for at in rng.integers(128, len(content), rng.integers(1, 4)):
            content[at] = rng.integers(256)
        try:
            read = dict(read_items(io.BytesIO(bytes(content)), (3, 2)))
        except Refused:
            continue
        assert all(array.shape == (3, 2) for array in read.values())


def test_plain_arrays_and_other_files_are_refused() -> None:
    file = io.BytesIO()
    np.save(file, A)
    with pytest.raises(Refused, match=r"float32 \(3, 2\), not a dictionary"):
        list(read_items(io.BytesIO(file.getvalue()), (3, 2)))
    with pytest.raises(Refused, match="not a .npy file"):
        list(read_items(io.BytesIO(b"PK\x03\x04"), (3, 2)))


# ---- what else may be wrong, in one line ----


def one_line(benchmark: Benchmark, *files: Path) -> str:
    with pytest.raises(AvbenchError) as caught:
        run(benchmark, *files)
    assert "\n" not in str(caught.value)
    folder = benchmark.home / "features"
    assert {path.name for path in folder.iterdir()} <= {".lock"}
    return str(caught.value)


def test_hostile_hdf5(benchmark: Benchmark, tmp_path: Path) -> None:
    ids = list(benchmark.manifest.clip_ids)
    audio = write_audio(tmp_path, ids)
    (tmp_path / "elsewhere").mkdir()
    other = write_hdf5(tmp_path / "elsewhere", ids)
    np.save(tmp_path / "raw.npy", sight("x"))

    def external(file: Any) -> None:
        file[ids[0]] = h5py.ExternalLink(str(other), ids[0])

    def soft(file: Any) -> None:
        file[ids[0]] = h5py.SoftLink("/" + ids[1])

    def outside(file: Any) -> None:
        where = [(str(tmp_path / "raw.npy"), 128, h5py.h5f.UNLIMITED)]
        file.create_dataset(ids[0], (TOKENS, DIM), "f4", external=where)

    def virtual(file: Any) -> None:
        layout = h5py.VirtualLayout((TOKENS, DIM), "f4")
        layout[:] = h5py.VirtualSource(str(other), ids[0], (TOKENS, DIM))
        file.create_virtual_dataset(ids[0], layout)

    def group(file: Any) -> None:
        file.create_group(ids[0])

    def shape(file: Any) -> None:
        file.create_dataset(ids[0], (2**40, DIM), "f4", chunks=(1, DIM))

    def kind(file: Any) -> None:
        file.create_dataset(ids[0], (TOKENS, DIM), h5py.string_dtype())

    def chunks(file: Any) -> None:
        file.create_dataset(ids[0], (TOKENS, DIM), "f4", chunks=(2**20, DIM), maxshape=(None, DIM))

    for spoil, why in (
        (external, "is a link"),
        (soft, "is a link"),
        (outside, "lies in another file"),
        (virtual, "lies in another file"),
        (group, "is a group"),
        (shape, r"has shape \(1099511627776, 768\)"),
        (kind, "is of object, not of floats"),
        (chunks, "is in pieces"),
    ):
        path = write_hdf5(tmp_path, ids[1:])
        with h5py.File(path, "a") as file:
            spoil(file)
        with pytest.raises(AvbenchError, match=f"{ids[0]} {why}"):
            run(benchmark, audio, path)
        one_line(benchmark, audio, path)


@pytest.mark.slow
def test_hdf5_whose_bytes_turned_is_read_or_told_in_one_line(
    benchmark: Benchmark, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importer, "_SIGHT", (8, 4))

    ids = list(benchmark.manifest.clip_ids)

    def append(batch: Iterator[Any], rows: dict[str, int]) -> None:
        if len(list(batch)) == len(rows) == len(ids):
            pytest.fail("all of it was read")
        raise AvbenchError("some of it was")

    begun = SimpleNamespace(
        entries=[], rows={}, cast=lambda *_: (), append=append, close=lambda: None
    )
    monkeypatch.setattr(importer.unfinished, "begin", lambda *_: begun)
    monkeypatch.setattr(importer, "_TOGETHER", len(ids))
    audio, path = write_audio(tmp_path, ids), tmp_path / VISUAL_HDF5
    with h5py.File(path, "w") as file:
        for clip_id in ids:
            file[clip_id] = np.ones((8, 4), np.float32)
    whole, rng, refused = path.read_bytes(), np.random.default_rng(0), 0
    used = np.flatnonzero(np.frombuffer(whole, np.uint8))
    for _ in range(300):
        content = bytearray(whole)
        for at in rng.choice(used, 4):
            content[at] = rng.integers(256)
        path.write_bytes(content)
        try:
            run(benchmark, audio, path)
        except AvbenchError as error:
            refused += "\n" not in str(error)
        except pytest.fail.Exception:
            continue
    assert refused > 100


def test_damaged_files(benchmark: Benchmark, tmp_path: Path) -> None:
    ids = list(benchmark.manifest.clip_ids)
    audio, visual = write_audio(tmp_path, ids), write_hdf5(tmp_path, ids)
    whole = visual.read_bytes()
    for content in (b"", b"no hdf5", whole[: len(whole) // 2]):
        visual.write_bytes(content)
        assert str(visual) in one_line(benchmark, audio, visual)
    visual.write_bytes(whole)
    audio.write_bytes(audio.read_bytes()[:-100])
    assert str(audio) in one_line(benchmark, audio, visual)


def test_values_half_precision_cannot_hold(benchmark: Benchmark, tmp_path: Path) -> None:
    ids = list(benchmark.manifest.clip_ids)
    audio, visual = write_audio(tmp_path, ids), write_hdf5(tmp_path, ids)
    with h5py.File(visual, "a") as file:
        file[ids[3]][7, 5] = np.nan
    assert f"clip {ids[3]}: not finite" in one_line(benchmark, audio, visual)


def test_bad_zips(benchmark: Benchmark, tmp_path: Path) -> None:
    ids = list(benchmark.manifest.clip_ids)
    audio = write_audio(tmp_path / "a", ids)

    def zipped(content: bytes) -> Path:
        path = tmp_path / "bad.zip"
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as packed:
            packed.write(audio, AUDIO)
            packed.writestr(VISUAL_HDF5, content)
        return path

    assert "zip bomb" in one_line(benchmark, zipped(bytes(50_000_000)))
    path = zipped(np.random.default_rng(0).bytes(100_000))
    assert "cannot be read" in one_line(benchmark, path)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 255
    path.write_bytes(content)
    assert "cannot be read" in one_line(benchmark, path)
    parts = in_parts(path, 3)
    assert "give every part" in one_line(benchmark, *parts[:2])
    assert "give every part" in one_line(benchmark, parts[0], parts[2])


def test_a_disk_without_room_is_told_before(
    benchmark: Benchmark, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import shutil

    ids = list(benchmark.manifest.clip_ids)
    files = write_audio(tmp_path, ids), write_hdf5(tmp_path, ids)
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=1000))
    assert "are needed to store them" in one_line(benchmark, *files)


MEASURED = """
import resource, sys
from pathlib import Path
from avbench.features.released.importer import import_released
from avbench.manifests.benchmark import Benchmark
from avbench.types import silent

benchmark = Benchmark.load(sys.argv[1])
benchmark.manifest
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
import_released(benchmark, [Path(sys.argv[2])], report=silent)
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)
"""


@pytest.mark.slow
@pytest.mark.parametrize("write", [write_visual, write_hdf5])
def test_memory_does_not_grow_with_the_files(
    tiny: Callable[..., Benchmark], tmp_path: Path, write: Callable
) -> None:
    benchmark = tiny(classes=2, classes_per_step=1, per_class=60)
    ids = list(benchmark.manifest.clip_ids)
    write_audio(tmp_path / "big", ids)
    size = write(tmp_path / "big", ids).stat().st_size / 2**20
    assert size > 500
    command = [sys.executable, "-c", MEASURED, str(benchmark.spec.path), str(tmp_path / "big")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert int(done.stdout) < 150  # MB


@pytest.mark.slow
def test_the_command_line(avbench: Callable, benchmark: Benchmark, tmp_path: Path) -> None:
    ids = list(benchmark.manifest.clip_ids)
    write_audio(tmp_path / "AVE", ids)
    write_hdf5(tmp_path / "AVE", [*ids[1:], "stranger"])
    toml = str(benchmark.spec.path)
    for command in (["features"], ["features", "import"]):
        assert "Example" in avbench(*command, "--help").stdout
    result = avbench("features", "import", toml, "AVE", expect=1)
    lines = result.stdout.splitlines()
    assert lines[0] == "9 of 10 clips are ready, with released features"
    assert lines[1].strip() == f"1 have no visual features ({ids[0]})"
    assert lines[2].strip() == "1 ids in the files are not of tiny"
    write_hdf5(tmp_path / "AVE", ids)
    assert '"ready": 10' in avbench("features", "import", toml, "AVE", "--json").stdout
    evaluate = ("evaluate", "--method", "finetune", "--benchmark", toml, "--seeds", "0")
    result = avbench(*evaluate, "--set", "epochs=1", "--preset", "released")
    assert "released features" in result.stdout
    refused = avbench("prepare", toml, "--preset", "released", expect=2).stderr
    assert "avbench features import" in refused
    assert avbench("features", "import", toml, "nowhere", expect=2).stderr.count("\n") == 1


@pytest.fixture(autouse=True)
def _room(tmp_path: Path) -> Iterator[None]:
    """Half a gigabyte a test is too much to keep."""
    yield
    for path in tmp_path.rglob("*"):
        if path.is_file() and path.stat().st_size > 2**20:
            path.unlink()
