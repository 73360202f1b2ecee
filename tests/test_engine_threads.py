"""The compiled engine among threads, processes, caches and processors: right, and never hanging.

What may hang, crash the process or take another code path from the start runs in a process of its own, with a watchdog.
"""

from __future__ import annotations

import ctypes
import hashlib
import multiprocessing
import os
import stat
import subprocess
import sys
import textwrap
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from assertions import assert_close, of_layer, rounding
from strategies import lively

import mmref
import mmref.engine
from mmref.kernels import cache, program
from mmref.kernels.records import COPY_RELU, STEP, TEAM
from mmref.kernels.target import TARGET

WATCHDOG = 240  # seconds that no test here needs on the slowest machine; a hang ends there
ROWS, STEPS, CHANNELS = 37, 60, 16


def shift_chain():
    """(steps, source, target, records): step i writes row r of map i + 1 from row r + 1 of map i.

    Every share needs a row of its neighbour's from the step before: a barrier that lets one go early shows."""
    maps = np.zeros((STEPS + 1, ROWS + 1, CHANNELS), np.float32)
    records, steps = np.zeros(STEPS, COPY_RELU), np.zeros(STEPS, STEP)
    for i in range(STEPS):
        records[i] = (maps[i, 1:].ctypes.data, 4 * CHANNELS, ROWS, CHANNELS, maps[i + 1].ctypes.data, 4 * CHANNELS)
        steps[i] = (program.addresses()["copy_relu"], records[i:i + 1].ctypes.data, -1, 1)
    return steps, maps, records


def check_chain(run, turns, seed=0):
    """Run the chain over fresh values, `turns` times."""
    steps, maps, _records = shift_chain()
    rng = np.random.default_rng(seed)
    for _ in range(turns):
        maps[:] = 0
        maps[0, :ROWS] = rng.random((ROWS, CHANNELS), np.float32) + 1
        run(steps)
        for i in (1, STEPS // 2, STEPS):
            expected = np.zeros((ROWS, CHANNELS), np.float32)
            if i < ROWS:
                expected[:ROWS - i] = maps[0, i:ROWS]
            np.testing.assert_array_equal(maps[i, :ROWS], expected)


def in_process(code, *, prepare=None, **environment):
    """Run Python code in a new process under the watchdog, `prepare()` before; returns (stdout, stderr)."""
    env = {**os.environ, "PYTHONPATH": str(Path(__file__).parent), **environment}
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], env=env, timeout=WATCHDOG, text=True,
                          capture_output=True, preexec_fn=prepare)
    assert done.returncode == 0, (done.stdout + done.stderr)[-3000:]
    return done.stdout, done.stderr


@pytest.fixture(scope="module")
def model():
    return lively()


def picture(batch=1, height=40, width=56, seed=0):
    return np.random.default_rng(seed).standard_normal((batch, 3, height, width)).astype(np.float32)


@pytest.mark.skipif(sys.platform == "win32", reason="needs mprotect")
def test_kernels_ask_for_their_own_memory_only(tmp_path):
    """Catches a prefetch from an address that is not mapped: harmless, but Intel's processors then walk through the
    page tables each time, and the calibration measured that (56 GFLOP/s in place of 138)."""
    script = Path(__file__).with_name("asks_for_its_own.py")
    done = subprocess.run([sys.executable, script], env={**os.environ, "MMREF_CACHE_DIR": str(tmp_path)}, text=True,
                          timeout=WATCHDOG, capture_output=True)
    assert (done.returncode, done.stdout) == (0, "done"), done.stderr[-3000:]


# ---------------------------------------------------------------------------------------- teams

def layers():
    """Numba's threading layers that load in a new process, and none."""
    found = ["none"]
    for layer, module in (("omp", "omppool"), ("workqueue", "workqueue"), ("tbb", "tbbpool")):
        probe = [sys.executable, "-c", f"from numba.np.ufunc import {module}"]
        if subprocess.run(probe, capture_output=True, check=False).returncode == 0:
            found.append(layer)
    return found


