"""Distillation beside each of Composer's own algorithms, in both orders of the list.

The reference is a run without ``Distillation`` whose student adds the same term inside its own
``loss()``: there no algorithm can come between the student's loss and the term.
"""

import functools

import composer.algorithms
import pytest
import torch
from composer.algorithms import (
    EMA,
    SAM,
    SWA,
    Alibi,
    AugMix,
    BlurPool,
    ChannelsLast,
    ColOut,
    CutMix,
    CutOut,
    Factorize,
    GatedLinearUnits,
    GhostBatchNorm,
    GradientClipping,
    GyroDropout,
    LabelSmoothing,
    LayerFreezing,
    LowPrecisionGroupNorm,
    LowPrecisionLayerNorm,
    MixUp,
    NoOpModel,
    ProgressiveResizing,
    RandAugment,
    SelectiveBackprop,
    SeqLengthWarmup,
    SqueezeExcite,
    StochasticDepth,
    WeightStandardization,
)
from composer.core import Algorithm, Event
from composer.models import ComposerModel, HuggingFaceModel
from integration.harness import (
    N_CLASSES,
    Classifier,
    Recorder,
    Spy,
    assert_close,
    assert_differ,
    assert_same,
    fit,
    forward_kl,
    loader,
    logged,
    mlp,
    train_by_hand,
)
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset
from torchvision.datasets import FakeData
from torchvision.models.resnet import Bottleneck, ResNet
from torchvision.transforms import ToTensor
from transformers import BertConfig, BertForMaskedLM
from transformers.models.bert.modeling_bert import BertSelfAttention

from composer_distill import Distillation

KD_WEIGHT, ORG_WEIGHT = 0.6, 0.4
DISTANCE = forward_kl(2.0)


def seeded(build, seed):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return build()


def convnet():
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Conv2d(8, 8, 3, stride=2, padding=1),
        nn.GroupNorm(2, 8),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Dropout(0.2),
        nn.Linear(8, N_CLASSES),
    )


def resnet():
    return ResNet(Bottleneck, [1, 2, 1, 1], num_classes=N_CLASSES, width_per_group=2)


def bert():
    config = BertConfig(
        vocab_size=32,
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        max_position_embeddings=16,
        attn_implementation="eager",  # whose mask Alibi's attention adds
    )
    model = BertForMaskedLM(config)
    for module in model.modules():
        if type(module) is BertSelfAttention and not hasattr(module, "transpose_for_scores"):
            module.__class__ = CalledAsBefore
    return model


class CalledAsBefore(BertSelfAttention):
    """Attention of transformers 5, called as Composer's replacement of it expects to be."""

    position_embedding_type = "absolute"

    def transpose_for_scores(self, states):
        heads = self.num_attention_heads, self.attention_head_size
        return states.view(*states.shape[:-1], *heads).transpose(1, 2)

    def __call__(self, hidden_states, attention_mask=None, **_):
        outputs = super().__call__(hidden_states, attention_mask)
        return outputs if len(outputs) == 2 else (*outputs, None)


def images():
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(16, 3, 8, 8, generator=generator)
    targets = torch.randint(0, N_CLASSES, (16,), generator=generator)
    return DataLoader(TensorDataset(inputs, targets), batch_size=4)


def pictures():
    with torch.random.fork_rng(devices=[]):
        data = FakeData(16, (3, 8, 8), num_classes=N_CLASSES, transform=ToTensor())
    return DataLoader(data, batch_size=4)


def sentences():
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(1, 32, (16, 16), generator=generator)
    labels = torch.randint(0, 32, (16, 16), generator=generator)
    rows = [
        {"input_ids": row, "attention_mask": torch.ones_like(row), "labels": label}
        for row, label in zip(tokens, labels, strict=True)
    ]
    return DataLoader(rows, batch_size=4)


class Pupil(Classifier):
    """A student of images; with a teacher it adds the distillation term to its own loss."""

    def __init__(self, module, teachers=()):
        super().__init__(module)
        self.teachers = list(teachers)  # a plain list: no submodules

    def loss(self, outputs, batch, reduction="mean"):
        targets = batch[1] if batch[1].ndim == 1 else batch[1].to(outputs.dtype)
        task = F.cross_entropy(outputs, targets, reduction=reduction)
        if not self.teachers or reduction == "none":
            return task
        return with_term(task, outputs, [teacher(batch[0]) for teacher in self.teachers])


