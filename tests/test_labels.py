"""Class names: the right name at the right output."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from mmref.data.labels import CIFAR10, class_names, imagenet_ids, imagenet_names, read_class_names
from mmref.errors import ValueProblem
from mmref.models.variants import VARIANTS


@pytest.mark.parametrize("index, identifier, name", [
    (0, "n01440764", "tench"), (1, "n01443537", "goldfish"), (134, "n02012849", "crane bird"),
    (281, "n02123045", "tabby"), (404, "n02690373", "airliner"), (517, "n03126707", "crane"),
    (638, "n03710637", "maillot"), (999, "n15075141", "toilet tissue")])
def test_imagenet_spot_checks(index, identifier, name):
    """Catches: a list shifted by one, or the two cranes exchanged (tried: sorting by name)."""
    assert imagenet_names()[index] == name
    assert imagenet_ids()[index] == identifier


def test_imagenet_is_whole():
    """Catches: a line lost or doubled, a stray blank, an order that is not that of the class folders."""
    names, ids = imagenet_names(), imagenet_ids()
    assert len(set(names)) == len(set(ids)) == 1000
    assert list(ids) == sorted(ids)
    assert all(name == name.strip() and name.isprintable() for name in names)


def test_a_number_of_classes_names_nothing():
    """Catches CIFAR-10's or ImageNet's names on somebody else's ten or thousand classes, and a model's own ignored."""
    for variant in VARIANTS.values():
        assert class_names(variant)[3] == class_names(SimpleNamespace(config=variant, class_names=None))[3] == "class 3"
    assert class_names(SimpleNamespace(config=VARIANTS["mobilemamba_nano"], class_names=["a", "b"])) == ("a", "b")
    assert class_names(3) == ("class 0", "class 1", "class 2") and class_names(0) == ()
    for wrong in (-1, "t2", None, True, 2.0):
        with pytest.raises(ValueProblem, match="model must be"):
            class_names(wrong)


def test_files_of_names(tmp_path):
    """Catches a byte order mark or a blank line taken for a name, an object's order for that of its keys, names that
    a terminal would obey, and a wrong number of names that nobody says where to mend."""
    path = tmp_path / "names"
    for text in ("a\nb c\n\n\u00e4\n", "\ufeffa\r\nb c\r\n\u00e4", '["a", "b c", "\u00e4"]',
                 '{"1": "b c", "0": "a", "2": "\u00e4"}'):
        path.write_text(text, encoding="utf-8", newline="")
        assert read_class_names(path, 3) == read_class_names(str(path), 3) == ("a", "b c", "\u00e4")
    assert read_class_names("cifar10", 10) == CIFAR10 and read_class_names(["x"], 1) == ("x",)
    assert read_class_names("imagenet", 1000)[404] == "airliner"
    from mmref.tasks.predictor import Predictor
    path.write_text("a\nb")
    with pytest.raises(ValueProblem, match="class_names of .*names must be 10, one per output, got 2"):
        Predictor(class_names=path).load()
    for text, message in (("a\nb", "class_names of .*names must be 3, one per output, got 2"),
                          ("a\nb\x1b[2J\nc", "printable"),
                          ('["a", 3, "b"]', "list of text"), ('{"0": "a", "2": "b", "1x": "c"}', "'1' is missing"),
                          ("[", "UTF-8 text"), ("[" * 100_000, "UTF-8 text")):
        path.write_text(text)
        with pytest.raises(ValueProblem, match=message):
            read_class_names(path, 3)
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ValueProblem, match="UTF-8"):
        read_class_names(path, 3)
    with pytest.raises(ValueProblem, match="class_names of imagenet must be 10, one per output, got 1000"):
        read_class_names("imagenet", 10)
    for wrong in (3, b"x", None):
        with pytest.raises(ValueProblem, match="class_names must be"):
            read_class_names(wrong, 3)
