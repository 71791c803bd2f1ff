"""The kernels in Triton: what they compute, that they compile for GPUs, what replaces them."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import avbench.learning
from avbench.learning import attention, kernel
from tests.helpers.attention import inputs, with_gradients

PROGRAMS = ("_pool", "_differentiate")

needs_triton = pytest.mark.skipif(find_spec("triton") is None, reason="no Triton")
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")


@pytest.mark.slow
@needs_triton
@pytest.mark.parametrize("interpreted", ["1", pytest.param("0", marks=needs_gpu)])
def test_numbers(interpreted):
    file = Path(__file__).with_name("attention_triton_numbers.py")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(file)]
    environment = os.environ | {"TRITON_INTERPRET": interpreted}
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stdout + ended.stderr


class Compiling:
    """In place of a program: compiles it for what it would be launched with."""

    def __init__(self, program):
        self.program = program
        self.made = None

    def __getitem__(self, grid):
        def compile_only(*arguments, **constants):
            self.made = self.program.warmup(*arguments, grid=grid, **constants)

        return compile_only


@pytest.mark.slow
@needs_triton
@pytest.mark.parametrize("capability", [80, 90])
@pytest.mark.parametrize("referring", [0, 1])
def test_kernels_compile_for_a_gpu_into_wide_loads_and_registers(
    capability, referring, tmp_path, monkeypatch
):
    import triton
    from triton.backends.compiler import GPUTarget

    from avbench.learning import attention_triton

    def by_triton(name, *tensors):
        getattr(attention_triton, name)(*tensors)
        return True

    tools = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
    if not all((tools / name).exists() for name in ("ptxas", "cuobjdump")):
        pytest.skip("this Triton comes without NVIDIA's assembler")
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setattr(attention, "_by_kernel", by_triton)
    target = GPUTarget("cuda", capability, 32)
    # What is compiled for a device is remembered by its number.
    gpu = {"get_current_target": lambda: target, "get_current_device": lambda: capability}
    gpu["get_current_stream"] = lambda device: 0
    monkeypatch.setattr(triton.runtime.driver, "_active", SimpleNamespace(**gpu))
    programs = {name: Compiling(getattr(attention_triton, name)) for name in PROGRAMS}
    for name, program in programs.items():
        monkeypatch.setattr(attention_triton, name, program)
    sizes = {"clips": 1, "frames": 8, "cells": 196, "dim": 768}  # of real features
    with_gradients(attention.attend, *inputs(torch.float32, **sizes, referring=referring))
    for program in programs.values():
        # Tokens, keys and maps, two cells a thread; nothing of a map that there is not.
        assert program.made.asm["ptx"].count("ld.global.v4") == (6 if referring else 4)
        assert "tensor<8x128xi64>" in program.made.asm["ttir"]  # offsets: 32 bits are too few
        (tmp_path / "cubin").write_bytes(program.made.asm["cubin"])
        command = [tools / "cuobjdump", "--dump-resource-usage", tmp_path / "cubin"]
        said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        used = {name: int(number) for name, number in re.findall(r"(\w+):(\d+)", said)}
        assert used["STACK"] == used["LOCAL"] == 0
        assert used["REG"] <= 96  # five programs side by side


@needs_triton
def test_where_kernels_cannot_run_torch_does_it(caplog):
    assert kernel.load_triton.__wrapped__(torch.device("cpu")) is None
    (record,) = caplog.records
    assert "plain torch" in record.message
    assert "\n" not in record.message


def test_without_triton_torch_does_it(monkeypatch, caplog):
    monkeypatch.setitem(sys.modules, "triton", None)
    monkeypatch.delitem(sys.modules, "avbench.learning.attention_triton", raising=False)
    monkeypatch.delattr(avbench.learning, "attention_triton", raising=False)
    assert kernel.load_triton.__wrapped__(torch.device("cpu")) is None
    (record,) = caplog.records
    assert "plain torch" in record.message


def test_tensors_on_a_gpu_go_to_triton_if_it_runs_there(monkeypatch):
    called = []
    made = SimpleNamespace(attention_forward=lambda *tensors: called.append(tensors))
    on_gpu = SimpleNamespace(device=torch.device("cuda", 1), dtype=torch.float32)
    monkeypatch.setattr(kernel, "load_triton", {on_gpu.device: made}.get)
    assert attention._by_kernel("attention_forward", on_gpu, None)
    assert called == [(on_gpu, None)]
    double = SimpleNamespace(device=on_gpu.device, dtype=torch.float64)
    elsewhere = SimpleNamespace(device=torch.device("cuda", 0), dtype=torch.float32)
    assert not attention._by_kernel("attention_forward", double, None)
    assert not attention._by_kernel("attention_forward", elsewhere, None)
    assert len(called) == 1
