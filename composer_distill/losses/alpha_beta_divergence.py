"""Alpha-beta divergence (arXiv 2505.04560)."""

# torch.compile cannot trace the definition of a function whose annotations are a union.
from __future__ import annotations

from torch import Tensor

from composer_distill.losses.base import DistillationLoss, Schedule
from composer_distill.losses.kernel import divergence
from composer_distill.losses.rows import check_number, check_temperature
from composer_distill.losses.softened import Formula, Softened


def _formula(alpha: float, beta: float) -> Formula:
    alpha, beta = _check("alpha", alpha), _check("beta", beta)
    both = alpha + beta

    def powers(student: Softened, teacher: Softened) -> tuple[Tensor, Tensor, Tensor]:
        log_q, log_p = student.logits - student.lse, teacher.logits - teacher.lse
        # Written so that all three are equal, bit for bit, where student and teacher are.
        mixed = (both * log_q + alpha * (log_p - log_q)).exp()
        return mixed, (both * log_p).exp(), (both * log_q).exp()

    def terms(student: Softened, teacher: Softened) -> Tensor:
        mixed, of_teacher, of_student = powers(student, teacher)
        total = alpha * (of_teacher - mixed) + beta * (of_student - mixed)
        return total / (alpha * beta * both)

    def rows(student: Softened, teacher: Softened, wanted: bool) -> tuple[Tensor, Tensor | None]:
        mixed, of_teacher, of_student = powers(student, teacher)
        difference = of_student.sub_(mixed)
        total = alpha * of_teacher.sub_(mixed).sum(-1) + beta * difference.sum(-1)
        if not wanted:
            return total / (alpha * beta * both), None
        weighted = difference.div_(alpha)
        gradient = weighted.sub_(student.probs * weighted.sum(-1, keepdim=True))
        return total / (alpha * beta * both), gradient

    return Formula(terms, rows)


def _check(name: str, value: float) -> float:
    remedy = "ABKD uses (0.2, 0.7); towards (1, 0) it is KLDivergence, towards (0, 1) the reverse."
    return check_number(name, value, above=0.0, remedy=remedy)


def alpha_beta_divergence(
    student: Tensor,
    teacher: Tensor,
    mask: Tensor | None = None,
    *,
    alpha: float = 0.2,
    beta: float = 0.7,
    temperature: float = 1.0,
    dim: int = -1,
    reduction: str = "mean",
) -> Tensor:
    """Return T^2 times the alpha-beta divergence of teacher and student.

    See :class:`AlphaBetaDivergence`.
    """
    return divergence(
        _formula(alpha, beta),
        student,
        teacher,
        mask,
        temperature=temperature,
        dim=dim,
        reduction=reduction,
    )


class AlphaBetaDivergence(DistillationLoss):
    """Alpha-beta divergence: between forward and reverse KL in two ways.

    ``T^2 * sum_c [p^(a+b)/(b (a+b)) + q^(a+b)/(a (a+b)) - p^a q^b/(a b)]`` with alpha ``a`` and
    beta ``b``. Their sum tells how much likely classes count, their ratio how forward the
    divergence is: towards (1, 0) it is the forward KL, towards (0, 1) the reverse KL. The paper
    also has negative parameters, which make a class that the student or the teacher rules out an
    infinite loss; they are refused here.

    Args:
        alpha: Power of the teacher's probabilities, positive.
        beta: Power of the student's probabilities, positive.
        temperature: T, a number or a schedule. The value is multiplied by T^2.
        dim: The class axis.
        reduction: ``'mean'`` over positions, ``'batchmean'``, ``'sum'``, or ``'none'``: the terms.

    Shape:
        - student, teacher: ``(..., C)``, or the class axis at ``dim``.
        - mask: ``(...)``, boolean; positions that are false do not count.
        - output: a scalar; for ``'none'`` the shape of the inputs.

    Raises:
        TypeError: If an argument has the wrong type.
        ValueError: If alpha or beta is not positive, or shapes do not fit.

    Reference:
        Wang et al., ABKD, arXiv 2505.04560.

    Example:
        >>> import torch
        >>> student, teacher = torch.tensor([[0.0, 0.0]]), torch.tensor([[0.0, 2.0]]).log1p()
        >>> AlphaBetaDivergence(alpha=1.0, beta=1.0)(student, teacher)  # half of |p - q|^2
        tensor(0.0625)
    """

    temperature: float | Schedule

    def __init__(
        self,
        alpha: float = 0.2,
        beta: float = 0.7,
        temperature: float | Schedule = 1.0,
        dim: int = -1,
        reduction: str = "mean",
    ) -> None:
        super().__init__(dim, reduction)
        self.alpha, self.beta = _check("alpha", alpha), _check("beta", beta)
        self._number_or_schedule("temperature", temperature)

    def compute(
        self, student: Tensor, teacher: Tensor, mask: Tensor | None, labels: Tensor | None
    ) -> Tensor:
        """Return the loss."""
        return alpha_beta_divergence(
            student,
            teacher,
            mask,
            alpha=self.alpha,
            beta=self.beta,
            temperature=check_temperature(self.temperature),
            dim=self.dim,
            reduction=self.reduction,
        )
