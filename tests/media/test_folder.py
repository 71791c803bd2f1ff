"""Videos are found under the names that people's archives give them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from avbench.manifests.benchmark import Benchmark
from avbench.manifests.manifest import Clip
from avbench.media.sources.base import ClipUnavailable, Network, SourceFile, open_source
from avbench.media.sources.folder import FolderSource
from avbench.types import UsageError

Few = Callable[..., Benchmark]
Video = Callable[..., Path]


def clip(clip_id: str, youtube_id: str | None, start_s: float | None) -> Clip:
    end_s = None if start_s is None else start_s + 1
    return Clip(clip_id, youtube_id, start_s, end_s, "disk thud", 0, 0, "train", None)


def find(few: Few, folder: Path, wanted: Clip) -> SourceFile:
    return FolderSource(few(["a"]).spec, str(folder), Network()).fetch(wanted, folder)


@pytest.mark.parametrize(
    "name", ["-x_y_000030_000031.mp4", "-x_y_000030.MKV", "deep/🥁 and more/-x_y_000030.webm"]
)
@pytest.mark.parametrize("clip_id", ["-x_y_000030", "-x_y"])
def test_clips_already_cut(tmp_path: Path, few: Few, name: str, clip_id: str) -> None:
    path = tmp_path / "videos" / name
    path.parent.mkdir(parents=True)
    path.touch()
    found = find(few, tmp_path / "videos", clip(clip_id, "-x_y", 30.0))
    assert found == SourceFile(path, None)


def test_an_archives_name_gives_the_times_the_table_lacks(tmp_path: Path, few: Few) -> None:
    path = tmp_path / "-x_y_000030_000040.mp4"
    path.touch()
    assert find(few, tmp_path, clip("-x_y", "-x_y", None)) == SourceFile(path, None)


def test_a_whole_video_is_cut_and_a_cut_one_is_not(tmp_path: Path, few: Few, video: Video) -> None:
    wanted = clip("abc", "abc", 3.0)
    video(tmp_path / "abc.mp4", seconds=1.1)
    assert find(few, tmp_path, wanted).start_s is None
    video(tmp_path / "abc.mp4", seconds=6)
    assert find(few, tmp_path, wanted).start_s == 3.0


def test_a_short_whole_video_is_still_cut(tmp_path: Path, few: Few, video: Video) -> None:
    """It is hardly longer than the clip, but the clip fits into it."""
    video(tmp_path / "abc.mp4", seconds=1.9)
    assert find(few, tmp_path, clip("abc", "abc", 0.9)).start_s == 0.9


def test_files_of_one_name_in_different_folders(tmp_path: Path, few: Few, video: Video) -> None:
    for folder in ("dog barks", "cat"):
        video(tmp_path / folder / "1.mp4", seconds=1)
    assert find(few, tmp_path, clip("cat_1", None, None)).path == tmp_path / "cat" / "1.mp4"
    found = find(few, tmp_path, clip("dog_barks_1", None, None))
    assert found.path == tmp_path / "dog barks" / "1.mp4"


def test_a_clip_of_its_own_name_wins_over_the_whole_video(
    tmp_path: Path, few: Few, video: Video
) -> None:
    video(tmp_path / "mine.mp4", seconds=1)
    video(tmp_path / "abc.mp4", seconds=6)
    assert find(few, tmp_path, clip("mine", "abc", 3.0)) == SourceFile(tmp_path / "mine.mp4", None)


def test_two_files_of_one_name_are_both_named(tmp_path: Path, few: Few) -> None:
    (tmp_path / "abc.mp4").touch()
    (tmp_path / "abc.mkv").touch()
    with pytest.raises(ClipUnavailable, match=r"abc\.mkv and .*abc\.mp4") as caught:
        find(few, tmp_path, clip("abc", None, None))
    assert not caught.value.permanent


def test_links_do_not_lead_out(tmp_path: Path, few: Few) -> None:
    inside = tmp_path / "inside"
    inside.mkdir()
    (tmp_path / "secret.mp4").touch()
    (inside / "abc.mp4").symlink_to(tmp_path / "secret.mp4")
    (inside / "real.mp4").touch()
    (inside / "def.mp4").symlink_to(inside / "real.mp4")
    with pytest.raises(ClipUnavailable, match="not in the folder"):
        find(few, inside, clip("abc", None, None))
    assert find(few, inside, clip("def", None, None)).path == inside / "def.mp4"


def test_linked_folders_are_left_out_and_named(tmp_path: Path, few: Few) -> None:
    inside, outside = tmp_path / "inside", tmp_path / "outside"
    for folder, name in ((inside / "part", "real"), (outside, "abc")):
        folder.mkdir(parents=True)
        (folder / f"{name}.mp4").touch()
    (inside / "more").symlink_to(outside)
    (inside / "part" / "loop").symlink_to(inside)
    (inside / "gone").symlink_to(tmp_path / "nothing")
    # Found once, although a link leads there again and again.
    assert find(few, inside, clip("real", None, None)).path == inside / "part" / "real.mp4"
    with pytest.raises(ClipUnavailable, match="not in the folder") as caught:
        find(few, inside, clip("abc", None, None))
    assert not caught.value.permanent
    assert caught.value.detail == (
        f"links are not followed, such as {inside / 'more'}: add its target as another"
        " --source folder:DIR"
    )
    # A link that the user names is followed.
    assert find(few, inside / "more", clip("abc", None, None)).path == outside / "abc.mp4"


def test_an_argument_that_is_no_folder(tmp_path: Path, few: Few) -> None:
    spec = few(["a"]).spec
    for argument in (None, "", str(tmp_path / "none")):
        with pytest.raises(UsageError, match="source folder"):
            FolderSource(spec, argument, Network())


def test_addresses(tmp_path: Path, few: Few) -> None:
    (tmp_path / "abc.mp4").touch()
    spec = few(["a"]).spec
    here = FolderSource(spec, f"file://{tmp_path}", Network())
    assert here.fetch(clip("abc", None, None), tmp_path).path == tmp_path / "abc.mp4"
    with pytest.raises(UsageError, match="s3://bucket/x is not on this machine: mount it, or pack"):
        FolderSource(spec, "s3://bucket/x", Network())


def test_sources_are_opened_by_name(tmp_path: Path, few: Few) -> None:
    spec = few(["a"]).spec
    assert isinstance(open_source(f"folder:{tmp_path}", spec, Network()), FolderSource)
    with pytest.raises(UsageError, match="did you mean folder"):
        open_source("foldr:x", spec, Network())
    with pytest.raises(UsageError, match="takes no argument"):
        open_source("render:x", spec, Network())