class LanguagePupil(HuggingFaceModel):
    """A student of sentences; with a teacher it adds the distillation term to its own loss."""

    def __init__(self, module, teachers=()):
        super().__init__(module)
        self.teachers = list(teachers)

    def loss(self, outputs, batch):
        task = F.cross_entropy(outputs.logits.flatten(0, 1), batch["labels"].flatten())
        if not self.teachers:
            return task
        inputs = {key: value for key, value in batch.items() if key != "labels"}
        answers = [teacher(**inputs).logits for teacher in self.teachers]
        return with_term(task, outputs.logits, answers)


def with_term(task, logits, answers):
    target = torch.stack([answer.detach() for answer in answers]).mean(0)
    return ORG_WEIGHT * task + KD_WEIGHT * DISTANCE(logits, target)


# name: (what makes the algorithm, the kind of student, the data)
ALGORITHMS = {
    "Alibi": (lambda: Alibi(max_sequence_length=16), bert, sentences),
    "AugMix": (AugMix, convnet, pictures),
    "BlurPool": (lambda: BlurPool(min_channels=1), convnet, images),
    "ChannelsLast": (ChannelsLast, convnet, images),
    "ColOut": (ColOut, convnet, images),
    "CutMix": (CutMix, convnet, images),
    "CutMix, interpolate_loss": (lambda: CutMix(interpolate_loss=True), convnet, images),
    "CutOut": (CutOut, convnet, images),
    "EMA": (lambda: EMA(half_life="2ba"), convnet, images),
    "Factorize": (lambda: Factorize(min_channels=4, latent_channels=2), convnet, images),
    "GatedLinearUnits": (GatedLinearUnits, bert, sentences),
    "GhostBatchNorm": (lambda: GhostBatchNorm(ghost_batch_size=2), convnet, images),
    "GradientClipping": (lambda: GradientClipping("norm", 0.05), convnet, images),
    "GradientClipping, adaptive": (lambda: GradientClipping("adaptive", 0.05), convnet, images),
    "GyroDropout": (lambda: GyroDropout(sigma=4, tau=2), convnet, images),
    "LabelSmoothing": (lambda: LabelSmoothing(0.3), convnet, images),
    "LayerFreezing": (lambda: LayerFreezing(0.0, 0.5), convnet, images),
    "LowPrecisionGroupNorm": (LowPrecisionGroupNorm, convnet, images),
    "LowPrecisionLayerNorm": (LowPrecisionLayerNorm, bert, sentences),
    "MixUp": (lambda: MixUp(alpha=1.0), convnet, images),
    "MixUp, interpolate_loss": (
        lambda: MixUp(alpha=1.0, interpolate_loss=True),
        convnet,
        images,
    ),
    "ProgressiveResizing": (lambda: ProgressiveResizing(delay_fraction=0.2), convnet, images),
    "RandAugment": (RandAugment, convnet, pictures),
    "SAM": (SAM, convnet, images),
    "SWA": (
        lambda: SWA(swa_start="0.3dur", swa_end="0.9dur", update_interval="1ba"),
        convnet,
        images,
    ),
    "SelectiveBackprop": (lambda: SelectiveBackprop(0.0, 0.9, interrupt=0), convnet, images),
    "SeqLengthWarmup": (
        lambda: SeqLengthWarmup(0.9, min_seq_length=4, max_seq_length=16, step_size=4),
        bert,
        sentences,
    ),
    "SqueezeExcite": (
        lambda: SqueezeExcite(latent_channels=4, min_channels=4),
        convnet,
        images,
    ),
    "StochasticDepth": (
        lambda: StochasticDepth("ResNetBottleneck", drop_rate=0.5),
        resnet,
        images,
    ),
    "WeightStandardization": (WeightStandardization, convnet, images),
}
RAISES = {"NoOpModel": (NoOpModel, convnet, images)}


def train(build, teachers_inside=(), algorithms=(), data=images, **kwargs):
    pupil = LanguagePupil if build is bert else Pupil
    student = pupil(seeded(build, 0), teachers_inside)
    trainer = fit(
        student,
        algorithms,
        train_dataloader=data(),
        max_duration="2ep",
        lr=0.1,
        device_train_microbatch_size=2,
        **kwargs,
    )
    return trainer.state.model


def frozen(model):
    return model.eval().requires_grad_(False)


@functools.cache
def reference(name):
    """Return the student that adds the term inside its own loss."""
    make, build, data = ALGORITHMS[name]
    return train(build, [frozen(seeded(build, 1))], make(), data=data)


# What some of Composer's algorithms say of themselves, with or without distillation.
OWN_WARNINGS = (
    "ignore:Low Precision",
    "ignore:SAM has known issues",
    "ignore:SWA has known issues",
    "ignore:GyroDropout is not implemented",
    "ignore:'mode' parameter is deprecated",  # Pillow, under RandAugment and AugMix
)


