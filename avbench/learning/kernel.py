"""The attention kernel in C, compiled once by the user's own compiler."""

from __future__ import annotations

import ctypes
import hashlib
import logging
import os
import platform
import shlex
import shutil
import subprocess
from functools import cache
from pathlib import Path

from avbench.resources import replacing
from avbench.types import AvbenchError

_SOURCE = Path(__file__).with_name("attention.c")
# Without errno and traps loops of rintf and divisions become vectors; NaN stays NaN, unlike with
# -ffast-math.
_FLAGS = ("-O3", "-march=native", "-fno-math-errno", "-fno-trapping-math", "-fopenmp")
_POINTERS = {"attention_forward": 9, "attention_backward": 14}

_log = logging.getLogger(__name__)


@cache
def load() -> ctypes.CDLL | None:
    """Return the kernel, compiled if this machine has not done so yet; None without a compiler.

    It lies in the user's cache folder under a name that tells source, compiler and processor.
    Whatever goes wrong is logged, once a process: plain torch does the same more slowly.
    """
    try:
        compiler = shlex.split(os.environ.get("CC") or "cc")
        program = shutil.which(compiler[0])
        if program is None:
            raise FileNotFoundError(f"no C compiler {compiler[0]}")
        path = _folder() / f"attention-{_key(program, compiler)}.so"
        if not path.is_file():
            _compile([program, *compiler[1:]], path)
        return _opened(path)
    except (OSError, AttributeError, IndexError, ValueError, AvbenchError) as error:
        _slower(str(error))
    except subprocess.SubprocessError as error:
        said = (getattr(error, "stderr", None) or str(error)).strip().splitlines()
        _slower(said[0] if said else str(error))
    return None


def _slower(reason: str) -> None:
    _log.warning("attention runs on plain torch, about half as fast (%s)", reason)


def _folder() -> Path:
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "avbench" / "kernels"


def _key(program: str, compiler: list[str]) -> str:
    """Return a hash of all that the compiled file depends on."""
    real = Path(program).resolve()
    about = real.stat()
    parts = [_SOURCE.read_text(encoding="utf-8"), *_FLAGS, *compiler, real, about.st_size]
    parts += [about.st_mtime_ns, platform.platform(), _processor()]
    return hashlib.sha256("\n".join(map(str, parts)).encode()).hexdigest()[:32]


def _processor() -> str:
    """Return what tells processors apart that do not know the same instructions."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    told = ("model name", "flags", "features", "cpu part")
    return "\n".join(sorted({line for line in lines if line.lower().startswith(told)}))


def _compile(compiler: list[str], path: Path) -> None:
    """Compile, and put in place whole or not at all: processes may do so side by side."""
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    with replacing(path) as temporary:
        command = [
            *compiler,
            *_FLAGS,
            "-shared",
            "-fPIC",
            str(_SOURCE),
            "-o",
            str(temporary),
            "-lm",
        ]
        subprocess.run(command, check=True, capture_output=True, text=True, timeout=120)
        _opened(temporary)


def _opened(path: Path) -> ctypes.CDLL:
    library = ctypes.CDLL(str(path))
    for name, pointers in _POINTERS.items():
        function = getattr(library, name)
        sizes = [ctypes.c_ssize_t] * 4
        function.argtypes = [ctypes.c_void_p] * pointers + sizes + [ctypes.c_int]
        function.restype = None
    return library
