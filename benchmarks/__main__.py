"""Run all benchmarks, or some, and write a dated page of what they measured.

    python -m benchmarks [NAME ...] [--quick] [--out FOLDER]

Each runs in a process of its own. One that fails is named on the page, and the exit code is 1.
"""

from __future__ import annotations

import datetime
import subprocess
import sys
from pathlib import Path

from benchmarks import timing

# The quickest first. Not parity, which needs results to compare with.
NAMES = (
    *("splits", "score", "prepare", "attention", "trim", "decode", "leaderboard", "forecast"),
    *("reads", "runs", "growth", "training", "memory"),
)
RESULTS = Path(__file__).parent / "results"


def section(name: str, quick: bool) -> tuple[str, bool]:
    """Run a benchmark; return its section of the page, and whether it went well."""
    try:
        found = timing.alone(f"benchmarks.{name}", *(["--quick"] if quick else [])).strip()
    except subprocess.CalledProcessError as error:
        return f"## {name}\n\nFailed with exit code {error.returncode}.\n", False
    return f"## {name}\n\n{found}\n", True


def main() -> int:
    """Run the benchmarks; return the exit code."""
    parser = timing.arguments(__doc__, "of every benchmark")
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(NAMES)}")
    parser.add_argument("--out", type=Path, default=RESULTS, help="where the page is written")
    given = parser.parse_args()
    if unknown := set(given.names) - set(NAMES):
        parser.error(f"no benchmark {', '.join(sorted(unknown))}: choose from {', '.join(NAMES)}")
    today = datetime.datetime.now(datetime.UTC).date().isoformat()
    page = given.out / f"{'-'.join([today, *given.names, *['quick'] * given.quick])}.md"
    note = "Medians, and in brackets the smallest and the largest of all turns."
    parts = [f"# Benchmarks of {today}\n\n{note}\n\n{timing.machine()}\n"]
    well = True
    for name in given.names or NAMES:
        text, ended_well = section(name, given.quick)
        print(text, flush=True)
        parts.append(text)
        well &= ended_well
    given.out.mkdir(parents=True, exist_ok=True)
    page.write_text("\n".join(parts), encoding="utf-8")
    print(f"wrote {page}")
    return 0 if well else 1


if __name__ == "__main__":
    sys.exit(main())
