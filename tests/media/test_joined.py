"""Archives are found under the names people have for them, and parts read as one file."""

from __future__ import annotations

import io
import random
import zipfile
from pathlib import Path

import fsspec
import pytest

from avbench.media.joined import find_archives
from avbench.types import AvbenchError, UsageError

CONTENT = random.Random(0).randbytes(1000)


def split(folder: Path, names: list[str], *, size: int = 300) -> None:
    folder.mkdir(exist_ok=True)
    for number, name in enumerate(names):
        (folder / name).write_bytes(CONTENT[number * size : (number + 1) * size])


MARKS = {
    "7-Zip": [".001", ".002", ".003", ".004"],
    "split -d": [".00", ".01", ".02", ".03"],
    "split": [".aa", ".ab", ".ac", ".ad"],
    "split, part-": [".part-aa", ".part-ab", ".part-ac", ".part-ad"],
    "split, part": [".partaa", ".partab", ".partac", ".partad"],
    "numbers": [".part1", ".part2", ".part3", ".part4"],
}


@pytest.mark.parametrize("marks", MARKS.values(), ids=MARKS)
@pytest.mark.parametrize("whole", ["x.zip", "x.tar.gz", "[a] 🥁.TGZ"])
@pytest.mark.parametrize("by", ["first part", "third part", "name", "folder"])
def test_parts_are_joined(tmp_path: Path, marks: list[str], whole: str, by: str) -> None:
    split(tmp_path, [whole + mark for mark in marks])
    (tmp_path / "notes.txt").touch()
    place = {
        "first part": tmp_path / (whole + marks[0]),
        "third part": tmp_path / (whole + marks[2]),
        "name": tmp_path / whole,
        "folder": tmp_path,
    }[by]
    [file] = find_archives(str(place))
    assert file.name == str(tmp_path / whole)
    with file.open() as content:
        assert content.read() == CONTENT


def test_more_parts_than_ten_stay_in_order(tmp_path: Path) -> None:
    split(tmp_path, [f"x.zip.part{number}" for number in range(1, 12)], size=95)
    [file] = find_archives(str(tmp_path / "x.zip"))
    with file.open() as content:
        assert content.read() == CONTENT


def test_any_part_of_the_whole_can_be_read(tmp_path: Path) -> None:
    split(tmp_path, ["x.zip.00", "x.zip.01", "x.zip.02", "x.zip.03"])
    (tmp_path / "x.zip.04").touch()
    [file] = find_archives(str(tmp_path / "x.zip"))
    chance = random.Random(1)
    with file.open() as content:
        for _ in range(300):
            at, many = chance.randrange(1100), chance.randrange(1100)
            assert content.seek(at) == at
            assert content.read(many) == CONTENT[at : at + many]
        assert content.seek(-10, io.SEEK_END) == 990
        assert content.read(3) == CONTENT[990:993]
        assert content.seek(2, io.SEEK_CUR) == 995
        assert content.read() == CONTENT[995:]
        with pytest.raises(OSError, match="before"):
            content.seek(-1001, io.SEEK_END)


@pytest.mark.parametrize(
    ("there", "where"),
    [
        ([".001", ".002", ".004"], r"after x\.zip\.002"),
        ([".002", ".003"], "at the beginning"),
        ([".part-aa", ".part-ac"], r"after x\.zip\.part-aa"),
        ([".ab", ".ac"], "at the beginning"),
    ],
)
def test_a_missing_part_is_told(tmp_path: Path, there: list[str], where: str) -> None:
    split(tmp_path, ["x.zip" + mark for mark in there])
    for place in (tmp_path / "x.zip", tmp_path / ("x.zip" + there[0]), tmp_path):
        with pytest.raises(AvbenchError, match=rf"x\.zip: a part is missing {where}: fetch it$"):
            find_archives(str(place))


def test_what_is_in_a_folder(tmp_path: Path) -> None:
    names = ["b.tar", "a.zip", "deep/c.tar.gz", "d.TGZ", "joined.zip", "joined.zip.001"]
    for name in [*names, "joined.zip.002", "e.mp4", "f.tar.gz.md5", "g.zip.1", "README"]:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    found = [file.name for file in find_archives(str(tmp_path))]
    wanted = ["a.zip", "b.tar", "d.TGZ", "deep/c.tar.gz", "joined.zip"]
    assert found == [str(tmp_path / name) for name in wanted]


def test_patterns_and_names_that_look_like_one(tmp_path: Path) -> None:
    for name in ("k_1.tar", "k_2.tar", "other.tar", "k_[1].tar", "k_3.tar.00", "k_3.tar.01"):
        (tmp_path / name).touch()
    found = [Path(file.name).name for file in find_archives(str(tmp_path / "k_*"))]
    assert found == ["k_1.tar", "k_2.tar", "k_3.tar", "k_[1].tar"]
    assert [Path(f.name).name for f in find_archives(str(tmp_path / "k_[1].tar"))] == ["k_[1].tar"]
    assert len(find_archives(str(tmp_path / "k_?.tar.00"))[0].parts) == 2


def test_the_file_named_may_have_any_name(tmp_path: Path) -> None:
    (tmp_path / "download").touch()
    assert [f.name for f in find_archives(str(tmp_path / "download"))] == [
        str(tmp_path / "download")
    ]


@pytest.mark.parametrize("place", ["none.zip", "none/x.zip", "*.zip", ""])
def test_nothing_there(tmp_path: Path, place: str) -> None:
    with pytest.raises(UsageError, match="no archive there: check the path"):
        find_archives(f"{tmp_path}/{place}")


def test_a_url_of_no_known_kind() -> None:
    with pytest.raises(AvbenchError, match="nosuch://x.zip: cannot be read .*: check the path"):
        find_archives("nosuch://x.zip")


def test_urls() -> None:
    memory = fsspec.filesystem("memory")
    whole = io.BytesIO()
    with zipfile.ZipFile(whole, "w") as archive:
        archive.writestr("a.txt", CONTENT)
    half = len(whole.getvalue()) // 2
    memory.pipe({"/joined/x.zip.001": whole.getvalue()[:half], "/joined/y.tar": b""})
    memory.pipe("/joined/x.zip.002", whole.getvalue()[half:])
    [file] = find_archives("memory://joined/x.zip")
    with zipfile.ZipFile(file.open()) as archive:
        assert archive.read("a.txt") == CONTENT
    names = [file.name for file in find_archives("memory://joined")]
    assert names == ["/joined/x.zip", "/joined/y.tar"]
    assert [f.name for f in find_archives("memory://joined/*.tar")] == ["/joined/y.tar"]
