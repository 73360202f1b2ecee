"""Skeleton."""


def mean(x, out, *, images, length, stream=0):
    raise NotImplementedError
