"""How fast a clip is cut out of a video and sampled, against the way of the authors of AV-CIL.

    python -m benchmarks.trim [--video FILE --start SECONDS] [--runs N]

The authors' code begins with clips, and writes their pictures and sound as JPEGs and a wav: see
`decode.py`. Who has whole videos can cut them first, as ffmpeg does when it is told no more than
the time, or write JPEGs and wav straight out of the video, and has no clip then. Prints medians
over interleaved runs in one process, with the time of its children. Without --video, one is drawn:
20 s, 640 x 360, 25 pictures a second.
"""

from __future__ import annotations

import tempfile
from functools import partial
from pathlib import Path

from avbench.media.probe import validate
from avbench.media.trim import trim
from benchmarks import timing
from benchmarks.decode import authors_both, draw, ffmpeg, measure, ours

SECONDS = 10.0


def window(start_s: float) -> list[str]:
    """Return what tells ffmpeg the clip's time, before the input."""
    return ["-ss", str(start_s), "-t", str(SECONDS)]


def cut_by_ffmpeg(clip: Path, start_s: float, video: Path) -> None:
    """Cut by ffmpeg with no settings but one thread."""
    ffmpeg(*window(start_s), "-i", video, "-threads", "1", clip)


def cut_by_avbench(clip: Path, start_s: float, video: Path) -> None:
    """Cut as `prepare` does."""
    trim(video, clip, start_s=start_s, seconds=SECONDS)


def cut_and_checked(clip: Path, start_s: float, video: Path) -> None:
    """Cut as `prepare` does, and decode all of it to see that it is whole."""
    cut_by_avbench(clip, start_s, video)
    validate(clip, seconds=SECONDS)


def main() -> None:
    """Measure and print Markdown tables."""
    parser = timing.arguments(__doc__, "one run")
    parser.add_argument("--video", type=Path)
    parser.add_argument("--start", type=float, default=7.3)
    parser.add_argument("--runs", type=int, default=7)
    options = parser.parse_args()
    runs = 1 if options.quick else options.runs
    with tempfile.TemporaryDirectory() as folder:
        video = options.video or draw(Path(folder), 20)
        clip, start_s = Path(folder, "clip.mp4"), options.start
        by_ffmpeg, by_avbench, checked = (
            partial(way, clip, start_s) for way in (cut_by_ffmpeg, cut_by_avbench, cut_and_checked)
        )
        cuts = {"ffmpeg": by_ffmpeg, "avbench": by_avbench, "avbench, and checked": checked}
        measure(cuts, video, runs)
        print()
        whole = {
            "cut by ffmpeg, then the authors'": lambda v: (by_ffmpeg(v), authors_both(clip)),
            "the authors', straight out of the video": lambda v: authors_both(v, *window(start_s)),
            "avbench": lambda v: (by_avbench(v), ours(clip)),
            "avbench, and checked": lambda v: (checked(v), ours(clip)),
        }
        measure(whole, video, runs)


if __name__ == "__main__":
    main()
