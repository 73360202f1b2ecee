"""A plan as a table for people."""

from __future__ import annotations

from mmref.engine.lowering import TOGETHER
from mmref.engine.plan import Plan
from mmref.kernels.calibrate import NOISE
from mmref.tables import table

PRODUCTS = ("matmul", "stem")  # the kernels that do all multiply-adds that are counted: others leave out the border's
CLOCK = 2e-7                   # seconds by which a row may seem too short: a clock's tick, a barrier that is left late


def shares_of_peak(plan: Plan, times: list[float], peak: float) -> list[float | None]:
    """Each operation's share of `peak`, float32 operations a second of all the plan's threads; None where it cannot be
    determined.

    Times are those of one thread: the first, or the owner. They are the operation's where all threads meet before and
    after it, or where one works alone.
    """
    shares, met = [], True
    for operation, seconds in zip(plan.operations, times, strict=True):
        alone, share = operation.owner != TOGETHER, None
        if operation.kernel in PRODUCTS and seconds > 0 and (alone or met and operation.barrier):
            share = 2 * operation.macs / seconds / (peak / plan.threads if alone else peak)
        shares.append(share)
        met = alone or operation.barrier
    return shares


def beyond_the_peak(times: list[float], shares: list[float | None]) -> list[bool]:
    """Which of `shares_of_peak` are above 100 % by more than the noise of peak and clock: measured wrongly."""
    return [share is not None and share * seconds / (seconds + CLOCK) > 1 + NOISE
            for seconds, share in zip(times, shares, strict=True)]


def plan_table(plan: Plan, times: list[float] | None = None, shares: list[float | None] | None = None) -> str:
    """One line per operation: kernel, layer, output shape, bytes moved, multiply-adds, threads; if measured, its time
    and its share of the peak (`shares_of_peak`), or "alarm" in its place where it cannot be right."""
    wrong = beyond_the_peak(times, shares) if shares else []
    titles = ["operation", "layer", "output", "KiB", "MMAC", "threads"] + (["us", "GFLOP/s"] if times else [])
    titles += ["of peak"] if shares else []
    rows = []
    for index, op in enumerate(plan.operations):
        who = f"all {plan.threads}" if op.owner == TOGETHER and plan.threads > 1 else str(max(op.owner, 0))
        row = [op.kernel, op.layer, "x".join(map(str, op.shape)), f"{op.bytes / 1024:,.0f}", f"{op.macs / 1e6:,.3f}",
               who]
        if times:
            rate = f"{2e-9 * op.macs / times[index]:,.1f}" if op.macs and times[index] else ""
            row += [f"{times[index] * 1e6:,.1f}", rate]
        if shares:
            share = shares[index]
            row.append("alarm" if wrong[index] else "" if share is None else f"{share:.0%}")
        rows.append(row)
    macs = sum(op.macs for op in plan.operations)
    lines = [table(rows, titles, left=3), ""]
    lines.append(f"{len(rows)} operations, {macs / 1e6:,.1f} million multiply-adds, "
                 f"{plan.activation_bytes / 2**20:,.1f} MiB of activations"
                 + (f", {sum(times) * 1e3:,.2f} ms in sum" if times else ""))
    lines.append("threads: all: the operation is divided among them; a number: that thread, on its own pictures")
    return "\n".join(lines)
