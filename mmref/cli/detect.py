"""`mmref detect PICTURE... -o FOLDER`: which objects are where in pictures."""

from __future__ import annotations

import os
import sys
from typing import NamedTuple

from mmref.cli.common import (
    add_backend_arguments,
    add_class_names_argument,
    add_model_arguments,
    detector_from,
    note_limits,
)
from mmref.cli.destination import Destination
from mmref.cli.output import note, print_json, say
from mmref.cli.pictures import add_picture_arguments, gather
from mmref.errors import ValueProblem
from mmref.tables import table
from mmref.text import name_fields, to_json


class Target(NamedTuple):
    """The files of one picture."""

    drawn: str
    masks: str


KINDS = {"objects": ".png", "masks": ".npz"}


def add_arguments(parser):
    add_picture_arguments(parser)
    parser.add_argument("--output", "-o", metavar="FOLDER", help="where FOLDER/objects/NAME.png goes, the picture with "
                        "its objects drawn; files of these names are replaced (default: nothing is drawn)")
    parser.add_argument("--score", type=float, default=0.3, metavar="X", help="leave objects below it out of what is "
                        "drawn and listed, 0 to 1 (default: %(default)s)")
    parser.add_argument("--classes", nargs="+", metavar="NAME", help="only objects of these classes")
    parser.add_argument("--masks", action="store_true", help="also FOLDER/masks/NAME.npz: the network's own 28 x 28 "
                        "probabilities of each object, with boxes, scores and labels")
    parser.add_argument("--coco", metavar="FILE", help="all objects that the network finds, whatever --score, in "
                        "COCO's format of results; a picture's image_id is its name where all names are numbers, else "
                        "its place")
    add_model_arguments(parser, default="mobilemamba_nano_ssdlite")
    add_backend_arguments(parser)
    add_class_names_argument(parser)
    parser.add_argument("--img-size", type=int, metavar="N", help="shorter side that pictures are scaled to (default: "
                        "the weights')")
    parser.add_argument("--no-exif", action="store_false", dest="exif", help="do not turn pictures as their EXIF "
                        "orientation asks")
    parser.add_argument("--json", action="store_true", help="for programs: a list with one object per picture")


