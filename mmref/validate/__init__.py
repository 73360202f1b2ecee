"""For porting the network: record a run, compare two, find the first layer that differs and why.

    trace.py       every named activation of a run, with its rounding noise; trace_file.py: files, safely read
    exercise.py    what an input shows of a network, and one that shows most
    matching.py    which record of one trace is which of the other, by value; names.py: by names as others write them
    compare.py     errors and verdicts; precisions.py: what a copy may compute in; statistics.py: differences in figures
    recordings.py  records that are not what was computed with
    replay.py      the network's graph run on a candidate's own records
    faults.py      mistakes as changes of operations; they are in *_faults.py
    search.py      which mistake reproduces the records; recover.py: weights from input and output; patterns.py
    inputs.py      what was done to a picture
    diagnose.py    all of this for a comparison; page.py: the comparison as one HTML page
    check.py       a callable against the network, failures made small; answers.py: what it answered
    selftest.py    the published figures on this machine; golden.py: those figures
"""
