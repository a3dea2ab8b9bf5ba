from types import SimpleNamespace

import pytest
import torch

from composer_distill.terms.features.exchange import Exchange, joined


def test_a_source_without_layers_is_refused():
    source = SimpleNamespace(label="teacher 0 (cache)")
    panel = SimpleNamespace(sources=(source,), labels=("teacher 0 (cache)",))
    with pytest.raises(TypeError, match=r"teacher 0 \(cache\): it holds logits alone.*the model"):
        Exchange(panel).prepare()


def test_pieces_are_joined_part_by_part_without_a_graph():
    pieces = [torch.full((n, 2), float(n), requires_grad=True) for n in (1, 2)]
    assert joined(pieces).tolist() == [[1, 1], [2, 2], [2, 2]]
    assert not joined(pieces).requires_grad
    both = joined([(piece, 2 * piece) for piece in pieces])
    assert torch.equal(both[1], 2 * both[0])
    assert joined(pieces[:1]).data_ptr() == pieces[0].data_ptr()
