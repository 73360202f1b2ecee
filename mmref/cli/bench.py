"""`mmref bench`: our backends beside the runtimes that are installed, each in its own process, in turn."""

from __future__ import annotations

import sys

from mmref.cli.output import print_json
from mmref.errors import ValueProblem


def add_arguments(parser):
    from mmref.bench.backends import BACKENDS
    parser.add_argument("--models", nargs="+", default=["mobilemamba_t2"], metavar="MODEL",
                        help="names that `mmref models` lists (default: mobilemamba_t2)")
    parser.add_argument("--batch", nargs="+", type=int, metavar="N", help="batch sizes (default: 1; --sweep: 1 to 64)")
    parser.add_argument("--img-size", type=int, help="side of the pictures (default: each model's training size)")
    parser.add_argument("--threads", type=int, help="for everyone (default: all cores)")
    parser.add_argument("--rounds", type=int, default=15, help="how often everyone has a turn (default: %(default)s)")
    parser.add_argument("--turn", type=float, default=0.3, metavar="SECONDS",
                        help="length of a turn, at least one forward (default: %(default)s)")
    parser.add_argument("--starts", type=int, default=1,
                        help="warm process starts to measure after a cold one; 0 for neither (default: %(default)s)")
    parser.add_argument("--backends", nargs="+", default=[], metavar="NAME",
                        help=f"of {', '.join(BACKENDS)} (default: all that are installed, but for torch-compile)")
    parser.add_argument("--unfolded", action="store_true",
                        help="numpy and torch also with batch norms left as layers (default: folded for everyone)")
    parser.add_argument("--torch-reference", metavar="PATH",
                        help="the PyTorch network (default: tests/torch_reference.py of this checkout)")
    parser.add_argument("--sweep", action="store_true",
                        help="instead: how cost grows with picture size (128 to 1024) and batch (1 to 64)")
    parser.add_argument("--start", action="store_true",
                        help="instead: whole `mmref classify` processes beside PyTorch's import and first forward")
    parser.add_argument("--sizes", nargs="+", type=int, metavar="N", help="for --sweep: the picture sizes")
    parser.add_argument("--gpu-report", nargs="?", const="", metavar="FILE",
                        help="instead: all there is to see on a GPU, correctness and speed, into a JSON file (default: "
                             "docs/gpu_report.json of this checkout, else gpu_report.json)")
    parser.add_argument("--gpu-report-state", action="store_true",
                        help="instead: whether the committed GPU report is missing, stale or current")
    parser.add_argument("--limit", type=float, metavar="SECONDS",
                        help="for one answer, compiling included; who takes longer is left out (default: 600); "
                             "with --gpu-report for all of it (default: 460)")
    parser.add_argument("--csv", metavar="FILE", help="also write timm's benchmark columns")
    parser.add_argument("--json", action="store_true", help="for programs")


def run(args) -> int:
    if args.gpu_report_state:
        from mmref.bench.gpu import report_state
        state, words = report_state()
        print(words)
        return state != "current"
    if args.gpu_report is not None:
        return _gpu_report(args)
    from mmref.bench.measure import SWEEP_BATCHES, SWEEP_SIZES, Plan, run_bench, run_start, run_sweep
    from mmref.bench.report import to_json, to_text, write_csv
    if args.start and (args.sweep or args.csv):
        raise ValueProblem("--start excludes --sweep and --csv: it times processes, not forwards")
    batches = tuple(args.batch or (SWEEP_BATCHES if args.sweep else (1,)))
    plan = Plan(tuple(args.models), batches, args.img_size, args.threads, args.rounds, args.turn, args.starts,
                tuple(args.backends), args.unfolded, args.torch_reference,
                args.limit or 600)
    with open(args.csv, "w", newline="") if args.csv else _Nowhere() as file:  # a bad path shows now, not at the end
        with _Progress() as progress:
            if args.start:
                report = run_start(plan, progress)
            elif args.sweep:
                report = run_sweep(plan, progress, tuple(args.sizes or SWEEP_SIZES), batches)
            else:
                report = run_bench(plan, progress)
        if args.csv:
            write_csv(report, file)
    if args.json:
        print_json(to_json(report))
    else:
        print(to_text(report))
    return 0 if report.results or report.sweep or report.starts else 1


def _gpu_report(args) -> int:
    """0 if all is right, 1 if not or if a section failed; the file is there in any case."""
    from mmref.bench.gpu import committed_report, report_text, require_device, right, run_gpu_report
    require_device()
    path = args.gpu_report or (committed_report() if committed_report().parent.is_dir() else "gpu_report.json")
    with open(path, "a"):  # a bad path shows now, not after minutes
        pass
    with _Progress() as progress:
        report = run_gpu_report(path, limit=args.limit, progress=lambda section: progress(section, 0, 1))
    if args.json:
        print_json(report)
    else:
        print(report_text(report))
        print(f"\nwritten to {path}")
    return 0 if right(report) else 1


class _Nowhere:
    def __enter__(self):
        return None

    def __exit__(self, *_):
        return None


class _Progress:
    """One line on a terminal's stderr that says what is being measured; nothing where stderr is no terminal."""

    def __enter__(self):
        return self

    def __call__(self, text, step, steps):
        if sys.stderr.isatty():
            print(f"\r{text}, round {step + 1} of {steps}\033[K", end="", file=sys.stderr, flush=True)

    def __exit__(self, *_):
        if sys.stderr.isatty():
            print("\r\033[K", end="", file=sys.stderr, flush=True)