@pytest.mark.filterwarnings(*OWN_WARNINGS)
@pytest.mark.parametrize("first", [True, False], ids=["listed first", "listed last"])
@pytest.mark.parametrize("name", ALGORITHMS)
def test_the_term_is_exact_beside(name, first):
    make, build, data = ALGORITHMS[name]
    expected = reference(name)
    teacher = seeded(build, 1)
    term = Distillation(teacher, DISTANCE, KD_WEIGHT, ORG_WEIGHT)
    algorithms = [term, make()] if first else [make(), term]
    student = train(build, (), algorithms, data=data)
    torch.testing.assert_close(
        dict(student.named_parameters()), dict(expected.named_parameters()), rtol=2e-4, atol=2e-6
    )
    assert_same(teacher, seeded(build, 1))
    assert [type(x) for x in teacher.modules()] == [type(x) for x in seeded(build, 1).modules()]


@pytest.mark.parametrize("build", [convnet, bert], ids=["images", "sentences"])
def test_the_reference_of_these_tests_sees_the_term(build):
    data = sentences if build is bert else images
    assert_differ(train(build, data=data), train(build, [frozen(seeded(build, 1))], data=data))


def test_the_roster_holds_every_algorithm_of_composer():
    found = {
        name
        for name, value in vars(composer.algorithms).items()
        if isinstance(value, type) and issubclass(value, Algorithm)
    }
    assert {name.partition(",")[0] for name in (*ALGORITHMS, *RAISES)} == found


@pytest.mark.parametrize("first", [True, False], ids=["listed first", "listed last"])
def test_a_model_without_logits_is_a_clear_error(first):
    make, build, data = RAISES["NoOpModel"]
    term = Distillation(seeded(build, 1), DISTANCE)
    with pytest.raises(ValueError, match="^the student: its output has shape"):
        train(build, (), [term, make()] if first else [make(), term], data=data)


@pytest.mark.parametrize("first", [True, False], ids=["listed first", "listed last"])
@pytest.mark.parametrize("make", [MixUp, CutMix])
def test_an_interpolated_loss_keeps_the_full_term_by_closed_form(make, first):
    # Identical targets: interpolation changes nothing, so the trained loss is org + kd exactly.
    class Same(Pupil):
        def loss(self, outputs, batch, reduction="mean"):
            return super().loss(outputs, (batch[0], torch.zeros_like(batch[1])), reduction)

    teacher, losses = seeded(convnet, 1), []
    student = Same(seeded(convnet, 0))

    def look(state):
        logits = state.outputs.detach()
        with torch.no_grad():
            kd = DISTANCE(logits, frozen(teacher)(state.batch[0]))
        task = F.cross_entropy(logits, torch.zeros(len(logits), dtype=torch.long))
        losses.append((state.loss.detach(), ORG_WEIGHT * task + KD_WEIGHT * kd))

    term, mixer = (
        Distillation(teacher, DISTANCE, KD_WEIGHT, ORG_WEIGHT),
        make(interpolate_loss=True),
    )
    algorithms = [term, mixer] if first else [mixer, term]
    fit(
        student,
        algorithms,
        train_dataloader=images(),
        callbacks=Spy(Event.BEFORE_BACKWARD, look),
    )
    for actual, expected in losses:
        torch.testing.assert_close(actual, expected)


VIEWS = {
    "MixUp": lambda: MixUp(alpha=1.0),
    "MixUp, interpolate_loss": lambda: MixUp(alpha=1.0, interpolate_loss=True),
    "CutMix": CutMix,
    "CutMix, interpolate_loss": lambda: CutMix(interpolate_loss=True),
    "CutOut": CutOut,
    "ColOut": ColOut,
    "LabelSmoothing": lambda: LabelSmoothing(0.3),
    "ProgressiveResizing": lambda: ProgressiveResizing(delay_fraction=0.2),
    "SelectiveBackprop": lambda: SelectiveBackprop(0.0, 0.9, interrupt=0),
}


