"""`mmref classify PICTURE...`: what is in pictures, or in all pictures of a folder."""

from __future__ import annotations

import sys

from mmref.cli.common import (
    add_backend_arguments,
    add_class_names_argument,
    add_model_arguments,
    add_transform_arguments,
    note_limits,
    predictor_from,
)
from mmref.cli.output import note, print_json, say
from mmref.cli.pictures import add_picture_arguments, gather
from mmref.text import name_fields


def add_arguments(parser):
    add_picture_arguments(parser)
    add_model_arguments(parser)
    add_backend_arguments(parser)
    add_class_names_argument(parser)
    add_transform_arguments(parser)
    parser.add_argument("--topk", type=int, default=3, help="classes to name (default: %(default)s)")
    parser.add_argument("--batch-size", type=int, default=16, help="pictures at once (default: %(default)s)")
    parser.add_argument("--exif", action="store_true", help="turn pictures as their EXIF orientation asks")
    parser.add_argument("--json", action="store_true", help="for programs: a list with one object per picture")


def run(args) -> int:
    """0 if every picture got its answer, 2 if one (or a folder) could not be read or nothing was asked."""
    from mmref.progress import progress
    pictures, names, problems = gather(args.pictures, args.sample)
    predict, loaded = predictor_from(args)
    if not loaded.model.class_names:
        note("nobody says what the classes are called; --class-names gives them (a file, imagenet or cifar10)")
    answers, said = [], False
    with progress(len(pictures), "picture", wanted=None if len(pictures) >= 8 else False) as bar:
        for name, answer in zip(names, predict.stream(pictures), strict=True):
            answers.append((name, answer))
            if not said and not answer.error:
                note_limits(args, loaded.model)
                said = True
            if args.json and answer.error:
                say(f"mmref: error: {answer.error}", sys.stderr)
            elif not args.json:
                report(name, answer, verbose=len(pictures) == 1)
            bar.update()
    if args.json:
        print_json([as_dict(name, answer) for name, answer in answers])
    for problem in problems:
        say(f"mmref: error: {problem}", sys.stderr)
    return 2 if problems or any(answer.error for _, answer in answers) else 0


def report(name, answer, verbose):
    """A picture's lines: several with bars for a single picture, one for each of many."""
    if answer.error:
        say(f"mmref: error: {answer.error}", sys.stderr)
        return
    for text in answer.notes:
        note(f"{name}: {text}")
    ranked = list(zip(answer.probabilities, answer.labels, strict=True))
    if not verbose:
        say(f"{name}: " + ", ".join(f"{label} {probability:.1%}" for probability, label in ranked))
        return
    say(name)
    for probability, label in ranked:
        say(f"  {probability:6.1%}  {'#' * round(30 * probability):30}  {label}")


def as_dict(name, answer):
    ranked = zip(answer.classes, answer.labels, answer.probabilities, strict=True)
    return {**name_fields("picture", name), "error": answer.error, "notes": list(answer.notes),
            "predictions": [{"class": c, "label": label, "probability": p} for c, label, p in ranked]}
