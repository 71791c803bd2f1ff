"""Videos at addresses that follow a pattern, such as those of a mirror."""

from __future__ import annotations

from pathlib import Path
from string import Formatter
from urllib.parse import quote, urlsplit

from avbench import registry
from avbench.manifests.manifest import Clip
from avbench.manifests.spec import BenchmarkSpec
from avbench.media.sources.base import ClipUnavailable, Network, SourceFile
from avbench.media.sources.download import Downloader
from avbench.media.sources.names import source_file
from avbench.types import UsageError

_WHAT = {
    "youtube_id": "YouTube id",
    "start": "start time",
    "end": "end time",
    "label": "label",
    "clip_id": "clip id",
}
_EXAMPLE = "url:https://example.org/{youtube_id}.mp4"


class UrlSource:
    """Videos at addresses made from a template.

    The template may hold `{youtube_id}`, `{start}`, `{end}` (seconds), `{label}` and `{clip_id}`.
    One that holds the start, the end or the clip id may lead to clips already cut, or to whole
    videos: their length tells. Any other leads to whole videos.

    Args:
        spec: The benchmark.
        argument: The template.
        network: How to download.

    Raises:
        UsageError: If the template is none, or something is wrong with `network`.
        AvbenchError: If the cookies cannot be read.
    """

    remote = True

    def __init__(self, spec: BenchmarkSpec, argument: str | None, network: Network) -> None:
        if not argument:
            raise UsageError(f"source url: which address? Write {_EXAMPLE}")
        self._template = argument
        self._fields = _fields_of(argument)
        self.by_label = "label" in self._fields
        self._seconds = spec.clip_seconds
        self._downloader = Downloader(network)

    def fetch(self, clip: Clip, scratch: Path) -> SourceFile:
        """Download a clip's file or its whole video.

        Raises:
            ClipUnavailable: If it cannot be had, or the clip lacks what the address is made from.
        """
        values = {
            "youtube_id": clip.youtube_id,
            "start": _seconds(clip.start_s),
            "end": _seconds(clip.end_s),
            "label": clip.label,
            "clip_id": clip.clip_id,
        }
        names_clip = not self._fields.isdisjoint({"start", "end", "clip_id"})
        for name in sorted(self._fields) if names_clip else ["youtube_id", "start"]:
            if values[name] is None:
                raise ClipUnavailable(f"no {_WHAT[name]} known", permanent=True)
        encoded = {name: quote(value or "", safe="") for name, value in values.items()}
        path = self._downloader.download(self._template.format(**encoded), scratch)
        if names_clip:
            return source_file(path, clip, is_cut=False, seconds=self._seconds)
        return SourceFile(path, clip.start_s)


def _fields_of(template: str) -> set[str]:
    """Return the placeholders of a template.

    Raises:
        UsageError: If it is no template of an address.
    """
    try:
        parts = [part for part in Formatter().parse(template) if part[1] is not None]
        scheme = urlsplit(template).scheme
    except ValueError as error:
        raise UsageError(f"source url: {template}: {error}: write {_EXAMPLE}") from error
    if scheme not in {"http", "https"}:
        raise UsageError(f"source url: {template}: not an address by http(s): write {_EXAMPLE}")
    for _, name, form, conversion in parts:
        if name not in _WHAT:
            raise registry.unknown("placeholder", str(name), list(_WHAT))
        if form or conversion:
            raise UsageError(f"source url: {template}: write {{{name}}} without a format")
    fields = {str(name) for _, name, _, _ in parts}
    if fields.isdisjoint({"youtube_id", "clip_id"}):
        raise UsageError(
            f"source url: {template}: the same for many clips: put {{youtube_id}} or {{clip_id}}"
        )
    return fields


def _seconds(value: float | None) -> str | None:
    return None if value is None else f"{value:f}".rstrip("0").rstrip(".")
