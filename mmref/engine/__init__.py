"""The compiled engine: a network's graph (mmref.graph), planned once for an input shape and run by kernels.

    schedule.py  order, and what shares memory            lowering.py operations of kernels, one method for each node
    plan.py      the CPU's: records, memory, threads      weights.py  constants packed as the kernels read them
    memory.py    where activations lie                    table.py    a plan as a table for people
    face.py      the NumPy model's methods                compiled.py CompiledModel

docs/engine.md follows one block from the NumPy text to the rows of its plan.
"""

from mmref.engine.compiled import CompiledModel
from mmref.engine.plan import Plan
from mmref.engine.table import beyond_the_peak, plan_table, shares_of_peak

__all__ = ["CompiledModel", "Plan", "beyond_the_peak", "plan_table", "shares_of_peak"]
