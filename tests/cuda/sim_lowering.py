"""The device plan with NumPy twins in the kernels' place: does every launch get the right maps, weights and sizes?

Run by test_engine_sim.py, in the simulator, whose arrays need no GPU.
"""

from __future__ import annotations

import pickle
import threading
from importlib import import_module
from types import SimpleNamespace

import numpy as np
import pytest
from assertions import assert_close, of_layer, rounding
from blas import StandIn, Stream, install
from capture import graphs
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import enliven, lively, normal, seeds, variants
from test_graph import ODDITIES, Odd, odd_network

import mmref
from mmref.engine import CompiledModel
from mmref.engine.cuda import DeviceModel, device, products
from mmref.engine.cuda import model as device_model
from mmref.engine.cuda import plan as device_plan
from mmref.engine.cuda.check import check_launches
from mmref.errors import MissingBackend, MmrefError, NotTraceable, OutOfDeviceMemory, ShapeError, ValueProblem
from mmref.kernels.cuda import twins
from mmref.kernels.cuda.driver import cuda
from mmref.models.parameters import random_parameters
from mmref.models.variants import VARIANTS
from mmref.nn.operation import operation


@pytest.fixture(autouse=True)
def numpy_kernels(monkeypatch):
    for module, name in device_plan.KERNELS.values():
        monkeypatch.setattr(import_module(f"mmref.kernels.cuda.{module}"), name, twins.LAUNCHERS[name])
    monkeypatch.setattr(products, "matmul", twins.matmul)


@pytest.fixture(scope="module")
def nano():
    """(NumPy model, device model), every branch alive."""
    model = lively()
    return model, DeviceModel(model, matmul="own")


@pytest.mark.parametrize("name", VARIANTS)
def test_every_variant(name):
    """Catches a map, weight or size that is right for one variant only; operations and costs other than the CPU's."""
    model = lively(name, num_classes=10)
    ours = DeviceModel(model, matmul="own")
    for shape in ((1, 3, 33, 47), (2, 3, 16, 130), (1, 3, 1, 1)):
        x = normal(1, *shape)
        assert_close(ours(x), *rounding(of_layer(model, x)), dtype=np.float32)
    plans = ours.plan((1, 3, 64, 64)), CompiledModel(model, threads=1).plan((1, 3, 64, 64))
    assert sum(op.macs for op in plans[0].operations) == sum(op.macs for op in plans[1].operations)
    assert ([op.layer for op in plans[0].operations]
            == [op.layer for op in plans[1].operations if op.kernel != "picture"])


@pytest.mark.parametrize("head", ["fpn", "deeplabv3", "pspnet"])
def test_segmentation(head):
    """Catches a size, dilation or mode of resizing that is handed over wrongly; maps that `forward_head` mixes up."""
    model = lively(f"mobilemamba_nano_{head}")
    ours = DeviceModel(model, matmul="own")
    for shape in ((1, 3, 33, 130), (2, 3, 65, 47), (1, 3, 1, 1)):
        x = normal(1, *shape)
        assert_close(ours(x), *rounding(of_layer(model, x)), dtype=np.float32)
    assert_close(ours.forward_head(ours.forward_features(x)), model.forward_head(model.forward_features(x)), 1e-4)


@given(seeds, st.integers(0, 5), st.integers(1, 70), st.integers(1, 70))
@settings(max_examples=15)
def test_any_batch_and_size(nano, seed, batch, height, width):
    """Catches shapes nobody tried, the empty batch among them."""
    model, ours = nano
    x = normal(seed, batch, 3, height, width)
    assert_close(ours(x), *rounding(of_layer(model, x)), dtype=np.float32)


