"""The compiled engine: the same network, planned once for an input shape and run by kernels (mmref.kernels).

    walk.py      the network as operations, in order      plan.py     those as records, with memory and threads
    weights.py   parameters folded and packed             compiled.py CompiledModel, which has the NumPy model's face
    memory.py    where activations lie                    table.py    a plan as a table for people

docs/engine.md follows one block from the NumPy text to the rows of its plan.
"""

from mmref.engine.compiled import CompiledModel
from mmref.engine.plan import Plan
from mmref.engine.table import beyond_the_peak, plan_table, shares_of_peak

__all__ = ["CompiledModel", "Plan", "beyond_the_peak", "plan_table", "shares_of_peak"]
