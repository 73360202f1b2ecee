"""Skeleton."""


def norm_gate(y, z, weight, bias, out, *, stream=0):
    raise NotImplementedError