@given(seeds, variants(), st.integers(1, 3), st.integers(1, 90), st.integers(1, 90))
@settings(max_examples=25, deadline=None)
def test_any_small_network(seed, config, batch, height, width):
    """Catches an order, number of states, wavelet, number of levels or width that the plan hands over otherwise."""
    model = enliven(random_parameters(config, seed))
    ours = DeviceModel(model, matmul="own")
    x = normal(seed, batch, config.in_chans, height, width)
    for part in (x, x[-1:]):
        truth, tolerance = rounding(of_layer(model, part))
        assert_close(ours(part), truth, tolerance, dtype=np.float32)


@pytest.mark.parametrize("name", ODDITIES)
def test_what_no_fused_kernel_covers(name):
    """Catches operations that run only in the company that MobileMamba gives them."""
    model, x = odd_network(name), normal(3, 3, 8, 9, 6)
    truth, tolerance = rounding(of_layer(model.layer, x))
    ours = DeviceModel(model, matmul="own")
    assert_close(ours(x), truth, tolerance, dtype=np.float32)
    assert_close(ours(cuda.to_device(x)).copy_to_host(), truth, tolerance, dtype=np.float32)


def test_what_is_too_large_for_a_fast_kernel(monkeypatch):
    """Catches steps in the place of a fast kernel, which a filter, rank or width does not fit, that compute something
    else."""
    modules = device_plan.norm_gate, device_plan.scan, device_plan.wavelet_branch
    for module in modules:
        monkeypatch.setattr(module, "is_able", lambda *sizes: False)
    model, x = lively(), normal(3, 2, 3, 61, 37)
    ours = DeviceModel(model, matmul="own")
    truth, tolerance = rounding(of_layer(model, x))
    assert_close(ours(x), truth, tolerance, dtype=np.float32)
    kernels = {operation.kernel for operation in ours.plan(x.shape).operations}
    assert kernels >= {"synthesis", "path_scan", "norm"} and not kernels & {"wavelet_branch", "scan", "norm_gate"}


def test_features_and_intermediates(nano):
    """Catches a map taken at the wrong place, or overwritten by a later layer before it is handed over."""
    model, ours = nano
    x = normal(2, 3, 3, 70, 40)
    last, maps = ours.forward_intermediates(x)
    for i, got in enumerate([*maps, last]):
        expected = of_layer(model, x, lambda model, x, i=i: [*model.forward_intermediates(x)[1],
                                                             model.forward_features(x)][i])
        assert_close(got, *rounding(expected), dtype=np.float32)
    assert (ours.forward_features(x) == last).all()
    assert_close(ours.forward_head(last), *rounding(of_layer(model, x)), dtype=np.float32)
    only = ours.forward_intermediates(x, indices=[-1, 0], intermediates_only=True)
    assert (only[0] == maps[3]).all() and (only[1] == maps[0]).all()


def test_without_head():
    """Catches a head that is looked for where there is none."""
    model = lively(num_classes=0)
    x = normal(3, 2, 3, 40, 40)
    assert_close(DeviceModel(model, matmul="own")(x), *rounding(of_layer(model, x)), dtype=np.float32)


def test_memory_between_shapes(nano):
    """Catches what is left over from another picture, and plans that the cache mixes up or does not let go of."""
    _, ours = nano
    inputs = [normal(i, 1 + i % 3, 3, 20 + 7 * i, 50 - 6 * i) for i in range(7)]
    first = [ours(x) for x in inputs]
    ours(np.full((1, 3, 64, 64), 1e3, np.float32))
    for x, expected in zip(inputs, first, strict=True):
        assert (ours(x) == expected).all()
    assert len(ours._plans) <= 4


def test_device_arrays(nano):
    """Catches another kind of array returned than given, an input written to, and a wrong dtype read as float32."""
    _, ours = nano
    x = normal(1, 2, 3, 33, 47)
    expected = ours(x)
    lent = cuda.to_device(x)
    got = ours(lent)
    assert isinstance(got, type(lent)) and (got.copy_to_host() == expected).all()
    assert (lent.copy_to_host() == x).all()
    assert (ours(lent).copy_to_host() == expected).all() and (got.copy_to_host() == expected).all()
    last = ours.forward_features(lent)
    assert last.shape == (2, 160, 1, 1) and isinstance(ours.forward_head(last), type(lent))
    assert ours(cuda.to_device(x[:0])).shape == (0, 10)
    for bad in (cuda.to_device(x.astype(np.float64)), cuda.to_device(x[:, :2].copy()), cuda.to_device(x[0])):
        with pytest.raises(ShapeError):
            ours(bad)