def run(args) -> int:
    """0 if every picture got its answer, 2 if one (or a folder) could not be read or written, or nothing was asked."""
    from mmref.arguments import check_number
    from mmref.progress import progress
    check_number("--score", args.score, 0, 1)
    if args.masks and not args.output:
        raise ValueProblem("--masks needs a folder to write to: --output FOLDER")
    pictures, names, problems = gather(args.pictures, args.sample)
    destination, targets = None, [None] * len(names)
    if args.output is not None:
        destination = Destination(args.output, args.pictures, Target, KINDS)
        kept = [i for i, name in enumerate(names) if not destination.is_ours(name)]
        if len(kept) < len(names):
            note(f"{len(names) - len(kept)} pictures in {args.output} that are earlier answers left out")
        pictures, names = [pictures[i] for i in kept], [names[i] for i in kept]
        targets = destination.targets(names)
    detector, loaded = detector_from(args, workers=min(1, len(pictures) // 2), keep_images=args.output is not None)
    chosen = _chosen(args.classes, loaded)
    if args.masks and not loaded.model.config.masks:
        raise ValueProblem(f"--masks must be left out: {loaded.model.config.name} gives boxes only")
    _prepare(args, destination, loaded)
    note_limits(args, loaded.model)
    ids, answers, entries = _image_ids(names, args.coco), [], []
    with progress(len(pictures), "picture", wanted=None if len(pictures) >= 8 else False) as bar:
        for name, target, number, answer in zip(names, targets, ids, detector.stream(pictures), strict=True):
            error, objects = answer.error, None
            if not error:
                whole = answer.objects if chosen is None else answer.objects[_is_among(answer.objects.labels, chosen)]
                objects = whole.above(args.score)
                if args.coco:
                    entries += _coco_entries(number, whole, loaded.labels)
                error = target and _write(target, answer, objects, args.masks)
            if error:
                say(f"mmref: error: {error}", sys.stderr)
            if objects is not None and not args.json:
                _report(name, answer, objects, None if error else target, args, verbose=len(pictures) == 1)
            answers.append(_as_dict(name, answer, objects, target, args.masks, error))
            bar.update()
    failure = _write_results(args.coco, entries) if args.coco else None
    if args.json:
        print_json(answers)
    if failure:  # what was to be printed is printed all the same
        problems = [*problems, failure]
    for problem in problems:
        say(f"mmref: error: {problem}", sys.stderr)
    return 2 if problems or any(answer["error"] for answer in answers) else 0


def _prepare(args, destination, loaded):
    """What can fail fails before the work: folders, the results file, pycocotools for masks in it."""
    known = bool(loaded.model.class_names)
    if not known:
        note("nobody says what the classes are called; --class-names gives them (a file, or coco)")
    if args.coco:
        from mmref.data.labels import coco_names
        from mmref.tasks.coco import needs_pycocotools
        if not known:
            raise ValueProblem("--coco needs to know the classes: --class-names coco, or a file of names")
        if loaded.model.config.masks:
            needs_pycocotools("masks in COCO's format")
        if tuple(loaded.labels) != coco_names():
            note("these are not COCO's classes: category_id is the class's number, from 1 on")
        folder = os.path.dirname(os.path.abspath(args.coco))
        if os.path.isdir(args.coco) or not os.access(folder, os.W_OK):
            raise ValueProblem(f"--coco must be a file that can be written, got {args.coco}")
    if destination is not None:
        destination.prepare()


def _chosen(wanted, loaded):
    """The classes asked for, as numbers; None for all."""
    if wanted is None:
        return None
    missing = [name for name in wanted if name not in loaded.labels]
    if missing:
        known = ", ".join(loaded.labels[:10]) + (", ..." if len(loaded.labels) > 10 else "")
        raise ValueProblem(f"--classes must be classes of the network ({known}), got {', '.join(missing)}")
    return [loaded.labels.index(name) for name in wanted]


def _is_among(labels, chosen):
    import numpy as np
    return np.isin(labels, chosen)


def _image_ids(names, wanted):
    """COCO's number of each picture."""
    stems = [os.path.splitext(os.path.basename(name))[0] for name in names]
    if all(stem.isascii() and stem.isdigit() for stem in stems) and len({int(stem) for stem in stems}) == len(stems):
        return [int(stem) for stem in stems]
    if wanted:
        note("image_id is a picture's place, from 1 on: not all names are numbers")
    return list(range(1, len(names) + 1))


def _coco_entries(number, objects, labels):
    from mmref.tasks.coco import category_ids, results_of
    return results_of(number, objects, category_ids(labels))


def _write_results(path, entries) -> str | None:
    """The file of results; or in words why there is none."""
    from mmref.files import replacing
    try:
        with replacing(path) as temporary:
            temporary.write_text(to_json(entries), encoding="utf-8")
    except OSError as error:
        return f"{path}: {error.strerror or error}"
    return None


def _write(target, answer, objects, masks) -> str | None:
    """A picture's files, whole or not at all; or in words why not: a disk that is full leaves the other results."""
    import numpy as np

    from mmref.data.colours import class_colours
    from mmref.files import replacing
    from mmref.show.boxes import draw_objects
    names = [answer.class_names[label] for label in objects.labels]
    shown = draw_objects(answer.image, objects, names, class_colours(answer.class_names))
    try:
        for path in target[:1 + masks]:
            os.makedirs(os.path.dirname(path), exist_ok=True)
        with replacing(target.drawn) as temporary:
            shown.save(temporary, "PNG")
            if masks:
                with replacing(target.masks) as other, other.open("wb") as file:
                    np.savez_compressed(file, probabilities=objects.probabilities, boxes=objects.boxes,
                                        scores=objects.scores, labels=objects.labels, size=objects.size)
    except OSError as error:
        return f"{os.fsdecode(error.filename or target.drawn)}: {error.strerror or error}"
    return None


def _report(name, answer, objects, target, args, verbose):
    """A picture's lines: a table for a single picture, one line for each of many."""
    for text in answer.notes:
        note(f"{name}: {text}")
    names = [answer.class_names[label] for label in objects.labels]
    if not verbose:
        found = ", ".join(f"{count} x {label}" if count > 1 else label for label, count in _counted(names))
        say(f"{name}: {found or 'nothing'}")
        return
    say(f"{name}: {objects.size[1]} x {objects.size[0]} pixels, {len(objects)} objects of score {args.score:g} or more")
    if names:
        rows = [(label, f"{score:.1%}", *(f"{side:.1f}" for side in box.tolist()))
                for label, score, box in zip(names, objects.scores, objects.boxes, strict=True)]
        print(table(rows, ("object", "score", "x1", "y1", "x2", "y2")))
    for path in (target or ())[:1 + args.masks]:
        say(f"wrote {path}")


def _counted(names):
    return [(name, names.count(name)) for name in dict.fromkeys(names)]


def _as_dict(name, answer, objects, target, masks, error):
    """A picture's answer: without objects where it could not be read, without files where they could not be written."""
    if objects is None:
        return {**name_fields("picture", name), "error": error, "notes": list(answer.notes)}
    height, width = objects.size
    files = name_fields("drawn", target.drawn) if target and not error else {}
    if files and masks:
        files |= name_fields("masks", target.masks)
    return {**name_fields("picture", name), "error": error, "notes": list(answer.notes), "height": height,
            "width": width, **files,
            "objects": [{"class": int(label), "label": answer.class_names[label], "score": float(score),
                         "box": [float(side) for side in box]}
                        for label, score, box in zip(objects.labels, objects.scores, objects.boxes, strict=True)]}
