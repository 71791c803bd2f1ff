"""avbench as a user types it: in this process, or in one of its own."""

from __future__ import annotations

import os
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import pytest
from click.testing import CliRunner, Result

from avbench.cli import main

# What Python does not show to users of a program.
_HIDDEN = (DeprecationWarning, PendingDeprecationWarning, ImportWarning, ResourceWarning)
_WARNINGS: WeakKeyDictionary[Result, list[warnings.WarningMessage]] = WeakKeyDictionary()

AVBENCH = Path(sys.executable).with_name("avbench")


def run_here(
    *arguments: object, folder: Path, env: dict[str, str] | None = None, expect: int = 0
) -> Result:
    """Run a command in this process, in a folder; fail unless it ends with an exit code."""
    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings(record=True) as told:
        patch.chdir(folder)
        result = CliRunner(env=env).invoke(main, [*map(str, arguments)], prog_name="avbench")
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == expect, result.output
    _WARNINGS[result] = [w for w in told if not issubclass(w.category, _HIDDEN)]
    return result


def run_apart(
    *arguments: object,
    folder: Path,
    env: dict[str, str] | None = None,
    expect: int = 0,
    **options: Any,
) -> subprocess.CompletedProcess[str]:
    """Run a command in a process of its own; options are those of `subprocess.run`."""
    result = subprocess.run(
        [AVBENCH, *map(str, arguments)],
        cwd=folder,
        env=os.environ | (env or {}),
        capture_output=True,
        text=True,
        check=False,
        timeout=900,
        **options,
    )
    assert result.returncode == expect, result.stderr
    assert "Traceback" not in result.stderr
    return result


def one_line(result: Result | subprocess.CompletedProcess[str]) -> str:
    """Return the line a command said on standard error; fail if there were more."""
    lines = result.stderr.strip().splitlines()
    assert len(lines) == 1, result.stderr
    assert not (isinstance(result, Result) and _WARNINGS[result])
    return str(lines[0])
