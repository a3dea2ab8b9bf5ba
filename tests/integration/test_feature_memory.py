"""What terms of features keep: one copy of what they need, for one microbatch."""

import gc

import pytest
import torch
from integration.harness import Classifier, fit, loader
from torch import nn
from torch.profiler import ProfilerActivity, profile

from composer_distill import Distillation, FeatureTerm

WIDTH, SAMPLES, LAYERS = 512, 128, 4
NUMBERS = 8  # bytes of one


def wide(seed):
    """Four layers of one width, and a head."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        hidden = [m for _ in range(LAYERS - 1) for m in (nn.Linear(WIDTH, WIDTH), nn.Tanh())]
        return nn.Sequential(
            nn.Linear(6, WIDTH), nn.Tanh(), *hidden, nn.Linear(WIDTH, 4, bias=False)
        ).double()


def corner(student, teacher):
    """A loss that allocates next to nothing."""
    return student[0, 0] - teacher[0, 0]


def logits(model, outputs):
    return outputs


def peak_bytes(layers, microbatch):
    """Return the most bytes allocated in a run whose term compares these layers."""
    student, teacher = Classifier(wide(0)), wide(1)
    algorithm = Distillation(teacher, None, feature_terms=[FeatureTerm(layers, loss=corner)])
    gc.collect()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        fit(
            student,
            algorithm,
            train_dataloader=loader(SAMPLES, SAMPLES),
            device_train_microbatch_size=microbatch,
        )
    events = recorded.profiler.kineto_results.events()
    changes = [(e.start_ns(), e.nbytes()) for e in events if e.name() == "[memory]"]
    held = most = 0
    for _, change in sorted(changes, key=lambda pair: pair[0]):
        held += change
        most = max(most, held)
    return most


@pytest.mark.parametrize("microbatch", [SAMPLES, SAMPLES // 4])
def test_peak_memory_is_one_copy_of_what_is_recorded(microbatch):
    one = microbatch * WIDTH * NUMBERS
    nothing = peak_bytes(logits, microbatch)
    for layers in (["1"], ["1", "3", "5"]):
        more = peak_bytes(layers, microbatch) - nothing
        assert 0.5 * one < more < (len(layers) + 0.2) * one, (layers, more / one)


def test_a_loss_gets_what_the_layers_gave_and_no_copy():
    places = {"student": [], "teacher": []}

    def telling(who, model):
        model[1].register_forward_hook(
            lambda module, arguments, output: places[who].append(output.data_ptr())
        )
        return model

    def loss(student, teacher):
        assert student.data_ptr() == places["student"][-1]
        assert teacher.data_ptr() == places["teacher"][-1]
        assert not teacher.requires_grad
        return (student - teacher).square().mean()

    student, teacher = Classifier(telling("student", wide(0))), telling("teacher", wide(1))
    terms = [FeatureTerm("1", loss=loss), FeatureTerm("1", loss=loss)]
    algorithm = Distillation(teacher, None, feature_terms=terms)
    fit(student, algorithm, device_train_microbatch_size=5)
    assert len(places["student"]) == len(places["teacher"]) == 4
