"""What a figure was measured on."""

from __future__ import annotations

import os
import platform
from importlib.metadata import PackageNotFoundError, version

from mmref.cores import usable_cores

LIBRARIES = ("mmref", "numpy", "numba", "torch", "onnx", "onnxruntime", "openvino")


def versions(packages) -> dict[str, str]:
    """Of those packages that are installed."""
    found = {}
    for name in packages:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def describe_machine() -> dict:
    """Processor, logical processors, vector instructions, system, load, and the versions of what takes part."""
    cpu, flags = _cpu()
    return {"cpu": cpu, "cores": usable_cores(), "vector": flags, "system": f"{platform.system()} {platform.machine()}",
            "python": platform.python_version(), "libraries": versions(LIBRARIES), "load_before": _load()}


def _cpu():
    entries = {}
    try:
        with open("/proc/cpuinfo") as file:
            for line in file:
                key, _, value = line.partition(":")
                entries.setdefault(key.strip(), value.strip())
    except OSError:
        pass
    flags = set((entries.get("flags") or entries.get("Features") or "").split())
    name = entries.get("model name") or platform.processor() or platform.machine()
    return name, [flag for flag in ("sse4_2", "avx2", "fma", "avx512f", "amx_tile", "asimd") if flag in flags]


def _load():
    """Processes that wanted a processor, averaged over the last minute; a quiet machine has next to none."""
    return round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None
