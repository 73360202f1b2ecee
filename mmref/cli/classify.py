"""`mmref classify PICTURE...`: what is in pictures, or in all pictures of a folder."""

from __future__ import annotations

import sys
from pathlib import Path

from mmref.cli.common import (
    add_backend_arguments,
    add_class_names_argument,
    add_model_arguments,
    add_transform_arguments,
    predictor_from,
    print_json,
)
from mmref.errors import ValueProblem

SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".bmp"}


def add_arguments(parser):
    parser.add_argument("pictures", nargs="*", metavar="PICTURE", help="picture files, and folders of them")
    parser.add_argument("--sample", action="append", default=[], metavar="NAME",
                        help="a picture that PyWavelets ships: aero, ascent or camera")
    add_model_arguments(parser)
    add_backend_arguments(parser)
    add_class_names_argument(parser)
    add_transform_arguments(parser)
    parser.add_argument("--topk", type=int, default=3, help="classes to name (default: %(default)s)")
    parser.add_argument("--batch-size", type=int, default=16, help="pictures at once (default: %(default)s)")
    parser.add_argument("--exif", action="store_true", help="turn pictures as their EXIF orientation asks")
    parser.add_argument("--json", action="store_true", help="for programs: a list with one object per picture")


def run(args) -> int:
    """0 if every picture got its answer, 2 if one could not be read or nothing was asked."""
    pictures, names = gather(args.pictures, args.sample)
    predict, loaded = predictor_from(args)
    if not getattr(loaded.model, "class_names", None):
        print("mmref: note: the names of the classes are unknown; --class-names gives them (a file, imagenet or "
              "cifar10)", file=sys.stderr)
    answers = []
    for name, answer in zip(names, with_progress(predict.stream(pictures), len(pictures)), strict=True):
        answers.append((name, answer))
        if not args.json:
            report(name, answer, verbose=len(pictures) == 1)
    if args.json:
        print_json([as_dict(name, answer) for name, answer in answers])
    return 2 if any(answer.error for _, answer in answers) else 0


def gather(paths, samples):
    """(pictures, their names): samples first, folders replaced by the picture files below them, sorted."""
    from mmref.data.samples import sample_picture
    pictures, names = [sample_picture(name) for name in samples], [f"sample {name}" for name in samples]
    for path in map(Path, paths):
        found = sorted(p for p in path.rglob("*") if p.suffix.lower() in SUFFIXES) if path.is_dir() else [path]
        if not found:
            raise ValueProblem(f"PICTURE must be a picture or a folder with some ({', '.join(sorted(SUFFIXES))}), "
                               f"got the folder {path} without any")
        pictures += [str(p) for p in found]
        names += [str(p) for p in found]
    if not pictures:
        raise ValueProblem("PICTURE must be at least one file or folder (or use --sample aero), got none")
    return pictures, names


def with_progress(answers, total):
    """A progress bar on a terminal, for more than a few pictures."""
    if total < 8 or not sys.stderr.isatty():
        return answers
    from tqdm import tqdm
    return tqdm(answers, total=total, unit="picture", leave=False)


def report(name, answer, verbose):
    """A picture's lines: several with bars for a single picture, one for each of many."""
    if answer.error:
        message = answer.error.replace("\n", " ")
        print(f"mmref: error: {message}", file=sys.stderr)
        return
    for note in answer.notes:
        print(f"mmref: note: {name}: {note}", file=sys.stderr)
    ranked = list(zip(answer.probabilities, answer.labels, strict=True))
    if not verbose:
        print(f"{name}: " + ", ".join(f"{label} {probability:.1%}" for probability, label in ranked))
        return
    print(name)
    for probability, label in ranked:
        print(f"  {probability:6.1%}  {'#' * round(30 * probability):30}  {label}")


def as_dict(name, answer):
    ranked = zip(answer.classes, answer.labels, answer.probabilities, strict=True)
    return {"picture": name, "error": answer.error, "notes": list(answer.notes),
            "predictions": [{"class": c, "label": label, "probability": p} for c, label, p in ranked]}