@pytest.mark.parametrize("matmul", ["own", "cublas", "cublaslt"])
def test_graph(monkeypatch, matmul):
    """Catches what a stream capture refuses (memory, waiting, a handle or its settings in the middle of a forward), a
    graph captured again and again, or left reading an array that a caller lent for one forward."""
    stand_in = install(monkeypatch, StandIn(np.matmul))
    monkeypatch.setattr(device, "new_stream", Stream)
    # which calls keep their bits is test_products.py's affair
    monkeypatch.setattr(products, "divide", lambda rows, keeps: [(0, rows)])
    model = mmref.create_model("mobilemamba_nano", seed=3)
    ours = DeviceModel(model, matmul=matmul)
    inputs = [normal(i, 2, 3, 32, 32) for i in range(3)]
    expected = [ours(x) for x in inputs]
    for x, got in zip(inputs, expected, strict=True):
        assert_close(got, *rounding(of_layer(model, x)), dtype=np.float32)
    assert matmul == "own" or len(stand_in.calls) == 3 * 57
    ours._plans.clear()
    graph, made = graphs(stand_in)
    monkeypatch.setattr(device, "Graph", graph)
    monkeypatch.setattr(ours, "_use_graph", lambda batch: True)
    for x, want in zip(inputs + inputs, expected + expected, strict=True):
        assert (ours(x) == want).all()
    for x, want in zip(inputs, expected, strict=True):
        lent = cuda.to_device(x)
        assert (ours(lent).copy_to_host() == want).all()
        lent.copy_to_device(np.zeros_like(x))
    assert len(made) == 1 and made[0].replays == 8  # all but the first forward


def test_which_batches_are_graphs(nano, monkeypatch):
    """Catches a graph where none was asked for, and none where one was."""
    _, ours = nano
    monkeypatch.setattr(device_model.driver, "SIMULATOR", False)
    for graph, batches in ((None, (1, 64)), (True, (1, 64, 65)), (False, ())):
        monkeypatch.setattr(ours, "graph", graph)
        assert tuple(batch for batch in (1, 64, 65) if ours._use_graph(batch)) == batches


@pytest.mark.parametrize("change", ["allocates", "waits", "sets its stream", "asks for an algorithm"])
def test_capture_is_strict(monkeypatch, change):
    """Catches a stand-in that lets a forward do what a capture refuses."""
    stand_in = install(monkeypatch, StandIn(np.matmul))
    monkeypatch.setattr(device, "new_stream", Stream)
    monkeypatch.setattr(products, "divide", lambda rows, keeps: [(0, rows)])
    name = "cublaslt" if "algorithm" in change else "cublas"
    ours = DeviceModel(mmref.create_model("mobilemamba_nano", seed=3), matmul=name)
    handle = ours._products.handle
    fault = {"allocates": lambda: device.allocate((5,)), "waits": lambda: cuda.synchronize(),
             "sets its stream": lambda: handle.library.functions["cublasSetStream_v2"](handle.handle, 5),
             "asks for an algorithm": lambda: handle.choose(None, [None] * 4, 4)}[change]
    ours(normal(1, 1, 3, 32, 32))
    plan = ours.plan((1, 3, 32, 32))
    plan.launches[40].calls.append(fault)
    plan.given = plan.inputs
    with pytest.raises(AssertionError):
        graphs(stand_in)[0](plan.stream, plan.launch)


