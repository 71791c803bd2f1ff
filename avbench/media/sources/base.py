"""The contract of a source: where clips come from."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, runtime_checkable

from avbench import registry
from avbench.manifests.manifest import Clip
from avbench.manifests.spec import BenchmarkSpec


@dataclass(frozen=True)
class SourceFile:
    """A video that holds a clip.

    Attributes:
        path: The file.
        start_s: Where the clip starts in it, in seconds; None if the file is the clip.
    """

    path: Path
    start_s: float | None


class ClipUnavailable(Exception):  # noqa: N818 - a finding, not a fault
    """A source cannot give a clip.

    Attributes:
        reason: Why, in words that are the same for every such clip.
        permanent: Whether there is no use in asking this source again.
        detail: The particulars of this clip.
    """

    def __init__(self, reason: str, *, permanent: bool, detail: str = "") -> None:
        super().__init__(f"{reason}: {detail}" if detail else reason)
        self.reason = reason
        self.permanent = permanent
        self.detail = detail


@dataclass(frozen=True)
class Network:
    """How sources that download behave.

    Attributes:
        cookies: A file of cookies in Netscape's format.
        browser: A browser to take cookies from, such as firefox.
        proxy: URL of a proxy.
        rate: Most bytes per second of one download.
        height: Most lines of a picture to ask for.
        sleep_s: Pause after each download.
        timeout_s: After so many seconds without data, or with next to none, a download has failed.
        retries: How often a download that failed for a while is tried again, with growing pauses.
        downloads: Downloads at a time on this host.
    """

    cookies: Path | None = None
    browser: str | None = None
    proxy: str | None = None
    rate: int | None = None
    height: int = 360
    sleep_s: float = 1.0
    timeout_s: float = 30.0
    retries: int = 3
    downloads: int = 1


class Source(Protocol):
    """What is registered under the entry-point group `avbench.sources`.

    A source is opened once in every process that works. One that downloads has an attribute
    `remote` that is true; one whose videos depend on the clip's label, `by_label`; one known to
    limit its pace, `videos_per_hour`.

    Args:
        spec: The benchmark.
        argument: What stands behind the colon in `NAME:ARGUMENT`, if anything.
        network: How to download, for sources that do.

    Raises:
        UsageError: If the argument does not fit.
        AvbenchError: If what it names cannot be read.
    """

    def __init__(self, spec: BenchmarkSpec, argument: str | None, network: Network) -> None: ...

    def fetch(self, clip: Clip, scratch: Path) -> SourceFile:
        """Make a clip's video available; called from several threads at once.

        Args:
            clip: The clip.
            scratch: A folder for what has to be written. The clips of one source video share it,
                one after the other, so that a video is downloaded once; it is deleted after them.

        Raises:
            ClipUnavailable: If the source does not have it.
        """
        ...


@runtime_checkable
class StreamingSource(Source, Protocol):
    """A source whose videos come in an order of its own, such as a compressed tar."""

    def stream(self, clips: Sequence[Clip], scratch: Path) -> Iterator[tuple[Clip, SourceFile]]:
        """Go through the source once and give what it has of some clips.

        Args:
            clips: The clips wanted.
            scratch: A folder for the files; whoever takes one deletes it.

        Yields:
            A clip and its file, every clip at most once. Afterwards `fetch` says why it did not
            give one.

        Raises:
            AvbenchError: If a part of it is damaged, after all that could be read.
        """
        ...


def goes_by_label(source: Source) -> bool:
    """Whether another label means another video."""
    return bool(getattr(source, "by_label", False))


def is_remote(source: Source) -> bool:
    """Whether a source downloads."""
    return bool(getattr(source, "remote", False))


def pace_of(source: Source) -> float | None:
    """Return how many videos an hour a source gives one address; None where nobody knows."""
    return getattr(source, "videos_per_hour", None)


def open_source(text: str, spec: BenchmarkSpec, network: Network) -> Source:
    """Open a source as a user names it, `NAME` or `NAME:ARGUMENT`.

    Raises:
        UsageError: If there is no such source, or the argument does not fit.
        AvbenchError: If what it names cannot be read.
    """
    name, colon, argument = text.partition(":")
    source: Source = registry.load("sources", name)(spec, argument if colon else None, network)
    return source
