from types import SimpleNamespace

import pytest
import torch

from composer_distill.terms.features.exchange import Exchange, joined
from composer_distill.terms.features.layers import Layer
from composer_distill.terms.features.recorder import Tap


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


def test_what_an_interrupted_batch_left_is_forgotten_when_the_next_begins():
    model = torch.nn.Linear(2, 2)
    exchange = Exchange(SimpleNamespace(sources=(), labels=()))
    layer, outputs = Layer("model", (Tap("model", model),)), []
    for _ in range(2):
        exchange.listen("term", [layer], [])
        outputs.append(model(torch.randn(3, 2)))
        exchange.stop()  # and no term measures it
    assert exchange.of_student(layer, model, None) is outputs[1]
