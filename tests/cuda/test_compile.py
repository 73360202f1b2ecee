"""The compile check of the CUDA kernels (compile_kernels.py), and proof that it fails where it should."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("numba_cuda", reason='needs numba-cuda: pip install "mmref[test-cuda]"')

FOLDER = Path(__file__).parent
# A kernel with one fault, written as if it stood in kernels/cuda/pool.py or scan.py, and what the check must say.
MUTANTS = {
    "accumulator": ("pool", "mean_kernel", (4,), 1, "        total = ZERO\n", "        total = 0.0\n", "float64"),
    "division": ("pool", "mean_kernel", (4,), 1, "ONE / np.float32(np.int32(length))", "1 / length", "float64"),
    "constant": ("squeeze_excite", "gate_kernel", (1,), 1, "* factor", "* (factor + 0.1)", "float64"),
    "registers": ("scan", "scan_kernel", (16, 8, 16), 1, "STEPS = 8 ", "STEPS = 16 ", "registers, budget"),
    "spills": ("scan", "scan_kernel", (10, 32, 8), 8, "", "", "bytes of spilled registers"),
}
RUN = """
import sys
sys.path.insert(0, {folder!r})
import compile_kernels
from mmref.kernels.cuda import {module} as original
with open(original.__file__) as file:
    source = file.read()
assert {old!r} in source
path = {target!r}
with open(path, "w") as file:
    file.write(source.replace({old!r}, {new!r}))
from importlib.util import module_from_spec, spec_from_file_location
spec = spec_from_file_location("mutant", path)
mutant = module_from_spec(spec)
sys.modules["mutant"] = mutant
spec.loader.exec_module(mutant)
kernel = compile_kernels.compiler.Kernel("mutant", {factory!r}, {constants}, mutant.SIGNATURE, 256, {blocks})
found = compile_kernels.compile_kernel(kernel, (9, 0), compile_kernels.find_ptxas())
budget = compile_kernels.json.loads(compile_kernels.BUDGET.read_text())["{factory}{constants}"]
print(compile_kernels.faults("mutant", {{"9.0": found}}, budget))
"""


def test_every_kernel():
    """Catches a kernel that does not compile for a GPU, computes in float64, spills or outgrows its registers."""
    done = subprocess.run([sys.executable, str(FOLDER / "compile_kernels.py")], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("fault", MUTANTS)
def test_check_sees(fault, tmp_path):
    """Catches a check that passes whatever the compiler says."""
    module, factory, constants, blocks, old, new, expected = MUTANTS[fault]
    code = RUN.format(folder=str(FOLDER), module=module, factory=factory, constants=constants, blocks=blocks, old=old,
                      new=new, target=str(tmp_path / "mutant.py"))
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert expected in done.stdout, done.stdout
