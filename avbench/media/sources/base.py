"""The contract of a source: where clips come from."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

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


class Source(Protocol):
    """What is registered under the entry-point group `avbench.sources`.

    Args:
        spec: The benchmark.
        argument: What stands behind the colon in `NAME:ARGUMENT`, if anything.

    Raises:
        UsageError: If the argument does not fit.
    """

    def __init__(self, spec: BenchmarkSpec, argument: str | None) -> None: ...

    def fetch(self, clip: Clip, scratch: Path) -> SourceFile:
        """Make a clip's video available; called from several threads at once.

        Args:
            clip: The clip.
            scratch: An empty folder for what has to be written, deleted afterwards.

        Raises:
            ClipUnavailable: If the source does not have it.
        """
        ...


def open_source(text: str, spec: BenchmarkSpec) -> Source:
    """Open a source as a user names it, `NAME` or `NAME:ARGUMENT`.

    Raises:
        UsageError: If there is no such source, or the argument does not fit.
    """
    name, colon, argument = text.partition(":")
    source: Source = registry.load("sources", name)(spec, argument if colon else None)
    return source
