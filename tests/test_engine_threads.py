"""The compiled engine among threads, processes, caches and processors: right, and never hanging.

What may hang, crash the process or take another code path from the start runs in a process of its own, with a watchdog.
"""

from __future__ import annotations

import multiprocessing
import os
import subprocess
import sys
import textwrap
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numba
import numpy as np
import pytest
from assertions import assert_close

import mmref
import mmref.engine
from mmref.kernels import cache, program
from mmref.kernels.records import COPY_RELU, STEP
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


def in_process(code, **environment):
    """Run Python code in a new process under the watchdog; returns (stdout, stderr)."""
    env = {**os.environ, "PYTHONPATH": str(Path(__file__).parent), **environment}
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], env=env, timeout=WATCHDOG, text=True,
                          capture_output=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout, done.stderr


@pytest.fixture(scope="module")
def model():
    return mmref.create_model("mobilemamba_nano", seed=3)


def picture(batch=1, height=40, width=56, seed=0):
    return np.random.default_rng(seed).standard_normal((batch, 3, height, width)).astype(np.float32)


# ---------------------------------------------------------------------------------------- teams

def layers():
    """Threading layers that load in a new process (here, another package may have brought a TBB along)."""
    code = "from numba.np.ufunc import tbbpool"
    probe = subprocess.run([sys.executable, "-c", code], capture_output=True, check=False)
    return ["omp", "workqueue", "tbb"] if probe.returncode == 0 else ["omp", "workqueue"]


@pytest.mark.parametrize("layer", layers())
def test_hammer(layer):
    """Catches deadlocks, early barriers and lost shares: teams of 1 to 16 on few cores, several Python threads at once,
    under every threading layer there is. (workqueue aborts the process where two threads enter it together.)"""
    code = """
        import threading, numpy as np
        import test_engine_threads as t
        from mmref.kernels import program
        failures = []
        def work(seed):
            try:
                for turn in range(6):
                    for shares in (1, 2, 3, 4, 16):
                        t.check_chain(lambda steps: program.run(steps, shares), 4, seed + turn)
            except BaseException as error:
                failures.append(repr(error))
        threads = [threading.Thread(target=work, args=(100 * i,)) for i in range(3)]
        for thread in threads: thread.start()
        for thread in threads: thread.join()
        assert not failures, failures
        import numba
        print(numba.threading_layer())
    """
    out, _ = in_process(code, NUMBA_THREADING_LAYER=layer, NUMBA_NUM_THREADS="4")
    assert out.strip() == layer


def test_share_that_comes_late():
    """Catches a team that waits for a thread that never starts: all shares of the region run one after the other."""
    def run(steps):
        state = np.zeros(program.STATE_WORDS, np.int64)
        before = numba.get_num_threads()
        numba.set_num_threads(1)
        try:
            program.library().parallel(steps.ctypes.data, len(steps), state.ctypes.data, 4, 0)
        finally:
            numba.set_num_threads(before)
        assert state[0] == (1 << 32) + 1  # closed, with one member
    check_chain(run, 3)


def test_any_team_gives_the_same_bits(model):
    """Catches a result that depends on who computed it: 1 to 16 shares, by one thread and by several, and repeats."""
    x = picture(3)
    expected = mmref.engine.CompiledModel(model, threads=1)(x)
    assert_close(expected, model(x), 5e-6)
    for threads in (1, 2, 4, 16):
        compiled = mmref.engine.CompiledModel(model, threads=threads)
        for _ in range(3):
            np.testing.assert_array_equal(compiled(x), expected)


def test_more_threads_than_cores(model):
    """Catches a spin barrier that starves: sixteen threads on this machine's cores, whole forwards."""
    code = """
        import numpy as np, mmref, mmref.engine
        import test_engine_threads as t
        model = mmref.create_model("mobilemamba_nano", seed=3)
        outs = [mmref.engine.CompiledModel(model, threads=n)(t.picture(5)) for n in (1, 16)]
        np.testing.assert_array_equal(*outs)
        print(mmref.kernels.program.threads_available())
    """
    assert in_process(code, NUMBA_NUM_THREADS="16")[0].strip() == "16"


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
    """Catches OpenMP's end of a forked child that uses its parent's threads, and locks that stay locked in it."""
    code = """
        import os, signal, numpy as np, mmref, mmref.engine
        import test_engine_threads as t
        compiled = mmref.engine.CompiledModel(mmref.create_model("mobilemamba_nano", seed=3), threads=2)
        x = t.picture(2)
        expected = compiled(x)
        for _ in range(3):
            child = os.fork()
            if child == 0:
                signal.alarm(60)
                os._exit(0 if np.array_equal(compiled(x), expected) else 3)
            assert os.waitpid(child, 0)[1] == 0
        np.testing.assert_array_equal(compiled(x), expected)
    """
    in_process(code, NUMBA_NUM_THREADS="2")


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
    import sys
    from mmref.kernels import program
    program.library()
    from mmref.kernels.depthwise import depthwise_conv2d
    import numpy as np
    y = depthwise_conv2d(np.ones((1, 1, 4, 4), np.float32), np.ones((1, 1, 3, 3), np.float32), padding=1)
    assert y[0, 0, 1, 1] == 9 and y[0, 0, 0, 0] == 4
    print(sum(hits for f in [program.library().serial] for hits in f.stats.cache_hits.values()))
