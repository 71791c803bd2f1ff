"""What is installed is whole: the wheel alone, used from another folder."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """Build the wheel and install it beside, not into, this environment."""
    folder = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "build", "--wheel", "--outdir", folder / "dist", ROOT]
    subprocess.run(build, check=True, capture_output=True)
    (wheel,) = (folder / "dist").glob("*.whl")
    install = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target"]
    subprocess.run([*install, folder / "site", wheel], check=True, capture_output=True)
    return folder


def run(folder: Path, *arguments: str) -> str:
    """Run a Python of which the wheel is the first thing on the path."""
    result = subprocess.run(
        [sys.executable, *arguments],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(folder / "site"), "AVBENCH_HOME": str(folder / "home")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    return result.stdout


def test_the_wheel_is_what_runs(installed):
    code = "import avbench, reference_methods; print(avbench.__file__, reference_methods.__file__)"
    for path in run(installed, "-c", code).split():
        assert path.startswith(str(installed / "site"))


def test_splits_boards_methods_and_recipes_are_inside(installed):
    assert run(installed, "-m", "avbench", "splits", "verify").count("ok  ") == 5
    assert "paper-av-cil" in run(installed, "-m", "avbench", "leaderboard", "show", "vs100-ci")
    assert "finetune" in run(installed, "-m", "avbench", "list")
    assert "my-method" in run(installed, "-m", "avbench", "new-method", "my-method")
    assert (installed / "my-method" / "my_method" / "recipes.toml").is_file()
    code = (
        "from avbench import registry\n"
        "for name in registry.registered('methods'):\n"
        "    method = registry.load('methods', name)\n"
        "    assert method.recipes.is_file(), method.recipes\n"
    )
    run(installed, "-c", code)
    numbers = (
        "from avbench.evaluation.grid import paper; print(paper()['table3']['ave-ci']['none'])"
    )
    assert run(installed, "-c", numbers) == "62.15\n"
