"""The kernels for ARM64, compiled here, and a forward of them on an emulated processor where there is an emulator."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from assertions import assert_close, of_layer, rounding
from strategies import lively
from test_engine_threads import WATCHDOG, picture

HERE = Path(__file__).parent
COMPILER, EMULATOR = shutil.which("aarch64-linux-gnu-gcc"), shutil.which("qemu-aarch64-static")
SYSTEM = {"clock_gettime", "sched_yield", "sched_getcpu", "sched_getaffinity", "sched_setaffinity", "memset", "memcpy",
          *(f"pthread_{name}" for name in ("mutex_init", "mutex_lock", "mutex_unlock", "cond_init", "cond_wait",
                                           "cond_broadcast"))}

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux") or sys.maxsize < 2**32, reason="64-bit Linux only")


@pytest.fixture(scope="module")
def compiled(tmp_path_factory):
    """Folder with kernels and image."""
    folder = tmp_path_factory.mktemp("arm64")
    environment = {**os.environ, "PYTHONPATH": str(HERE)}
    done = subprocess.run([sys.executable, HERE / "arm64_image.py", folder], env=environment, timeout=WATCHDOG,
                          capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return folder


def test_code_is_what_the_tile_was_chosen_for(compiled):
    """Catches a multiply-add or a function that becomes a library call, and accumulators that do not stay in registers:
    the largest tile's inner loop has one `fmla` for each of 6 x 4 registers, and writes nothing to memory."""
    text = (compiled / "kernels.s").read_text()
    calls = set(re.findall(r"^\tbl\t(\w+)$", text, re.MULTILINE))
    assert {name for name in calls if not name.startswith(("_Z", "mmref_"))} <= SYSTEM
    tile = text[text.index("\nmmref_tile_6_1:"):]
    tile = tile[:tile.index(".Lfunc_end")]
    blocks = re.split(r"^\.LBB\S+:.*$", tile, flags=re.MULTILINE)
    inner = max(blocks, key=lambda block: block.count("fmla"))
    assert inner.count("\tfmla\t") % 24 == 0 and inner.count("\tfmla\t") > 0
    assert not re.search(r"^\tst[rp]\t", inner, re.MULTILINE)


@pytest.mark.skipif(not (COMPILER and EMULATOR), reason="needs qemu-user-static and gcc-aarch64-linux-gnu")
def test_forward(compiled):
    """Catches what only another processor shows: its tile, its rounding, its weaker order of memory accesses between
    threads (as far as an emulator has it), its floating-point mode. Logits are those of the NumPy model, a team's equal
    to one thread's; the driver says by its exit status what else it saw."""
    program = compiled / "driver"
    subprocess.run([COMPILER, "-O1", "-static", "-pthread", HERE / "arm64_driver.c", compiled / "kernels.o", "-o",
                    program], check=True, timeout=WATCHDOG)
    subprocess.run([EMULATOR, program, compiled / "image.bin", compiled / "logits.bin"], check=True, timeout=WATCHDOG)
    expected, tolerance = rounding(of_layer(lively(), picture(3)))
    assert_close(np.fromfile(compiled / "logits.bin", np.float32).reshape(expected.shape), expected, tolerance,
                 dtype=np.float32)
