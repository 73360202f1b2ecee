"""Skeleton."""


def matmul(a, weight, bias, out, *, residual=None, residual2=None, relu=False, stream=0):
    raise NotImplementedError