@pytest.mark.parametrize("first", [True, False], ids=["listed first", "listed last"])
@pytest.mark.parametrize("name", VIEWS)
def test_the_teacher_sees_the_very_view_that_the_student_saw(name, first):
    teacher, student = Recorder(seeded(convnet, 1)), Pupil(seeded(convnet, 0))
    views = []
    student.module.register_forward_pre_hook(
        lambda module, args: views.append(args[0].clone()) if torch.is_grad_enabled() else None
    )
    term, other = Distillation(teacher, DISTANCE), VIEWS[name]()
    algorithms = [term, other] if first else [other, term]
    fit(
        student,
        algorithms,
        train_dataloader=images(),
        max_duration="2ep",
        device_train_microbatch_size=2,
    )
    assert len(teacher.inputs) == len(views)
    for shown, seen in zip(teacher.inputs, views, strict=True):
        assert torch.equal(shown, seen)


@pytest.mark.parametrize("first", [True, False], ids=["listed first", "listed last"])
def test_a_teacher_never_sees_smoothed_labels(first):
    class Nosy(ComposerModel):
        """A teacher that looks at the labels of the batch."""

        def __init__(self):
            super().__init__()
            self.module = seeded(convnet, 1)
            self.labels = []

        def forward(self, batch):
            self.labels.append(batch[1])
            return self.module(batch[0])

        def loss(self, outputs, batch):
            raise NotImplementedError

    teacher = Nosy()
    term, smoothing = Distillation(teacher, DISTANCE), LabelSmoothing(0.3)
    algorithms = [term, smoothing] if first else [smoothing, term]
    fit(Pupil(seeded(convnet, 0)), algorithms, train_dataloader=images())
    expected = [batch[1] for batch in images()]
    torch.testing.assert_close(teacher.labels, expected)


@pytest.mark.parametrize("swap", [False, True])
def test_two_instances_train_both_terms_each_in_its_own_window(swap):
    teachers, student = [mlp(1), mlp(2)], Classifier(mlp(0))
    index = iter(range(6))

    def objective(module, batch):
        now, logits = next(index), module(batch[0])
        loss = F.cross_entropy(logits, batch[1])
        if now < 4:
            loss = 0.5 * loss
        if now >= 2:
            loss = 0.4 * loss
        if now < 4:
            loss = loss + 0.7 * forward_kl(2.0)(logits, teachers[0](batch[0]).detach())
        if now >= 2:
            loss = loss + 0.3 * (logits - teachers[1](batch[0]).detach()).square().mean()
        return loss

    batches = [batch for _ in range(3) for batch in loader()]
    expected = train_by_hand(student.module, batches, objective, lr=0.1)
    terms = [
        Distillation(teachers[0], forward_kl(2.0), 0.7, 0.5, end_dur="4ba"),
        Distillation(teachers[1], nn.MSELoss(), 0.3, 0.4, start_dur="2ba"),
    ]
    fit(
        student,
        terms[::-1] if swap else terms,
        max_duration="3ep",
        device_train_microbatch_size=5,
        lr=0.1,
    )
    assert_close(student.module, expected)


@pytest.mark.parametrize("swap", [False, True])
def test_two_instances_log_the_unweighted_loss_even_if_one_weighs_nothing(swap):
    student = Classifier(mlp(0))
    inputs, targets = next(iter(loader()))
    org = F.cross_entropy(student.module(inputs), targets).item()
    terms = [
        Distillation(mlp(1), forward_kl(), 0.0, 0.25),
        Distillation(mlp(2), forward_kl(), 0.5, 0.5),
    ]
    trainer = fit(student, terms[::-1] if swap else terms, max_duration="1ba")
    name = "loss/train/org" if swap else "loss/train/org_2"
    assert logged(trainer, name) == pytest.approx([org], rel=1e-5)


@pytest.mark.parametrize("position", [0, 1, 2])
def test_two_instances_keep_their_terms_beside_an_interpolated_loss(position):
    teachers = [seeded(convnet, 1), seeded(convnet, 2)]

    class Both(Pupil):
        def loss(self, outputs, batch, reduction="mean"):
            task = F.cross_entropy(outputs, batch[1])
            kd = [DISTANCE(outputs, frozen(t)(batch[0]).detach()) for t in teachers]
            return 0.5 * 0.4 * task + 0.3 * kd[0] + 0.7 * kd[1]

    def run(student, algorithms):
        fit(student, algorithms, train_dataloader=images(), device_train_microbatch_size=2, lr=0.1)
        return student

    expected = run(Both(seeded(convnet, 0)), MixUp(interpolate_loss=True))
    algorithms = [
        Distillation(teachers[0], DISTANCE, 0.3, 0.5),
        Distillation(teachers[1], DISTANCE, 0.7, 0.4),
    ]
    algorithms.insert(position, MixUp(interpolate_loss=True))
    student = run(Pupil(seeded(convnet, 0)), algorithms)
    assert_close(student.module, expected.module, rtol=2e-4)
