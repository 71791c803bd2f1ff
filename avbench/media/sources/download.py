"""Downloading a whole video, politely and with every failure told apart."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import io
import os
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from http.client import IncompleteRead
from pathlib import Path
from threading import local
from typing import Any
from urllib.parse import urlsplit

import av
from yt_dlp import YoutubeDL
from yt_dlp.cookies import SUPPORTED_BROWSERS, CookieLoadError, load_cookies
from yt_dlp.networking import RequestHandler, Response
from yt_dlp.networking._urllib import UrllibRH

from avbench import registry
from avbench.media import ffmpeg
from avbench.media.failures import DISK_FULL, Failure, classify
from avbench.media.probe import TOLERANCE_S, opened, promised_ends
from avbench.media.sources.base import ClipUnavailable, Network
from avbench.resources import host_folder
from avbench.types import AvbenchError, UsageError

_BACKOFF_S = 2.0
"""The first pause after a failure that may pass; each further one is twice as long."""

_LONGEST_PAUSE_S = 600.0
"""However long a server asks to be left alone."""

_MAX_BYTES = 8 << 30
"""Ten hours at 360 lines fit; an endless answer does not."""

_MIN_RATE = 1024
"""Bytes per second below which a download counts as stuck."""

_GAVE_UP = "Giving up after"
"""What yt-dlp says when it has tried again as often as it was told to."""

_PROXIES = ("http", "socks4", "socks4a", "socks5", "socks5h")
_UNFINISHED = {".part", ".ytdl"}


class Downloader:
    """Downloads videos, at most `network.downloads` at a time on this host.

    Args:
        network: How to download. Cookies are read once, here, and never written back.

    Raises:
        UsageError: If the proxy or the browser is none.
        AvbenchError: If the cookies cannot be read, or there is no ffmpeg.
    """

    def __init__(self, network: Network) -> None:
        _check_proxy(network.proxy)
        self._network = network
        self._cookies = _read_cookies(network)
        self._ffmpeg = ffmpeg.binary()
        self._last = local()

    def download(self, url: str, scratch: Path) -> Path:
        """Download the one video at an address, unless that was done or has failed in `scratch`.

        Args:
            url: The address.
            scratch: A folder; it gets one finished file, or nothing.

        Returns:
            The file.

        Raises:
            ClipUnavailable: If it cannot be had, after all retries where they may help.
            OSError: If the disk is full.
            AvbenchError: If the host's download slots cannot be used.
        """
        name = hashlib.sha256(url.encode()).hexdigest()[:16]
        for finished in scratch.glob(f"{name}.*"):
            return finished
        last: dict[Path, ClipUnavailable] = getattr(self._last, "failure", {})
        if error := last.get(scratch / name):
            raise ClipUnavailable(error.reason, permanent=error.permanent, detail=error.detail)
        with (
            _slot(self._network.downloads, pause_s=self._network.sleep_s),
            tempfile.TemporaryDirectory(dir=scratch, prefix="partial-") as work,
        ):
            try:
                file = self._persist(url, Path(work))
            except ClipUnavailable as error:
                # The other clips of the video come next, and need not ask again.
                self._last.failure = {scratch / name: error}
                raise
            return file.replace(scratch / f"{name}{file.suffix}")

    def _persist(self, url: str, work: Path) -> Path:
        """Try until it works, is hopeless, or has been tried often enough.

        The slot is kept in the pauses: a host that has had enough is left alone by all.
        """
        attempt = 0
        while True:
            try:
                return self._try(url, work)
            except Exception as error:  # an extractor of yt-dlp may raise anything
                failure = classify(error)
                if failure.reason == DISK_FULL:
                    full = os.strerror(errno.ENOSPC)
                    raise OSError(errno.ENOSPC, full, str(work)) from error
                tried_enough = attempt == self._network.retries or _GAVE_UP in str(error)
                if failure.permanent or tried_enough:
                    raise ClipUnavailable(
                        failure.reason, permanent=failure.permanent, detail=failure.detail
                    ) from error
                time.sleep(_pause_s(url, attempt, failure))
            attempt += 1

    def _try(self, url: str, work: Path) -> Path:
        lengths: list[float] = []
        watched = {"progress_hooks": [partial(_note_length, lengths)]}
        with _PatientYoutubeDL(self._options(url, work) | watched) as downloader:
            downloader.extract_info(url)
        files = [path for path in work.iterdir() if path.suffix not in _UNFINISHED]
        if len(files) != 1:
            raise ClipUnavailable("no file came", permanent=False, detail=f"{len(files)} files")
        if not _is_video(files[0]):
            files[0].unlink()
            raise ClipUnavailable("not a video", permanent=False)
        if len(lengths) > 1:
            _check_merged(files[0], lengths)
        return files[0]

    def _options(self, url: str, work: Path) -> dict[str, Any]:
        network = self._network

        def pause_s(n: int) -> float:
            return _pause_s(url, n, None)

        return {
            # What is kept of a failed attempt belongs to one format, and is taken up again.
            "paths": {"home": str(work)},
            "outtmpl": "%(format_id)s.%(ext)s",
            "format": "bv*+ba/b",
            "format_sort": [f"res:{network.height}"],
            "merge_output_format": "mkv",
            "ffmpeg_location": self._ffmpeg,
            "fixup": "never",  # all is encoded again
            "match_filter": _only_one_and_recorded,
            "noplaylist": True,
            "updatetime": False,
            # Embedded, yt-dlp retries nothing, and leaves out fragments without a word.
            "retries": network.retries,
            "fragment_retries": network.retries,
            "extractor_retries": network.retries,
            "retry_sleep_functions": dict.fromkeys(("http", "fragment", "extractor"), pause_s),
            "skip_unavailable_fragments": False,
            "socket_timeout": network.timeout_s,
            "ratelimit": network.rate,
            "proxy": network.proxy,
            "cookiefile": None if self._cookies is None else io.StringIO(self._cookies),
            "cachedir": False,
            "quiet": True,
            "noprogress": True,
            "color": "no_color",
            "logger": _Silent(),
        }


class _PatientYoutubeDL(YoutubeDL):  # type: ignore[misc]
    """A yt-dlp that gives up on answers that come too slowly or hold too much."""

    def build_request_director(
        self, handlers: list[type[RequestHandler]], preferences: Any = None
    ) -> Any:
        # The answers of other handlers cannot be read as they come.
        del handlers
        return super().build_request_director([UrllibRH], preferences)

    def urlopen(self, req: Any) -> Response:
        response = super().urlopen(req)
        if int(response.headers.get("Content-Length") or 0) > _MAX_BYTES:
            response.close()
            raise _too_large()
        response.fp = _WatchedBody(response.fp, self.params["socket_timeout"])
        return response


class _WatchedBody:
    """The body of an answer, read as its bytes come.

    A socket's time-out does not see a server that sends a byte now and then.
    """

    def __init__(self, body: Any, timeout_s: float) -> None:
        self._body = body
        self._timeout_s = timeout_s
        self._waited_s = 0.0
        self._recent = self._received = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._body, name)

    def read(self, amount: int | None = None) -> bytes:
        if amount is None:
            return self._read_all()
        began = time.monotonic()
        data: bytes = self._body.read1(amount)
        self._waited_s += time.monotonic() - began  # not the pauses that keep below a rate
        self._recent += len(data)
        self._received += len(data)
        if self._received > _MAX_BYTES:
            raise _too_large()
        if self._waited_s >= self._timeout_s:
            if self._recent < _MIN_RATE * self._waited_s:
                detail = f"{self._recent} bytes in {self._waited_s:.1f} s"
                raise ClipUnavailable("too slow", permanent=False, detail=detail)
            self._waited_s, self._recent = 0.0, 0
        return data

    def _read_all(self) -> bytes:
        data = b"".join(iter(lambda: self.read(1 << 16), b""))
        missing = getattr(self._body, "length", None)
        if missing:
            raise IncompleteRead(data, missing)
        return data


class _Silent:
    """What yt-dlp prints; its errors are raised as well."""

    def debug(self, message: str) -> None: ...

    def info(self, message: str) -> None: ...

    def warning(self, message: str) -> None: ...

    def error(self, message: str) -> None: ...


def _too_large() -> ClipUnavailable:
    return ClipUnavailable("too large", permanent=True, detail=f"over {_MAX_BYTES >> 30} GiB")


def _only_one_and_recorded(info: dict[str, Any], *, incomplete: bool) -> None:  # noqa: ARG001
    """Refuse what yt-dlp would download for ever, or many of."""
    if info.get("is_live"):
        raise ClipUnavailable("still live", permanent=False)
    if (info.get("n_entries") or 1) > 1:
        raise ClipUnavailable("more than one video at this address", permanent=True)


def _is_video(path: Path) -> bool:
    """Tell a video from whatever else came under its name; whether it is whole, decoding tells."""
    try:
        with av.open(str(path)) as container:
            return bool(container.streams.video)
    except (av.FFmpegError, UnicodeDecodeError):
        return False


def _note_length(lengths: list[float], progress: dict[str, Any]) -> None:
    """Note how long a file is by its header, once it has come."""
    if progress["status"] != "finished":
        return
    try:
        with av.open(progress["filename"]) as container:
            # What starts late is moved to the beginning when it is merged.
            span = (container.duration or 0) - (container.start_time or 0)
            lengths.append(span / av.time_base)
    except (av.FFmpegError, UnicodeDecodeError):
        lengths.append(0.0)  # whoever merges it says what is wrong


def _check_merged(file: Path, lengths: list[float]) -> None:
    """See that pictures and sound came whole: of a merged file, the header says how much came.

    Raises:
        ClipUnavailable: If not; the file is removed.
    """
    with opened(file) as container:
        came = promised_ends(container)
    # A file that does not say how long it is cannot be compared.
    for there_s, said_s in zip(sorted(came), sorted(lengths), strict=False):
        if there_s < said_s - TOLERANCE_S:
            file.unlink()
            detail = f"{there_s:.2f} s came, not {said_s:.2f}"
            raise ClipUnavailable("cut off", permanent=False, detail=detail)


def _pause_s(url: str, attempt: int, failure: Failure | None) -> float:
    """Say how long to wait after a failed attempt, counted from 0: the same every time."""
    asked_s = failure.retry_after_s or 0.0 if failure else 0.0
    digest = hashlib.sha256(f"{url} {attempt}".encode()).digest()
    # Hosts that failed together should not return together.
    own_s = _BACKOFF_S * 2.0**attempt * (1 + digest[0] / 512)
    return min(max(own_s, asked_s), _LONGEST_PAUSE_S)


@contextmanager
def _slot(downloads: int, *, pause_s: float) -> Iterator[None]:
    """Hold one of the host's download slots, after a pause since it was last in use.

    A slot is a lock on a file of its own: it binds threads and processes alike, and ends with the
    process.
    """
    folder = host_folder()
    while True:
        for number in range(downloads):
            with Path(folder, f"download-{number}").open("a") as lock:
                try:
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    continue
                # The file's time tells when the last download ended.
                rest_s = os.fstat(lock.fileno()).st_mtime + pause_s - time.time()
                time.sleep(min(max(rest_s, 0.0), pause_s))
                try:
                    yield
                finally:
                    os.utime(lock.fileno())
                return
        time.sleep(0.1)


def _check_proxy(proxy: str | None) -> None:
    if proxy is None:
        return
    try:
        parts = urlsplit(proxy)
        good = parts.scheme in _PROXIES and bool(parts.hostname) and parts.port is not None
    except ValueError:
        good = False
    if not good:
        kinds = ", ".join(_PROXIES)
        raise UsageError(f"proxy {proxy!r}: write SCHEME://HOST:PORT, with a scheme of {kinds}")


def _read_cookies(network: Network) -> str | None:
    """Return the cookies of the file and the browser in Netscape's format."""
    if network.cookies is None and network.browser is None:
        return None
    if network.browser not in {None, *SUPPORTED_BROWSERS}:
        raise registry.unknown("browser", str(network.browser), sorted(SUPPORTED_BROWSERS))
    try:
        text = None if network.cookies is None else io.StringIO(network.cookies.read_text("utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise AvbenchError(f"cookies {network.cookies}: {error}: check the path") from error
    try:
        jar = load_cookies(text, network.browser and (network.browser,), None)
    except CookieLoadError as error:
        cause = f"{error.__context__ or error}".strip().splitlines()[0]
        if network.browser is None:
            remedy = "export them in Netscape's format"
            raise AvbenchError(f"cookies {network.cookies}: {cause}: {remedy}") from error
        remedy = "close it, or export its cookies to a file"
        raise AvbenchError(f"cookies of {network.browser}: {cause}: {remedy}") from error
    jar.save(read := io.StringIO())
    return read.getvalue()
