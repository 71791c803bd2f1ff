"""What sites and yt-dlp say, and what it means."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from io import BytesIO

import pytest
from yt_dlp.networking import Response
from yt_dlp.networking.exceptions import HTTPError
from yt_dlp.utils import DownloadError, ExtractorError

from avbench.media.failures import Failure, classify
from avbench.media.sources.base import ClipUnavailable

SIGN_IN = "Use --cookies-from-browser or --cookies for the authentication"

PERMANENT = [
    ("Video unavailable. This video has been removed by the uploader", "removed by the uploader"),
    ("Video unavailable. This video is no longer available because the YouTube account associated"
     " with this video has been terminated.", "account terminated"),
    ("Video unavailable. This video is no longer available because the uploader has closed their"
     " YouTube account.", "account closed"),
    ("Private video. Sign in if you've been granted access to this video. " + SIGN_IN, "private"),
    ("This video is private", "private"),
    ("Video unavailable. The uploader has not made this video available in your country\nThis video"
     " is available in Germany.\nYou might want to use a VPN or a proxy server (with --proxy) to"
     " workaround.", "blocked in this country"),
    ("Video unavailable. This video contains content from SME, who has blocked it in your country"
     " on copyright grounds", "blocked in this country"),
    ("This video is not available from your location due to geo restriction",
     "blocked in this country"),
    ("Video unavailable. This video contains content from UMG, who has blocked it on copyright"
     " grounds", "copyright claim"),
    ("Video unavailable. This video is no longer available due to a copyright claim by Someone",
     "copyright claim"),
    ("Sign in to confirm your age. This video may be inappropriate for some users. " + SIGN_IN,
     "age restricted"),
    ("This video is age-restricted and only available on YouTube", "age restricted"),
    ("Join this channel to get access to members-only content like this video, and other exclusive"
     " perks.", "members only"),
    ("This video is available to this channel's members on level: Fan (or any higher level)",
     "members only"),
    ("This video requires payment to watch.", "paid"),
    ("This video is only available to Music Premium members", "paid"),
    ("This live stream recording is not available.", "live, not recorded"),
    ("This live event has ended.", "live, not recorded"),
    ("This video has been removed for violating YouTube's policy on nudity or sexual content",
     "removed by the site"),
    ("This video has been removed for violating YouTube\u2019s Terms of Service",
     "removed by the site"),
    ("This video is DRM protected", "copy-protected"),
    ("Video unavailable", "unavailable"),
    ("Video unavailable. This video is unavailable", "unavailable"),
    ("Video unavailable. This video is no longer available", "unavailable"),
    ("This video does not exist.", "unavailable"),
    ("Unable to download webpage: HTTP Error 404: Not Found (caused by <HTTPError 404: Not Found>)",
     "not found"),
    ("unable to download video data: HTTP Error 410: Gone", "not found"),
    ("Unsupported URL: http://example.org/page", "no video at this address"),
    ("'nothing' is not a valid URL", "no video at this address"),
]  # fmt: skip

TRANSIENT = [
    ("Video unavailable. This content isn't available, try again later. The current session has"
     " been rate-limited by YouTube for up to an hour. It is recommended to use `-t sleep` to add a"
     " delay between video requests to avoid exceeding the rate limit.", "rate limited"),
    ("Video unavailable. This content isn\u2019t available, try again later.", "rate limited"),
    ("Unable to download API page: HTTP Error 429: Too Many Requests (caused by <HTTPError 429:"
     " Too Many Requests>)", "rate limited"),
    ("Sign in to confirm you\u2019re not a bot. " + SIGN_IN, "bot check"),
    ("Sign in to confirm you're not a bot. This helps protect our community.", "bot check"),
    ("Video unavailable. YouTube is requiring a captcha challenge before playback", "bot check"),
    ("All player responses are invalid. Your IP is likely being blocked by Youtube", "bot check"),
    ("unable to download video data: HTTP Error 403: Forbidden", "refused by the server"),
    ("Unable to download webpage: HTTP Error 503: Service Unavailable", "server error"),
    ("[download] Got error: HTTP Error 502: Bad Gateway. Giving up after 3 retries",
     "server error"),
    ("Unable to download webpage: The read operation timed out", "timed out"),
    ("[download] Got error: timed out. Giving up after 3 retries", "timed out"),
    ("Unable to download webpage: [Errno 110] Connection timed out", "timed out"),
    ("[download] Got error: [Errno 104] Connection reset by peer", "connection lost"),
    ("Unable to download webpage: <urlopen error [Errno 111] Connection refused>",
     "connection lost"),
    ("Unable to download API page: Remote end closed connection without response",
     "connection lost"),
    ("[SSL: UNEXPECTED_EOF_WHILE_READING] EOF occurred in violation of protocol (_ssl.c:1006)",
     "connection lost"),
    ("[download] Got error: Downloaded 11572 bytes, expected 23144 bytes", "cut off"),
    ("content too short (expected 23144 bytes and served 11572)", "cut off"),
    ("[download] Got error: 512 bytes read, 100 more expected", "cut off"),
    ("The downloaded file is empty", "cut off"),
    ("Did not get any data blocks", "cut off"),
    ("Unable to download API page: [Errno -2] Name or service not known", "host not found"),
    ("Failed to resolve 'www.youtube.com' ([Errno -3] Temporary failure in name resolution)",
     "host not found"),
    ("fragment 7 not found, unable to continue", "fragments missing"),
    ("[download] Got error: HTTP Error 404: Not Found. Giving up after 3 retries",
     "fragments missing"),
    ("[SSL: CERTIFICATE_VERIFY_FAILED] certificate verify failed: certificate has expired",
     "certificate not trusted"),
    ("Unable to connect to proxy: Tunnel connection failed: 407 Proxy Authentication Required",
     "proxy refuses"),
    ("HTTP Error 302: Found (redirect loop detected)", "leads nowhere"),
    ("Requested format is not available. Use --list-formats for a list of available formats",
     "page not understood"),
    ("Only images are available for download. use --list-formats to see them",
     "page not understood"),
    ("No video formats found!; please report this issue on https://github.com/yt-dlp/yt-dlp/issues",
     "page not understood"),
    ("n challenge solving failed: Some formats may be missing.", "page not understood"),
    ("No supported JavaScript runtime could be found. Only deno is enabled by default",
     "page not understood"),
    ("Failed to extract any player response", "page not understood"),
    ("The following content is not available on this app. Watch on the latest version of YouTube.",
     "page not understood"),
    ("The page needs to be reloaded.", "page not understood"),
    ("Video unavailable. This video is restricted. Please check the Google Workspace administrator"
     " and/or the network administrator restrictions.", "blocked by the network"),
    ("Premieres in 3 hours", "not yet shown"),
    ("This live event will begin in 5 days.", "not yet shown"),
    ("Please sign in. " + SIGN_IN, "needs an account"),
    ("This video is only available for registered users. " + SIGN_IN, "needs an account"),
    ("Video unavailable. This video is not available", "unavailable for now"),
    ("Video unavailable. This content isn't available.", "unavailable for now"),
    ("unable to write data: [Errno 28] No space left on device", "disk full"),
    ("Something nobody has seen", "unknown"),
]  # fmt: skip


@pytest.mark.parametrize(("message", "reason"), PERMANENT)
def test_what_will_not_come_back(message: str, reason: str) -> None:
    failure = classify(f"ERROR: [youtube] dQw4w9WgXcQ: {message}")
    assert (failure.reason, failure.permanent) == (reason, True)


@pytest.mark.parametrize(("message", "reason"), TRANSIENT)
def test_what_passes(message: str, reason: str) -> None:
    failure = classify(f"ERROR: [youtube] dQw4w9WgXcQ: {message}")
    assert (failure.reason, failure.permanent) == (reason, False)


def test_the_detail_is_what_was_said_in_one_line_with_the_remedy() -> None:
    said = "\x1b[0;31mERROR:\x1b[0m [youtube] -abc: Private\n  video; please report this issue on x"
    failure = classify(said)
    assert failure.detail == "Private video: pass cookies of an account that may see it"
    assert classify("ERROR: [generic] a: New!") == Failure("unknown", False, "New!")


def test_long_messages_are_cut() -> None:
    assert len(classify("x" * 10_000).detail) == 300


def test_an_error_without_words_has_its_kind_as_detail() -> None:
    assert classify(KeyError()).detail == "KeyError"


def test_a_title_or_id_with_the_words_of_a_rule_is_not_one() -> None:
    assert classify("ERROR: [generic] Private%20video-HTTP%20Error%20404: Eh?").reason == "unknown"


def test_findings_of_our_own_are_kept_however_deep() -> None:
    found = ClipUnavailable("too slow", permanent=False, detail="1 byte")
    cause = ExtractorError("HTTP Error 404", cause=found)
    error = DownloadError("HTTP Error 404", (type(cause), cause, None))
    assert classify(error) == Failure("too slow", False, "1 byte")


@pytest.mark.parametrize(
    ("header", "low", "high"),
    [
        ("7", 7, 7),
        ("-3", 0, 0),
        (timedelta(minutes=5), 200, 301),
        (timedelta(minutes=-5), 0, 0),
    ],
)
def test_how_long_to_stay_away(header: str | timedelta, low: float, high: float) -> None:
    if isinstance(header, timedelta):
        header = format_datetime(datetime.now(UTC) + header, usegmt=True)
    response = Response(BytesIO(), "http://x", {"Retry-After": header}, status=429)
    cause = ExtractorError("Unable to download", cause=HTTPError(response))
    failure = classify(DownloadError("HTTP Error 429", (type(cause), cause, None)))
    assert failure.reason == "rate limited"
    assert failure.retry_after_s is not None
    assert low <= failure.retry_after_s <= high


def test_nonsense_in_the_header_is_passed_over() -> None:
    response = Response(BytesIO(), "http://x", {"Retry-After": "soon"}, status=429)
    assert classify(HTTPError(response)).retry_after_s is None
