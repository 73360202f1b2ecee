"""What `mmref eval --task detect` reads and prints."""

from __future__ import annotations

from pathlib import Path

from mmref.cli.common import detector_from, refuse_options
from mmref.errors import ValueProblem
from mmref.tables import table


def complete(args) -> None:
    """Fill in the defaults. Raises ValueProblem for options of another task, and without annotations."""
    refuse_options(args, "--task classify", "topk", "class_map", "order", "crop_pct", "interpolation")
    refuse_options(args, "--task segment", "labels", "zero_is_other", "tile", "overlap", ("stray_labels", "refuse"))
    if args.annotations is None:
        raise ValueProblem("--annotations must be a file in COCO's format, such as instances_val2017.json, got none")
    args.model = args.model or "mobilemamba_nano_ssdlite"
    args.batch_size = 1 if args.batch_size is None else args.batch_size
    args.exif = args.exif is not False


def prepare(args):
    """(detector, what it loaded, the pictures with their annotations)."""
    from mmref.evaluate import read_annotations
    detector, loaded = detector_from(args, args.batch_size, workers=args.workers)
    if not loaded.model.class_names:
        raise ValueProblem("nobody says what the classes are called: --class-names coco, or a file of names as the "
                           "annotations have them")
    return detector, loaded, read_annotations(Path(args.data, args.split or ""), args.annotations, loaded.labels)


def figures(detector, loaded, pictures, tally) -> dict:
    """What there is to report beside COCO's figures. Holds no times, so equal runs give equal files."""
    transform = loaded.transform
    return {"img_size": transform.short, "longest": transform.long, "batch_size": detector.batch_size,
            "pictures": len(pictures), "answered": tally.answered,
            "objects": sum(map(len, tally.entries.values())), "classes": tally.per_class()}


def show(results, tally, worst) -> None:
    """Print the figures for people, and the `worst` classes."""
    from mmref.evaluate.tally import BOX_FIGURES
    print(f"{results['model']} at {results['img_size']}: {results['answered']} pictures, "
          f"{results['objects']:,} objects found")
    rows = [(kind, *(_shown(results[prefix + name]) for name in BOX_FIGURES))
            for kind, prefix in (("boxes", ""), ("masks", "mask ")) if prefix + "AP" in results]
    print(table(rows, ("", *BOX_FIGURES)))
    classes = sorted(results["classes"], key=lambda c: (c["AP"], c["class"]))[:worst]
    if classes:
        print()
        print(table([(c["name"], _shown(c["AP"]), f"{c['annotated']:,}") for c in classes],
                    ("worst classes", "AP", "annotated")))


def _shown(value):
    return "-" if value is None else f"{value:.1f} %"
