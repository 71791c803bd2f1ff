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
from typing import Any

import numpy as np
import numpy.typing as npt

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
        _check(_opened(temporary))


def _opened(path: Path) -> ctypes.CDLL:
    library = ctypes.CDLL(str(path))
    for name, pointers in _POINTERS.items():
        function = getattr(library, name)
        sizes = [ctypes.c_ssize_t] * 4
        function.argtypes = [ctypes.c_void_p] * pointers + sizes + [ctypes.c_int]
        function.restype = None
    return library


def _check(library: ctypes.CDLL) -> None:
    """Compare what a compiler made with the equations of `attention.py`.

    Raises:
        ValueError: If they differ.
    """
    random = np.random.default_rng(0)
    shape = (2, 2, 5, 37)  # not of whole vectors
    clips, frames, _, dim = shape

    def draw(*shape: int) -> npt.NDArray[np.float32]:
        return random.standard_normal(shape, dtype=np.float32)

    projected, tokens, reference = draw(*shape), draw(*shape), draw(*shape)
    bias, query = draw(dim), np.tanh(draw(clips, dim))
    u, v, z, r, db, dq = (np.empty((clips, frames, dim), np.float32) for _ in range(6))
    du, dv, dz, dr = (draw(clips, frames, dim) for _ in range(4))
    keys, d = projected.copy(), np.empty_like(tokens)

    def call(name: str, *arrays: npt.NDArray[np.float32]) -> None:
        getattr(library, name)(*(array.ctypes.data for array in arrays), *shape, 1)

    call("attention_forward", keys, bias, tokens, query, reference, u, v, z, r)
    call("attention_backward", keys, tokens, query, reference, u, v, z, du, dv, dz, dr, d, db, dq)

    p, q = np.tanh(projected.astype(np.float64) + bias), query[:, None, None]
    e = np.exp(q * p)
    z_, dz_, du_, dv_, dr_ = (x[:, :, None] for x in (e.sum(2), dz, du, dv, dr))
    u_, v_ = (((e * x).sum(2) / e.sum(2))[:, :, None] for x in (p, tokens))
    ds = e / z_ * (du_ * (p - u_) + dv_ * (tokens - v_)) + e * dz_
    dp = (q * ds + e / z_ * du_ + reference * dr_) * (1 - p**2)
    expected: dict[str, tuple[Any, Any]] = {
        "keys": (keys, p),
        "scores": (u, u_[:, :, 0]),
        "values": (v, v_[:, :, 0]),
        "sums": (z, e.sum(2)),
        "reference": (r, (reference * p).sum(2)),
        "gradient": (d, dp),
        "gradient of the bias": (db, dp.sum(2)),
        "gradient of the query": (dq, (ds * p).sum(2)),
    }
    for what, (found, wanted) in expected.items():
        if not np.allclose(found, wanted, rtol=1e-4, atol=1e-5):
            raise ValueError(f"what the compiler made gets {what} wrong")