@pytest.mark.parametrize("layer", layers())
def test_hammer(layer):
    """Catches deadlocks, early barriers and lost shares: teams of 1 to 16 on few cores, several Python threads at once,
    with pauses after which workers sleep, and beside a program that uses one of Numba's threading layers itself."""
    code = f"""
        import threading, time, numpy as np
        import test_engine_threads as t
        from mmref.kernels import program
        failures, done, layer = [], threading.Event(), {layer!r}
        def work(seed):
            try:
                rng = np.random.default_rng(seed)
                for turn in range(6):
                    for shares in (1, 2, 3, 4, 16):
                        t.check_chain(lambda steps: program.run(steps, shares), 4, seed + turn)
                        time.sleep(0.004 * rng.random())
            except BaseException as error:
                failures.append(repr(error))
        def neighbour():
            import numba
            @numba.njit(parallel=True)
            def add(x):
                for i in numba.prange(len(x)):
                    x[i] += 1
            x, turns = np.zeros(5000), 0
            while not done.is_set():
                add(x)
                turns += 1
            assert (x == turns).all() and numba.threading_layer() == layer, numba.threading_layer()
        threads = [threading.Thread(target=work, args=(100 * i,)) for i in range(3)]
        other = threading.Thread(target=neighbour) if layer != "none" else threading.Thread()
        for thread in (other, *threads): thread.start()
        for thread in threads: thread.join()
        done.set()
        other.join()
        assert not failures, failures
        print(program._workers.count)
    """
    out, err = in_process(code, NUMBA_THREADING_LAYER="default" if layer == "none" else layer, NUMBA_NUM_THREADS="4")
    assert out.strip() == "15" and "Traceback" not in err, err


def one_step(kernel):
    """A table of one step that calls a Python function once, as share 0 of the leader."""
    callback = ctypes.CFUNCTYPE(None, *[ctypes.c_int64] * 3)(lambda record, share, shares: kernel(share))
    steps = np.zeros(1, STEP)
    steps[0] = ctypes.cast(callback, ctypes.c_void_p).value, 0, -1, 1
    return steps, callback


def test_share_that_comes_late():
    """Catches a team that waits for a thread that never starts, and one that lets a thread in when work has begun."""
    workers = program.Workers()
    word = np.frombuffer((ctypes.c_char * TEAM.itemsize).from_address(workers.address), np.int64)
    ran, teams = [], []

    def kernel(share):
        ran.append(share)
        teams.append(int(word[0] & 0xFFFF))
        if len(ran) == 1:  # a worker appears in the middle of a job, finds it closed, and waits for the next
            threading.Thread(target=program.library().work, args=(workers.address,), daemon=True).start()
            time.sleep(0.05)
    steps, _callback = one_step(kernel)
    for _ in range(50):
        program.library().lead(workers.address, steps.ctypes.data, 1, 2, 0)
        assert sorted(ran[-2:]) == [0, 1] and len(ran) % 2 == 0
        if teams[-1] == 2:
            break
    assert teams[:2] == [1, 1] and teams[-1] == 2, teams
    check_chain(lambda steps: program.library().lead(workers.address, steps.ctypes.data, len(steps), 4, 0), 3)


