"""Accuracy over a folder of pictures: on one process, several, or a Dask cluster, with the same figures.

    from mmref.evaluate import evaluate, read_folder
    result = evaluate(predictor, read_folder("imagenet/val", predictor.load().labels))
    print(result.summary()["top1"])

folder    which pictures there are and what is right     batch    the unit of work, and the record of its answers
tally     what was answered, and the figures              journal  the file that makes a run resumable
run       who computes which batch: this process, others  cluster  the same with Dask
labelled  pictures with label maps, for segmentation      overlap, pixel_tally  its figures
annotated pictures with boxes, coco_file  their file       box_tally  their figures, by pycocotools

A batch is cut from the sorted list of pictures in the same places whoever computes it. Its answers are written down
once, at their pictures' places; the figures are counted from there at the end.
"""

from mmref.evaluate.annotated import AnnotatedSet, read_annotations
from mmref.evaluate.folder import PictureSet, read_folder
from mmref.evaluate.labelled import LabelledSet, LabelRule, read_labelled_folder
from mmref.evaluate.run import evaluate
from mmref.evaluate.tally import Tally, write_results

__all__ = ["AnnotatedSet", "LabelRule", "LabelledSet", "PictureSet", "Tally", "evaluate", "read_annotations",
           "read_folder", "read_labelled_folder", "write_results"]
