"""A report as text that people read, as timm's CSV, as JSON."""

from __future__ import annotations

import csv
from dataclasses import asdict

import numpy as np

from mmref.bench import side_by_side
from mmref.tables import table

TIMM_COLUMNS = ("model", "infer_samples_per_sec", "infer_step_time", "infer_batch_size", "infer_img_size",
                "infer_gmacs", "param_count")
OWN_COLUMNS = ("backend", "threads", "cpu", "cores", "step_time_q1", "step_time_q3", "ratio_to_baseline", "baseline",
               "peak_memory_mb", "import_s", "first_cold_s", "first_warm_s", "gmac_per_sec_calibration")

FOOTNOTE = """\
ms: a batch, median of the rounds. ratio: time over the baseline's (unfolded over unfolded), median of the rounds.
rate: share of the calibrated multiply-add rate. import, start: seconds; a start is a new process until its first
logits, cold with nothing compiled before. error: largest difference to the baseline's logits, of their largest."""

START_FOOTNOTE = """\
mmref classify: a process from its start to its end. PyTorch: its import and its first forward, nothing else.
cold: nothing compiled before; else the kernels are in the cache, and the files in memory."""


def to_text(report) -> str:
    """Machine, a table for each model and batch, the sweep's table, what was left out."""
    parts = [machine_lines(report)]
    for (model, batch, side), rows in _grouped(report.results).items():
        parts.append(f"{model}, batch {batch}, {side}x{side}, {report.threads} threads, float32, "
                     f"{len(rows[0].rounds)} rounds\n" + _case_table(report, rows))
    if report.results:
        parts.append(FOOTNOTE)
    if report.sweep:
        parts.append(_sweep_tables(report))
    if report.starts:
        parts.append(_start_tables(report))
    if report.side_by_side:
        parts.append(side_by_side.to_text(report.side_by_side, report.threads))
    if report.left_out:
        parts.append("Left out:\n" + "\n".join(f"  {name}: {reason}" for name, reason in report.left_out.items()))
    return "\n\n".join(parts)


def machine_lines(report) -> str:
    machine, calibration = report.machine, report.calibration
    libraries = ", ".join(f"{name} {version}" for name, version in machine["libraries"].items())
    rates = 2e-9 * np.array(calibration["rates"])
    ruler = (f"calibration: {np.median(rates):.0f} GFLOP/s ({rates.min():.0f} to {rates.max():.0f} over the rounds), "
             f"{calibration['method']}, {report.threads} threads; baseline of the ratios: {report.baseline}"
             if rates.size else f"{report.threads} threads")
    if report.clock == "processor":
        ruler += "\ntimes are processor seconds of the process, not the clock's (the calibration's are the clock's)"
    return (f"{machine['cpu']}, {machine['cores']} logical cores ({', '.join(machine['vector'])}), "
            f"{machine['system']}, Python {machine['python']}, load before {machine['load_before']}\n"
            f"{libraries}\n{ruler}")


def _grouped(results):
    groups = {}
    for result in results:
        groups.setdefault((result.model, result.batch, result.img_size), []).append(result)
    return groups


def _case_table(report, rows):
    def optional(value, text):
        return "" if value is None else format(value, text)
    lines = []
    for row in rows:
        q1, q3 = np.quantile(row.rounds, (0.25, 0.75))
        low, ratio, high = np.quantile(row.ratios, (0.25, 0.5, 0.75))
        rate = "alarm" if row.alarm else f"{np.median(row.rates):.0%}"
        lines.append((row.backend, f"{1e3 * row.median:.2f}", f"{1e3 * q1:.2f}-{1e3 * q3:.2f}",
                      f"{row.batch / row.median:.1f}", f"{ratio:.2f}", f"{low:.2f}-{high:.2f}",
                      rate, f"{row.peak_bytes / 1e6:.0f}", optional(row.seconds_import, ".2f"),
                      optional(row.seconds_cold, ".2f"), optional(row.seconds_warm, ".2f"), f"{row.error:.0e}"))
    return table(lines, ("backend", "ms", "quartiles", "pictures/s", "ratio", "quartiles", "rate", "peak MB", "import",
                         "start cold", "start warm", "error"))


