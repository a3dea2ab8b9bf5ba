import pytest
import torch
from composer import Trainer
from composer.models import ComposerClassifier
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from composer_distill import Distillation, KLDivergence, teacher_confident, teacher_correct
from composer_distill.losses import BernoulliKL, FusedLinearKL
from composer_distill.teachers.microbatch import Microbatch


def tensors(*shape):
    generator = torch.Generator().manual_seed(3)
    student = torch.randn(*shape, 5, generator=generator, requires_grad=True)
    return student, torch.randn(*shape, 5, generator=generator)


def test_the_right_answers_by_hand():
    student, teacher = tensors(4)
    labels = teacher.argmax(-1)
    labels[1] = (labels[1] + 1) % 5
    microbatch = Microbatch(None, None, student, labels=labels)
    judged, target, share = teacher_correct.judge(microbatch, teacher)
    assert float(share) == 0.75
    assert torch.equal(target, teacher[[0, 2, 3]])
    assert torch.equal(judged.compared.logits, student[[0, 2, 3]])


def test_the_sure_answers_of_kept_positions_by_hand():
    student, teacher = tensors(2, 3)
    teacher = 3 * teacher
    mask = torch.tensor([[True, True, False], [True, False, True]])
    microbatch = Microbatch({}, None, student, mask)
    judged, target, share = teacher_confident(0.6).judge(microbatch, teacher[mask])
    sure = (teacher.softmax(-1).amax(-1) > 0.6) & mask
    assert 0 < sure.sum() < 4
    assert torch.equal(judged.mask, sure)
    assert torch.equal(target, teacher[sure])
    assert float(share) == sure.sum() / 4


def test_classes_that_are_not_last():
    student, teacher = (x.movedim(-1, 1) for x in tensors(2, 3))
    microbatch = Microbatch((), None, student, axis=1, selects=False)
    judged, target, share = teacher_confident(0.5).judge(microbatch, teacher)
    sure = teacher.softmax(1).amax(1) > 0.5
    assert torch.equal(judged.mask, sure)
    assert target is teacher
    assert float(share) == sure.float().mean()


def test_what_can_not_be_judged():
    with pytest.raises(ValueError, match="between 0 and 1, got 1"):
        teacher_confident(1.0)
    with pytest.raises(TypeError, match=r"got teacher_confident\. Use .*teacher_confident\(0\.5\)"):
        Distillation(nn.Linear(2, 2), KLDivergence(), mask_fn=teacher_confident)
    student, teacher = tensors(4)
    with pytest.raises(ValueError, match=r"teacher_correct needs.*teacher_confident"):
        teacher_correct.judge(Microbatch(None, None, student), teacher)
    with pytest.raises(ValueError, match="FusedLinearKL never has"):
        Distillation(nn.Linear(2, 2), FusedLinearKL(), mask_fn=teacher_correct)
    for judge in (teacher_correct, teacher_confident(0.5)):
        with pytest.raises(ValueError, match=r"likeliest of classes that exclude each other"):
            Distillation(nn.Linear(2, 2), BernoulliKL(), mask_fn=judge)
    mean_of_samples = KLDivergence(reduction="batchmean")
    with pytest.raises(ValueError, match="mask_fn=teacher_correct leaves positions out.*batchmean"):
        Distillation(nn.Linear(2, 2), mean_of_samples, mask_fn=teacher_correct)


def gradients(mask_fn, microbatch_size):
    torch.manual_seed(0)
    student = ComposerClassifier(nn.Linear(6, 5), num_classes=5)
    teacher = nn.Linear(6, 5)
    nn.init.normal_(teacher.weight, std=0.7)
    x, y = torch.randn(8, 6), torch.randint(5, (8,))
    with torch.no_grad():
        y[:3] = teacher(x[:3]).argmax(-1)
    before = student.module.weight.detach().clone()
    trainer = Trainer(
        model=student,
        train_dataloader=DataLoader(TensorDataset(x, y), batch_size=8),
        max_duration="1ba",
        optimizers=torch.optim.SGD(student.parameters(), lr=1.0),
        algorithms=[Distillation(teacher, KLDivergence(2.0), 1.0, 0.0, mask_fn=mask_fn)],
        device_train_microbatch_size=microbatch_size,
        progress_bar=False,
    )
    trainer.fit()
    trainer.close()
    step = before - student.module.weight.detach()
    with torch.no_grad():
        target = teacher(x)
    sure = target.softmax(-1).amax(-1) > 0.5
    right = target.argmax(-1) == y if mask_fn is teacher_correct else sure
    assert 0 < right.sum() < 8
    return step, right


@pytest.mark.parametrize("mask_fn", [teacher_correct, teacher_confident(0.5)], ids=str)
def test_a_step_is_the_same_for_every_microbatch_size_and_the_one_by_hand(mask_fn):
    whole, right = gradients(mask_fn, 8)
    cut, _ = gradients(mask_fn, 2)
    torch.testing.assert_close(cut, whole)

    torch.manual_seed(0)
    student, teacher = nn.Linear(6, 5), nn.Linear(6, 5)
    nn.init.normal_(teacher.weight, std=0.7)
    x = torch.randn(8, 6)
    target = (teacher(x) / 2.0).softmax(-1).detach()
    kl = F.kl_div((student(x) / 2.0).log_softmax(-1), target, reduction="none").sum(-1) * 4.0
    (kl * right).mean().backward()
    torch.testing.assert_close(whole, student.weight.grad)
