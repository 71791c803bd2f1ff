"""Clips come out of archives as they went in, whatever else is in there."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import random
import struct
import tarfile
import tracemalloc
import zipfile
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import fsspec
import pytest

from avbench.manifests.benchmark import Benchmark
from avbench.manifests.manifest import Clip
from avbench.media.sources import archive as archive_module
from avbench.media.sources.base import (
    ClipUnavailable,
    Network,
    Source,
    SourceFile,
    StreamingSource,
    open_source,
)
from avbench.media.trim import trim
from avbench.types import AvbenchError, UsageError
from tests.helpers.videos import marks

pytestmark = pytest.mark.slow

Few = Callable[..., Benchmark]
Video = Callable[..., Path]
Members = Iterable[tuple[str | tarfile.TarInfo, bytes]]


def clip(clip_id: str, youtube_id: str | None = None, start_s: float | None = None) -> Clip:
    end_s = None if start_s is None else start_s + 1
    return Clip(clip_id, youtube_id, start_s, end_s, "disk thud", 0, 0, "train", None)


def as_zip(members: Members, *, method: int = zipfile.ZIP_DEFLATED) -> bytes:
    whole = io.BytesIO()
    with zipfile.ZipFile(whole, "w", method) as file:
        for name, content in members:
            assert isinstance(name, str)
            file.writestr(name, content)
    return whole.getvalue()


def header(name: str, kind: bytes = tarfile.REGTYPE, *, to: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, to
    return info


def as_tar(members: Members) -> bytes:
    whole = io.BytesIO()
    with tarfile.open(fileobj=whole, mode="w") as file:
        for name, content in members:
            info = name if isinstance(name, tarfile.TarInfo) else header(name)
            info.size = len(content)
            file.addfile(info, io.BytesIO(content))
    return whole.getvalue()


PACKERS: dict[str, Callable[[bytes], bytes]] = {
    "tar": bytes,
    "tar.gz": gzip.compress,
    "tar.bz2": bz2.compress,
    "tar.xz": lzma.compress,
}


def packed(form: str) -> Callable[[Members], bytes]:
    return lambda members: PACKERS[form](as_tar(members))


FORMS: dict[str, tuple[Callable[[Members], bytes], list[str]]] = {
    "zip": (as_zip, ["x.zip"]),
    "zip in parts": (as_zip, ["x.zip.001", "x.zip.002", "x.zip.003"]),
    "tar": (as_tar, ["x.tar"]),
    "tar in parts": (as_tar, ["x.tar.part-aa", "x.tar.part-ab"]),
    "tar.gz": (packed("tar.gz"), ["x.tar.gz"]),
    "tar.gz in parts": (packed("tar.gz"), ["x.tar.gz.00", "x.tar.gz.01", "x.tar.gz.02"]),
    "tar.bz2": (packed("tar.bz2"), ["x.tar.bz2"]),
    "tar.xz": (packed("tar.xz"), ["x.tar.xz"]),
}
AT_RANDOM = ["zip", "zip in parts", "tar", "tar in parts"]
every_form = pytest.mark.parametrize("form", FORMS)


def pack(folder: Path, form: str, members: Members) -> Path:
    """Write an archive and return its path, or that of its first part."""
    write, names = FORMS[form]
    content = write(members)
    size = -(-len(content) // len(names))
    folder.mkdir(parents=True, exist_ok=True)
    for number, name in enumerate(names):
        (folder / name).write_bytes(content[number * size : (number + 1) * size])
    return folder / names[0]


class Taken:
    """What a source gives of some clips, and why not the others."""

    def __init__(self, source: Source, clips: list[Clip], scratch: Path) -> None:
        self.scratch = scratch
        scratch.mkdir(exist_ok=True)
        self.files: dict[str, SourceFile] = {}
        self.refused: dict[str, ClipUnavailable] = {}
        if isinstance(source, StreamingSource):
            self.files = {taken.clip_id: file for taken, file in source.stream(clips, scratch)}
        for wanted in clips:
            if wanted.clip_id not in self.files:
                try:
                    self.files[wanted.clip_id] = source.fetch(wanted, scratch)
                except ClipUnavailable as reason:
                    self.refused[wanted.clip_id] = reason

    @property
    def content(self) -> dict[str, bytes]:
        return {clip_id: file.path.read_bytes() for clip_id, file in self.files.items()}

    @property
    def reasons(self) -> dict[str, str]:
        return {clip_id: reason.reason for clip_id, reason in self.refused.items()}


@pytest.fixture
def take(tmp_path: Path, few: Few) -> Callable[..., Taken]:
    """Open archives and take clips out of them."""
    spec = few(["a"]).spec

    def make(place: Path | str, *clips: Clip) -> Taken:
        source = open_source(f"archive:{place}", spec, Network())
        return Taken(source, list(clips), tmp_path / "scratch")

    return make


Take = Callable[..., Taken]


@every_form
def test_clips_are_exact(tmp_path: Path, take: Take, video: Video, form: str) -> None:
    """Out of a whole video the clip is cut; one already cut is left as it is."""
    whole = video(tmp_path / "whole.mp4", seconds=9, mark_s=5.6).read_bytes()
    cut = video(tmp_path / "cut.mp4", seconds=1, mark_s=0.4).read_bytes()
    short = video(tmp_path / "short.mp4", seconds=1.1, mark_s=0.6).read_bytes()
    members = [("whole/-a_b.mp4", whole), ("c_000003.mp4", cut), ("d.mp4", short)]
    place = pack(tmp_path / "in", form, members)
    clips = [
        replace(clip("-a_b_5", "-a_b", 5.32), end_s=6.32),
        clip("c_000003", "c", 3.0),
        clip("d", "d", 30.0),
    ]
    taken = take(place, *clips)
    for wanted, start_s, mark_s in zip(clips, (5.32, None, None), (0.28, 0.4, 0.6), strict=True):
        file = taken.files[wanted.clip_id]
        assert file.start_s == start_s
        trim(file.path, tmp_path / "out.mp4", start_s=file.start_s, seconds=1.0)
        sight, sound = marks(tmp_path / "out.mp4")
        assert abs(sight - mark_s) <= 1 / 25
        assert abs(sound - mark_s) <= 0.005


@every_form
def test_the_names_people_have(tmp_path: Path, take: Take, form: str) -> None:
    members = {
        "AVE/-x_y.mp4": clip("-x_y", "-x_y"),
        "k400/-x_z_000030_000031.mp4": clip("-x_z", "-x_z", 30.0),
        "k400/-no_times_000041_000051.mp4": clip("-no_times", "-no_times"),
        "./scratch/vggsound/-v_000030.MP4": clip("-v_000030", "-v", 30.0),
        "mine.webm": clip("mine", "of_no_use", 3.0),
        "dog barks/1.mkv": clip("dog_barks_1"),
        "🥁 and\nmore/drum.mp4": clip("drum"),
        "far/" * 60 + "long.mp4": clip("long"),
    }
    content = [(name, name.encode()) for name in members]
    other = [("AVE/other.mp4", b"?"), ("AVE/-x_y.txt", b"?"), ("__MACOSX/AVE/.-x_y.mp4", b"?")]
    taken = take(pack(tmp_path / "in", form, [*content, *other]), *members.values())
    assert taken.content == {wanted.clip_id: name.encode() for name, wanted in members.items()}


def test_names_that_are_not_utf8(tmp_path: Path, take: Take) -> None:
    odd = "caf\udce9/a.mp4"
    for form in ("tar", "tar.gz"):
        taken = take(pack(tmp_path / form, form, [(odd, b"a")]), clip("a"))
        assert taken.content == {"a": b"a"}
    old = as_zip([("cafX/a.mp4", b"a")]).replace(b"cafX", b"caf\xe9")
    (tmp_path / "x.zip").write_bytes(old)
    assert take(tmp_path / "x.zip", clip("a")).content == {"a": b"a"}


@pytest.mark.parametrize("form", AT_RANDOM)
def test_two_members_that_fit_are_both_named(tmp_path: Path, take: Take, form: str) -> None:
    place = pack(tmp_path / "in", form, [("1/a.mp4", b"1"), ("2/a\n.mp4", b"2"), ("2/a.mkv", b"3")])
    taken = take(place, clip("a"))
    assert taken.reasons == {"a": "more than one file in the archive"}
    name = str(place).removesuffix(".001").removesuffix(".part-aa")
    assert taken.refused["a"].detail == f"'1/a.mp4' in {name} and '2/a.mkv' in {name}"


def test_of_two_that_fit_in_a_stream_the_first_is_given(tmp_path: Path, take: Take) -> None:
    place = pack(tmp_path / "in", "tar.gz", [("1/a.mp4", b"1"), ("2/a.mp4", b"2")])
    assert take(place, clip("a")).content == {"a": b"1"}


@every_form
def test_two_clips_of_one_video(tmp_path: Path, take: Take, video: Video, form: str) -> None:
    whole = video(tmp_path / "whole.mp4", seconds=6).read_bytes()
    place = pack(tmp_path / "in", form, [("a.mp4", whole)])
    taken = take(place, clip("a_1", "a", 1.0), clip("a_3", "a", 3.0))
    assert [file.start_s for file in taken.files.values()] == [1.0, 3.0]
    assert taken.content == {"a_1": whole, "a_3": whole}
    # At random they come one after the other and share the file; out of a stream each has its own.
    assert len({file.path for file in taken.files.values()}) == 1 + (form not in AT_RANDOM)


def test_many_archives_are_one_source(tmp_path: Path, take: Take, few: Few) -> None:
    for number, form in enumerate(FORMS):
        pack(tmp_path / "in" / str(number), form, [(f"a{number}.mp4", form.encode())])
    clips = [clip(f"a{number}") for number in range(len(FORMS))]
    expected = {f"a{number}": form.encode() for number, form in enumerate(FORMS)}
    assert take(tmp_path / "in", *clips, clip("b")).content == expected
    some = take(tmp_path / "in" / "[01]" / "*", *clips)
    assert some.content == {"a0": b"zip", "a1": b"zip in parts"}
    assert set(some.reasons.values()) == {"not in the archive"}
    spec = few(["a"]).spec
    for name, streams in (("[0-3]", False), ("[3-4]", True)):
        source = open_source(f"archive:{tmp_path}/in/{name}/*", spec, Network())
        assert isinstance(source, StreamingSource) == streams


def test_a_stream_comes_in_the_order_of_the_archive(tmp_path: Path, take: Take) -> None:
    names = ["d", "b", "e", "a", "c"]
    place = pack(tmp_path / "in", "tar.gz", [(f"{name}.mp4", b"x") for name in names])
    taken = take(place, *[clip(name) for name in "abcd"])
    assert list(taken.files) == ["d", "b", "a", "c"]


def test_opening_a_stream_reads_only_its_beginning(tmp_path: Path, few: Few) -> None:
    members = [(f"{number}.txt", random.Random(number).randbytes(50_000)) for number in range(20)]
    place = pack(tmp_path / "in", "tar.gz", members)
    place.write_bytes(place.read_bytes()[:500_000])
    source = open_source(f"archive:{place}", few(["a"]).spec, Network())
    assert isinstance(source, StreamingSource)
    with pytest.raises(AvbenchError, match="cannot be read"):
        list(source.stream([clip("a")], tmp_path))


def test_a_stream_leaves_on_disk_only_what_was_given(tmp_path: Path, few: Few) -> None:
    members = [(f"{number}.mp4", b"x" * 1000) for number in range(20)]
    place = pack(tmp_path / "in", "tar.gz", members)
    source = open_source(f"archive:{place}", few(["a"]).spec, Network())
    assert isinstance(source, StreamingSource)
    for _, file in source.stream([clip(str(number)) for number in range(0, 20, 2)], tmp_path):
        file.path.unlink()
        assert not list(tmp_path.glob("*.mp4"))


def test_a_stream_is_not_held_in_memory(tmp_path: Path, few: Few) -> None:
    big = random.Random(0).randbytes(1 << 20)
    many = [(f"{number}.mp4", b"x") for number in range(100, 12_000)]
    members = [*((f"{number}.mp4", big) for number in range(20)), *many]
    place = pack(tmp_path / "in", "tar.gz", members)
    source = open_source(f"archive:{place}", few(["a"]).spec, Network())
    assert isinstance(source, StreamingSource)
    clips = [clip(str(number)) for number in range(0, 20, 4)]
    tracemalloc.start()
    for _, file in source.stream(clips, tmp_path):
        assert file.path.stat().st_size == len(big)
        file.path.unlink()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 10 << 20  # of 20; threads of other tests may still hold some


@pytest.mark.parametrize("form", AT_RANDOM)
def test_many_threads_at_once(tmp_path: Path, few: Few, form: str) -> None:
    chance = random.Random(0)
    members = [(f"{number}.mp4", chance.randbytes(50_000)) for number in range(60)]
    place = pack(tmp_path / "in", form, members)
    source = open_source(f"archive:{place}", few(["a"]).spec, Network())

    def fetched(number: int) -> bytes:
        scratch = tmp_path / str(number)
        scratch.mkdir()
        return source.fetch(clip(str(number)), scratch).path.read_bytes()

    with ThreadPoolExecutor(16) as pool:
        assert list(pool.map(fetched, range(60))) == [content for _, content in members]


def test_urls(take: Take) -> None:
    memory = fsspec.filesystem("memory")
    members = [("a.mp4", b"a"), ("b.mp4", b"b")]
    for form in ("zip", "tar", "tar.gz"):
        memory.pipe(f"/taken/x.{form}", FORMS[form][0](members))
        taken = take(f"memory://taken/x.{form}", clip("a"), clip("b"))
        assert taken.content == {"a": b"a", "b": b"b"}


# What is hostile or damaged.


def listing(folder: Path) -> set[Path]:
    return {path for path in folder.rglob("*") if path.is_file() or path.is_symlink()}


@every_form
def test_no_name_leads_out_of_scratch(
    tmp_path: Path, take: Take, monkeypatch: pytest.MonkeyPatch, form: str
) -> None:
    monkeypatch.chdir(tmp_path)
    outside = tmp_path / "outside" / "b.mp4"
    names = ["../a.mp4", str(outside), "c/../../../c.mp4", "..mp4", ".mp4", "C:\\d.mp4", "/"]
    place = pack(tmp_path / "in", form, [(name, b"x") for name in names])
    before = listing(tmp_path)
    taken = take(place, clip("a"), clip("b"), clip("c"))
    assert taken.content == {"a": b"x", "b": b"x", "c": b"x"}
    assert {path.parent for path in listing(tmp_path) - before} == {taken.scratch}


def hostile_members() -> Members:
    secret = "/etc/passwd"
    return [
        (header("good.mp4"), b"good"),
        (header("soft.mp4", tarfile.SYMTYPE, to=secret), b""),
        (header("hard.mp4", tarfile.LNKTYPE, to="good.mp4"), b""),
        (header("dangling.mp4", tarfile.LNKTYPE, to="gone.mp4"), b""),
        (header("device.mp4", tarfile.CHRTYPE), b""),
        (header("block.mp4", tarfile.BLKTYPE), b""),
        (header("fifo.mp4", tarfile.FIFOTYPE), b""),
        (header("folder.mp4", tarfile.DIRTYPE), b""),
        (header("folder2.mp4/", tarfile.DIRTYPE), b""),
        (header("empty.mp4"), b""),
        (header("last.mp4"), b"last"),
    ]


@pytest.mark.parametrize("form", ["tar", "tar in parts", "tar.gz"])
def test_members_of_a_tar_that_are_no_files(tmp_path: Path, take: Take, form: str) -> None:
    members = hostile_members()
    clips = [clip(name.name.split(".")[0]) for name, _ in members]
    taken = take(pack(tmp_path / "in", form, members), *clips)
    assert taken.content == {"good": b"good", "last": b"last"}
    no_file = ["soft", "hard", "dangling", "device", "block", "fifo"]
    assert taken.reasons == {
        **dict.fromkeys(no_file, "no plain file in the archive"),
        **dict.fromkeys(["folder", "folder2"], "not in the archive"),
        "empty": "an empty file in the archive",
    }
    assert taken.refused["soft"].detail.startswith(f"'soft.mp4' in {tmp_path}/in/x.tar")


def test_members_of_a_zip_that_are_no_files(tmp_path: Path, take: Take) -> None:
    kinds = {"soft": 0o120777, "fifo": 0o010644, "device": 0o020644, "good": 0o100644, "dos": 0}
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as file:
        for name, mode in kinds.items():
            info = zipfile.ZipInfo(f"{name}.mp4")
            info.external_attr = mode << 16
            file.writestr(info, "/etc/passwd")
        file.writestr("folder.mp4/", b"")
        file.writestr("empty.mp4", b"")
    taken = take(tmp_path / "x.zip", *[clip(name) for name in (*kinds, "folder", "empty")])
    assert taken.content.keys() == {"good", "dos"}
    assert taken.reasons == {
        **dict.fromkeys(["soft", "fifo", "device"], "no plain file in the archive"),
        "folder": "not in the archive",
        "empty": "an empty file in the archive",
    }


@pytest.mark.parametrize(
    ("method", "reason"),
    [
        (zipfile.ZIP_DEFLATED, "damaged in the archive"),
        (zipfile.ZIP_BZIP2, "compressed in the archive by another method than deflate"),
        (zipfile.ZIP_LZMA, "compressed in the archive by another method than deflate"),
    ],
)
def test_a_zip_bomb_whose_header_lies(tmp_path: Path, take: Take, method: int, reason: str) -> None:
    """It claims 100 bytes and holds 50 MB."""
    bomb = bytearray(as_zip([("a.mp4", bytes(50 << 20))], method=method))
    for mark, at in ((b"PK\1\2", 24), (b"PK\3\4", 22)):
        struct.pack_into("<I", bomb, bomb.index(mark) + at, 100)
    (tmp_path / "x.zip").write_bytes(bomb)
    tracemalloc.start()
    taken = take(tmp_path / "x.zip", clip("a"))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert taken.reasons == {"a": reason}
    assert peak < 8 << 20
    assert not listing(taken.scratch)


@every_form
def test_a_video_larger_than_the_limit(
    tmp_path: Path, take: Take, monkeypatch: pytest.MonkeyPatch, form: str
) -> None:
    monkeypatch.setattr(archive_module, "_LARGEST", 1000)
    place = pack(tmp_path / "in", form, [("a.mp4", bytes(1001)), ("b.mp4", bytes(1000))])
    taken = take(place, clip("a"), clip("b"))
    assert taken.content.keys() == {"b"}
    assert taken.refused["a"].reason.startswith("larger than")
    assert len(listing(taken.scratch)) == 1


def test_an_encrypted_zip(tmp_path: Path, take: Take) -> None:
    whole = bytearray(as_zip([("a.mp4", b"a"), ("b.mp4", b"b")]))
    whole[whole.index(b"PK\1\2") + 8] |= 1
    (tmp_path / "x.zip").write_bytes(whole)
    taken = take(tmp_path / "x.zip", clip("a"), clip("b"))
    assert taken.content == {"b": b"b"}
    assert taken.reasons == {"a": "encrypted in the archive"}
    assert taken.refused["a"].detail == f"'a.mp4' in {tmp_path}/x.zip"
    assert not taken.refused["a"].permanent


@pytest.mark.parametrize("at", ["content", "header"])
def test_a_damaged_member_of_a_zip(tmp_path: Path, take: Take, at: str) -> None:
    sound = random.Random(0).randbytes(5_000_000)
    whole = bytearray(as_zip([("a.mp4", sound), ("b.mp4", b"b")], method=zipfile.ZIP_STORED))
    whole[3_000_000 if at == "content" else 2] ^= 1
    (tmp_path / "x.zip").write_bytes(whole)
    taken = take(tmp_path / "x.zip", clip("a"), clip("b"))
    assert taken.content == {"b": b"b"}
    assert taken.reasons == {"a": "damaged in the archive"}
    assert f"{tmp_path}/x.zip: cannot be read (Bad" in taken.refused["a"].detail
    assert len(listing(taken.scratch)) == 1


def one_line(caught: pytest.ExceptionInfo[AvbenchError], path: Path) -> bool:
    text = str(caught.value)
    return text.startswith(f"{path}: ") and "\n" not in text and ": fetch it again" in text


def broken(form: str, kind: str) -> bytes:
    chance = random.Random(0)
    members = [(f"{n}.mp4", chance.randbytes(5_000)) for n in range(10)]
    whole = bytearray(FORMS[form][0](members))
    if kind == "cut":
        return bytes(whole[: len(whole) * 3 // 5])
    if kind == "cut between members":
        return bytes(whole[: 3 * (512 + 5120)])
    if kind == "without end":
        return bytes(whole[: 10 * (512 + 5120)])
    if kind == "header overwritten":
        whole[3 * (512 + 5120) + 150] ^= 255
    if kind == "directory overwritten":
        whole[whole.index(b"PK\1\2") + 1] = 0
    if kind == "name is no UTF-8":
        at = whole.index(b"PK\1\2")
        whole[at + 9] |= 8
        whole[at + 46] = 0xE9
    return bytes(whole)


@pytest.mark.parametrize(
    ("form", "kind"),
    [
        ("zip", "cut"),
        ("zip", "directory overwritten"),
        ("zip", "name is no UTF-8"),
        ("tar", "cut"),
        ("tar", "cut between members"),
        ("tar", "without end"),
        ("tar", "header overwritten"),
    ],
)
def test_a_broken_archive(tmp_path: Path, take: Take, form: str, kind: str) -> None:
    path = tmp_path / f"x.{form}"
    path.write_bytes(broken(form, kind))
    with pytest.raises(AvbenchError, match="cannot be read") as caught:
        take(path, clip("a"))
    assert one_line(caught, path)


def test_the_last_part_is_missing(tmp_path: Path, take: Take) -> None:
    pack(tmp_path / "in", "zip in parts", [("a.mp4", bytes(1000))])
    (tmp_path / "in" / "x.zip.003").unlink()
    with pytest.raises(AvbenchError, match="again, all its parts$") as caught:
        take(tmp_path / "in" / "x.zip", clip("a"))
    assert one_line(caught, tmp_path / "in" / "x.zip")


@pytest.mark.parametrize("form", ["tar.gz", "tar.bz2", "tar.xz"])
@pytest.mark.parametrize("kind", ["cut", "checksum", "inside", "header"])
def test_a_stream_that_breaks_gives_what_was_good(
    tmp_path: Path, few: Few, form: str, kind: str
) -> None:
    chance = random.Random(0)
    members = [(f"{number}.mp4", chance.randbytes(200_000)) for number in range(10)]
    if kind == "header":
        tar = bytearray(as_tar(members))
        tar[8 * (512 + 200_192) + 150] ^= 255
        whole = bytearray(PACKERS[form](tar))
    else:
        whole = bytearray(FORMS[form][0](members))
    if kind == "cut":
        del whole[len(whole) * 95 // 100 :]
    elif kind == "inside":
        whole[len(whole) * 95 // 100] ^= 255
    elif kind == "checksum":
        whole[{"tar.gz": -8, "tar.bz2": -3, "tar.xz": -32}[form]] ^= 255
    folder = tmp_path / "in"
    folder.mkdir()
    (folder / f"1.{form}").write_bytes(whole)
    (folder / f"2.{form}").write_bytes(FORMS[form][0]([("later.mp4", b"later")]))
    source = open_source(f"archive:{folder}", few(["a"]).spec, Network())
    assert isinstance(source, StreamingSource)
    content = dict(members)
    clips = [*(clip(str(number)) for number in range(10)), clip("later")]
    given = []
    with pytest.raises(AvbenchError, match="cannot be read") as caught:
        for taken, file in source.stream(clips, tmp_path):
            given.append(taken.clip_id)
            good = file.path.read_bytes() == content.get(f"{taken.clip_id}.mp4", b"later")
            assert good or kind == "inside"  # a checksum comes after what it is of
    assert one_line(caught, folder / f"1.{form}")
    assert given[-1] == "later"
    assert len(given) >= 8
    assert {path.stem for path in tmp_path.glob("*.mp4")} == set(given)


def test_a_full_disk_is_not_the_archives_fault(tmp_path: Path, few: Few) -> None:
    for form in ("zip", "tar", "tar.gz"):
        place = pack(tmp_path / form, form, [("a.mp4", bytes(1000)), ("b.mp4", b"b")])
        source = open_source(f"archive:{place}", few(["a"]).spec, Network())
        gone = tmp_path / "gone"
        with pytest.raises(FileNotFoundError, match="gone"):
            if isinstance(source, StreamingSource):
                list(source.stream([clip("a")], gone))
            else:
                source.fetch(clip("a"), gone)
        # Nothing stays locked.
        assert Taken(source, [clip("b")], tmp_path / "scratch").content == {"b": b"b"}


def raw_tar(*headers: tuple[tarfile.TarInfo, int]) -> bytes:
    """Write headers that claim any size, followed by a good video and the end."""
    whole = b""
    for info, size in headers:
        block = bytearray(info.tobuf(tarfile.GNU_FORMAT))
        block[124:136] = tarfile.itn(size, 12, tarfile.GNU_FORMAT)
        block[148:156] = b" " * 8
        block[148:156] = b"%06o\0 " % sum(block)
        whole += block
    return whole + as_tar([("good.mp4", b"good")])


@pytest.mark.parametrize("form", ["tar", "tar.gz"])
@pytest.mark.parametrize("kind", [tarfile.REGTYPE, tarfile.XHDTYPE, tarfile.GNUTYPE_LONGNAME])
@pytest.mark.parametrize("size", [8 << 30, 1 << 62, -512, -(1 << 40)])
def test_a_tar_header_that_claims_any_size(
    tmp_path: Path, take: Take, form: str, kind: bytes, size: int
) -> None:
    first = as_tar([("first.mp4", b"first")])[:1024]
    path = tmp_path / f"x.{form}"
    path.write_bytes(PACKERS[form](first + raw_tar((header("a.mp4", kind), size))))
    with pytest.raises(AvbenchError, match="cannot be read") as caught:
        take(path, clip("a"), clip("first"))
    assert one_line(caught, path)
    if form == "tar.gz":
        assert [p.name for p in listing(tmp_path / "scratch")] == ["first.mp4"]


@pytest.mark.parametrize("form", ["tar", "tar.gz"])
def test_a_tar_of_headers_only(tmp_path: Path, take: Take, form: str) -> None:
    path = tmp_path / f"x.{form}"
    path.write_bytes(PACKERS[form](raw_tar(*[(header("a", tarfile.XHDTYPE), 0)] * 5000)))
    with pytest.raises(AvbenchError, match="recursion") as caught:
        take(path, clip("a"))
    assert one_line(caught, path)


@pytest.mark.parametrize(
    "content", [b"", b"<html>", bytes(100), b"\x28\xb5\x2f\xfd" * 200, b"MZ" * 600]
)
def test_what_is_no_archive(tmp_path: Path, take: Take, content: bytes) -> None:
    path = tmp_path / "x.tar"
    path.write_bytes(content)
    with pytest.raises(AvbenchError, match=f"{path}: neither zip nor tar.*: unpack it"):
        take(path, clip("a"))


def test_gzip_that_is_no_tar(tmp_path: Path, take: Take) -> None:
    (tmp_path / "x.gz").write_bytes(gzip.compress(b"<html>" * 1000))
    with pytest.raises(AvbenchError, match="cannot be read"):
        take(tmp_path / "x.gz", clip("a"))


def test_an_argument_that_is_no_archive(tmp_path: Path, few: Few) -> None:
    spec = few(["a"]).spec
    for text in ("archive", "archive:"):
        with pytest.raises(UsageError, match="which one"):
            open_source(text, spec, Network())
    with pytest.raises(UsageError, match="no archive there"):
        open_source(f"archive:{tmp_path}", spec, Network())
