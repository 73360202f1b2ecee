"""From a kernel's text to machine code for one compute capability, kept between processes, several at a time.

Numba makes PTX of a kernel, NVIDIA's nvJitLink makes machine code (a cubin) of the PTX; neither needs a GPU, and the
compile check of the tests takes the same way. A kernel takes about a second and Numba compiles one at a time in a
process, so more than a few are shared out to processes of our own, which get a kernel a line and answer with its code.

What was compiled is kept in the cache folder under the rules of mmref/kernels/cache.py: a file a kernel, its name a
hash of everything the code depends on. Code that cannot be kept or read is compiled again, with a line on stderr.
"""

from __future__ import annotations

import base64
import hashlib
import importlib.metadata
import json
import os
import queue
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import cache as once
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace

from mmref.cores import usable_cores
from mmref.errors import MissingBackend
from mmref.kernels import cache

FEW = 3  # kernels that are compiled in this process: another needs two seconds to start
TOOLS = ("numba-cuda", "numba", "llvmlite", "cuda-bindings", "cuda-core", "nvidia-nvvm", "nvidia-nvjitlink",
         "nvidia-cuda-nvrtc", "cuda-toolkit")
NOT_KERNELS = ("twins.py", "ops.py", "launch.py")  # beside them; no kernel's code depends on these


@dataclass(frozen=True)
class Kernel:
    """What a kernel is compiled from: `module`.`factory`(*constants), for arguments of the types in `signature`.

    threads: the most that a block has. blocks: how many a multiprocessor should hold at least, which limits a thread's
    registers."""

    module: str
    factory: str
    constants: tuple
    signature: str
    threads: int
    blocks: int = 1

    def function(self):
        """The Python function that Numba compiles."""
        return getattr(import_module(self.module), self.factory)(*self.constants)

    def __str__(self):
        return f"{self.factory}{self.constants}"


@dataclass(frozen=True)
class Code:
    """Machine code, and the name its entry has in it."""

    entry: str
    cubin: bytes


class CompileError(MissingBackend):
    """A kernel that Numba or nvJitLink refuses: versions that do not go together, or a bug of ours."""


# ------------------------------------------------------------------------------------------- one kernel

def compile_ptx(kernel: Kernel, capability: tuple[int, int]) -> str:
    """PTX of a whole kernel, device functions inlined."""
    from mmref.kernels.cuda.driver import cuda
    ptx, _ = cuda.compile(kernel.function(), kernel.signature, device=False, abi="numba", cc=capability,
                          launch_bounds=(kernel.threads, max(kernel.blocks, 1)))
    return ptx


def entry_of(ptx: str) -> str:
    """The name of the one kernel in a text of PTX."""
    found = re.findall(r"\.entry\s+([\w$]+)\s*\(", ptx)
    if len(found) != 1:
        raise CompileError(f"PTX must have one entry, got {len(found)}")
    return found[0]


def assemble(ptx: str, capability: tuple[int, int]) -> Code:
    """Machine code of PTX."""
    from cuda.core import Linker, LinkerOptions, ObjectCode
    linker = Linker(ObjectCode.from_ptx(ptx.encode()), options=LinkerOptions(arch=f"sm_{capability[0]}{capability[1]}"))
    return Code(entry_of(ptx), bytes(linker.link("cubin").code))


def compile_here(kernel: Kernel, capability: tuple[int, int]) -> Code:
    """A kernel's machine code, compiled in this process."""
    try:
        return assemble(compile_ptx(kernel, capability), capability)
    except Exception as error:  # Numba and cuda.core have classes of their own
        raise CompileError(f"{kernel}: {type(error).__name__}: {' '.join(str(error).split())[:600]}") from error


# ----------------------------------------------------------------------------------------------- kept

@once
def _surroundings() -> str:
    """Everything that kernels' code depends on beyond the kernel: our sources, and the versions of the tools."""
    digest = hashlib.sha256()
    for path in sorted(Path(__file__).parent.glob("*.py")):
        if path.name not in NOT_KERNELS:
            digest.update(path.name.encode() + b"\0" + path.read_bytes())
    return digest.hexdigest() + repr([_version(name) for name in TOOLS])


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:  # CUDA from a toolkit on the machine
        return None


def kept_name(kernel: Kernel, capability: tuple[int, int], driver: int) -> str:
    """Name of the file a kernel is kept in. `driver`: the CUDA version it supports, as cuDriverGetVersion says."""
    what = repr((_surroundings(), os.environ.get("CUDA_HOME"), kernel, capability, driver))
    return f"cuda-{hashlib.sha256(what.encode()).hexdigest()[:24]}"


def read(kernel: Kernel, capability: tuple[int, int], driver: int) -> Code | None:
    """Code kept by an earlier process."""
    data = cache.read(kept_name(kernel, capability, driver))
    if data is None:
        return None
    entry, _, cubin = data.partition(b"\0")
    return Code(entry.decode(), cubin)


