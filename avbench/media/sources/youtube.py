"""Videos of YouTube."""

from __future__ import annotations

import re
from pathlib import Path
from typing import ClassVar

from avbench.manifests.manifest import Clip
from avbench.manifests.spec import BenchmarkSpec
from avbench.media.sources.base import ClipUnavailable, Network, SourceFile
from avbench.media.sources.download import Downloader
from avbench.types import UsageError

_ID = re.compile(r"[A-Za-z0-9_-]{11}")


class YoutubeSource:
    """Whole videos from YouTube, to be cut here.

    Args:
        spec: The benchmark.
        argument: None; the clips say which videos.
        network: How to download.

    Raises:
        UsageError: If there is an argument, or something is wrong with `network`.
        AvbenchError: If the cookies cannot be read.
    """

    remote = True
    videos_per_hour: ClassVar[float] = 300
    """By experience: with more, YouTube soon says of every video that it is unavailable."""
    address: ClassVar[str] = "https://www.youtube.com/watch?v={}"

    def __init__(
        self,
        spec: BenchmarkSpec,  # noqa: ARG002
        argument: str | None,
        network: Network,
    ) -> None:
        if argument is not None:
            raise UsageError("source youtube: takes no argument: write youtube")
        self._downloader = Downloader(network)

    def fetch(self, clip: Clip, scratch: Path) -> SourceFile:
        """Download a clip's whole video.

        Raises:
            ClipUnavailable: If it cannot be had, or the clip has no usable id or start time.
        """
        if clip.youtube_id is None:
            raise ClipUnavailable("no YouTube id known", permanent=True)
        # What reaches the address must not be able to change it.
        if not _ID.fullmatch(clip.youtube_id):
            raise ClipUnavailable("not a YouTube id", permanent=True, detail=clip.youtube_id)
        if clip.start_s is None:
            detail = "the table lacks it: use an archive whose file names tell it"
            raise ClipUnavailable("no start time known", permanent=True, detail=detail)
        path = self._downloader.download(self.address.format(clip.youtube_id), scratch)
        return SourceFile(path, clip.start_s)
