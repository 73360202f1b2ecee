"""`mmref eval DIR`: accuracy over a folder of pictures. Flags are those of timm's validate.py where it has them.

The tasks differ in what they read and print: eval_classify.py, eval_segment.py and eval_detect.py, each with
`complete`, `prepare`, `figures` and `show`; what is the same stands here."""

from __future__ import annotations

import argparse
import logging
import os
import sys
from contextlib import contextmanager
from importlib import import_module

from mmref.cli.common import (
    add_backend_arguments,
    add_class_names_argument,
    add_model_arguments,
    add_segmenter_arguments,
    add_transform_arguments,
)
from mmref.cli.output import note, print_json, say
from mmref.errors import MmrefError
from mmref.text import name_fields


def add_arguments(parser):
    parser.add_argument("data", metavar="DIR", help="a folder with one folder per class, or pictures and a label file; "
                        "to segment, any folder of pictures")
    parser.add_argument("--task", choices=("classify", "segment", "detect"), default="classify", help="segment: "
                        "label maps against those in --labels DIR; detect: boxes, and masks, against those in "
                        "--annotations FILE (default: %(default)s)")
    parser.add_argument("--annotations", metavar="FILE", help="to detect: what is in the pictures, in COCO's format "
                        "(instances_val2017.json); DIR holds the pictures")
    add_model_arguments(parser, default=None)
    add_backend_arguments(parser)
    add_class_names_argument(parser)
    add_transform_arguments(parser)
    add_segmenter_arguments(parser, img_size=False)
    parser.add_argument("--batch-size", "-b", type=int, metavar="N", help="(default: 32; to detect 1; to segment, "
                        "the network sees one picture at a time)")
    parser.add_argument("--exif", action=argparse.BooleanOptionalAction, default=None, help="turn pictures as their "
                        "EXIF orientation asks (default: to segment and to detect, as in the published evaluations)")
    parser.add_argument("--topk", type=int, metavar="K", help="right among the first K, beside top-1 (default: 5)")
    parser.add_argument("--limit", "--num-samples", type=int, metavar="N", help="only N pictures, evenly spread")
    parser.add_argument("--split", metavar="NAME", help="use DIR/NAME")
    parser.add_argument("--labels", metavar="FILE", help="label file of a flat folder: lines `picture class`, or a "
                        "class for each sorted picture; to segment, a folder of PNGs called like the pictures")
    parser.add_argument("--zero-is-other", action=argparse.BooleanOptionalAction, default=None, help="to segment: in "
                        "label PNGs 0 is ignored and 1 is the first class (default: for ADE20K's classes)")
    parser.add_argument("--stray-labels", choices=("refuse", "count"), default="refuse", help="to segment: label "
                        "values beyond the classes are an error, or belong to no class (default: %(default)s)")
    parser.add_argument("--class-map", metavar="FILE", help="which folder or label is which output: names in output "
                        "order, or JSON {name: output}")
    parser.add_argument("--order", choices=("lexicographic", "natural"), help="how folders or pictures are sorted "
                        "where only their order says which is which: a1, a10, a2 as torchvision sorts, or a1, a2, a10 "
                        "(default: both must be the same)")
    parser.add_argument("--workers", "-j", type=int, default=2, metavar="N",
                        help="threads that decode ahead, with one process (default: %(default)s)")
    parser.add_argument("--processes", type=int, default=1, metavar="N",
                        help="copies of the model on this machine (default: %(default)s)")
    parser.add_argument("--scheduler", metavar="ADDRESS", help="spread over a Dask cluster: tcp://host:8786, a "
                        "scheduler file, or local:N (needs mmref[dask])")
    parser.add_argument("--resume", metavar="FILE", help="journal: go on where it ends, or begin it")
    parser.add_argument("--results-file", metavar="FILE", help="figures as CSV or JSON with timm's column names; until "
                        "it is written a journal is kept beside it")
    parser.add_argument("--results-format", choices=("csv", "json"), help="(default: by the file's name)")
    parser.add_argument("--worst", type=int, default=5, metavar="N", help="classes to list (default: %(default)s)")
    parser.add_argument("--progress", action=argparse.BooleanOptionalAction, default=None,
                        help="rate and time left (default: on a terminal)")
    parser.add_argument("--json", action="store_true", help="all figures to standard output, for programs")


