"""The figures of segmentation, from counts of pixels: mIoU, mAcc, aAcc, by mmsegmentation's definition.

Over all pictures and all pixels that are not ignored, each class c has three counts: I_c, pixels labelled c and
predicted c; P_c, predicted c, whatever the label; L_c, labelled c. They are integers, so pictures can be counted
anywhere, in any order, and added up.

    IoU_c = I_c / (P_c + L_c - I_c)      mIoU: the mean over classes that are labelled or predicted anywhere
    Acc_c = I_c / L_c                    mAcc: the mean over classes that are labelled anywhere
    aAcc = sum I / sum L
"""

from __future__ import annotations

import numpy as np

from mmref.arguments import check_integer, check_rank
from mmref.errors import ShapeError, ValueProblem

__all__ = ["IGNORED", "count_pixels", "overlap_figures"]

IGNORED = 255  # in a label map: a pixel that does not count


def count_pixels(predicted: np.ndarray, labels: np.ndarray, classes: int) -> np.ndarray:
    """(3, classes) int64: I, P, L of one picture.

    predicted, labels  (H, W) unsigned integers. Labels from `classes` to 254 are of no class: they count for P alone.
    Raises ShapeError for maps of two sizes or other numbers, ValueProblem for a prediction that is not a class."""
    classes = check_integer("classes", classes, 1)
    for name, array in (("predicted", predicted), ("labels", labels)):
        check_rank(name, array, "height width")
        if array.dtype.kind != "u":
            raise ShapeError(f"{name} must be unsigned integers, got {array.dtype}")
    if predicted.shape != labels.shape:
        raise ShapeError(f"predicted and labels must be of one size, got {predicted.shape} and {labels.shape}")
    counted = labels != IGNORED
    predicted, labels = predicted[counted], labels[counted]
    if predicted.size and predicted.max() >= classes:
        raise ValueProblem(f"predicted must be below {classes}, the number of classes, got {predicted.max()}")
    right = predicted[predicted == labels]
    return np.stack([np.bincount(values, minlength=classes)[:classes] for values in (right, predicted, labels)])


def overlap_figures(counts: np.ndarray) -> dict:
    """Percentages from counts (3, classes): "mIoU", "mAcc", "aAcc", and (classes,) arrays "IoU" and "Acc", NaN where
    there is nothing to divide by. Raises ValueProblem where no pixel was labelled."""
    right, predicted, labelled = counts
    if not labelled.sum():
        raise ValueProblem("labels must have a pixel of some class, got none: all are ignored or of no class")
    with np.errstate(invalid="ignore"):  # 0 / 0
        overlap, accuracy = 100 * right / (predicted + labelled - right), 100 * right / labelled
    return {"mIoU": float(np.nanmean(overlap)), "mAcc": float(np.nanmean(accuracy)),
            "aAcc": float(100 * right.sum() / labelled.sum()), "IoU": overlap, "Acc": accuracy}
