"""The floating-point mode that kernels run in: round to nearest, no traps, denormal numbers flushed to zero.

A denormal number (below 1.2e-38) costs a processor a hundred cycles or more wherever one is read or results; a picture
scaled by 1e-38, or an untrained network's decays, would take ten times as long. The kernels read and write zero in its
place: an error below the smallest normal number. The reference in NumPy keeps denormals.

A thread enters this mode when it begins to walk a table of steps, and gets back on its way out what it had before, to
the last bit of the register, flags included. The mode is set as a whole, so that the caller's rounding or traps change
no result, and a team's threads compute alike whoever started them.

    x86      MXCSR: FTZ (results) and DAZ (operands) set, all exceptions masked
    ARM64    FPCR: FZ set (both)
    others   nothing is changed
"""

from __future__ import annotations

from llvmlite import ir
from numba import types
from numba.core import cgutils

from mmref.kernels.target import TARGET
from mmref.kernels.vector import BYTE_POINTER, INT32, INT64, call, operation

X86_MODE = 1 << 15 | 0x3F << 7 | 1 << 6  # FTZ, the six exceptions masked, DAZ
ARM64_MODE = 1 << 24                     # FZ


def _memory_for_mxcsr(builder):
    """(where the 32 bits of MXCSR are loaded and stored, the same as the instructions take it)."""
    cell = cgutils.alloca_once(builder, INT32)
    return cell, builder.bitcast(cell, BYTE_POINTER)


def _emit_set(builder, mode):
    """Write the control register; `mode` is an int64."""
    if TARGET.is_x86:
        cell, address = _memory_for_mxcsr(builder)
        builder.store(builder.trunc(mode, INT32), cell)
        call(builder, "llvm.x86.sse.ldmxcsr", ir.VoidType(), [address])
    elif TARGET.name == "NEON":
        call(builder, "llvm.aarch64.set.fpcr", ir.VoidType(), [mode])


def _emit_get(builder):
    """Read the control register, as an int64."""
    if TARGET.is_x86:
        cell, address = _memory_for_mxcsr(builder)
        call(builder, "llvm.x86.sse.stmxcsr", ir.VoidType(), [address])
        return builder.zext(builder.load(cell), INT64)
    if TARGET.name == "NEON":
        return call(builder, "llvm.aarch64.get.fpcr", INT64, [])
    return INT64(0)


@operation(types.int64)
def float_mode(builder):
    """This thread's floating-point control register."""
    return _emit_get(builder)


@operation(types.void, types.int64)
def set_float_mode(builder, mode):
    """Set this thread's floating-point control register to a value that `float_mode` or `enter_kernels` returned."""
    _emit_set(builder, mode)


@operation(types.int64)
def enter_kernels(builder):
    """Put this thread into the mode of the kernels; returns the one it was in."""
    before = _emit_get(builder)
    _emit_set(builder, INT64(X86_MODE if TARGET.is_x86 else ARM64_MODE))
    return before
