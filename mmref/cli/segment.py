"""`mmref segment PICTURE... -o FOLDER`: what every pixel of pictures shows."""

from __future__ import annotations

import os
import sys

from mmref.cli.common import (
    add_backend_arguments,
    add_class_names_argument,
    add_model_arguments,
    add_segmenter_arguments,
    note_limits,
    segmenter_from,
)
from mmref.cli.destination import Destination
from mmref.cli.output import note, print_json, say
from mmref.cli.pictures import add_picture_arguments, gather
from mmref.tables import table
from mmref.text import name_fields


def add_arguments(parser):
    add_picture_arguments(parser)
    parser.add_argument("--output", "-o", metavar="FOLDER", required=True, help="where FOLDER/labels/NAME.png and "
                        "FOLDER/overlays/NAME.png go; files of these names are replaced")
    parser.add_argument("--opacity", type=float, default=0.5, metavar="X", help="of the colours laid over the picture, "
                        "0 to 1 (default: %(default)s)")
    parser.add_argument("--no-legend", action="store_true", help="leave the legend below overlays out")
    add_model_arguments(parser, default="mobilemamba_nano_fpn")
    add_backend_arguments(parser)
    add_class_names_argument(parser)
    add_segmenter_arguments(parser)
    parser.add_argument("--no-exif", action="store_false", dest="exif", help="do not turn pictures as their EXIF "
                        "orientation asks")
    parser.add_argument("--json", action="store_true", help="for programs: a list with one object per picture")


def run(args) -> int:
    """0 if every picture got its files, 2 if one (or a folder) could not be read or written, or nothing was asked."""
    from mmref.arguments import check_number
    from mmref.progress import progress
    check_number("--opacity", args.opacity, 0, 1)
    pictures, names, problems = gather(args.pictures, args.sample)
    destination = Destination(args.output, args.pictures)
    kept = [i for i, name in enumerate(names) if not destination.is_ours(name)]
    if len(kept) < len(names):
        note(f"{len(names) - len(kept)} pictures in {args.output} that are earlier answers left out")
    pictures, names = [pictures[i] for i in kept], [names[i] for i in kept]
    targets = destination.targets(names)
    segmenter, loaded = segmenter_from(args, workers=min(1, len(pictures) // 2), keep_images=True)
    if not loaded.model.class_names:
        note("nobody says what the classes are called; --class-names gives them (a file, or ade20k)")
    note_limits(args, loaded.model)
    destination.prepare()
    answers = []
    with progress(len(pictures), "picture", wanted=None if len(pictures) >= 8 else False) as bar:
        for name, target, answer in zip(names, targets, segmenter.stream(pictures), strict=True):
            error = answer.error or _write(target, answer, args.opacity, not args.no_legend)
            if error:
                say(f"mmref: error: {error}", sys.stderr)
            elif not args.json:
                _report(name, answer, target, verbose=len(pictures) == 1)
            answers.append(_as_dict(name, answer, target, error))
            bar.update()
    if args.json:
        print_json(answers)
    for problem in problems:
        say(f"mmref: error: {problem}", sys.stderr)
    return 2 if problems or any(answer["error"] for answer in answers) else 0


def _write(target, answer, opacity, legend) -> str | None:
    """Both files of a picture, whole or not at all; or in words why not. Raises OSError for a disk that takes none."""
    import errno

    from mmref.data.label_map import write_label_map
    from mmref.files import replacing
    from mmref.show.overlay import overlay, with_legend
    colours = answer.colours
    shown = overlay(answer.image, answer.labels, colours, opacity)
    if legend:
        shown = with_legend(shown, [(colours[c.number], f"{c.name}  {c.share:.1%}") for c in answer.classes()])
    try:
        for path in target:
            os.makedirs(os.path.dirname(path), exist_ok=True)
        with replacing(target.overlay) as temporary:  # whose name changes after that of the labels
            shown.save(temporary, "PNG")
            write_label_map(target.labels, answer.labels, colours)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EROFS):
            raise
        return f"{os.fsdecode(error.filename or target.labels)}: {error.strerror or error}"
    return None


def _report(name, answer, target, verbose):
    """A picture's lines: a table for a single picture, one line for each of many."""
    for text in answer.notes:
        note(f"{name}: {text}")
    classes = answer.classes()
    if not verbose:
        say(f"{name}: " + ", ".join(f"{c.name} {c.share:.1%}" for c in classes))
        return
    say(f"{name}: {answer.labels.shape[1]} x {answer.labels.shape[0]} pixels")
    print(table([(c.name, str(c.number), f"{c.share:.1%}") for c in classes], ("class", "number", "share")))
    for path in target:
        say(f"wrote {path}")


def _as_dict(name, answer, target, error):
    if error:
        return {**name_fields("picture", name), "error": error, "notes": list(answer.notes)}
    height, width = answer.labels.shape
    return {**name_fields("picture", name), "error": None, "notes": list(answer.notes), "height": height,
            "width": width, **name_fields("labels", target.labels), **name_fields("overlay", target.overlay),
            "classes": [{"class": c.number, "name": c.name, "pixels": c.pixels, "share": c.share,
                         "colour": answer.colours[c.number].tolist()} for c in answer.classes()]}
