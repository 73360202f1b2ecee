"""Faults that the diagnoses were not taught, and right programs of many kinds, through `mmref compare`.

    python tests/foreign_bench.py [--graph torch|onnx] [--only GROUP] [--faithful 300] [--json]

Every fault of tests/foreign_faults.py in the PyTorch reference, and in a graph that torch.onnx exports from it. What is
right is computed, not listed: the first record, in the order of the run, in which the faulty network differs from the
right one in float64. The answer must name that record, or one after it where the error at the true one is below what
float32 shows; a diagnosis must be one of those that the fault says would be right, or be absent.
"""

from __future__ import annotations

import argparse
import copy
import io
import json
import random
import sys
import warnings
from pathlib import Path

import numpy as np
import torch

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parent / "golden")]

from foreign_faults import FAULTS  # noqa: E402
from mutation_bench import KINDS, faithful, hooked, onnx_trace, pair, random_input  # noqa: E402

from mmref.bench import torch_network  # noqa: E402
from mmref.validate.compare import LIMIT, compare  # noqa: E402
from mmref.validate.roundings import bfloat16, float16, tf32  # noqa: E402
from mmref.validate.trace import Trace, trace_model  # noqa: E402

SHAPE = (2, 3, 82, 145)


class Bench:
    """A right pair of networks, the reference's trace and what every record is in float64."""

    def __init__(self, variant="nano", seed=5, shape=SHAPE):
        self.model, self.net = pair(variant, seed)
        self.x = random_input(seed, shape) * np.float32(2)
        self.reference = trace_model(self.model, self.x)
        self.truth = hooked(copy.deepcopy(self.net).double(), self.x.astype(np.float64)).records
        self.graphs = {}

    def planted(self, fault):
        """(faulty network, its input)."""
        wrong = copy.deepcopy(self.net)
        fault.plant(wrong)
        return wrong, self.x if fault.prepare is None else fault.prepare(self.x)

    def first(self, wrong, x):
        """(names of the records, in order, that differ in float64, {name: error in roundings})."""
        records = hooked(copy.deepcopy(wrong).double(), x.astype(np.float64)).records
        noise, found = self.reference.manifest["noise"], {}
        for name, truth in self.truth.items():
            got = records.get(name)
            if got is None:  # a layer that the fault no longer calls as one
                continue
            if got.shape != truth.shape or not np.isfinite(got).all():
                found[name] = np.inf
            elif np.abs(got - truth).max() > 1e-11 * np.abs(truth).max() + 1e-300:
                found[name] = float(np.abs(got - truth).max() / noise.get(name, 1e-30))
        return found

    def judged(self, fault, graph="torch"):
        """What compare says of a fault, and whether it is right."""
        with torch.no_grad():
            wrong, x = self.planted(fault)
            errors = self.first(wrong, x)
            candidate = hooked(wrong, x) if graph == "torch" else exported(wrong, x)
        result = compare(self.reference, candidate, model=self.model)
        keys = [diagnosis.key for diagnosis in result.diagnoses]
        shows = [name for name, error in errors.items() if error > LIMIT]
        return {"group": fault.group, "fault": fault.name, "graph": graph, "first": result.first, "last": result.last,
            "truth": next(iter(errors), None), "shows": shows[:1], "layer_right": self._right(result, errors, shows),
            "diagnosed": keys, "text": [diagnosis.text for diagnosis in result.diagnoses], "note": result.note,
            "causes": result.causes[:6], "matched": result.matched,
            "diagnosis_right": None if not keys else keys[0] in fault.keys}

    def _right(self, result, errors, shows):
        if result.first is None:  # honest where nothing that was matched is off by as much as shows
            return not any(errors.get(row.name, 0) > 2 * LIMIT for row in result.rows)
        if result.first not in errors:
            return _inside(result.first, list(errors)[:3])
        order = list(errors)
        before = order[:order.index(result.first)]
        # faint ones may come before, those of the same layer that this graph does not show, and those whose right value
        # the graph holds too: what is wrong is then done behind it
        seen = {row.name for row in result.rows if row.verdict != "same"}
        return all(errors[name] <= 2 * LIMIT or name not in seen or _inside(result.first, [name]) for name in before)


def _inside(name, others):
    """Whether two records belong to one layer: one is in the other, or beside it in the same convolution and norm, or
    the inside of a scan (`layer:y`) before the norm behind it."""
    name, others = name.replace(":", "."), [other.replace(":", ".") for other in others]
    return any(name.startswith(f"{other}.") or other.startswith(f"{name}.") or other == name
               or name.rpartition(".")[0] == other.rpartition(".")[0] for other in others)


def exported(net, x, dynamo=False) -> Trace:
    """Trace of the graph that torch.onnx exports, in ONNX Runtime by the recipe."""
    import onnx
    net = copy.deepcopy(net).eval()
    file = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if dynamo:
            torch.onnx.export(net, (torch.from_numpy(x),), dynamo=True, verbose=False).save(file)
        else:
            torch.onnx.export(net, (torch.from_numpy(x),), file, dynamo=False, opset_version=17)
    return onnx_trace(onnx.load_from_string(file.getvalue()), x)


# --------------------------------------------------------------------------------------------------- faithful runs

DISGUISES = ("own names", "foreign names", "layers left out", "foreign names, layers left out", "wrapper", "shuffled",
             "blocks only", "torch.fx names", "engine names")


