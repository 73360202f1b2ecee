"""Faults planted one at a time: the comparison with the published figures must see every one of them.

Each of these is a mistake somebody can make in an afternoon. If one of them stops failing the comparison, the golden
tests have gone blind there.
"""

from __future__ import annotations

import golden_files
import numpy as np
import pytest
from assertions import relative_error

from mmref.models import mobilemamba, mrffi
from mmref.nn import recurrence as selective_scan
from mmref.nn import scan_order, ss2d


def swapped_sub_bands(monkeypatch):
    right = mrffi.analysis
    def wrong(x, bank):
        bands = right(x, bank).copy()
        bands[:, 1::4], bands[:, 2::4] = bands[:, 2::4].copy(), bands[:, 1::4].copy()
        return bands
    monkeypatch.setattr(mrffi, "analysis", wrong)


def wrong_direction_reversed(monkeypatch):
    right = scan_order.cross_scan
    monkeypatch.setattr(ss2d, "cross_scan", lambda x, order: right(x, order)[..., ::-1])


def backward_result_not_turned_back(monkeypatch):
    def wrong(y, order, height, width):
        return (y[:, 0] + y[:, 1]).reshape(len(y), -1, height, width)
    monkeypatch.setattr(ss2d, "cross_merge", wrong)


def forgotten_Ds(monkeypatch):
    right = selective_scan.selective_scan
    monkeypatch.setattr(ss2d, "selective_scan", lambda u, delta, A, B, C, D: right(u, delta, A, B, C, 0 * D))


def forgotten_outer_addition(monkeypatch):
    def wrong(self, x):
        return self.ffn1(self.dw1(self.mixer(self.ffn0(self.dw0(x)))))
    monkeypatch.setattr(mobilemamba.Block, "forward", wrong)


def forgotten_softplus(monkeypatch):
    monkeypatch.setattr(ss2d.F, "softplus", lambda x: x)


def layer_norm_eps(monkeypatch):
    right = ss2d.F.layer_norm_channels
    monkeypatch.setattr(ss2d.F, "layer_norm_channels", lambda x, w, b: right(x, w, b, eps=1e-6))


def samples_mixed(monkeypatch):
    right = scan_order.cross_merge
    def wrong(y, order, height, width):
        return right(np.concatenate([y[:, :1].sum(0, keepdims=True).repeat(len(y), 0), y[:, 1:] * len(y)], 1),
                     order, height, width)
    monkeypatch.setattr(ss2d, "cross_merge", wrong)


FAULTS = [swapped_sub_bands, wrong_direction_reversed, backward_result_not_turned_back, forgotten_Ds,
          forgotten_outer_addition, forgotten_softplus, layer_norm_eps, samples_mixed]


@pytest.mark.parametrize("plant", FAULTS, ids=lambda fault: fault.__name__)
def test_fault_is_seen(own_golden, monkeypatch, plant):
    """Catches a golden comparison too loose, or too far from the fault, to see it."""
    figures, config, state, x = golden_files.load(own_golden, "t2_3x64x64")
    plant(monkeypatch)
    logits, _ = golden_files.run(config, state, x, np.float64, folded=False)
    assert not relative_error(logits, figures["logits"]) < 1e-8  # the right network: 1e-15
