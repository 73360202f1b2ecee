"""What `mmref eval` reads and prints for classifiers."""

from __future__ import annotations

from pathlib import Path

from mmref.cli.common import predictor_from, refuse_options
from mmref.tables import table


def complete(args) -> None:
    """Fill in the defaults. Raises ValueProblem for options of another task."""
    refuse_options(args, "--task detect", "annotations")
    refuse_options(args, "--task segment", "zero_is_other", "tile", "overlap", ("stray_labels", "refuse"))
    args.model = args.model or "mobilemamba_nano"
    args.batch_size = 32 if args.batch_size is None else args.batch_size
    args.topk = 5 if args.topk is None else args.topk
    args.exif = bool(args.exif)


def prepare(args):
    """(predictor, what it loaded, the pictures with their classes)."""
    from mmref.evaluate import read_folder
    predictor, loaded = predictor_from(args, workers=args.workers)
    root = Path(args.data, args.split or "")
    return predictor, loaded, read_folder(root, loaded.labels, args.labels, args.class_map, args.order)


def figures(predictor, loaded, pictures, tally) -> dict:
    """What there is to report beside the accuracies. Holds no times, so equal runs give equal files."""
    answered, first, among = tally.counts()
    transform = loaded.transform
    return {"img_size": transform.size, "crop_pct": 1.0 if transform.shrink_to else transform.crop_ratio,
            "interpolation": transform.interpolation, "pictures": len(pictures), "answered": answered,
            "correct_top1": first, f"correct_top{tally.topk}": among, "shrink_to": transform.shrink_to,
            "classes": tally.per_class()}


def show(results, tally, worst) -> None:
    """Print the figures for people, and the `worst` classes."""
    answered, first, among = tally.counts()
    print(f"{results['model']} at {results['img_size']}: {answered} pictures")
    print(f"top-1  {results['top1']:.2f} %  ({first})")
    if tally.topk > 1:
        print(f"top-{tally.topk}  {results[f'top{tally.topk}']:.2f} %  ({among})")
    rows = [(c["name"], ", ".join(f"{t['name']} {t['pictures']}" for t in c["taken_for"]), f"{c['top1']:.1f} %",
             f"{c['correct']}/{c['pictures']}") for c in tally.worst(worst)]
    if rows and worst:
        print()
        print(table(rows, ("worst classes", "mostly taken for", "top-1", "right"), left=2))
