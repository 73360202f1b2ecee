"""CUDA kernels of mmref (numba.cuda): one file a kernel. Importing this package loads nothing; its modules load numba.cuda."""