def keep(kernel: Kernel, code: Code, capability: tuple[int, int], driver: int) -> bool:
    """Keep code for later processes; False where no private folder can be written."""
    return cache.keep(kept_name(kernel, capability, driver), code.entry.encode() + b"\0" + code.cubin)


# ------------------------------------------------------------------------------------------ many kernels

def compile_all(kernels: Sequence[Kernel], capability: tuple[int, int], processes: int | None = None
                ) -> Iterator[tuple[Kernel, Code]]:
    """(kernel, code) of each, in the order in which they come out; CompileError for one that cannot be compiled.

    processes: how many to share them out to; None for one per core that this process may use, none for a few kernels.
    A process that cannot be started, or ends, costs time only: its kernels are compiled here, and stderr says so."""
    if processes is None:
        cores = usable_cores()
        processes = 0 if len(kernels) <= FEW or cores == 1 else min(cores, len(kernels))
    waiting, done = queue.SimpleQueue(), queue.SimpleQueue()
    for kernel in kernels:
        waiting.put(kernel)
    left = set(kernels)
    if processes:
        with ThreadPoolExecutor(processes) as pool:
            workers = [Worker(capability) for _ in range(processes)]
            try:
                ends = [pool.submit(worker.work, waiting, done) for worker in workers]
                for end in ends:
                    end.add_done_callback(lambda _: done.put(None))
                running = len(ends)
                while running:
                    item = done.get()
                    if item is None:
                        running -= 1
                        continue
                    kernel, code = item
                    if isinstance(code, Exception):
                        raise code
                    left.discard(kernel)
                    yield kernel, code
            finally:
                for worker in workers:
                    worker.stop()
        for failure in {worker.failure for worker in workers if worker.failure}:
            print(f"mmref: a process that compiles CUDA kernels ended ({failure}); the others go on, or this one",
                  file=sys.stderr)
    for kernel in [kernel for kernel in kernels if kernel in left]:
        yield kernel, compile_here(kernel, capability)


class Worker:
    """A process that compiles what it is sent. `failure`: why it ended early, in words."""

    # A fresh interpreter, not multiprocessing: that would import the caller's main module again. It finds mmref where
    # we found it.
    START = ("import json, sys; sys.path[:] = json.loads(sys.argv[1]); "
             "from mmref.kernels.cuda.compiler import serve; serve(tuple(json.loads(sys.argv[2])))")

    def __init__(self, capability: tuple[int, int]):
        self.failure, self.process = "", None
        self.words = tempfile.TemporaryFile("w+")
        try:
            self.process = subprocess.Popen([sys.executable, "-c", self.START, json.dumps(sys.path),
                                             json.dumps(capability)], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                                            stderr=self.words, text=True)
        except (OSError, ValueError) as error:  # no interpreter of its own: Python inside another program
            self.failure = str(error)

    def work(self, waiting: queue.SimpleQueue, done: queue.SimpleQueue) -> None:
        """Have kernels compiled until none wait: (kernel, Code or CompileError) each."""
        while not self.failure:
            try:
                kernel = waiting.get_nowait()
            except queue.Empty:
                return
            try:
                self.process.stdin.write(json.dumps(asdict(kernel)) + "\n")
                self.process.stdin.flush()
                reply = json.loads(self.process.stdout.readline())
            except (OSError, ValueError):
                self.failure = self._last_words()
                return
            done.put((kernel, CompileError(reply["error"]) if "error" in reply else
                      Code(reply["entry"], base64.b64decode(reply["cubin"]))))

    def _last_words(self) -> str:
        self.words.seek(0)
        lines = [line for line in self.words.read().splitlines() if line.strip()]
        return " ".join(lines[-1].split())[:300] if lines else "without a word"

    def stop(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process.stdin.close()
            self.process.stdout.close()
        self.words.close()


def serve(capability: tuple[int, int]) -> None:
    """What a Worker's process does: a kernel a line on stdin, its code a line on stdout. Uses no GPU."""
    import signal
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to act upon
    replies = os.fdopen(os.dup(sys.stdout.fileno()), "w")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # what libraries print must not look like a reply
    without_a_device(capability)
    for line in sys.stdin:
        fields = json.loads(line)
        try:
            code = compile_here(Kernel(**fields | {"constants": tuple(fields["constants"])}), capability)
            reply = {"entry": code.entry, "cubin": base64.b64encode(code.cubin).decode()}
        except CompileError as error:
            reply = {"error": str(error)}
        print(json.dumps(reply), file=replies, flush=True)


def without_a_device(capability: tuple[int, int]) -> None:
    """Let this process compile for a capability without asking for a GPU: Numba asks for the current one's capability
    whenever a kernel calls a device function. Only for processes that do nothing but compile."""
    from mmref.kernels.cuda.driver import cuda
    cuda.dispatcher.get_current_device = lambda: SimpleNamespace(compute_capability=capability)
