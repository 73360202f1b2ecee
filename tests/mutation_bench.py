"""Does `mmref compare` name the right layer and the right mistake, and leave faithful runs alone?

    python tests/mutation_bench.py [--faithful 200] [--json]

Plants every fault of tests/mutations.py by itself into the PyTorch reference and into an exported ONNX graph (float32,
batch 3, odd maps), and runs faithful copies over variants, sizes and seeds: float32, folded, float16-stored weights
(folded or not), float64. Weights are drawn from a seed.
"""

from __future__ import annotations

import argparse
import copy
import json
import sys
from pathlib import Path

import numpy as np
import torch

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parent / "golden")]

import torch_reference  # noqa: E402
from mutations import TORCH  # noqa: E402
from params import synthetic_state_dict  # noqa: E402

from mmref.parameters import expected_shapes, load_parameters  # noqa: E402
from mmref.validate.compare import compare  # noqa: E402
from mmref.validate.trace import Trace, trace_model  # noqa: E402
from mmref.variants import VARIANTS  # noqa: E402


def pair(variant="nano", seed=0):
    """(float64 NumPy model, float32 PyTorch network) with the same synthetic weights."""
    config = VARIANTS[f"mobilemamba_{variant}"]
    state = synthetic_state_dict(expected_shapes(config), seed)
    net = torch_reference.create(variant, config.num_classes).eval()
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


def random_input(seed, shape):
    rng = np.random.default_rng(seed)
    blocks = rng.standard_normal((*shape[:2], -(-shape[2] // 16), -(-shape[3] // 16))).repeat(16, 2).repeat(16, 3)
    return (blocks[:, :, :shape[2], :shape[3]] + 0.5 * rng.standard_normal(shape)).astype(np.float32)


def run_mutations(mutations=TORCH, dtype=np.float64, shape=(3, 3, 83, 145)):
    """One dict a mutation: found first layer and diagnoses beside the expected ones."""
    model, net = pair()
    x = random_input(1, shape)
    reference = trace_model(model, x)
    for mutation in mutations:
        wrong = copy.deepcopy(net)
        wrong = wrong.double() if dtype == np.float64 else wrong
        mutation.plant(wrong.get_submodule(mutation.where))
        result = compare(reference, hooked(wrong, x.astype(dtype)), model=model)
        keys = [diagnosis.key for diagnosis in result.diagnoses]
        yield {"graph": "PyTorch", "fault": mutation.name, "expected": mutation.first, "first": result.first,
               "key": mutation.key, "diagnosed": keys, "text": [d.text for d in result.diagnoses],
               "layer_right": result.first == mutation.first,
               "key_right": bool(keys) and keys[0] == mutation.key if mutation.key else None}


def run_faithful(count, seed=0):
    """One dict a faithful run: variant, size, kind and whether compare was content."""
    rng = np.random.default_rng(seed)
    kinds = ("float32", "float32 folded", "float64", "float16 weights", "float16 folded weights")
    for i in range(count):
        variant = "t2" if i % 10 == 9 else "nano"
        batch, height, width = int(rng.integers(1, 4)), int(rng.integers(1, 100)), int(rng.integers(1, 100))
        model, net = pair(variant, seed=i)
        x, kind = random_input(i, (batch, 3, height, width)) * np.float32(10 ** rng.uniform(-1, 1)), kinds[i % 5]
        if "folded" in kind:
            net = torch_reference.fold_batchnorm(net)
        if "float16" in kind:
            net.half().float()
        net, given = (net.double(), x.astype(np.float64)) if kind == "float64" else (net, x)
        result = compare(trace_model(model, x), hooked(net, given), model=model, diagnose=False)
        yield {"variant": variant, "shape": x.shape, "kind": kind, "same": result.same, "first": result.first,
               "judged": result.precision, "largest": max(row.error for row in result.rows)}


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--faithful", type=int, default=200)
    parser.add_argument("--dtype", default="float64", choices=("float32", "float64"), help="of the faulty runs")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    faults = list(run_mutations(dtype=np.dtype(args.dtype)))
    faithful = list(run_faithful(args.faithful))
    if args.json:
        json.dump({"faults": faults, "faithful": faithful}, sys.stdout, indent=1, default=str)
        return
    for row in faults:
        if not row["layer_right"] or row["key_right"] is False:
            print(f"MISSED {row['fault']}: expected {row['expected']} [{row['key']}], got {row['first']} {row['text']}")
    for row in faithful:
        if not row["same"]:
            print("FALSE ALARM", row)
    known = [row["key_right"] for row in faults if row["key_right"] is not None]
    print(f"{len(faults)} faults: first layer right for {sum(row['layer_right'] for row in faults)}; "
          f"diagnosis right for {sum(known)} of {len(known)} with a signature")
    print(f"{len(faithful)} faithful runs: {sum(not row['same'] for row in faithful)} false alarms; largest error "
          f"{max((row['largest'] for row in faithful), default=0):.1f} units")


if __name__ == "__main__":
    main()