def test_sleepers_are_woken():
    """Catches a wake-up that reaches nobody, or not everybody: workers that are never seen again once they have slept.

    A worker that a busy machine starts too late for the job goes back to sleep, and may do so unseen: so every job has
    a while to see them in, and there are as many jobs as it takes."""
    workers = program.Workers()
    word = np.frombuffer((ctypes.c_char * TEAM.itemsize).from_address(workers.address), np.int64)
    asleep = word[TEAM.fields["asleep"][1] // 8:][:1]
    awake = []  # the most that were seen at once, in each job

    def look(share):
        if share == 0:  # the leader's: workers join before, or come while it looks
            end, most = time.monotonic() + 0.1, int(word[0] & 0xFFFF) - 1
            while most < workers.count and time.monotonic() < end:
                most = max(most, workers.count - int(asleep[0]))
            awake.append(most)
    steps, _callback = one_step(look)
    workers.run(4, steps.ctypes.data, 1, 0)
    end = time.monotonic() + WATCHDOG
    while sum(most > 0 for most in awake[1:]) < 20 or max(awake[1:]) < 3:
        while asleep[0] < workers.count:
            assert time.monotonic() < end, f"{workers.count - asleep[0]} do not go to sleep"
            time.sleep(0.001)
        assert time.monotonic() < end, f"seen awake, job by job: {awake}"
        workers.run(4, steps.ctypes.data, 1, 0)


def test_process_ends_while_workers_live():
    """Catches threads that run in memory which the interpreter has freed: at exit they spin, sleep, or are at work."""
    for pause in ("0", "0.0005", "0.02"):
        code = f"""
            import threading, time, mmref, mmref.engine
            import test_engine_threads as t
            compiled = mmref.engine.CompiledModel(mmref.create_model("mobilemamba_nano", seed=3), threads=4)
            def forever():
                while True: compiled(t.picture(2))
            compiled(t.picture(1))
            if {pause} == 0:
                threading.Thread(target=forever, daemon=True).start()
            time.sleep({pause})
        """
        assert in_process(code) == ("", "")


def test_any_team_gives_the_same_bits(model):
    """Catches a result that depends on who computed it: 1 to 16 shares of 1 to 9 pictures, some of them whole pictures
    and some not, and repeats."""
    x = picture(9)
    expected = mmref.engine.CompiledModel(model, threads=1)(x)
    assert_close(expected, *rounding(of_layer(model, x)), dtype=np.float32)
    for threads in (1, 2, 4, 16):
        compiled = mmref.engine.CompiledModel(model, threads=threads)
        for batch in (*range(1, 10), 3, 3):
            np.testing.assert_array_equal(compiled(x[:batch]), expected[:batch])


def test_more_threads_than_cores(model):
    """Catches a spin barrier that starves: sixteen threads on this machine's cores, whole forwards."""
    code = """
        import numpy as np, mmref, mmref.engine
        import test_engine_threads as t
        model = mmref.create_model("mobilemamba_nano", seed=3)
        outs = [mmref.engine.CompiledModel(model, threads=n)(t.picture(5)) for n in (1, 16, None)]
        np.testing.assert_array_equal(outs[0], outs[1])
        np.testing.assert_array_equal(outs[0], outs[2])
        print(mmref.kernels.program._workers.count)
    """
    assert in_process(code)[0].strip() == "15"
    assert in_process("from mmref.kernels.program import threads_available as f; print(f())",
                      NUMBA_NUM_THREADS="3")[0].strip() == "3"


def test_concurrent_callers(model):
    """Catches callers that share activations: eight Python threads, one model, pictures of three sizes."""
    compiled = mmref.engine.CompiledModel(model, threads=2)
    pictures = [picture(1 + seed % 3, 32 + seed % 2, 48, seed) for seed in range(12)]
    expected = [compiled(x) for x in pictures]
    with ThreadPoolExecutor(8) as pool:
        for turn in range(4):
            order = np.random.default_rng(turn).permutation(len(pictures))
            for index, got in zip(order, pool.map(compiled, [pictures[i] for i in order]), strict=True):
                np.testing.assert_array_equal(got, expected[index])


# ------------------------------------------------------------------------------------ processes

@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_forked_child():
    """Catches a child that waits for its parent's threads, or for locks that were taken when it was forked: in pauses,
    and while another thread is at work."""
    code = """
        import os, signal, threading, warnings, numpy as np, mmref, mmref.engine
        import test_engine_threads as t
        from mmref.kernels import program
        warnings.simplefilter("ignore", DeprecationWarning)  # Python 3.12 and later advise against what is done here
        compiled = mmref.engine.CompiledModel(mmref.create_model("mobilemamba_nano", seed=3), threads=2)
        x = t.picture(2)
        expected, done = compiled(x), threading.Event()
        def forever():
            while not done.is_set(): compiled(x)
        busy = threading.Thread(target=forever)
        for turn in range(8):
            if turn == 2: busy.start()
            child = os.fork()
            if child == 0:
                signal.alarm(60)
                same = all(np.array_equal(compiled(x), expected) for _ in range(20))
                os._exit(0 if same and program._workers.count == 1 else 3)
            assert os.waitpid(child, 0)[1] == 0
        done.set()
        busy.join()
        np.testing.assert_array_equal(compiled(x), expected)
    """
    in_process(code)


def forward_of_pickle(compiled):
    return compiled(picture(2))


def test_spawned_child(model):
    """Catches a compiled model that does not survive pickling, which is how `spawn` hands it over."""
    compiled = mmref.engine.CompiledModel(model, threads=2)
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        np.testing.assert_array_equal(pool.apply_async(forward_of_pickle, (compiled,)).get(WATCHDOG),
                                      forward_of_pickle(compiled))


# ---------------------------------------------------------------------------------------- cache

LOAD = """
    import sys, numpy as np
    import test_engine_threads as t
    from mmref.kernels import program
    t.check_chain(lambda steps: program.run(steps, 2), 1)
    print("compiled" if "numba" in sys.modules else "loaded")
"""


@pytest.fixture(scope="module")
def filled(tmp_path_factory):
    """A cache folder with kernels in it."""
    folder = tmp_path_factory.mktemp("filled")
    out, err = in_process(LOAD, MMREF_CACHE_DIR=str(folder))
    assert out.strip() == "compiled" and "compiling kernels" in err
    return folder


def copy_of(filled, folder):
    """(folder, its file of kernels): a copy, private as the original."""
    folder.mkdir(mode=0o700)
    (original,) = filled.iterdir()
    path = folder / original.name
    path.write_bytes(original.read_bytes())
    path.chmod(0o600)
    return folder, path


def test_warm_start(filled):
    """Catches a cache that is not used, and a warm start that imports Numba, which would take longer than the rest."""
    assert in_process(LOAD, MMREF_CACHE_DIR=str(filled)) == ("loaded\n", "")


def test_damaged_cache(filled, tmp_path):
    """Catches a cache that is trusted when damaged: a flipped bit in machine code, a write cut short, an empty file, a
    file with a right checksum but without our functions. Each is mended by compiling."""
    folder, path = copy_of(filled, tmp_path / "cache")
    whole = path.read_bytes()
    flipped = bytearray(whole)
    flipped[len(whole) // 2] ^= 1
    for damaged in (bytes(flipped), whole[:-20], b""):
        path.write_bytes(damaged)
        assert cache_load(folder) is None
    import llvmlite.binding as llvm
    other = llvm.Target.from_default_triple().create_target_machine().emit_object(llvm.parse_assembly(""))
    path.write_bytes(hashlib.sha256(other).digest() + other)
    out, err = in_process(LOAD, MMREF_CACHE_DIR=str(folder))
    assert out.strip() == "compiled" and "cannot be loaded" in err and "Traceback" not in err
    assert cache_load(folder) is not None  # not the same bytes: some versions of LLVM order them otherwise


def cache_load(folder):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MMREF_CACHE_DIR", str(folder))
        return cache.load()


@pytest.mark.skipif(not hasattr(os, "getuid"), reason="no POSIX permissions here")
def test_whom_a_cache_is_trusted_from(filled, tmp_path, monkeypatch):
    """Catches machine code taken from where others can write: the file, its folder, or somebody else's."""
    folder, path = copy_of(filled, tmp_path / "cache")
    assert cache_load(folder) is not None
    for place, mode in ((path, 0o622), (path, 0o660), (folder, 0o777), (folder, 0o770)):
        before = stat.S_IMODE(place.stat().st_mode)
        place.chmod(mode)
        assert cache_load(folder) is None, (place, oct(mode))
        place.chmod(before)
    assert cache_load(folder) is not None
    monkeypatch.setattr(os, "getuid", lambda: path.stat().st_uid + 1)
    assert (cache_load(folder) is not None) == (path.stat().st_uid == 0)  # root's is everybody's
    folder.chmod(0o777)
    monkeypatch.setenv("MMREF_CACHE_DIR", str(folder))
    assert not cache.save(b"code") and len(list(folder.iterdir())) == 1


def obey_permissions():
    """For root, on Linux: lose the right to write where permissions forbid it (CAP_DAC_OVERRIDE, at the next exec)."""
    if os.getuid() == 0:
        ctypes.CDLL(None).prctl(24, 1, 0, 0, 0)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="drops a capability of Linux")
def test_read_only_cache(filled, tmp_path):
    """Catches a cache that must be written to be read, and one whose absence there is an error."""
    folder, path = copy_of(filled, tmp_path / "cache")
    path.chmod(0o444)
    for name, expected in (("full", "loaded"), ("empty", "compiled")):
        place = folder if name == "full" else tmp_path / "empty"
        place.mkdir(exist_ok=True)
        place.chmod(0o555)
        out, err = in_process(LOAD, prepare=obey_permissions, MMREF_CACHE_DIR=str(place))
        place.chmod(0o755)
        assert out.strip() == expected
        assert ("no private cache folder" in err) == (name == "empty")


def test_compiles_without_any_folder(tmp_path, monkeypatch):
    """Catches an engine that needs a cache (read-only installation, no home), and a folder made in vain."""
    (tmp_path / "file").write_text("")
    out, err = in_process(LOAD, MMREF_CACHE_DIR=str(tmp_path / "file"))
    assert out.strip() == "compiled" and "no private cache folder" in err
    monkeypatch.setenv("MMREF_CACHE_DIR", str(tmp_path / "new" / "deep"))
    assert cache.load() is None and not (tmp_path / "new").exists()
    assert cache.save(b"code") and cache.load() == b"code"
    assert [path.suffix for path in (tmp_path / "new" / "deep").iterdir()] == [""]  # no temporary file is left


def test_two_processes_compile_at_once(tmp_path):
    """Catches a file that one process reads while another is writing it."""
    with ThreadPoolExecutor(2) as pool:
        results = list(pool.map(lambda _: in_process(LOAD, MMREF_CACHE_DIR=str(tmp_path)), range(2)))
    assert all(out.strip() in ("compiled", "loaded") for out, _ in results)
    assert in_process(LOAD, MMREF_CACHE_DIR=str(tmp_path)) == ("loaded\n", "")


# ------------------------------------------------------------------------------ narrow processors

@pytest.mark.skipif(not TARGET.is_x86, reason="restricts x86 features")
@pytest.mark.parametrize("name, cpu, features", [
    ("AVX2", "haswell", "+avx,+avx2,+fma"),
    ("SSE", "x86-64", "+sse2"),
], ids=("AVX2", "SSE2"))
def test_narrow_processors(model, tmp_path, name, cpu, features):
    """Catches tiles and functions that only AVX-512 gets right: the same network, every kernel and every function, on
    the instructions of older ones."""
    code = f"""
        import json, numpy as np, mmref, mmref.engine
        import test_engine_threads as t
        import test_vector_math as v
        from mmref.kernels.target import TARGET
        assert TARGET.name == {name!r}, TARGET
        errors = {{(f, mode): v.worst(f, v.all_floats(10007), mode) for f in v.LIMITS for mode in v.MODES}}
        assert all(error <= v.LIMITS[f] for (f, _), error in errors.items()), errors
        compiled = mmref.engine.CompiledModel(t.lively())
        np.testing.assert_array_equal(compiled(t.picture(3))[1:2], compiled(t.picture(3)[1:2]))
        np.save({str(tmp_path / "logits.npy")!r}, compiled(t.picture(3)))
    """
    older = dict(NUMBA_CPU_NAME=cpu, NUMBA_CPU_FEATURES=features, MMREF_CACHE_DIR=str(tmp_path))
    in_process(code, **older)
    in_process("""
        import pytest
        import test_engine_threads as t
        raise SystemExit(pytest.main(["-q", "-x", *(str(t.Path(t.__file__).with_name(f"test_{name}.py"))
                                                    for name in ("kernels", "float_mode"))]))
    """, **older)
    assert_close(np.load(tmp_path / "logits.npy"), *rounding(of_layer(model, picture(3))), dtype=np.float32)
