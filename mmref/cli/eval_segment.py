"""What `mmref eval --task segment` reads and prints."""

from __future__ import annotations

from pathlib import Path

from mmref.cli.common import refuse_options, segmenter_from
from mmref.errors import ValueProblem
from mmref.tables import table


def complete(args) -> None:
    """Fill in the defaults. Raises ValueProblem for options of another task, and without labels."""
    refuse_options(args, "--task detect", "annotations")
    refuse_options(args, "--task classify", "batch_size", "topk", "class_map", "order", "crop_pct", "interpolation")
    if args.labels is None:
        raise ValueProblem("--labels must be a folder of label PNGs, called like the pictures, got none")
    args.model = args.model or "mobilemamba_nano_fpn"
    args.exif = args.exif is not False


def prepare(args):
    """(segmenter, what it loaded, the pictures with their label maps)."""
    from mmref.data.labels import ade20k_names
    from mmref.evaluate import LabelRule, read_labelled_folder
    segmenter, loaded = segmenter_from(args, workers=args.workers)
    zero_is_other = loaded.labels == ade20k_names() if args.zero_is_other is None else args.zero_is_other
    rule = LabelRule(len(loaded.labels), zero_is_other, args.stray_labels == "count")
    return segmenter, loaded, read_labelled_folder(Path(args.data, args.split or ""), args.labels, rule)


def figures(segmenter, loaded, pictures, tally) -> dict:
    """What there is to report beside mIoU, mAcc and aAcc. Holds no times, so equal runs give equal files."""
    return {"img_size": loaded.transform.short if segmenter.tile is None else segmenter.tile, "tile": segmenter.tile,
            "overlap": segmenter.overlap, "pictures": len(pictures), "answered": tally.answered,
            "zero_is_other": pictures.rule.zero_other, "pixels": int(tally.counts[2].sum()),
            "classes": tally.per_class()}


def show(results, tally, worst) -> None:
    """Print the figures for people, and every class; `worst` is not needed."""
    windows = f"windows of {results['tile']}" if results["tile"] else results["img_size"]
    print(f"{results['model']} at {windows}: {results['answered']} pictures, {results['pixels']:,} pixels")
    for name in ("mIoU", "mAcc", "aAcc"):
        print(f"{name}   {results[name]:.2f} %")
    print()
    print(table([(c["name"], f"{c['IoU']:.2f} %", "-" if c["Acc"] is None else f"{c['Acc']:.2f} %",
                  f"{c['labelled']:,}", f"{c['predicted']:,}") for c in results["classes"]],
                ("class", "IoU", "Acc", "labelled", "predicted")))