def _sweep_tables(report):
    parts = []
    for model in dict.fromkeys(row.model for row in report.sweep):
        rows = [row for row in report.sweep if row.model == model]
        own = next((row.img_size for row in rows if row.batch > 1), None)
        pixels = [row for row in rows if row.batch == 1]
        parts.append(f"{model}, batch 1, cost by picture size (ms; ns a pixel)\n" + _growth(
            pixels, "size", lambda row: f"{row.img_size}x{row.img_size}",
            lambda row: f"{1e9 * row.median / row.img_size ** 2:.1f}"))
        if own is None:
            continue
        batches = sorted((row for row in rows if row.img_size == own), key=lambda row: row.batch)
        parts.append(f"{model}, {own}x{own}, cost by batch (ms; ms a picture)\n" + _growth(
            batches, "batch", lambda row: str(row.batch), lambda row: f"{1e3 * row.median / row.batch:.2f}"))
    return "\n\n".join(parts)


def _start_tables(report):
    parts = []
    for model in dict.fromkeys(row.model for row in report.starts):
        lines = []
        for row in (row for row in report.starts if row.model == model):
            q1, q3 = np.quantile(row.rounds, (0.25, 0.75))
            low, ratio, high = np.quantile(row.ratios or [np.nan], (0.25, 0.5, 0.75))
            lines.append((row.name, f"{row.median:.2f}", f"{q1:.2f}-{q3:.2f}", f"{ratio:.2f}" if row.ratios else "",
                          f"{low:.2f}-{high:.2f}" if row.ratios else "", f"{np.median(row.peaks) / 1e6:.0f}"))
        parts.append(f"{model}, seconds to a first answer, {report.rounds} rounds\n" + table(
            lines, ("way", "s", "quartiles", "of PyTorch's", "quartiles", "peak MB")))
    return "\n\n".join([*parts, START_FOOTNOTE])


def _growth(rows, title, label, unit_cost):
    backends = list(dict.fromkeys(row.backend for row in rows))
    lines = []
    for key in dict.fromkeys(label(row) for row in rows):
        found = {row.backend: row for row in rows if label(row) == key}
        cells = [(f"{1e3 * found[b].median:.2f}", unit_cost(found[b])) if b in found else ("", "") for b in backends]
        lines.append((key, *(cell for pair in cells for cell in pair)))
    return table(lines, (title, *(head for name in backends for head in (name, "each"))))


def write_csv(report, file) -> None:
    """One line a contestant and shape: timm's benchmark columns, then ours. `infer_step_time` is ms a batch."""
    writer = csv.writer(file)
    writer.writerow(TIMM_COLUMNS + OWN_COLUMNS)
    rate = report.calibration["median"] / 1e9
    for row in report.results + report.sweep:
        q1, q3 = 1e3 * np.quantile(row.rounds, (0.25, 0.75))
        writer.writerow((row.model, f"{row.batch / row.median:.2f}", f"{1e3 * row.median:.3f}", row.batch, row.img_size,
                         f"{row.gmacs:.4f}", f"{row.params:.2f}", row.backend, report.threads, report.machine["cpu"],
                         report.machine["cores"], f"{q1:.3f}", f"{q3:.3f}", f"{np.median(row.ratios):.3f}",
                         row.baseline, f"{row.peak_bytes / 1e6:.1f}", *(
                             "" if value is None else f"{value:.3f}"
                             for value in (row.seconds_import, row.seconds_cold, row.seconds_warm)), f"{rate:.1f}"))


def to_json(report) -> dict:
    """Plain values: all rounds of everything, with medians beside them."""
    values = asdict(report)
    for plain, row in zip(values["starts"], report.starts, strict=True):
        plain["seconds"] = row.median
    for name in ("results", "sweep"):
        for plain, row in zip(values[name], getattr(report, name), strict=True):
            plain |= {"seconds": row.median, "ratio": float(np.median(row.ratios)), "rate": float(np.median(row.rates))}
    return values
