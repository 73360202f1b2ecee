"""Class names: the right name at the right output."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import pytest

from mmref.data.labels import CIFAR10, class_names, imagenet_ids
from mmref.errors import ValueProblem
from mmref.models.variants import VARIANTS


@pytest.mark.parametrize("index, identifier, name", [
    (0, "n01440764", "tench"), (1, "n01443537", "goldfish"), (134, "n02012849", "crane bird"),
    (281, "n02123045", "tabby"), (404, "n02690373", "airliner"), (517, "n03126707", "crane"),
    (638, "n03710637", "maillot"), (999, "n15075141", "toilet tissue")])
def test_imagenet_spot_checks(index, identifier, name):
    """Catches: a list shifted by one, or the two cranes exchanged (tried: sorting by name)."""
    assert class_names(1000)[index] == name
    assert imagenet_ids()[index] == identifier


def test_imagenet_is_whole():
    """Catches: a line lost or doubled, a stray blank, an order that is not that of the class folders."""
    names, ids = class_names(1000), imagenet_ids()
    assert len(set(names)) == len(set(ids)) == 1000
    assert list(ids) == sorted(ids)
    assert all(name == name.strip() and name.isprintable() for name in names)


def test_who_gets_which_names():
    """Catches: CIFAR-10's names on somebody else's ten classes, or a model's own names ignored."""
    nano = VARIANTS["mobilemamba_nano"]
    assert class_names(10) == class_names(nano) == CIFAR10
    assert class_names(VARIANTS["mobilemamba_t2"])[404] == "airliner"
    assert class_names(replace(VARIANTS["mobilemamba_t2"], num_classes=10))[3] == "class 3"
    assert class_names(SimpleNamespace(config=nano, class_names=None)) == CIFAR10
    assert class_names(SimpleNamespace(config=nano, class_names=["a", "b"])) == ("a", "b")
    assert class_names(3) == ("class 0", "class 1", "class 2") and class_names(0) == ()
    for wrong in (-1, "t2", None, True, 2.0):
        with pytest.raises(ValueProblem, match="model must be"):
            class_names(wrong)
