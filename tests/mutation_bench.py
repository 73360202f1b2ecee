"""Does `mmref compare` name the right layer and the right mistake, and leave faithful runs alone?

    python tests/mutation_bench.py [--faithful 200] [--json]

Plants every fault of tests/mutations.py by itself into the PyTorch reference, every fault of tests/onnx_mutations.py
into an exported ONNX graph (run by ONNX Runtime with the recipe of docs/validate.md), each in float32 on a batch of
three with odd maps, and every mistake of preparing a picture. Then runs faithful copies over variants, sizes and
seeds: see KINDS. Weights are drawn from a seed.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import json
import re
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parent / "golden")]

from mutations import NORM, PREPARATION, SCAN, TORCH, photograph, prepared  # noqa: E402
from params import synthetic_state_dict  # noqa: E402

from mmref.bench import torch_network  # noqa: E402
from mmref.data.picture import Transform, to_array  # noqa: E402
from mmref.models.parameters import expected_shapes, load_parameters  # noqa: E402
from mmref.models.variants import VARIANTS  # noqa: E402
from mmref.validate.compare import compare  # noqa: E402
from mmref.validate.trace import Trace, trace_model  # noqa: E402
from mmref.validate.trace_file import read_trace  # noqa: E402

RECIPE = re.search(r"```python recipe=onnx\n(.*?)```",
                   (Path(__file__).parents[1] / "docs" / "validate.md").read_text(), re.S)[1]
SHAPE = (3, 3, 83, 145)


def pair(variant="nano", seed=0):
    """(float64 NumPy model, float32 PyTorch network) with the same synthetic weights."""
    config = VARIANTS[f"mobilemamba_{variant}"]
    state = synthetic_state_dict(expected_shapes(config), seed)
    net = torch_network.create(variant, config.num_classes).eval()
    missing = net.load_state_dict({name: torch.tensor(array) for name, array in state.items()}, strict=False)
    assert not missing.unexpected_keys and all("num_batches" in name for name in missing.missing_keys)
    return load_parameters(config, state, np.float64), net


def hooked(net, x) -> Trace:
    """Trace of a PyTorch network, as people make it with forward hooks."""
    records = {"input": x}

    def keep(name):
        return lambda module, inputs, output: records.__setitem__(name, output.detach().numpy().copy())
    hooks = [module.register_forward_hook(keep(name or "output")) for name, module in net.named_modules()]
    with torch.no_grad():
        net(torch.from_numpy(x))
    for hook in hooks:
        hook.remove()
    return Trace(records)


def onnx_trace(proto, x, optimised=False) -> Trace:
    """Trace of an ONNX graph in ONNX Runtime by the recipe in the documents; optimised: with all of its fusions."""
    threads = "options = onnxruntime.SessionOptions()"  # one: others wait by spinning
    assert threads in RECIPE
    recipe = RECIPE.replace(threads, f"{threads}; options.intra_op_num_threads = 1")
    recipe = recipe.replace("ORT_DISABLE_ALL", "ORT_ENABLE_ALL") if optimised else recipe
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        Path("model.onnx").write_bytes(proto.SerializeToString())
        exec(compile(recipe, "recipe", "exec"), {"x": x})
        return read_trace("candidate.npz")


def random_input(seed, shape):
    rng = np.random.default_rng(seed)
    blocks = rng.standard_normal((*shape[:2], -(-shape[2] // 16), -(-shape[3] // 16))).repeat(16, 2).repeat(16, 3)
    return (blocks[:, :, :shape[2], :shape[3]] + 0.5 * rng.standard_normal(shape)).astype(np.float32)


# ---------------------------------------------------------------------------------------------------------- faults

def run_torch(mutations=TORCH, dtype=np.float32, shape=SHAPE):
    """One dict a fault planted into the PyTorch network."""
    model, net = pair()
    x = random_input(1, shape)
    reference = trace_model(model, x)
    for mutation in mutations:
        wrong = copy.deepcopy(net)
        wrong = wrong.double() if dtype == np.float64 else wrong
        mutation.plant(wrong.get_submodule(mutation.where))
        yield judged("PyTorch", mutation, compare(reference, hooked(wrong, x.astype(dtype)), model=model))


def run_onnx(mutations=None, shape=SHAPE):
    """One dict a fault planted into the exported graph."""
    from onnx_mutations import ONNX, Graph

    from mmref.export.onnx import to_onnx
    model, _ = pair()
    x, proto = random_input(1, shape), to_onnx(model.astype(np.float32))
    reference = trace_model(model, x)
    for mutation in ONNX if mutations is None else mutations:
        graph = Graph(proto, model)
        mutation.plant(graph)
        yield judged("ONNX", mutation, compare(reference, onnx_trace(graph.proto, x), model=model))


def run_preparation(mutations=PREPARATION):
    """One dict a mistake in preparing the picture."""
    model, net = pair()
    picture = photograph()
    reference = trace_model(model, to_array(picture, Transform(size=128))[None])
    assert compare(reference, hooked(net, prepared(picture)), model=model).same
    for mutation in mutations:
        yield judged("picture", mutation, compare(reference, hooked(net, mutation.plant(picture)), model=model))


# What a graph shows of the inside of the scan lies before the norm that PyTorch's modules show.
NEARER = {NORM: (f"{SCAN}:y", f"{SCAN}:merged")}


def judged(graph, mutation, result):
    keys = [diagnosis.key for diagnosis in result.diagnoses]
    return {"graph": graph, "fault": mutation.name, "expected": mutation.first, "first": result.first,
            "key": mutation.key, "diagnosed": keys, "text": [d.text for d in result.diagnoses], "note": result.note,
            "layer_right": result.first == mutation.first or result.first in NEARER.get(mutation.first, ()),
            "key_right": bool(keys) and keys[0] == mutation.key if mutation.key else None}


# --------------------------------------------------------------------------------------------------- faithful runs

KINDS = ("float32", "float32 folded", "float64", "float16 weights", "float16 folded weights", "float16 trace",
         "float16 weights folded in float32", "float16", "ONNX", "ONNX optimised", "ONNX float16 weights")


def faithful(kind, model, net, x) -> Trace:
    """A trace of a right implementation: other sums, other fusions, other precisions."""
    if kind.startswith("ONNX"):
        from mmref.export.onnx import to_onnx
        proto = to_onnx(model.astype(np.float32))
        if "float16" in kind:
            from onnx import numpy_helper
            for tensor in proto.graph.initializer:
                array = numpy_helper.to_array(tensor)
                if array.dtype == np.float32:
                    tensor.CopyFrom(numpy_helper.from_array(array.astype(np.float16).astype(np.float32), tensor.name))
        return onnx_trace(proto, x, "optimised" in kind)
    if "folded in float32" in kind:
        net = torch_network.fold_batchnorm(in_single_steps(net))
    elif "folded" in kind:
        net = torch_network.fold_batchnorm(net)
    if "weights" in kind:
        net.half().float()
    if kind == "float16":
        return hooked(net.half(), x.astype(np.float16))
    if kind == "float64":
        return hooked(net.double(), x.astype(np.float64))
    trace = hooked(net, x)
    if kind == "float16 trace":
        trace.records = {name: array.astype(np.float16) for name, array in trace.records.items()}
    return trace


def in_single_steps(net):
    """The network with every batch norm's statistics moved into its weight and bias, computed in float32 throughout, so
    that folding rounds in other places than ours."""
    for module in net.modules():
        if isinstance(module, torch.nn.modules.batchnorm._BatchNorm):
            scale = (module.weight / torch.sqrt(module.running_var + module.eps)).detach()
            module.bias.data = module.bias.data - module.running_mean * scale
            module.weight.data, module.eps = scale, 0.0
            module.running_mean.zero_(), module.running_var.fill_(1.0)
    return net


def run_faithful(count, seed=0, kinds=KINDS, largest=100):
    """One dict a faithful run: variant, size, kind and whether compare was content."""
    rng = np.random.default_rng(seed)
    for i in range(count):
        kind = kinds[i % len(kinds)]
        turn = i // len(kinds)  # one run of every kind a turn, of them one on a published variant
        variant = ("t2", "s6", "b1", "t4")[turn % 4] if i % len(kinds) == turn % len(kinds) else "nano"
        batch, height, width = int(rng.integers(1, 4)), int(rng.integers(1, largest)), int(rng.integers(1, largest))
        model, net = pair(variant, seed=i)
        x = random_input(i, (batch, 3, height, width)) * np.float32(10 ** rng.uniform(-1, 1))
        result = compare(trace_model(model, x), faithful(kind, model, net, x), model=model, diagnose=False)
        yield {"variant": variant, "shape": x.shape, "kind": kind, "same": result.same, "first": result.first,
               "judged": result.precision, "rows": len(result.rows), "largest": max(row.error for row in result.rows)}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--faithful", type=int, default=200)
    parser.add_argument("--only", choices=("torch", "onnx", "picture", "faithful"))
    parser.add_argument("--dtype", default="float32", choices=("float32", "float64"), help="of the faulty PyTorch runs")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    parts = {"torch": lambda: run_torch(dtype=np.dtype(args.dtype)), "onnx": run_onnx, "picture": run_preparation,
             "faithful": lambda: run_faithful(args.faithful)}
    found = {name: list(run()) for name, run in parts.items() if args.only in (None, name)}
    if args.json:
        json.dump(found, sys.stdout, indent=1, default=str)
        return
    for name, rows in found.items():
        if name == "faithful":
            for row in rows:
                if not row["same"]:
                    print("FALSE ALARM", row)
            print(f"{len(rows)} faithful runs: {sum(not row['same'] for row in rows)} false alarms; largest error "
                  f"{max((row['largest'] for row in rows), default=0):.1f} units")
            continue
        for row in rows:
            if not row["layer_right"] or row["key_right"] is False:
                print(f"MISSED {row['graph']}, {row['fault']}: expected {row['expected']} [{row['key']}], "
                      f"got {row['first']} {row['text'] or row['note']}")
        known = [row["key_right"] for row in rows if row["key_right"] is not None]
        print(f"{rows[0]['graph']}: {len(rows)} faults; first layer right for "
              f"{sum(row['layer_right'] for row in rows)}; diagnosis right for {sum(known)} of {len(known)} with a "
              f"signature ({100 * sum(known) / len(known):.0f} %)")


if __name__ == "__main__":
    main()
