"""Files are written whole or not at all, and one process at a time."""

from __future__ import annotations

import os
import threading
from pathlib import Path
from types import SimpleNamespace

import pytest

from avbench import resources
from avbench.resources import alone, home, replacing, writing
from avbench.types import AvbenchError
from tests.helpers.processes import all_wait_for_a_lock, wait_for


def test_the_smallest_limit_on_memory_holds(tmp_path, monkeypatch):
    machine = resources.memory_limit()
    (tmp_path / "inner").write_text("max\n")
    (tmp_path / "outer").write_text("4096\n")
    names = ("inner", "outer", "gone")
    monkeypatch.setattr(resources, "_memory_limits", lambda: [tmp_path / name for name in names])
    assert resources.memory_limit() == 4096 < machine


def test_what_fails_leaves_what_was_there(tmp_path):
    target = tmp_path / "a.txt"
    target.write_text("old")
    with pytest.raises(RuntimeError), replacing(target) as temporary:
        temporary.write_text("half")
        raise RuntimeError
    assert target.read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["a.txt"]


def test_a_folder_is_never_replaced_by_a_file(tmp_path):
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious" / "thesis.txt").write_text("years")
    with (
        pytest.raises(AvbenchError, match="precious: it is a folder"),
        replacing(tmp_path / "precious") as temporary,
    ):
        temporary.write_text("x")
    assert (tmp_path / "precious" / "thesis.txt").read_text() == "years"


@pytest.mark.parametrize("folder", ["/proc/nope", "x" * 300])
def test_a_folder_that_cannot_be_made(tmp_path, folder):
    place = tmp_path / folder / "deep"
    told = f"cannot write {tmp_path / folder}.*: no folder can be made there: choose another place"
    with pytest.raises(AvbenchError, match=told), writing(place):
        place.mkdir(parents=True)


def test_a_file_that_is_gone_is_not_taken_for_a_folder(tmp_path):
    with pytest.raises(FileNotFoundError, match="gone"), writing(tmp_path):
        (tmp_path / "gone").read_text()


def test_a_device_is_never_replaced():
    with pytest.raises(AvbenchError, match="it is a device"), replacing(Path("/dev/null")):
        pass
    assert Path("/dev/null").is_char_device()


def test_a_folder_that_fails_leaves_the_old_one(tmp_path):
    target = tmp_path / "store"
    with replacing(target, folder=True) as temporary:
        (temporary / "a").write_text("1")
    with pytest.raises(RuntimeError), replacing(target, folder=True) as temporary:
        (temporary / "a").write_text("2")
        raise RuntimeError
    assert (target / "a").read_text() == "1"
    with replacing(target, folder=True) as temporary:
        (temporary / "b").write_text("3")
    assert [path.name for path in target.iterdir()] == ["b"]


def test_a_lock_is_held_once_and_clears_what_a_killed_run_left(tmp_path):
    (tmp_path / ".partial-x").mkdir(parents=True)
    with alone(tmp_path, "at work"):
        assert not (tmp_path / ".partial-x").exists()
        with (
            pytest.raises(AvbenchError, match="another run is at work"),
            alone(tmp_path, "at work"),
        ):
            pass
    with alone(tmp_path, "at work"):
        pass


def test_a_lock_whose_file_its_holder_removed_is_taken_anew(tmp_path):
    inside, leave = threading.Event(), threading.Event()

    def wait():
        with alone(tmp_path, "waiting", wait=True):
            inside.set()
            leave.wait(60)

    waiting = threading.Thread(target=wait, daemon=True)
    with alone(tmp_path, "removing"):
        waiting.start()
        wait_for(lambda: all_wait_for_a_lock([SimpleNamespace(pid=os.getpid())]))
        (tmp_path / ".lock").unlink()
    assert inside.wait(60)
    with (
        pytest.raises(AvbenchError, match="another run is waiting"),
        alone(tmp_path, "a third"),
    ):
        pass
    leave.set()
    waiting.join()


def test_a_home_of_nobody(monkeypatch):
    monkeypatch.setenv("AVBENCH_HOME", "~no-such-user/x")
    with pytest.raises(AvbenchError, match="set AVBENCH_HOME"):
        home()
