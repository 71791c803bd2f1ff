"""The attention kernels, in C for a CPU and in Triton for a GPU: compiled here, and checked."""

from __future__ import annotations

import ctypes
import hashlib
import logging
import os
import platform
import shlex
import shutil
import subprocess
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

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
    """Return the kernel in C, compiled if this machine has not done so; None without a compiler.

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


@cache
def load_triton(device: torch.device) -> ModuleType | None:
    """Return the kernels in Triton, checked on a device; None where they do not work.

    Triton comes with torch on Linux; it keeps what it compiles in the user's home. Whatever goes
    wrong is logged, once a process and device: plain torch does the same more slowly.
    """

    def call(function: Callable[..., None], *arrays: npt.NDArray[np.float32] | None) -> None:
        tensors = [None if a is None else torch.from_numpy(a).to(device) for a in arrays]
        function(*tensors)
        for array, tensor in zip(arrays, tensors, strict=True):
            if array is not None and tensor is not None:
                array[...] = tensor.cpu().numpy()

    try:
        from avbench.learning import attention_triton

        _check(
            partial(call, attention_triton.attention_forward),
            partial(call, attention_triton.attention_backward),
            dim=144,  # read in wide loads, as real tokens are, but not of whole tiles
        )
        return attention_triton
    except Exception as error:  # a compiler, a driver, a GPU: each raises what it likes
        _slower(f"{type(error).__name__}: {error}".splitlines()[0])
    return None


def _slower(reason: str) -> None:
    _log.warning("attention runs on plain torch, which is slower (%s)", reason)


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
        library = _opened(temporary)

        def call(function: Callable[..., None], *arrays: npt.NDArray[np.float32] | None) -> None:
            pointers = (None if array is None else array.ctypes.data for array in arrays)
            assert arrays[0] is not None
            function(*pointers, *arrays[0].shape, 1)

        _check(
            partial(call, library.attention_forward),
            partial(call, library.attention_backward),
            dim=37,  # not of whole vectors
        )


def _opened(path: Path) -> ctypes.CDLL:
    library = ctypes.CDLL(str(path))
    for name, pointers in _POINTERS.items():
        function = getattr(library, name)
        sizes = [ctypes.c_ssize_t] * 4
        function.argtypes = [ctypes.c_void_p] * pointers + sizes + [ctypes.c_int]
        function.restype = None
    return library


def _check(forward: Callable[..., None], backward: Callable[..., None], dim: int) -> None:
    """Compare what a compiler made with the equations of `attention.py`.

    Args:
        forward: Takes arrays as `_forward` there takes tensors, and writes into them.
        backward: As `_backward` there.
        dim: How wide tokens are.

    Raises:
        ValueError: If they differ.
    """
    random = np.random.default_rng(0)
    clips, frames, cells = 2, 2, 21

    def draw(*shape: int) -> npt.NDArray[np.float32]:
        return random.standard_normal(shape, dtype=np.float32)

    projected, tokens, maps = (draw(clips, frames, cells, dim) for _ in range(3))
    bias, query = draw(dim), np.tanh(draw(clips, dim))
    du, dv, dz, dr = (draw(clips, frames, dim) for _ in range(4))
    p, q = np.tanh(projected.astype(np.float64) + bias), query[:, None, None]
    e = np.exp(q * p)
    z_, dz_, du_, dv_, dr_ = (x[:, :, None] for x in (e.sum(2), dz, du, dv, dr))
    u_, v_ = (((e * x).sum(2) / e.sum(2))[:, :, None] for x in (p, tokens))
    ds = e / z_ * (du_ * (p - u_) + dv_ * (tokens - v_)) + e * dz_
    dp = (q * ds + e / z_ * du_) * (1 - p**2)
    for reference in (None, maps):
        u, v, z, r, db, dq = (np.full_like(du, np.nan) for _ in range(6))
        keys, d = projected.copy(), np.full_like(tokens, np.nan)
        referred, d_referred = (None, None) if reference is None else (r, dr)
        forward(keys, bias, tokens, query, reference, u, v, z, referred)
        backward(
            *(keys, tokens, query, reference, u, v, z),
            *(du, dv, dz, d_referred, d, db, dq),
        )
        expected: dict[str, tuple[Any, Any]] = {
            "keys": (keys, p),
            "scores": (u, u_[:, :, 0]),
            "values": (v, v_[:, :, 0]),
            "sums": (z, e.sum(2)),
        }
        if reference is not None:
            dp = dp + reference * dr_ * (1 - p**2)
            expected["reference"] = r, (reference * p).sum(2)
        expected["gradient"] = d, dp
        expected["gradient of the bias"] = db, dp.sum(2)
        expected["gradient of the query"] = dq, (ds * p).sum(2)
        for what, (found, wanted) in expected.items():
            if not np.allclose(found, wanted, rtol=1e-4, atol=1e-5):
                raise ValueError(f"what the compiler made gets {what} wrong")
