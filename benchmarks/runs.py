"""Whole runs on toy-ci, as a user starts them: one of AV-CIL, and all methods by joblib's loky.

The clips of toy-ci are drawn and their features extracted first, in a new folder: that is told, but
is no run. Time is that of the whole command, from Python's start to the last plot.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from benchmarks import timing

AVBENCH = str(Path(sys.executable).with_name("avbench"))
COMMANDS = {
    "prepare toy-ci": (),
    "evaluate --method avcil --benchmark toy-ci --seeds 0": ("--out", "one"),
    "reproduce table1 --benchmark toy-ci --backend loky": ("--out", "all"),
}


def measure(folder: Path, epochs: list[str]) -> Iterator[list[object]]:
    """Run the commands in a folder; yield a row of each."""
    environment = os.environ | {"AVBENCH_HOME": str(folder / "home")}
    for command, more in COMMANDS.items():
        samples: list[timing.Sample] = []
        given = [*command.split(), *more, *(epochs if more else [])]
        with timing.timed(samples):
            subprocess.run(
                [AVBENCH, *given], cwd=folder, env=environment, check=True, capture_output=True
            )
        (sample,) = samples
        busy = f"{sample.cpu / sample.wall:.1f} of {len(os.sched_getaffinity(0))}"
        yield [f"avbench {command}", f"{sample.wall:.0f}", f"{sample.cpu:.0f}", busy]


def main() -> None:
    """Measure and print a Markdown table."""
    parser = timing.arguments(__doc__, "one epoch a step")
    epochs = ["--set", "epochs=1"] if parser.parse_args().quick else []
    with tempfile.TemporaryDirectory() as name:
        header = ["command", "clock, s", "CPU, s", "cores busy"]
        timing.show(header, measure(Path(name), epochs))


if __name__ == "__main__":
    main()
