"""What the page for people of other libraries claims of numbers, against those libraries.

Each part is skipped where its library is absent; none is part of the extra ``test``.
"""

from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from composer_distill.losses import (
    DIST,
    HiddenMSE,
    JensenShannonDivergence,
    KLDivergence,
    ReverseKLDivergence,
    SoftCrossEntropy,
    StandardizedLogits,
)

pytestmark = pytest.mark.filterwarnings("ignore")  # of the other libraries' own
CLASSES = 11


def logits(*shape, seed):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, CLASSES, generator=generator, dtype=torch.float64)


@pytest.fixture
def rows():
    """Logits of student and teacher for 6 positions."""
    return logits(6, seed=0).requires_grad_(), 3.0 * logits(6, seed=1)


@pytest.fixture
def texts():
    """The same for two texts of 5 tokens, with labels."""
    labels = torch.tensor([[-100, -100, 3, 4, 5], [-100, -100, -100, 7, -100]])
    return logits(2, 5, seed=0).requires_grad_(), 3.0 * logits(2, 5, seed=1), labels


def assert_same(theirs, ours, student):
    """Value and gradient are the same."""
    (of_theirs,) = torch.autograd.grad(theirs, student, retain_graph=True)
    (of_ours,) = torch.autograd.grad(ours, student, retain_graph=True)
    torch.testing.assert_close(theirs, ours, rtol=1e-5, atol=1e-6, check_dtype=False)
    torch.testing.assert_close(of_theirs, of_ours, rtol=1e-5, atol=1e-6)


class Gives(nn.Module):
    """A model that answers with given logits."""

    def __init__(self, given):
        super().__init__()
        self.given = given

    def forward(self, *inputs, **more):
        return SimpleNamespace(logits=self.given)


class TestTRL:
    @pytest.fixture(autouse=True)
    def trainer(self):
        self.gkd = pytest.importorskip("trl.trainer.gkd_trainer").GKDTrainer

    @pytest.mark.parametrize(
        ("beta", "loss"),
        [
            (0.0, KLDivergence(1.0)),
            (0.1, JensenShannonDivergence(beta=0.1)),
            (0.5, JensenShannonDivergence(beta=0.5)),
            (1.0, ReverseKLDivergence(1.0)),
        ],
    )
    def test_beta(self, texts, beta, loss):
        student, teacher, labels = texts
        theirs = self.gkd.generalized_jsd_loss(student, teacher, labels, beta=beta)
        assert_same(theirs, loss(student, teacher, labels != -100), student)

    def test_a_temperature_of_the_loss_is_not_squared(self, texts):
        student, teacher, labels = texts
        theirs = self.gkd.generalized_jsd_loss(student, teacher, labels, beta=0.5, temperature=2.0)
        ours = JensenShannonDivergence(beta=0.5, temperature=2.0)(student, teacher, labels != -100)
        assert_same(4.0 * theirs, ours, student)

    def test_the_trainer_neither_softens_nor_counts_what_lies_before_the_longest_prompt(self):
        """Two texts padded on the left: prompts of 1 and 3 tokens, continuations of 4 and 2."""
        student, teacher = logits(2, 5, seed=0).requires_grad_(), 3.0 * logits(2, 5, seed=1)
        labels = torch.tensor([[-100, 1, 2, 3, 4], [-100, -100, -100, 5, 6]])
        batch = {
            "input_ids": torch.zeros(2, 5),
            "attention_mask": torch.ones(2, 5),
            "prompts": torch.zeros(2, 3),  # padded to the longest
            "labels": labels,
        }
        itself = SimpleNamespace(
            teacher_model=Gives(teacher),
            beta=0.5,
            temperature=0.9,
            generalized_jsd_loss=self.gkd.generalized_jsd_loss,
        )
        theirs = self.gkd.compute_loss(itself, Gives(student), batch)
        shifted = labels[:, 1:] != -100
        loss = JensenShannonDivergence(beta=0.5)
        behind = shifted & (torch.arange(1, 5) >= 3)
        ours = loss(student[:, :-1], teacher[:, :-1], behind)
        assert_same(theirs, ours, student)
        assert shifted.sum() - behind.sum() == 2
        assert (
            abs(float(theirs) / float(loss(student[:, :-1], teacher[:, :-1], shifted)) - 1) > 0.02
        )