def run(args) -> int:
    """0 if every picture got its answer, 2 if one (or a folder) could not be read; figures are there all the same."""
    from mmref.arguments import check_integer
    from mmref.evaluate import evaluate, write_results
    from mmref.evaluate.folder import FolderError
    from mmref.progress import progress
    if args.results_file and (os.path.isdir(args.results_file) or not os.access(
            os.path.dirname(os.path.abspath(args.results_file)), os.W_OK)):
        raise FolderError(f"{args.results_file}: cannot be written there")  # now, not after hours
    check_integer("--worst", args.worst, 0)
    task = import_module(f"mmref.cli.eval_{args.task}")
    task.complete(args)
    predictor, loaded, pictures = task.prepare(args)
    if args.limit is not None:
        pictures = pictures.limit(args.limit)
    say(f"mmref: {len(pictures)} pictures, {'; '.join(pictures.notes)}", sys.stderr)
    for problem in pictures.problems:
        say(f"mmref: error: {problem}", sys.stderr)
    journal = args.resume or _own_journal(args.results_file)
    try:
        with progress(len(pictures), "img", wanted=args.progress, leave=True) as bar, _quiet_logs(args.scheduler):
            tally = evaluate(predictor, pictures, processes=args.processes, scheduler=args.scheduler, resume=journal,
                             progress=_shown(bar))
    except KeyboardInterrupt:
        if journal and os.path.exists(journal):
            note(f"what is done is kept in {journal}: the same command resumes from there")
        raise
    results = {"model": args.model, **tally.summary(),
               "param_count": round(loaded.model.config.build().parameter_count() / 1e6, 2),
               **task.figures(predictor, loaded, pictures, tally), "list_sha256": pictures.digest(),
               "bad": [{**name_fields("picture", pictures.paths[i]), "error": tally.errors[i]}
                       for i in sorted(tally.errors)], "not_read": list(pictures.problems)}
    failure = None
    if args.results_file:
        try:
            write_results(args.results_file, results, args.results_format)
            if journal and journal != args.resume:
                os.remove(journal)
        except OSError as error:  # the figures are printed all the same
            kept = f"; all answers are in {journal}: the same command writes the file from there" if journal else ""
            failure = MmrefError(f"{args.results_file}: {error.strerror or error}{kept}")
    if args.json:
        print_json(results)
    else:
        task.show(results, tally, args.worst)
        if results["bad"]:
            print(f"bad    {len(results['bad'])} pictures, not counted")
    for bad in results["bad"][:20]:
        say(f"mmref: bad picture: {bad['error']}", sys.stderr)
    if len(results["bad"]) > 20:
        say(f"mmref: and {len(results['bad']) - 20} more bad pictures (all of them with --json)", sys.stderr)
    if failure:
        raise failure
    return 2 if results["bad"] or pictures.problems else 0


def _own_journal(results_file):
    """The journal beside a results file, kept until that is written: hours of work are not lost with the process. None
    for what is no file: a device, a pipe."""
    if not results_file or (os.path.exists(results_file) and not os.path.isfile(results_file)):
        return None
    return f"{results_file}.journal"


@contextmanager
def _quiet_logs(wanted):
    """Dask logs tracebacks of its own; what matters of them reaches the user as one line."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL if wanted else before)
    try:
        yield
    finally:
        logging.disable(before)


def _shown(bar):
    """Callback of `evaluate` that moves the bar. What an earlier run had done counts as done, not as speed."""
    started = False

    def show(tally, new):
        nonlocal started
        if not started:
            started = True
            bar.reset()
            bar.initial = bar.n = new
            bar.refresh()
            return
        bar.set_postfix_str(tally.running, refresh=False)
        bar.update(new)
    return show