def test_lent_arrays(nano, monkeypatch):
    """Catches strides that are ignored, a copy on another stream than ours or before the lender is done, a lent array
    let go of before we are, and one held for ever."""
    _, ours = nano
    did, done = [], []

    class Event:
        def __init__(self, timing=True):
            did.append("new")

        def record(self, stream):
            did.append(("after", stream))

        def wait(self, stream):
            did.append(("before", stream))

        def query(self):
            return bool(done)

    def to_contiguous(x, out, *, stream):
        did.append(("copied", stream))
        twins.to_contiguous(x, out)
    x = normal(1, 2, 3, 33, 47)
    expected = ours(x)
    monkeypatch.setattr(device, "new_event", Event)
    monkeypatch.setattr(device, "to_contiguous", to_contiguous)
    monkeypatch.setattr(device, "caller_stream", lambda x: "theirs")
    monkeypatch.setattr(device, "SIMULATOR", False)
    ours._stream, mine = (stream := cuda.stream()), stream
    last = cuda.to_device(np.ascontiguousarray(x.transpose(0, 2, 3, 1))).transpose((0, 3, 1, 2))
    for lent, copies in ((cuda.to_device(x), 0), (last, 1)):
        did.clear()
        got = ours(lent)
        assert (got.copy_to_host() == expected).all()
        assert did.count(("copied", mine)) == copies == sum(step[0] == "copied" for step in did)
        order = [step for step in did if step != "new"]
        assert order[:2] == [("after", "theirs"), ("before", mine)]
        assert order[-3:] == [("after", mine), ("before", "theirs"), ("after", mine)]
    held = [arrays for _, arrays in ours._lent._held]
    assert len(held) == 2 and any(array is last for array in held[1])
    done.append(True)
    ours(cuda.to_device(x))
    assert not ours._lent._held


def test_foreign_interface(monkeypatch):
    """Catches another library's array whose dtype is not looked at, or that is not known for what it is."""
    monkeypatch.setattr(cuda, "as_cuda_array", lambda x, sync: cuda.to_device(x.array), raising=False)

    def foreign(array):
        return SimpleNamespace(array=array, __cuda_array_interface__={"shape": array.shape})
    x = normal(1, 2, 3, 4, 5)
    assert device.is_device_array(foreign(x)) and not device.is_device_array(x)
    assert device.device_view(foreign(x)).shape == x.shape
    with pytest.raises(ShapeError, match="float32"):
        device.device_view(foreign(x.astype(np.float16)))


def test_input_is_left_alone_and_may_lie_anyhow(nano):
    """Catches writes to the input, and reading a strided array as if it were packed."""
    _, ours = nano
    x = normal(1, 2, 3, 33, 47)
    before, expected = x.copy(), ours(x)
    x.flags.writeable = False
    assert (ours(np.asfortranarray(x)) == expected).all() and (x == before).all()


def test_out_of_device_memory(nano, monkeypatch):
    """Catches a crash instead of an error, a batch that would not fit, plans that are kept while memory runs out."""
    _, ours = nano
    ours(normal(0, 1, 3, 32, 32))
    graph, schedule = ours._graph(ours._call("forward"), ((3, 64, 64),))
    needed = {5: device_plan.needed_bytes(graph, device_plan.lowered(graph, schedule, 5, ours._weights,
                                                                     ours._products))}
    budget = [needed[5]]
    real = device.allocate

    def allocate(shape):
        size = 4 * int(np.prod(shape))
        if size > budget[0]:
            raise MemoryError("CUDA_ERROR_OUT_OF_MEMORY")
        budget[0] -= size
        return real(shape)
    monkeypatch.setattr(device, "allocate", allocate)
    monkeypatch.setattr(device, "free_memory", lambda: (needed[5], 2 * needed[5]))
    with pytest.raises(OutOfDeviceMemory, match="a batch of 5 would fit") as raised:
        ours(normal(1, 9, 3, 64, 64))
    assert isinstance(raised.value, MmrefError) and "9 pictures of 64x64" in str(raised.value)
    assert not ours._plans  # all were let go of before giving up
    budget[0] = needed[5]
    assert ours(normal(1, 5, 3, 64, 64)).shape == (5, 10)
    monkeypatch.setattr(device, "free_memory", lambda: (1000, 2000))
    with pytest.raises(OutOfDeviceMemory, match="not even one"):
        ours(normal(1, 9, 3, 64, 64))