def disguised(trace, how, seed) -> Trace:
    """The same records as other tools name and keep them."""
    rng, records = random.Random(seed), dict(trace.records)
    if how == "wrapper":
        names = {name: f"module.net.{name}" for name in records} | {"input": "input", "output": "module"}
    elif how.startswith("foreign"):
        names = {name: name if name in ("input", "output") else f"t{i}" for i, name in enumerate(records)}
    elif how == "torch.fx names":
        names = {name: name.replace(".", "_") for name in records}
    elif how == "engine names":
        names = {name: name if name in ("input", "output") else f"/{name.replace('.', '/')}/Conv + {name}/Add_output_0"
                 for name in records}
    else:
        names = {name: name for name in records}
    kept = [name for name in records if name in ("input", "output") or not (
        "left out" in how and rng.random() < 0.4 or how == "blocks only" and name.count(".") > 1)]
    if how == "shuffled":
        rng.shuffle(kept)
    return Trace({names[name]: records[name] for name in kept})


def reduced(kind, net, x) -> Trace:
    """A right program in fewer bits: autocast's bfloat16 products, TF32, weights or everything in bfloat16."""
    if kind == "bfloat16":
        return hooked_as_floats(net.bfloat16(), torch.from_numpy(x).bfloat16())
    if kind == "bfloat16 weights":
        return hooked(net.bfloat16().float(), x)
    rounding = {"TF32": tf32, "bfloat16 products": bfloat16, "float16 products": float16}[kind]

    def rounded(tensor):
        return torch.from_numpy(np.asarray(rounding(tensor.detach().numpy()), np.float32))
    for module in net.modules():
        if isinstance(module, (torch.nn.Conv2d, torch.nn.Linear)):
            module.weight.data = rounded(module.weight.data)
            module.register_forward_pre_hook(lambda module, inputs: (rounded(inputs[0]),))
    return hooked(net, x)


def hooked_as_floats(net, x) -> Trace:
    records = {"input": x.float().numpy()}
    hooks = [module.register_forward_hook(lambda m, i, output, name=name: records.__setitem__(
        name or "output", output.detach().float().numpy().copy())) for name, module in net.named_modules()]
    with torch.no_grad():
        net(x)
    for hook in hooks:
        hook.remove()
    return Trace(records)


REDUCED = ("bfloat16", "bfloat16 weights", "TF32", "bfloat16 products", "float16 products")


def run_faithful(count, seed=0):
    """One dict a right program: its precision, disguise, size, and whether it was accused."""
    rng, kinds = np.random.default_rng(seed), (*KINDS, "torch.onnx", *REDUCED)
    for i in range(count):
        kind, disguise = kinds[i % len(kinds)], DISGUISES[(i + i // len(kinds)) % len(DISGUISES)]
        if kind.startswith(("ONNX", "torch.onnx")) or kind in REDUCED:
            disguise = "own names" if disguise not in ("wrapper", "shuffled") or kind not in REDUCED else disguise
        batch, height, width = int(rng.integers(1, 4)), int(rng.integers(17, 100)), int(rng.integers(17, 100))
        variant = "t2" if i % 23 == 5 else "nano"
        model, net = pair(variant, seed=i)
        x = random_input(i, (batch, 3, height, width)) * np.float32(10 ** rng.uniform(-1, 1))
        reference = trace_model(model, x)
        with torch.no_grad():
            candidate = (exported(torch_network.use_scan(net, "doubling"), x) if kind == "torch.onnx" else
                         reduced(kind, net, x) if kind in REDUCED else faithful(kind, model, net, x))
        result = compare(reference, disguised(candidate, disguise, i), model=model, diagnose=False)
        yield {"kind": kind, "disguise": disguise, "shape": x.shape, "variant": variant, "same": result.same,
               "first": result.first, "judged": result.precision, "matched": result.matched, "output": result.output}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--graph", choices=("torch", "onnx"))
    parser.add_argument("--only", help="a group")
    parser.add_argument("--faithful", type=int, default=300)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    torch.set_num_threads(1)
    rows = []
    for graph in ("torch", "onnx") if args.graph is None else (args.graph,):
        bench = Bench() if args.faithful >= 0 else None
        some = [f for f in FAULTS if args.only in (None, f.group) and (graph == "torch" or f.exportable)]
        for fault in some:
            row = bench.judged(fault, graph)
            rows.append(row)
            if not args.json and (not row["layer_right"] or row["diagnosis_right"] is False):
                print("WRONG", {k: row[k] for k in ("graph", "group", "fault", "truth", "shows", "first", "last",
                    "diagnosed", "text", "note", "layer_right")}, flush=True)
        print(graph, summary([row for row in rows if row["graph"] == graph]), file=sys.stderr, flush=True)
    right = list(run_faithful(args.faithful))
    for row in right:
        if not row["same"] and not args.json:
            print("ACCUSED", row)
    print(f"{len(right)} faithful runs, {sum(not row['same'] for row in right)} accused", file=sys.stderr)
    if args.json:
        json.dump({"faults": rows, "faithful": right}, sys.stdout, indent=1, default=str)


def summary(rows) -> str:
    """Figures for people."""
    absent = sum(row["diagnosis_right"] is None for row in rows)
    return (f"{len(rows)} faults: first layer right, or honestly below what shows, for "
            f"{sum(row['layer_right'] for row in rows)}; diagnosis right for "
            f"{sum(row['diagnosis_right'] is True for row in rows)}, wrong for "
            f"{sum(row['diagnosis_right'] is False for row in rows)}, absent for {absent} "
            f"({absent / max(len(rows), 1):.0%})")


if __name__ == "__main__":
    main()
