"""How fast clips are decoded and sampled, against the way of the authors of AV-CIL.

    python -m benchmarks.decode [--clip FILE] [--runs N] [--workers N]

The authors write all pictures of a clip as JPEGs at 8 a second by ffmpeg, and open 16 of them by
PIL. Prints medians over interleaved runs in one process, with the time of its children; then clips
a second by threads and by processes. Without --clip, one is drawn and cut: 10 s, 640 x 360, 25
pictures a second.
"""

from __future__ import annotations

import subprocess
import tempfile
import time
import wave
from collections.abc import Callable
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image

from avbench.features.decode import decode, frame_numbers
from avbench.media.ffmpeg import binary
from avbench.media.trim import trim
from benchmarks import timing

SIDE, PICTURES, RATE = 224, 16, 8


def ffmpeg(*arguments: str | Path) -> None:
    """Run ffmpeg with one thread for each of decoding and filtering."""
    quiet = ["-nostdin", "-v", "error", "-y", "-threads", "1", "-filter_threads", "1"]
    subprocess.run([binary(), *quiet, *map(str, arguments)], check=True)


def draw(folder: Path, seconds: int) -> Path:
    """Draw a video that is as hard to decode as a real one."""
    video = folder / "video.mp4"
    zoom = "mandelbrot=size=640x360:rate=25:start_scale=1.2:end_scale=0.02"
    noise = f"anoisesrc=r=44100:a=0.3:d={seconds}:seed=1"
    ffmpeg(
        *("-f", "lavfi", "-i", f"{zoom}:end_pts={26 * seconds}", "-f", "lavfi", "-i", noise),
        *("-vf", "noise=alls=6:allf=t:all_seed=1,format=yuv420p", "-t", str(seconds)),
        *("-c:v", "libx264", "-preset", "veryfast", "-ac", "2", "-c:a", "aac", video),
    )
    return video


def authors_pictures(clip: Path, *window: str) -> np.ndarray:
    """JPEGs by ffmpeg, sixteen of them opened, scaled and cut by PIL."""
    with tempfile.TemporaryDirectory() as folder:
        ffmpeg(*window, "-i", clip, "-an", "-vf", f"fps={RATE}", f"{folder}/%05d.jpg")
        files = sorted(Path(folder).iterdir())
        return np.stack(
            [cut(Image.open(files[n - 1])) for n in frame_numbers(len(files), PICTURES)]
        )


def cut(picture: Image.Image) -> np.ndarray:
    """Scale the shorter side and cut the middle out, as VideoMAE's image processor does."""
    scale = SIDE / min(picture.size)
    width, height = (int(side * scale) for side in picture.size)
    left, top = (width - SIDE) // 2, (height - SIDE) // 2
    scaled = picture.convert("RGB").resize((width, height), Image.Resampling.BILINEAR)
    return np.asarray(scaled.crop((left, top, left + SIDE, top + SIDE)))


def authors_both(clip: Path, *window: str) -> np.ndarray:
    """The same, and the sound by way of a wav."""
    with tempfile.TemporaryDirectory() as folder:
        ffmpeg(*window, "-i", clip, "-vn", "-ar", "44100", "-ac", "2", f"{folder}/sound.wav")
        with wave.open(f"{folder}/sound.wav") as sound:
            sound.readframes(sound.getnframes())
    return authors_pictures(clip, *window)


def ours(clip: Path) -> np.ndarray:
    """Pictures and sound as the preset avcil has them."""
    return decode(
        clip,
        frames=PICTURES,
        height=SIDE,
        width=SIDE,
        sample_rate=44_100,
        rate=RATE,
        crop=True,
        stereo=True,
    ).pictures


def measure(ways: dict[str, Callable[[Path], object]], clip: Path, runs: int) -> None:
    """Print CPU and wall time of each way, run by turns."""
    found = timing.by_turns({name: partial(way, clip) for name, way in ways.items()}, runs)
    first = next(iter(found.values()))
    rows = []
    for name, samples in found.items():
        clocks = [timing.spread([1000 * s for s in each], 0) for each in zip(*samples, strict=True)]
        rows.append([name, *clocks, *timing.ratios(first, samples)])
    clocks = ["CPU, ms a clip", "wall, ms a clip", "CPU, times less", "wall, times less"]
    print(timing.table(["way", *clocks], rows))


def pooled(pool: Callable[[int], Executor], workers: int, clip: Path, count: int) -> timing.Sample:
    """Return the seconds a pool of workers needs for a clip."""
    begun_cpu = timing.cpu_s()
    with pool(workers) as executor:
        list(executor.map(ours, [clip] * workers))  # every worker has begun
        begun = time.perf_counter()
        list(executor.map(ours, [clip] * count))
        wall = (time.perf_counter() - begun) / count
    # The time of processes shows when they have ended.
    return timing.Sample((timing.cpu_s() - begun_cpu) / (workers + count), wall)


def scale(clip: Path, runs: int, workers: int) -> None:
    """Print clips a second by threads and by processes, run by turns, and how far they scale.

    On a busy machine the clock tells little. CPU time tells what waiting for each other costs: as
    much a clip with two processes as with one means twice the clips where each has a core.
    """
    pools: dict[str, Callable[[int], Executor]] = {
        "threads": ThreadPoolExecutor,
        "processes": ProcessPoolExecutor,
    }
    ways = [(name, count) for count in range(1, workers + 1) for name in pools]
    found: dict[tuple[str, int], list[timing.Sample]] = {way: [] for way in ways}
    for _ in range(min(runs, 5)):
        for name, count in ways:
            found[name, count].append(pooled(pools[name], count, clip, runs))
    rows = []
    for name, count in ways:
        samples, alone = found[name, count], found[name, 1]
        turns = list(zip(alone, samples, strict=True))
        rows.append(
            [
                f"{count} {name}",
                timing.spread([1 / s.wall for s in samples]),
                timing.spread([1000 * s.cpu for s in samples], 0),
                timing.spread([one.wall / s.wall for one, s in turns]),
                timing.spread([count * one.cpu / s.cpu for one, s in turns]),
            ]
        )
    times = ["times one worker's, by the clock", "by CPU time"]
    print(timing.table(["workers", "clips/s", "CPU, ms a clip", *times], rows))


def main() -> None:
    """Measure and print Markdown tables."""
    parser = timing.arguments(__doc__, "one run")
    parser.add_argument("--clip", type=Path)
    parser.add_argument("--runs", type=int, default=15)
    parser.add_argument("--workers", type=int, default=2)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        clip = options.clip or Path(folder, "clip.mp4")
        if not options.clip:
            trim(draw(Path(folder), 10), clip, start_s=None, seconds=10.0)
        ways = {
            "authors', pictures only": authors_pictures,
            "authors', pictures and sound": authors_both,
            "avbench, pictures and sound": ours,
        }
        runs = 1 if options.quick else options.runs
        measure(ways, clip, runs)
        print()
        scale(clip, runs, options.workers)


if __name__ == "__main__":
    main()
