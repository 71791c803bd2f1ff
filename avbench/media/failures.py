"""Telling downloads that failed for good from those that failed for now."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from time import time

from avbench.media.sources.base import ClipUnavailable

UNKNOWN = "unknown"
DISK_FULL = "disk full"


@dataclass(frozen=True)
class Failure:
    """Why a download failed.

    Attributes:
        reason: In words that are the same for every such failure.
        permanent: Whether there is no use in trying again.
        detail: What was said, in one line, and what can be done about it.
        retry_after_s: How long the server asks to be left alone; None if it does not say.
    """

    reason: str
    permanent: bool
    detail: str = ""
    retry_after_s: float | None = None


@dataclass(frozen=True)
class _Rule:
    pattern: re.Pattern[str]
    reason: str
    permanent: bool
    remedy: str


def _passes(pattern: str, reason: str, remedy: str = "") -> _Rule:
    return _Rule(re.compile(pattern), reason, False, remedy)


def _stays(pattern: str, reason: str, remedy: str = "") -> _Rule:
    return _Rule(re.compile(pattern), reason, True, remedy)


_COOKIES = "pass cookies of an account that may see it"
_UPDATE = "update yt-dlp and install a JavaScript runtime it supports, such as deno"

# The first rule that fits decides. What passes comes first: a rate limit calls itself
# "unavailable". An address can hold any word, so the rules ask for whole phrases.
_RULES = (
    _passes(r"No space left on device|Disk quota exceeded|File too large", DISK_FULL),
    _passes(
        r"try again later|rate-limited|HTTP Error 429|Too Many Requests",
        "rate limited",
        "pause longer between downloads, or wait for an hour",
    ),
    _passes(
        r"not a bot|captcha|unusual traffic|anti-bot|IP is likely being blocked",
        "bot check",
        "wait, pass cookies, or use another network",
    ),
    # Of a whole file, yt-dlp does not "get" this error but is "unable to download" it.
    _passes(
        r"fragment \d+ not found|Got error: HTTP Error 4(?:04|10)|download \d+ fragments?",
        "fragments missing",
    ),
    _passes(
        r"HTTP Error 407|Proxy Authentication Required|Tunnel connection failed", "proxy refuses"
    ),
    _passes(r"HTTP Error 3\d\d", "leads nowhere"),
    _passes(r"timed out|HTTP Error 408", "timed out"),
    _passes(r"HTTP Error 5\d\d", "server error"),
    _passes(r"HTTP Error 403", "refused by the server"),
    _passes(
        r"bytes, expected|content too short|more expected|IncompleteRead"
        r"|file is empty|not get any data blocks",
        "cut off",
    ),
    _passes(
        r"Name or service not known|name resolution|getaddrinfo failed|nodename nor servname"
        r"|No address associated with hostname|Failed to resolve",
        "host not found",
    ),
    _passes(
        r"Connection (?:reset|refused|aborted)|Remote end closed|Broken pipe|EOF occurred"
        r"|UNEXPECTED_EOF|BadStatusLine|Network is unreachable|No route to host",
        "connection lost",
    ),
    _passes(r"CERTIFICATE_VERIFY_FAILED|certificate verify failed", "certificate not trusted"),
    _passes(
        r"Requested format is not available|No video formats found|Only images are available"
        r"|not available on this app|page needs to be reloaded|JavaScript runtime"
        r"|challenge solving failed|(?:[Ss]ignature|nsig) (?:extraction|solving) failed"
        r"|player response|Cannot identify player|Unable to extract|Failed to extract",
        "page not understood",
        _UPDATE,
    ),
    # Says "unavailable" of what another network may see.
    _passes(r"administrator restrictions", "blocked by the network", "use another network"),
    _passes(r"[Pp]remieres? (?:in|will)|live event will begin|has not started", "not yet shown"),
    _passes(
        r"[Pp]lease sign in|only available for registered users|[Ll]og ?in required|HTTP Error 401",
        "needs an account",
        _COOKIES,
    ),
    _stays(r"removed by the (?:uploader|user|author)|user removed", "removed by the uploader"),
    _stays(r"account .*terminated|terminated account", "account terminated"),
    _stays(r"closed their (?:YouTube )?account|account has been closed", "account closed"),
    _stays(
        r"in your country|your location due to geo|geo.?restrict|your region",
        "blocked in this country",
        "a proxy elsewhere may see it",
    ),
    _stays(r"[Cc]opyright (?:claim|grounds|infringement|holder|owner)", "copyright claim"),
    _stays(
        r"confirm your age|age-restricted|inappropriate for some users",
        "age restricted",
        _COOKIES,
    ),
    _stays(r"members.only|available to this channel's members|Join this channel", "members only"),
    _stays(r"requires payment|Premium members|HTTP Error 402|requires a purchase", "paid"),
    _stays(r"[Pp]rivate video|video is private", "private", _COOKIES),
    _stays(r"DRM protected", "copy-protected"),
    _stays(r"live (?:event|stream) (?:has ended|recording is not available)", "live, not recorded"),
    _stays(
        r"violat\w+ .*(?:Terms of Service|[Pp]olic|Guidelines)|has been removed",
        "removed by the site",
    ),
    _stays(r"HTTP Error (?:404|410)", "not found"),
    _stays(
        r"Unsupported URL|is not a valid URL|No video could be found|Unsupported url scheme"
        r"|unusual and will be skipped for safety",
        "no video at this address",
    ),
    # Last, since sites put this before every other reason. What is not available may be so for a
    # network that is blocked.
    _passes(r"(?:not|n't) available", "unavailable for now"),
    _stays(r"[Vv]ideo (?:is )?(?:unavailable|no longer available|does not exist)", "unavailable"),
)
_COLOUR = re.compile(r"\x1b\[[0-9;]*m")
_AROUND = re.compile(r"^ERROR: |^\[[\w:]+\] [^:\s]+: |; please report this issue on .*")
_LONGEST = 300


def classify(error: str | BaseException) -> Failure:
    """Say why a download failed, and whether it will fail again.

    What is not known is taken to pass.

    Args:
        error: What yt-dlp raised, or the message it printed.
    """
    retry_after_s = None
    if isinstance(error, BaseException):
        for cause in _causes(error):
            if isinstance(cause, ClipUnavailable):
                return Failure(cause.reason, cause.permanent, cause.detail)
            retry_after_s = retry_after_s or _retry_after_s(cause)
    # Sites write either apostrophe.
    said = _COLOUR.sub("", str(error)).replace("\N{RIGHT SINGLE QUOTATION MARK}", "'")
    said = _AROUND.sub("", _AROUND.sub("", " ".join(said.split())))
    detail = said[:_LONGEST]
    for rule in _RULES:
        if rule.pattern.search(said):
            if rule.remedy:
                detail = f"{detail}: {rule.remedy}"
            return Failure(rule.reason, rule.permanent, detail, retry_after_s)
    return Failure(UNKNOWN, False, detail or type(error).__name__, retry_after_s)


def _causes(error: BaseException) -> Iterator[BaseException]:
    """Go through an error and all that led to it, including what yt-dlp keeps in its own way."""
    left, seen = [error], set()
    while left:
        cause = left.pop()
        if id(cause) in seen:
            continue
        seen.add(id(cause))
        yield cause
        kept = (getattr(cause, "exc_info", None) or (None, None))[1]
        others = (cause.__cause__, cause.__context__, getattr(cause, "cause", None), kept)
        left += [other for other in others if isinstance(other, BaseException)]


def _retry_after_s(error: BaseException) -> float | None:
    """Read the header of that name, which holds seconds or a date."""
    headers = getattr(getattr(error, "response", None), "headers", None)
    value = headers.get("Retry-After") if headers else None
    if not value:
        return None
    try:
        return max(0.0, float(value))
    except ValueError:
        pass
    try:
        return max(0.0, parsedate_to_datetime(value).timestamp() - time())
    except ValueError:
        return None
