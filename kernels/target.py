"""What this processor offers, and the register tile of the matrix product that fits it.

A vector is 16 float32 lanes everywhere (`LANES`): one AVX-512 register, two of AVX, four of SSE or NEON; LLVM splits
it. So the memory layout is the same on every machine, and only the tile differs. A tile of `rows` x `vectors`
accumulators must stay in registers, beside the `vectors` weights and one broadcast value of a step:

    AVX-512, 32 registers of 16 lanes   9 x 3: 27 accumulators + 3 weights + 1 value = 31
    AVX + FMA, 16 registers of 8        6 x 1: 12 + 2 + 1 = 15
    SSE or AVX alone, 16 registers of 4 2 x 1:  8 + 4 + 1 = 13
    NEON, 32 registers of 4             6 x 1: 24 + 4 + 1 = 29

Numba's own variables NUMBA_CPU_NAME, NUMBA_CPU_FEATURES and NUMBA_ENABLE_AVX=0 restrict the features, and this module
obeys them: that is how the tests run the narrow tiles on a wide machine. Numba itself is not imported: a process that
finds its kernels in the cache does not need it.
"""

from __future__ import annotations

import os
from typing import NamedTuple

import llvmlite.binding as llvm

LANES = 16
FLOAT_BYTES = 4
VECTOR_BYTES = LANES * FLOAT_BYTES


class Target(NamedTuple):
    """What the kernels ask about a processor."""

    name: str           # "AVX-512", "AVX2", "SSE", "NEON" or "generic"
    tile_rows: int      # rows of the largest matrix-product tile
    tile_vectors: int   # its vectors of 16 columns
    has_fma: bool       # a fused multiply-add instruction (without one, llvm.fma is a slow library call)
    has_scalef: bool    # AVX-512's x * 2**n, which overflows and underflows as it should
    is_x86: bool        # whether the spin-wait hint `pause` exists


def describe(triple: str, features: str) -> Target:
    """The Target of an LLVM triple and a feature string such as "+avx2,+fma,-avx512f"."""
    enabled = {feature[1:] for feature in features.split(",") if feature.startswith("+")}
    is_x86 = triple.split("-")[0] in ("x86_64", "i686", "i386")
    if not is_x86:
        is_arm64 = triple.startswith(("aarch64", "arm64"))
        return Target("NEON" if is_arm64 else "generic", 6 if is_arm64 else 2, 1, is_arm64, False, False)
    if "avx512f" in enabled:
        return Target("AVX-512", 9, 3, True, True, True)
    if "avx2" in enabled and "fma" in enabled:
        return Target("AVX2", 6, 1, True, False, True)
    return Target("SSE", 2, 1, False, False, True)


def processor() -> tuple[str, str, str]:
    """(LLVM triple, processor's name, features) that kernels are compiled for: this machine, or what variables say."""
    name, features = os.environ.get("NUMBA_CPU_NAME"), os.environ.get("NUMBA_CPU_FEATURES")
    if features is None:
        found = llvm.get_host_cpu_features()
        if os.environ.get("NUMBA_ENABLE_AVX") == "0":
            found.update({feature: False for feature in found if feature.startswith("avx")})
        features = "" if name == "generic" else found.flatten()
    return llvm.get_process_triple(), name or llvm.get_host_cpu_name(), features


TRIPLE, CPU_NAME, CPU_FEATURES = processor()
TARGET = describe(TRIPLE, CPU_FEATURES)


TABLE_VECTORS = 4                                       # entry [rows * TABLE_VECTORS + vectors] of the table of tiles
TABLE_SIZE = (TARGET.tile_rows + 1) * TABLE_VECTORS


def round_up(count: int, step: int = LANES) -> int:
    """The smallest multiple of `step` that is not below `count`."""
    return -(-count // step) * step
