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

needs_triton = pytest.mark.skipif(find_spec("triton") is None, reason="no Triton")
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")


@needs_triton
@pytest.mark.parametrize("interpreted", ["1", pytest.param("0", marks=needs_gpu)])
def test_numbers(interpreted):
    file = Path(__file__).with_name("attention_triton_numbers.py")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(file)]
    environment = os.environ | {"TRITON_INTERPRET": interpreted}
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stdout + ended.stderr


def compiled(program, tile, capability, refers):
    """Compile at the width of real features, as a launch would."""
    import triton
    from triton.backends.compiler import GPUTarget

    constants = {"cells": 196, **tile}
    if not refers:
        constants |= dict.fromkeys(("reference", "referred", "d_referred"))
    constants = {name: constants[name] for name in program.arg_names if name in constants}
    types = dict.fromkeys(program.arg_names, "*fp32")
    types |= {"frames": "i32", "dim": "i32"} | dict.fromkeys(constants, "constexpr")
    aligned = [name for name in types if name != "frames" and name not in constants]
    sixteenths = {(program.arg_names.index(name),): [["tt.divisibility", 16]] for name in aligned}
    source = triton.compiler.ASTSource(program, types, constants, sixteenths)
    return triton.compile(source, target=GPUTarget("cuda", capability, 32))


@needs_triton
@pytest.mark.parametrize("capability", [80, 90])
@pytest.mark.parametrize("refers", [False, True])
def test_kernels_compile_for_a_gpu_into_wide_loads_and_registers(
    capability, refers, tmp_path, monkeypatch
):
    import triton

    from avbench.learning import attention_triton

    tools = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
    if not all((tools / name).exists() for name in ("ptxas", "cuobjdump")):
        pytest.skip("this Triton comes without NVIDIA's assembler")
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    for program in (attention_triton._pool, attention_triton._differentiate):
        made = compiled(program, attention_triton._TILE, capability, refers)
        # Tokens, keys and maps, two cells a thread; nothing of a map that there is not.
        assert made.asm["ptx"].count("ld.global.v4") == (6 if refers else 4)
        assert "tensor<8x128xi64>" in made.asm["ttir"]  # offsets, beyond what 32 bits can say
        (tmp_path / "cubin").write_bytes(made.asm["cubin"])
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
