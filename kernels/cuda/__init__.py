"""CUDA kernels of mmref in numba.cuda, one file a kernel: the kernel and its launcher.

driver.py is the door to numba.cuda, device.py what kernels are written in, compiler.py and launch.py how they become
machine code and run, twins.py the launchers in NumPy. Importing this package loads nothing.
"""
