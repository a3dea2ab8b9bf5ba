"""Optimizers that call their closure several times a batch: SAM and LBFGS."""

import copy
import itertools

import pytest
import torch
from composer.algorithms import SAM
from composer.core import Event
from integration.harness import (
    Classifier,
    Recorder,
    Spy,
    assert_close,
    fit,
    forward_kl,
    loader,
    logged,
    mlp,
)
from torch.nn import functional as F

from composer_distill import Distillation, KLDivergence
from composer_distill.terms.sampling import sample_teachers

pytestmark = pytest.mark.filterwarnings("ignore:SAM has known issues")
RHO = 0.05


def teachers():
    return [Recorder(mlp(seed)) for seed in (1, 2, 3, 4)]


def objective_of_batch(panel, batch_index):
    """Return what one batch trains, with the teachers that its index draws."""
    drawn = sample_teachers([1.0] * 4, 1, 5, batch_index)

    def objective(module, batch):
        logits = module(batch[0])
        target = sum(share * panel[i].module(batch[0]).detach() for i, share in drawn)
        return 0.1 * F.cross_entropy(logits, batch[1]) + 0.9 * forward_kl(2.0)(logits, target)

    return objective


def distil(panel):
    return Distillation(panel, KLDivergence(2.0), n_teachers_to_sample=1, seed=5)


def sam_by_hand(module, batch, objective, lr):
    """Return the model after one step of sharpness-aware minimisation (arXiv 2010.01412)."""
    climbed = copy.deepcopy(module)
    gradients = torch.autograd.grad(objective(climbed, batch), list(climbed.parameters()))
    norm = torch.stack([gradient.norm() for gradient in gradients]).norm()
    with torch.no_grad():
        for parameter, gradient in zip(climbed.parameters(), gradients, strict=True):
            parameter.add_(gradient, alpha=RHO / (norm.item() + 1e-12))
    gradients = torch.autograd.grad(objective(climbed, batch), list(climbed.parameters()))
    module = copy.deepcopy(module)
    with torch.no_grad():
        for parameter, gradient in zip(module.parameters(), gradients, strict=True):
            parameter.sub_(lr * gradient)
    return module


@pytest.mark.parametrize("microbatch", [10, 4])
def test_sam_climbs_and_descends_the_same_loss(microbatch):
    panel, student, expected = teachers(), Classifier(mlp(0)), mlp(0)
    for index, batch in enumerate(loader(40)):
        expected = sam_by_hand(expected, batch, objective_of_batch(panel, index), lr=0.5)
    fit(
        student,
        [SAM(rho=RHO), distil(panel)],
        train_dataloader=loader(40),
        device_train_microbatch_size=microbatch,
    )
    assert_close(student.module, expected)


def lbfgs(parameters):
    return torch.optim.LBFGS(parameters, lr=0.3, max_iter=5, history_size=3)


@pytest.mark.parametrize("microbatch", [10, 4])
def test_lbfgs_minimises_one_loss_a_batch(microbatch):
    panel, student, expected = teachers(), Classifier(mlp(0)), mlp(0)
    optimizer = lbfgs(expected.parameters())
    for index, batch in enumerate(loader(40)):
        objective = objective_of_batch(panel, index)

        def closure(objective=objective, batch=batch):
            optimizer.zero_grad()
            loss = objective(expected, batch)
            loss.backward()
            return loss.item()

        optimizer.step(closure)
    fit(
        student,
        distil(panel),
        train_dataloader=loader(40),
        device_train_microbatch_size=microbatch,
        optimizers=lbfgs(student.parameters()),
    )
    assert_close(student.module, expected, rtol=1e-4)


CLOSURES = {
    "SAM": lambda student: {"algorithms": [SAM(rho=RHO)]},
    "LBFGS": lambda student: {"optimizers": lbfgs(student.parameters())},
}


def run(panel, name, **kwargs):
    student = Classifier(mlp(0))
    options = CLOSURES[name](student)
    algorithms = [distil(panel), *options.pop("algorithms", ())]
    return fit(student, algorithms, max_duration="3ep", **options, **kwargs)


@pytest.mark.parametrize("name", CLOSURES)
def test_the_same_teachers_answer_at_every_closure_of_a_batch(name):
    panel = teachers()
    per_batch = Spy(Event.BATCH_END, lambda _: [len(teacher.inputs) for teacher in panel])
    run(panel, name, callbacks=per_batch)
    before = [0] * 4
    for index, after in enumerate(per_batch.seen):
        asked = {i for i in range(4) if after[i] > before[i]}
        assert asked == {i for i, _ in sample_teachers([1.0] * 4, 1, 5, index)}
        assert sum(after) - sum(before) >= 2
        before = after


@pytest.mark.parametrize("name", CLOSURES)
def test_the_batch_is_the_same_at_every_closure(name):
    panel = teachers()
    asked = Spy(Event.BATCH_END, lambda _: sum(len(teacher.inputs) for teacher in panel))
    batches = Spy(Event.AFTER_LOSS, lambda state: [x.clone() for x in state.batch])
    run(panel, name, callbacks=[asked, batches])
    first, bounds = batches.seen, [0, *asked.seen]
    for start, stop in itertools.pairwise(bounds):
        for batch in first[start + 1 : stop]:
            torch.testing.assert_close(batch, first[start], rtol=0, atol=0)


@pytest.mark.parametrize("microbatch", [10, 4])
@pytest.mark.parametrize("name", CLOSURES)
def test_one_value_is_logged_a_batch_and_it_is_that_of_the_first_closure(name, microbatch):
    panel = teachers()
    losses = Spy(
        Event.BEFORE_TRAIN_BATCH,
        lambda state: (
            int(state.timestamp.batch),
            objective_parts(panel, state.model.module, state.batch, int(state.timestamp.batch)),
        ),
    )
    trainer = run(panel, name, callbacks=losses, device_train_microbatch_size=microbatch)
    first = {}
    for index, values in losses.seen:
        first.setdefault(index, values)
    assert len(losses.seen) > len(first) == 6
    kd, org = zip(*first.values(), strict=True)
    assert logged(trainer, "loss/train/kd") == pytest.approx(kd, rel=1e-5)
    assert logged(trainer, "loss/train/org") == pytest.approx(org, rel=1e-5)


def objective_parts(panel, module, batch, index):
    with torch.no_grad():
        logits = module(batch[0])
        [(chosen, _)] = sample_teachers([1.0] * 4, 1, 5, index)
        kd = forward_kl(2.0)(logits, panel[chosen].module(batch[0]))
        return kd.item(), F.cross_entropy(logits, batch[1]).item()
