"""For porting the network: record a run, compare two, find the first layer that differs and why.

    trace.py      every named activation of a run, with its rounding noise      trace_file.py  files, safely read
    matching.py   which record of one trace is which of the other                compare.py     errors and verdicts
    faults.py     mistakes people make, as changes of a layer                    diagnose.py    which of them it was
    page.py       a comparison as one HTML page
    check.py      a callable against the network, failures made small
    selftest.py   the published figures on this machine                          golden.py      those figures
"""