class TestTorchtune:
    @pytest.fixture(autouse=True)
    def losses(self):
        self.losses = pytest.importorskip("torchtune.modules.loss")

    def test_forward_is_a_cross_entropy_with_the_gradient_of_the_divergence(self, texts):
        student, teacher, labels = texts
        flat = (x.flatten(0, 1) for x in texts)
        theirs, mask = self.losses.ForwardKLLoss()(*flat), labels != -100
        assert_same(theirs, SoftCrossEntropy(1.0)(student, teacher, mask), student)
        divergence = KLDivergence(1.0)(student, teacher, mask)
        entropy = SoftCrossEntropy(1.0)(teacher, teacher, mask)
        assert_same(theirs - entropy, divergence, student)
        assert entropy > 0.1

    @pytest.mark.parametrize("chunks", [1, 5])
    def test_chunks_do_not_change_it(self, texts, chunks):
        student, teacher, labels = texts
        cut = (list(x.chunk(chunks, dim=1)) for x in (student, teacher))
        theirs = self.losses.ForwardKLWithChunkedOutputLoss(chunks)(*cut, labels)
        assert_same(theirs, SoftCrossEntropy(1.0)(student, teacher, labels != -100), student)

    def test_reverse(self, texts):
        student, teacher, labels = texts
        theirs = self.losses.ReverseKLLoss()(*(x.flatten(0, 1) for x in texts))
        assert_same(theirs, ReverseKLDivergence(1.0)(student, teacher, labels != -100), student)

    def test_symmetric(self, texts):
        student, teacher, labels = texts
        theirs = self.losses.SymmetricKLLoss(0.3)(*(x.flatten(0, 1) for x in texts))
        ours = 0.3 * SoftCrossEntropy(1.0) + 0.7 * ReverseKLDivergence(1.0)
        assert_same(theirs, ours(student, teacher, labels != -100), student)


class TestModelOpt:
    @pytest.fixture(autouse=True)
    def distill(self):
        self.mtd = pytest.importorskip("modelopt.torch.distill")

    def test_its_mean_divides_by_the_classes_too(self, rows):
        student, teacher = rows
        theirs = self.mtd.LogitsDistillationLoss(temperature=2.0)(student, teacher)
        assert_same(CLASSES * theirs, KLDivergence(2.0)(student, teacher), student)

    def test_its_batchmean_of_rows_is_our_mean(self, rows):
        student, teacher = rows
        theirs = self.mtd.LogitsDistillationLoss(temperature=2.0, reduction="batchmean")
        assert_same(theirs(student, teacher), KLDivergence(2.0)(student, teacher), student)

    def test_the_mask_of_its_trainer_is_not_shifted(self, texts):
        """As its ``KDTrainer`` reduces: no shift between a position and the label it predicts."""
        plugin = pytest.importorskip("modelopt.torch.distill.plugins.huggingface")
        student, teacher, labels = texts
        converted = SimpleNamespace()
        trainer = SimpleNamespace(model=converted, train=None)

        def compute_kd_loss(loss_reduction_fn):
            loss = plugin.LMLogitsLoss()
            outputs = (SimpleNamespace(logits=x) for x in (student, teacher))
            return loss_reduction_fn(loss(*outputs))

        converted.compute_kd_loss = compute_kd_loss
        theirs = kd_trainers_loss(plugin.KDTrainer, trainer)(None, labels)
        kl = KLDivergence(1.0)
        torch.testing.assert_close(
            theirs, kl(student.float(), teacher.float(), labels != -100), rtol=1e-5, atol=1e-6
        )
        shifted = kl(student[:, :-1], teacher[:, :-1], labels[:, 1:] != -100)
        assert abs(float(theirs) / float(shifted) - 1.0) > 0.02

    def test_the_weights_of_its_balancer(self):
        balancer = self.mtd.StaticLossBalancer(kd_loss_weight=0.7)
        losses = {"student_loss": torch.tensor(2.0), "LogitsDistillationLoss_0": torch.tensor(5.0)}
        assert float(balancer(losses)) == pytest.approx(0.3 * 2.0 + 0.7 * 5.0)

    def test_layers(self, texts):
        """A pair of layers is compared by any loss: squares are ours where nothing is padded."""
        student, teacher, _ = texts
        model, taught = nn.Sequential(Gives(student), nn.Identity()), nn.Sequential(nn.Identity())
        config = {"teacher_model": taught, "criterion": {("1", "0"): nn.MSELoss()}}
        converted = self.mtd.convert(model, mode=[("kd_loss", config)])
        converted[1]._intermediate_output, taught[0]._intermediate_output = student, teacher
        theirs = converted.compute_kd_loss()
        assert_same(theirs, HiddenMSE()(student, teacher), student)


