"""A plan as a table for people."""

from __future__ import annotations

from mmref.engine.lowering import TOGETHER
from mmref.engine.plan import Plan


def plan_table(plan: Plan, times: list[float] | None = None) -> str:
    """One line an operation: kernel, layer, output shape, bytes moved, multiply-adds, threads, and time if measured."""
    titles = ["operation", "layer", "output", "KiB", "MMAC", "threads"] + (["us", "GFLOP/s"] if times else [])
    rows = []
    for index, op in enumerate(plan.operations):
        who = f"all {plan.threads}" if op.owner == TOGETHER and plan.threads > 1 else str(max(op.owner, 0))
        row = [op.kernel, op.layer, "x".join(map(str, op.shape)), f"{op.bytes / 1024:,.0f}", f"{op.macs / 1e6:,.3f}",
               who]
        if times:
            rate = f"{2e-9 * op.macs / times[index]:,.1f}" if op.macs and times[index] else ""
            row += [f"{times[index] * 1e6:,.1f}", rate]
        rows.append(row)
    widths = [max(len(row[i]) for row in [titles, *rows]) for i in range(len(titles))]
    lines = ["  ".join(cell.ljust(width) if i < 3 else cell.rjust(width)
                       for i, (cell, width) in enumerate(zip(row, widths, strict=True))).rstrip()
             for row in [titles, ["-" * width for width in widths], *rows]]
    macs = sum(op.macs for op in plan.operations)
    lines.append("")
    lines.append(f"{len(rows)} operations, {macs / 1e6:,.1f} million multiply-adds, "
                 f"{plan.activation_bytes / 2**20:,.1f} MiB of activations"
                 + (f", {sum(times) * 1e3:,.2f} ms in sum" if times else ""))
    lines.append("threads: all: the operation is divided among them; a number: that thread, on its own pictures")
    return "\n".join(lines)
