import torch

from composer_distill.teachers.head_recorder import Head
from composer_distill.terms.combining import mean_logits
from composer_distill.terms.fused import mean_head


def head(width, seed, bias=False):
    generator = torch.Generator().manual_seed(seed)
    made = [torch.randn(*s, generator=generator) for s in ((2, 3, width), (7, width), (7,))]
    return Head(made[0], made[1], made[2] if bias else None)


def logits(head):
    return torch.nn.functional.linear(head.hidden, head.weight, head.bias)


def test_the_mean_of_heads_has_the_mean_of_their_logits():
    heads = [(0.2, head(4, 0)), (0.5, head(5, 1, bias=True)), (0.3, head(4, 2, bias=True))]
    expected = mean_logits([(share, logits(each)) for share, each in heads])
    torch.testing.assert_close(logits(mean_head(heads, torch.float32)), expected)


def test_one_head_with_a_share_that_is_not_one_is_scaled():
    one = head(4, 0, bias=True)
    found = logits(mean_head([(0.25, one)], torch.float32))
    torch.testing.assert_close(found, 0.25 * logits(one))


def test_one_head_is_itself():
    one = head(4, 0)
    assert mean_head([(1.0, one)], torch.float32).weight is one.weight
