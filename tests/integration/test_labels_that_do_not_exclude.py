"""Binary and multi-label models: the right loss is exact, the wrong one says so."""

import pytest
import torch
from integration.harness import N_CLASSES, Classifier, fit, logged, mlp
from scipy.special import expit, rel_entr
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from composer_distill import Distillation, KLDivergence
from composer_distill.losses import BernoulliKL


class Tagger(Classifier):
    """A classifier trained with binary cross-entropy."""

    def loss(self, outputs, batch):
        return F.binary_cross_entropy_with_logits(outputs, batch[1])


def single_logit(seed):
    return nn.Sequential(mlp(seed), nn.Linear(N_CLASSES, 1, dtype=torch.float64))


def data(labels):
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(8, 6, generator=generator, dtype=torch.float64)
    targets = (torch.rand(8, labels, generator=generator) < 0.5).double()
    return inputs, DataLoader(TensorDataset(inputs, targets), batch_size=8)


@pytest.mark.parametrize(("make", "labels"), [(mlp, N_CLASSES), (single_logit, 1)])
def test_a_bernoulli_loss_logs_the_sum_over_labels(make, labels, caplog):
    student, teacher, (inputs, batches) = make(0), make(1), data(labels)
    with torch.no_grad():
        q, p = (expit(model(inputs).numpy() / 2) for model in (student, teacher))
    term = Distillation(teacher, BernoulliKL(temperature=2.0))
    trainer = fit(Tagger(student), term, train_dataloader=batches, max_duration="1ba")
    by_hand = 4 * (rel_entr(p, q) + rel_entr(1 - p, 1 - q)).sum(-1).mean()
    assert logged(trainer, "loss/train/kd") == pytest.approx([by_hand], rel=1e-6)
    assert "BernoulliKL" not in caplog.text


def test_a_softmax_over_several_labels_warns_once(caplog):
    term = Distillation(mlp(1), KLDivergence())
    fit(Tagger(mlp(0)), term, train_dataloader=data(N_CLASSES)[1], max_duration="3ba")
    assert caplog.text.count("For independent labels use BernoulliKL") == 1


def test_a_softmax_over_a_single_logit_is_refused():
    term = Distillation(single_logit(1), KLDivergence())
    with pytest.raises(ValueError, match=r"one class on axis dim=-1.*Use BernoulliKL"):
        fit(Tagger(single_logit(0)), term, train_dataloader=data(1)[1], max_duration="1ba")
