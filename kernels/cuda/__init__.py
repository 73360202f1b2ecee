"""CUDA kernels of mmref in numba.cuda, one file a kernel: the kernel, its launcher and the bytes it has to move.

driver.py is the door to numba.cuda, device.py what kernels are written in, twins.py the launchers in NumPy. Importing
this package loads nothing.
"""