"""


def test_cache_cold_warm_corrupt(tmp_path):
    """Catches a cache that is not used, one that is trusted when damaged, and silence while it compiles."""
    out, err = in_process(LOAD, MMREF_CACHE_DIR=str(tmp_path))
    assert out.strip() == "0" and "compiling kernels" in err
    out, err = in_process(LOAD, MMREF_CACHE_DIR=str(tmp_path))
    assert out.strip() == "1" and err == ""
    (place,) = tmp_path.iterdir()
    code = sorted(place.rglob("*.nbc"))
    index = sorted(place.rglob("*.nbi"))
    damaged = bytearray(code[0].read_bytes())
    damaged[len(damaged) // 2] ^= 0xFF                     # one flipped bit in machine code
    code[0].write_bytes(damaged)
    index[1].write_bytes(index[1].read_bytes()[:20])       # a write cut short
    code[2].unlink()
    out, err = in_process(LOAD, MMREF_CACHE_DIR=str(tmp_path))
    assert "compiling kernels" in err
    assert in_process(LOAD, MMREF_CACHE_DIR=str(tmp_path))[1] == ""


def test_damage_that_the_checksums_do_not_show(tmp_path):
    """Catches an exception of Numba's cache that reaches the user: files that are sealed, but not what Numba wrote."""
    code = """
        import test_engine_threads as t
        from mmref.kernels import cache, matmul, program
        note = program._Progress(1, quiet=True)
        place = cache.folder()
        build = lambda **how: program._build_kernel(t.copy_kernel(), **how)
        program._compile(build, place, note)
        for path in place.rglob("*.nb*"):
            path.write_bytes(b"not a pickle")
        assert program._compile(build, place, note).address
    """
    _, err = in_process(code, MMREF_CACHE_DIR=str(tmp_path))
    assert "cannot be used" in err


def copy_kernel():
    from mmref.kernels.join import copy_relu
    return copy_relu


def test_folders_that_will_not_do(tmp_path, monkeypatch):
    """Catches a crash where nothing can be written, and a cache others could write into."""
    blocked = tmp_path / "file"
    blocked.write_text("")
    monkeypatch.setenv("MMREF_CACHE_DIR", str(blocked))
    assert cache.folder() is None
    shared = tmp_path / "shared" / f"kernels-{cache.sources_hash()}"
    shared.mkdir(parents=True)
    shared.chmod(0o777)
    monkeypatch.setenv("MMREF_CACHE_DIR", str(shared.parent))
    assert cache.folder() is None or os.name == "nt"
    monkeypatch.setenv("MMREF_CACHE_DIR", str(tmp_path / "new" / "deep"))
    assert cache.folder().is_dir()


def test_compiles_without_any_folder(tmp_path):
    """Catches an engine that needs a cache: read-only installation, no home."""
    (tmp_path / "file").write_text("")
    out, err = in_process(LOAD, MMREF_CACHE_DIR=str(tmp_path / "file"))
    assert out.strip() == "0" and "no private cache folder" in err


# ------------------------------------------------------------------------------ narrow processors

@pytest.mark.skipif(not TARGET.is_x86, reason="restricts x86 features")
@pytest.mark.parametrize("name, cpu, features", [
    ("AVX2", "haswell", "+avx,+avx2,+fma"),
    ("SSE", "x86-64", "+sse2"),
])
def test_narrow_processors(model, tmp_path, name, cpu, features):
    """Catches tiles and functions that only AVX-512 gets right: the same network, on the instructions of older ones."""
    code = f"""
        import json, numpy as np, mmref, mmref.engine
        import test_engine_threads as t
        import test_vector_math as v
        from mmref.kernels.target import TARGET
        assert TARGET.name == {name!r}, TARGET
        errors = {{f: v.worst(f, v.all_floats(10007)) for f in ("exp", "softplus", "silu", "sigmoid")}}
        assert max(errors.values()) <= v.LIMIT, errors
        compiled = mmref.engine.CompiledModel(mmref.create_model("mobilemamba_nano", seed=3))
        np.testing.assert_array_equal(compiled(t.picture(3))[1:2], compiled(t.picture(3)[1:2]))
        np.save({str(tmp_path / "logits.npy")!r}, compiled(t.picture(3)))
    """
    in_process(code, NUMBA_CPU_NAME=cpu, NUMBA_CPU_FEATURES=features, MMREF_CACHE_DIR=str(tmp_path))
    assert_close(np.load(tmp_path / "logits.npy"), model(picture(3)), 5e-6)
