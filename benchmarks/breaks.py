"""Break the code on purpose, fault by fault, and see whether the tests of its room notice.

    python -m benchmarks.breaks [ROOM ...] [--faults FILE]

Works on the checkout it runs in, which must have no changes, and restores every file.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tomllib
from pathlib import Path

from benchmarks import timing

ROOT = Path(__file__).parents[1]
FAULTS = Path(__file__).with_suffix(".toml")


def faults(path: Path) -> list[dict[str, str]]:
    """Read a list of faults: room, file, and a text of the file that becomes another."""
    found: list[dict[str, str]] = tomllib.loads(path.read_text(encoding="utf-8"))["break"]
    return found


def tests_of(room: str) -> list[Path]:
    """Return the tests of a room: a folder, or files whose names begin with the room's."""
    folder = ROOT / "tests" / room
    return [folder] if folder.is_dir() else sorted(folder.parent.glob(f"test_{room}*.py"))


def noticed_by(fault: dict[str, str]) -> str:
    """Return the first test that fails with a fault in place; nothing if all pass."""
    path = ROOT / fault["file"]
    whole = path.read_text(encoding="utf-8")
    if whole.count(fault["was"]) != 1:
        raise SystemExit(f"{fault['file']}: {fault['was']!r} must be there once: mend {FAULTS}")
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-rfE", "-p", "no:cacheprovider"]
    try:
        path.write_text(whole.replace(fault["was"], fault["becomes"]), encoding="utf-8")
        ran = subprocess.run(
            [*command, *map(str, tests_of(fault["room"]))],
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=False,
        )
    finally:
        path.write_text(whole, encoding="utf-8")
    if ran.returncode == 0:
        return ""
    failed = [line for line in ran.stdout.splitlines() if line.startswith(("FAILED", "ERROR"))]
    if not failed:
        raise SystemExit(f"pytest itself failed:\n{ran.stdout}{ran.stderr}")
    return failed[0].split(" - ")[0].partition(" ")[2]


def _cell(text: str) -> str:
    return f"`{' '.join(text.split())}`".replace("|", "\\|")


def main() -> None:
    """Print a row a fault."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("rooms", nargs="*", metavar="ROOM", help="such as media; all by default")
    parser.add_argument("--faults", type=Path, default=FAULTS, help="a list such as breaks.toml")
    given = parser.parse_args()
    status = ["git", "status", "--porcelain", "--", "avbench", "reference_methods"]
    if subprocess.run(status, cwd=ROOT, capture_output=True, check=True).stdout:
        parser.error("avbench or reference_methods has changes: commit them first")
    timing.show(
        ["file", "was", "becomes", "noticed by"],
        (
            [
                *(_cell(fault[key]) for key in ("file", "was", "becomes")),
                noticed_by(fault) or "nothing",
            ]
            for fault in faults(given.faults)
            if not given.rooms or fault["room"] in given.rooms
        ),
    )


if __name__ == "__main__":
    main()
