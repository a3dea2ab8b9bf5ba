"""The contract of cheapness: no microbatch makes the host wait for the device.

A number that is read out of a tensor, or a shape that depends on values, makes the host wait until
the device has computed it. Without a mask nothing of the kind may happen in a microbatch; once a
batch it may.
"""

from collections import Counter
from contextlib import contextmanager

import pytest
import torch
from composer.core import Event
from integration.harness import Classifier, fit, forward_kl, mlp
from integration.language import batches, loader, model
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from composer_distill import Distillation, FeatureTerm, KLDivergence
from composer_distill.losses import HiddenMSE, NormalizedKD
from composer_distill.training.meters import BatchMeter

WAITING = ("_local_scalar_dense", "nonzero", "masked_select", "unique", "equal")
READING = ("tolist", "numpy", "cpu")
PER_MICROBATCH = (Event.AFTER_FORWARD, Event.AFTER_LOSS, Event.BEFORE_BACKWARD)


def is_mask(value):
    return isinstance(value, Tensor) and value.dtype == torch.bool


class Waits(TorchDispatchMode):
    """Notes the operations for whose result the host waits; ``item`` and ``bool`` are such."""

    def __init__(self, noted):
        super().__init__()
        self.noted = noted

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        # an index of truth values gives a shape that depends on them
        places = args[1] if name.startswith("index") and len(args) > 1 else ()
        masked = isinstance(places, list) and any(is_mask(place) for place in places)
        if name.startswith(WAITING) or masked:
            self.noted.append(name)
        return func(*args, **(kwargs or {}))


@contextmanager
def watched(noted):
    """Note into ``noted`` each wait inside."""

    def noting(name, original):
        def method(self, *args, **kwargs):
            noted.append(name)
            return original(self, *args, **kwargs)

        return method

    with pytest.MonkeyPatch.context() as patch, Waits(noted):
        for name in READING:
            patch.setattr(Tensor, name, noting(name, getattr(Tensor, name)))
        yield


@pytest.fixture
def waits(monkeypatch):
    """Return the waits of a run's microbatches, and the events that were watched."""
    # As on a GPU: there the kernel reads no value, which on a CPU is there for the taking
    for module in ("losses.kernel", "terms.guard", "telemetry.values"):
        monkeypatch.setattr(f"composer_distill.{module}.can_be_read", lambda tensor: False)
    monkeypatch.setattr("composer_distill.losses.labelled._check_range", lambda *given: None)
    noted, events = [], Counter()
    apply, add = Distillation.apply, BatchMeter.add

    def watched_apply(self, event, state, logger):
        if event not in PER_MICROBATCH:
            return apply(self, event, state, logger)
        events[event.value] += 1
        with watched(noted):
            return apply(self, event, state, logger)

    def watched_add(self, values, share):
        events["add"] += 1
        with watched(noted):
            return add(self, values, share)

    monkeypatch.setattr(Distillation, "apply", watched_apply)
    monkeypatch.setattr(BatchMeter, "add", watched_add)
    return noted, events


TERMS = {
    "one teacher": lambda: Distillation(mlp(1), KLDivergence(2.0)),
    "sampled teachers": lambda: Distillation(
        [mlp(1), mlp(2), mlp(3)], KLDivergence(2.0), n_teachers_to_sample=2
    ),
    "mixed probabilities": lambda: Distillation(
        [mlp(1), mlp(2)], KLDivergence(2.0), combine="probabilities"
    ),
    "skipping": lambda: Distillation(mlp(1), KLDivergence(2.0), on_nonfinite="skip"),
    "a plain callable": lambda: Distillation(mlp(1), forward_kl(2.0)),
}


def labelled_tokens(batch, outputs):
    return batch["labels"] != -100


@pytest.mark.parametrize("name", TERMS)
def test_no_microbatch_makes_the_host_wait(waits, name):
    noted, events = waits
    fit(Classifier(mlp(0)), TERMS[name](), max_duration="2ep", device_train_microbatch_size=5)
    assert noted == []
    assert events["after_loss"] == events["add"] == 8


LAYERS = [f"model.transformer.{name}" for name in ("wte", "h.0.attn.c_proj", "h.0", "ln_f")]
LAYER = FeatureTerm(student=LAYERS, teacher=LAYERS, loss=HiddenMSE(), mask_fn=labelled_tokens)
# and how often the host waits: for the kept positions, then for what is to be known besides
KEEPING = {
    "ours": (Distillation(model("causal", 1), KLDivergence(2.0)), ["nonzero"]),
    "a plain callable": (Distillation(model("causal", 1), forward_kl(2.0)), ["nonzero"]),
    "a loss with labels": (
        Distillation(model("causal", 1), NormalizedKD(temperature=2.0)),
        ["nonzero", "nonzero"],  # the loss itself leaves out what has no label
    ),
    "four layers": (
        Distillation(model("causal", 1), None, feature_terms=[LAYER]),
        ["_local_scalar_dense"],
    ),
}


@pytest.mark.parametrize("name", KEEPING)
def test_kept_positions_make_the_host_wait_once_a_microbatch(waits, name, monkeypatch):
    noted, events = waits
    monkeypatch.setattr("composer_distill.terms.student._LOOKS", 0)  # what looks at first batches
    monkeypatch.setattr("composer_distill.terms.student._TRIES", 0)
    data = batches("causal")
    for batch in data:
        del batch["attention_mask"]  # at which transformers looks itself
    term, expected = KEEPING[name]
    fit(
        model("causal", 0),
        term,
        train_dataloader=loader(data),
        device_train_microbatch_size=2,
        accumulate_train_batch_on_tokens=False,
    )
    assert noted == expected * events["after_loss"]
    assert events["after_loss"] == 8


def waiting_distance(read):
    def distance(student, teacher):
        read((student - teacher).square().mean())
        return (student - teacher).square().mean()

    return distance


READERS = [Tensor.item, bool, float, Tensor.tolist, Tensor.nonzero, Tensor.cpu]


@pytest.mark.parametrize("read", READERS, ids=lambda read: read.__name__)
def test_the_test_sees_a_host_that_waits(waits, read):
    noted, _ = waits
    # the methods of Tensor are looked up by name, as any caller does
    named = (lambda x: getattr(x, read.__name__)()) if read not in (bool, float) else read
    term = Distillation(mlp(1), waiting_distance(named), telemetry=False)
    fit(Classifier(mlp(0)), term, max_duration="1ba")
    assert len(noted) == 1
