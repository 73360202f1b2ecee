"""Skeleton."""


def epilogue(x, bias, *, residual=None, residual2=None, relu=False, out=None, stream=0):
    raise NotImplementedError
