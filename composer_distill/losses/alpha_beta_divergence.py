"""Alpha-beta divergence (arXiv 2505.04560)."""

from torch import Tensor

from composer_distill.losses.base import Schedule
from composer_distill.losses.checks import check_number
from composer_distill.losses.divergence import divergence
from composer_distill.losses.functional import TemperedLoss
from composer_distill.losses.softened import Formula, Softened, lse


def _powers(
    student: Softened, teacher: Softened, alpha: float, beta: float
) -> tuple[Tensor, Tensor, Tensor]:
    log_q, log_p = student.logits - lse(student), teacher.logits - lse(teacher)
    both = alpha + beta
    # Written so that all three are equal, bit for bit, where student and teacher are.
    mixed = (both * log_q + alpha * (log_p - log_q)).exp()
    return mixed, (both * log_p).exp(), (both * log_q).exp()


def _terms(student: Softened, teacher: Softened, alpha: float, beta: float) -> Tensor:
    mixed, of_teacher, of_student = _powers(student, teacher, alpha, beta)
    total = alpha * (of_teacher - mixed) + beta * (of_student - mixed)
    return total / (alpha * beta * (alpha + beta))


def _rows(
    student: Softened, teacher: Softened, wanted: bool, alpha: float, beta: float
) -> tuple[Tensor, Tensor | None]:
    mixed, of_teacher, of_student = _powers(student, teacher, alpha, beta)
    difference = of_student.sub_(mixed)
    total = alpha * of_teacher.sub_(mixed).sum(-1) + beta * difference.sum(-1)
    values = total / (alpha * beta * (alpha + beta))
    if not wanted:
        return values, None
    weighted = difference.div_(alpha)
    return values, weighted.sub_(student.probs * weighted.sum(-1, keepdim=True))


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
    arguments = (_check("alpha", alpha), _check("beta", beta))
    formula = Formula(_terms, _rows, arguments, kernel="ALPHA_BETA")
    return divergence(formula, student, teacher, mask, temperature, dim, reduction)


class AlphaBetaDivergence(TemperedLoss):
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
        reduction: As in :class:`KLDivergence`.

    Shape:
        Those of :class:`KLDivergence`; so are the errors.

    Raises:
        ValueError: If alpha or beta is not positive.

    Reference:
        Wang et al., ABKD, arXiv 2505.04560.

    Example:
        >>> import torch
        >>> student, teacher = torch.tensor([[0.0, 0.0]]), torch.tensor([[0.0, 2.0]]).log1p()
        >>> AlphaBetaDivergence(alpha=1.0, beta=1.0)(student, teacher)  # half of |p - q|^2
        tensor(0.0625)
    """

    function = staticmethod(alpha_beta_divergence)

    def __init__(
        self,
        alpha: float = 0.2,
        beta: float = 0.7,
        temperature: float | Schedule = 1.0,
        dim: int = -1,
        reduction: str = "mean",
    ) -> None:
        super().__init__(temperature, dim, reduction)
        self.alpha, self.beta = _check("alpha", alpha), _check("beta", beta)