def kd_trainers_loss(trainer_class, trainer):
    """The loss that ``KDTrainer.train`` installs, without its Trainer."""
    base = trainer_class.__mro__[1]
    kept, base.train = base.train, lambda self: None
    try:
        trainer_class.train.__get__(made := object.__new__(trainer_class))()
    finally:
        base.train = kept
    made.model = trainer.model
    return made.compute_loss_func


class TestTorchdistill:
    PLACES = (".", "output", ".", "output")

    @pytest.fixture(autouse=True)
    def losses(self):
        self.losses = pytest.importorskip("torchdistill.losses.mid_level")

    def ask(self, loss, student, teacher, *more):
        return loss({".": {"output": student}}, {".": {"output": teacher}}, *more)

    def test_alpha_is_the_weight_of_the_task(self, rows):
        student, teacher = rows
        targets = torch.arange(6)
        loss = self.losses.KDLoss(*self.PLACES, temperature=4.0, alpha=0.3)
        ours = 0.3 * F.cross_entropy(student, targets) + 0.7 * KLDivergence(4.0)(student, teacher)
        assert_same(self.ask(loss, student, teacher, targets), ours, student)

    @pytest.mark.parametrize("alpha", [None, 0.0])
    def test_without_alpha_the_temperature_is_not_squared_nor_beta_read(self, rows, alpha):
        student, teacher = rows
        loss = self.losses.KDLoss(*self.PLACES, temperature=4.0, alpha=alpha, beta=0.5)
        theirs = self.ask(loss, student, teacher, torch.arange(6))
        assert_same(16.0 * theirs, KLDivergence(4.0)(student, teacher), student)

    def test_its_class_axis_is_the_second_and_its_batchmean_ignores_the_third(self, texts):
        student, teacher, _ = texts
        loss = self.losses.KDLoss(*self.PLACES, temperature=1.0, alpha=0, beta=1.0)
        theirs = self.ask(loss, student.transpose(1, 2), teacher.transpose(1, 2))
        assert_same(theirs / 5, KLDivergence(1.0)(student, teacher), student)

    def test_standardized_logits(self, rows):
        student, teacher = rows
        loss = self.losses.LogitStdKDLoss(*self.PLACES, temperature=2.0, alpha=0, beta=1.0)
        ours = StandardizedLogits(KLDivergence(2.0))(student, teacher)
        assert_same(4.0 * self.ask(loss, student, teacher), ours, student)

    def test_dist_is_multiplied_by_the_square_of_tau(self, rows):
        student, teacher = rows
        loss = self.losses.DISTLoss(*self.PLACES, beta=1.0, gamma=2.0, tau=3.0)
        ours = DIST(beta=1.0, gamma=2.0, temperature=3.0)(student, teacher)
        assert_same(self.ask(loss, student, teacher), 9.0 * ours, student)


def test_the_proposal_for_composer_computed_the_reverse_divergence(rows):
    """It can't be installed: its formula, with the arguments in the order of its call."""
    student, teacher = rows

    def proposed(y_student, y_teacher, temperature=4.0):
        log_q = F.log_softmax(y_student / temperature, dim=-1)
        p = F.softmax(y_teacher / temperature, dim=-1)
        return F.kl_div(log_q, p, reduction="batchmean") * temperature**2

    assert_same(proposed(teacher, student), ReverseKLDivergence(4.0)(student, teacher), student)
