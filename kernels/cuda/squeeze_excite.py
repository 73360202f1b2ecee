"""Skeleton."""


def gate(x, gates, *, images, length, stream=0):
    raise NotImplementedError
