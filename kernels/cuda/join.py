"""Skeleton."""


def copy_relu(x, out, *, stream=0):
    raise NotImplementedError
