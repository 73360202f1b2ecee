"""`mmref bench`: our backends beside the runtimes that are installed, each in its own process, in turn.

    mmref bench                 forwards             mmref bench start         whole processes, to their first answer
    mmref bench sweep           cost by size         mmref bench gpu-report    what there is to see on a GPU
"""

from __future__ import annotations

import argparse
import contextlib
import sys

from mmref.cli.output import print_json, say


class _Tool(argparse._SubParsersAction):
    """Options of the plain command that stand before another tool's name would be lost: an error instead."""

    def __call__(self, parser, namespace, values, option_string=None):
        for action in parser._actions:
            if action.option_strings and getattr(namespace, action.dest, None) not in (None, action.default):
                parser.error(f"{action.option_strings[0]} must stand behind {values[0]!r}")
        super().__call__(parser, namespace, values, option_string)


def add_arguments(parser):
    _forwards_arguments(parser)
    tools = parser.add_subparsers(dest="tool", metavar="TOOL", action=_Tool, title="other tools")
    for name, (add, help_line) in _TOOLS.items():
        add(tools.add_parser(name, help=help_line, description=f"mmref bench {name}: {help_line}."))


def run(args) -> int:
    return {None: _forwards, "sweep": _sweep, "start": _start, "gpu-report": _gpu_report}[args.tool](args)


# ------------------------------------------------------------------------------------------------ arguments

def _common_arguments(parser):
    from mmref.bench.backends import BACKENDS
    parser.add_argument("--models", nargs="+", default=["mobilemamba_t2"], metavar="MODEL",
                        help="names that `mmref models` lists (default: mobilemamba_t2)")
    parser.add_argument("--threads", type=int, help="for everyone (default: all cores)")
    parser.add_argument("--rounds", type=int, default=15, help="how often everyone has a turn (default: %(default)s)")
    parser.add_argument("--backends", nargs="+", default=[], metavar="NAME",
                        help=f"of {', '.join(BACKENDS)} (default: all that are installed, except torch-compile)")
    parser.add_argument("--limit", type=float, default=600.0, metavar="SECONDS",
                        help="for one answer, compiling included; who takes longer is left out (default: %(default)g)")
    parser.add_argument("--json", action="store_true", help="for programs")


def _turns_arguments(parser, batches):
    parser.add_argument("--batch", nargs="+", type=int, default=list(batches), metavar="N",
                        help=f"batch sizes (default: {' '.join(map(str, batches))})")
    parser.add_argument("--img-size", type=int, help="side of the pictures (default: each model's training size)")
    parser.add_argument("--turn", type=float, default=0.3, metavar="SECONDS",
                        help="length of a turn, at least one forward (default: %(default)s)")
    parser.add_argument("--unfolded", action="store_true",
                        help="numpy and torch also with batch norms left as layers (default: folded for everyone)")
    parser.add_argument("--cpu-time", action="store_true", help="take the processor's seconds, not the clock's: for a "
                        "machine that does other work; --threads 1 only")
    parser.add_argument("--csv", metavar="FILE", help="also write timm's benchmark columns")


def _forwards_arguments(parser):
    _common_arguments(parser)
    _turns_arguments(parser, (1,))
    parser.add_argument("--starts", type=int, default=1,
                        help="warm process starts to measure after a cold one; 0 for neither (default: %(default)s)")


def _sweep_arguments(parser):
    from mmref.bench.measure import SWEEP_BATCHES, SWEEP_SIZES
    _common_arguments(parser)
    _turns_arguments(parser, SWEEP_BATCHES)
    parser.add_argument("--sizes", nargs="+", type=int, default=list(SWEEP_SIZES), metavar="N",
                        help=f"sides of the pictures at batch 1 (default: {' '.join(map(str, SWEEP_SIZES))})")


def _gpu_report_arguments(parser):
    parser.add_argument("file", nargs="?", default="gpu_report.json", metavar="FILE",
                        help="where to write it (default: %(default)s)")
    parser.add_argument("--limit", type=float, metavar="SECONDS", help="for all of it (default: 460)")
    parser.add_argument("--json", action="store_true", help="for programs")


_TOOLS = {"sweep": (_sweep_arguments, "how cost grows with picture size and batch"),
          "start": (_common_arguments, "whole `mmref classify` processes beside PyTorch's import and first forward"),
          "gpu-report": (_gpu_report_arguments, "correctness and speed on a GPU, into a JSON file")}


# ---------------------------------------------------------------------------------------------------- tools

def _forwards(args):
    from mmref.bench.measure import run_bench
    return _measured(args, run_bench)


def _sweep(args):
    from mmref.bench.measure import run_sweep
    return _measured(args, lambda plan, progress: run_sweep(plan, progress, tuple(args.sizes), plan.batches))


def _start(args):
    from mmref.bench.measure import run_start
    return _measured(args, run_start)


def _measured(args, measure) -> int:
    """Make the plan, measure, print; 1 where nothing could be measured."""
    from mmref.bench.measure import Plan
    from mmref.bench.report import to_json, to_text, write_csv
    # a tool without an option has the plain one's default
    plan = Plan(tuple(args.models), tuple(args.batch), args.img_size, args.threads, args.rounds, args.turn, args.starts,
                tuple(args.backends), args.unfolded, args.limit,  # a tool without an option has the plain one's default
                args.cpu_time)
    with contextlib.ExitStack() as stack:
        file = stack.enter_context(open(args.csv, "w", newline="")) if args.csv else None  # a bad path shows now
        show = stack.enter_context(_progress())
        report = measure(plan, lambda text, step, steps: show(f"{text}, round {step + 1} of {steps}"))
        if file:
            write_csv(report, file)
    if args.json:
        print_json(to_json(report))
    else:
        print(to_text(report))
    for alarm in report.alarms:
        print(f"mmref: alarm: {alarm}", file=sys.stderr)
    return 0 if report.results or report.sweep or report.starts else 1


def _gpu_report(args) -> int:
    """0 if all is right, 1 if not or if a section failed; the file is there in any case."""
    from mmref.bench.gpu import report_text, require_device, right, run_gpu_report
    require_device()
    with open(args.file, "a"):  # a bad path shows now, not after minutes
        pass
    with _progress() as show:
        report = run_gpu_report(args.file, limit=args.limit, progress=show)
    if args.json:
        print_json(report)
    else:
        print(report_text(report))
        say()
        say(f"written to {args.file}")
    return 0 if right(report) else 1


@contextlib.contextmanager
def _progress():
    """A function that shows a line of text on stderr, in place of the one before; on a terminal only."""
    from mmref.progress import progress
    with progress(None, "step", bar_format="{desc}") as bar:
        yield bar.set_description_str