def test_pickle_and_threads(nano):
    """Catches device memory that travels, settings that do not, and two threads that write to one plan."""
    _, ours = nano
    clone = pickle.loads(pickle.dumps(ours))
    inputs = [normal(i, 2, 3, 32, 32) for i in range(8)]
    expected = [ours(x) for x in inputs]
    assert (clone(inputs[0]) == expected[0]).all()
    assert (clone.config, clone.matmul, clone.graph, clone.tf32) == (ours.config, "own", None, False)
    got = [None] * 8
    workers = [threading.Thread(target=lambda i=i: got.__setitem__(i, clone(inputs[i]))) for i in range(8)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert all((a == b).all() for a, b in zip(got, expected, strict=True))
    state = ours.state_dict()
    state["head.weight"][:] = 0
    assert (ours(inputs[0]) == expected[0]).all()


def test_check_names_the_kernel_that_errs(monkeypatch):
    """Catches a check that sees nothing, blames another kernel, or leaves launches out."""
    model = mmref.create_model("mobilemamba_nano", seed=3)
    x = cuda.to_device(normal(5, 2, 3, 33, 17))
    fine = check_launches(DeviceModel(model, matmul="own").plan(x.shape), x)
    assert max(found.error for found in fine.values()) == 0
    assert sum(found.launches for found in fine.values()) == 113

    def wrong(x, out, *, images, height, width, **rest):
        twins.wavelet_branch(x=x, out=out, images=images, height=height, width=width, **rest)
        if height == 2:
            out[0, 3] *= np.float32(1.5)
    monkeypatch.setattr(import_module("mmref.kernels.cuda.wavelet_branch"), "wavelet_branch", wrong)
    found = check_launches(DeviceModel(model, matmul="own").plan(x.shape), x)
    assert [name for name, checked in found.items() if checked.error > 0] == ["wavelet_branch"]
    assert found["wavelet_branch"].layer.startswith("blocks2.3")


def test_refusals(nano, monkeypatch):
    """Catches networks, settings and inputs that would be run wrongly, or by something that was not asked for."""
    _, ours = nano
    model = mmref.create_model("mobilemamba_nano")
    for settings_, word in ((dict(graph=True), "graph"), (dict(graph=2), "graph"), (dict(tf32=True), "tf32"),
                            (dict(matmul="x"), "matmul")):
        with pytest.raises(ValueProblem, match=word):
            DeviceModel(model, **{"matmul": "own", **settings_})
    with pytest.raises(ValueProblem, match="float32"):
        DeviceModel(model.astype(np.float64), matmul="own")
    with pytest.raises(MissingBackend, match="matmul='own'"):  # the default needs cuBLAS and says so
        mmref.create_model("mobilemamba_nano", backend="cuda")

    @operation(lambda x: x.shape, registry={})
    def cube(x):
        return x * x * x
    setattr(model.patch_embed, "1", Odd(cube))
    with pytest.raises(NotTraceable, match="'cuda'.*'cube'.*patch_embed.1"):
        DeviceModel(model, matmul="own")(np.zeros((1, 3, 8, 8), np.float32))
    for x, error in ((np.zeros((1, 3, 8, 8)), ShapeError), (np.zeros((1, 4, 8, 8), np.float32), ShapeError),
                     (np.zeros((1, 3, 0, 8), np.float32), ShapeError),
                     (np.full((1, 3, 8, 8), np.nan, np.float32), ValueProblem)):
        with pytest.raises(error):
            ours(x)
    with pytest.raises(ShapeError):
        ours.plan((1, 3, 0, 5))
