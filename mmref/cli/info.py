"""`mmref info MODEL`: layers, shapes, parameters, multiply-adds; with --graph its operations, with --plan the compiled
engine's plan."""

from __future__ import annotations

import sys

from mmref.cli.common import add_backend_arguments, add_model_arguments, model_from
from mmref.cli.output import print_json
from mmref.errors import ValueProblem
from mmref.tables import table


def add_arguments(parser):
    add_model_arguments(parser, positional=True)
    add_backend_arguments(parser)
    parser.add_argument("--img-size", type=int, help="side of the picture (default: the training size)")
    parser.add_argument("--depth", type=int, default=2, help="how many dots deep to go (default: %(default)s)")
    parser.add_argument("--graph", nargs="?", choices=("text", "fused"), const="text", help="the operations that the "
                        "network's text calls instead, or what the passes make of them (fused)")
    parser.add_argument("--plan", action="store_true", help="the operations of the compiled engine instead")
    parser.add_argument("--batch-size", type=int, default=1, help="for --plan (default: %(default)s)")
    parser.add_argument("--time", action="store_true", help="with --plan: time every operation")
    parser.add_argument("--json", action="store_true", help="for programs")


def run(args) -> int:
    if args.plan and args.graph:
        raise ValueProblem("--graph and --plan: pass one of them, not both")
    if args.plan:
        return _plan(args)
    if args.graph:
        return _graph(args)
    from mmref.models.summary import summarize
    model = model_from(args, untrained=True)
    rows = summarize(model, args.img_size)
    if args.json:
        print_json({"model": model.config.name, "num_classes": model.config.num_classes, "backends": backends(),
                    "layers": [vars(row) for row in rows]})
        return 0
    shown = [row for row in rows if row.name and row.name.count(".") < args.depth]
    print(table([(row.name, row.kind, "x".join(map(str, row.shape)), f"{row.parameters:,}", f"{row.macs / 1e6:,.2f}")
                 for row in shown], ("layer", "kind", "output", "parameters", "MMAC"), left=2))
    total = rows[0]
    side = args.img_size or model.config.img_size
    print(f"\n{model.config.name}, {side}x{side}: {total.parameters:,} learned parameters, "
          f"{total.macs / 1e6:,.1f} million multiply-adds (convolutions, projections, head)")
    for name, state in backends().items():
        print(f"backend {name}: {state}")
    return 0


def _graph(args) -> int:
    from mmref.graph.passes import fused
    from mmref.graph.table import TITLES, rows
    from mmref.graph.trace import trace
    model = model_from(args, untrained=True)
    side = args.img_size or model.config.img_size
    graph = trace(model.forward, model, (1, model.config.in_chans, side, side))
    graph = fused(graph) if args.graph == "fused" else graph
    if args.json:
        found = [dict(zip(TITLES, row, strict=True)) for row in rows(graph)]
        print_json({"model": model.config.name, "operations": found})
        return 0
    print(table(rows(graph), TITLES, left=len(TITLES)))
    print(f"\n{len(graph.nodes)} operations" + (f"; for this size only: {graph.fixed_by} computes with it"
                                                if graph.fixed_by else ""))
    return 0


def _plan(args) -> int:
    from mmref.engine import CompiledModel, plan_table
    args.backend = "numpy"
    network = model_from(args, untrained=True)
    if args.time and args.weights is None:
        from mmref.bench.measure import settle_batch_norms
        settle_batch_norms(network)  # what is timed is what trained weights take
    model = CompiledModel(network, args.threads)
    side = args.img_size or model.config.img_size
    plan = model.plan((args.batch_size, model.config.in_chans, side, side))
    print(_timed_table(model, plan) if args.time else plan_table(plan))
    return 0


def _timed_table(model, plan) -> str:
    """The plan's table with times and shares of what the machine can do, which is measured before and after them."""
    from mmref.engine import beyond_the_peak, plan_table, shares_of_peak
    from mmref.kernels.calibrate import multiply_add_rate
    before = multiply_add_rate(plan.threads)
    times = model.time_operations(plan)
    peak = max(before, multiply_add_rate(plan.threads))
    shares = shares_of_peak(plan, times, 1e9 * peak)
    wrong = sum(beyond_the_peak(times, shares))
    if wrong:
        print(f"mmref: alarm: {wrong} operations seem to do more than the {peak:.0f} GFLOP/s that this machine was "
              f"measured to do at most; one of the two is measured wrongly here", file=sys.stderr)
    return (f"{plan_table(plan, times, shares)}\n"
            f"of peak: of {peak:.0f} GFLOP/s, what {plan.threads} threads did at most just now, multiply-adds alone")


def backends() -> dict[str, str]:
    """What each backend finds on this machine, in words; asks, compiles nothing."""
    from importlib.metadata import PackageNotFoundError, version
    found = {"numpy": f"ready (NumPy {version('numpy')})"}
    try:
        found["numba"] = f"ready (Numba {version('numba')})"
    except PackageNotFoundError:
        found["numba"] = "missing: pip install numba"
    found["cuda"] = _cuda()
    return found


def _cuda() -> str:
    from mmref.errors import MissingBackend
    try:
        from mmref.engine.cuda.device import found
        return found()
    except MissingBackend as missing:  # the package
        return f"missing: {missing}"
