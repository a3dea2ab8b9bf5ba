"""The divergences of two softmaxes as one Triton program a row, with their gradients.

A program reads its row of both logits for the two log-sum-exps, once more for the value and, where
the gradient needs a sum over the whole row first, a third time for the gradient; a row that was
just read is often still in the device's cache. All is computed in float32. Plain operations on
chunks read and write each chunk some fifteen times.

For q = softmax(student / T), p = softmax(teacher / T) and u = log q - log p, each divergence is a
sum of terms over classes, and its gradient with respect to student / T is pull - q sum(pull), where
pull is q times the derivative with respect to q.
"""

# ruff: noqa: ANN001, ANN201, ANN202, D417, SIM109 (Triton takes its own annotations alone, and no chains)
# pyright: reportGeneralTypeIssues=false, reportAssignmentType=false
import triton
import triton.language as tl

FORWARD = tl.constexpr(0)
SOFT_CROSS_ENTROPY = tl.constexpr(1)
REVERSE = tl.constexpr(2)
JENSEN_SHANNON = tl.constexpr(3)
SKEW = tl.constexpr(4)
REVERSE_SKEW = tl.constexpr(5)
TOTAL_VARIATION = tl.constexpr(6)
ALPHA_BETA = tl.constexpr(7)

# A class at minus infinity is computed as one at this logit, as in the chunked path.
_FLOOR = tl.constexpr(-1e30)
# Beyond, the smaller of p and q no longer matters to their mixture, and exp must not overflow.
_BOUND = tl.constexpr(80.0)


@triton.jit
def _load(row, columns, stride, classes, inverse):
    """Return logits over the temperature; -inf beyond the last class."""
    inside = columns < classes
    logits = tl.load(row + columns.to(tl.int64) * stride, mask=inside, other=0.0).to(tl.float32)
    # Not by tl.maximum, which may take the number where the logit is NaN
    floored = tl.where(logits < _FLOOR, _FLOOR, logits)
    return tl.where(inside, floored * inverse, float("-inf"))


@triton.jit
def _online(largest, total, first, logits, start):
    """Take a block into a row's running maximum, sum of exponentials and first class."""
    found, at = tl.max(logits, axis=0, return_indices=True)
    first = tl.where(found > largest, start + at, first)
    above = tl.maximum(largest, found)
    total = total * tl.exp(largest - above) + tl.sum(tl.exp(logits - above), axis=0)
    return above, total, first


@triton.jit
def _excess(u, p, q):
    """Return p (exp(u) - 1 - u) = q - p - p u: never below 0, and exact where u is small."""
    tail = 1.0 + u / 4.0 * (1.0 + u / 5.0 * (1.0 + u / 6.0 * (1.0 + u / 7.0)))
    near = 0.5 * u * u * (1.0 + u / 3.0 * tail)
    return tl.where(tl.abs(u) < 0.25, p * near, tl.maximum(q - p - p * u, 0.0))


@triton.jit
def _log1p(x):
    """Return log(1 + x), exact where x is small."""
    shifted = 1.0 + x
    less = shifted - 1.0
    whole = tl.log(shifted) * (x / tl.where(less == 0.0, 1.0, less))
    return tl.where(less == 0.0, x, whole)


@triton.jit
def _expm1(x):
    """Return exp(x) - 1, exact where x is small."""
    tail = 1.0 + x / 3.0 * (1.0 + x / 4.0 * (1.0 + x / 5.0 * (1.0 + x / 6.0)))
    return tl.where(tl.abs(x) < 0.25, x * (1.0 + x / 2.0 * tail), tl.exp(x) - 1.0)


@triton.jit
def _terms(log_q, log_p, u, alpha, beta, kind: tl.constexpr):
    """Return each class's term of the value, and of the pull."""
    q, p = tl.exp(log_q), tl.exp(log_p)
    if kind == FORWARD:
        return _excess(u, p, q), -p
    elif kind == SOFT_CROSS_ENTROPY:
        return -p * log_q, -p
    elif kind == REVERSE:
        return _excess(-u, q, p), q * u
    elif kind == TOTAL_VARIATION:
        sign = tl.where(q > p, 0.5, tl.where(q < p, -0.5, 0.0 * (q - p)))
        return 0.5 * tl.abs(q - p), q * sign
    elif kind == ALPHA_BETA:
        both = alpha + beta
        mixed, of_q = tl.exp(both * log_q - alpha * u), tl.exp(both * log_q)
        of_both = alpha * _excess(-beta * u, mixed, tl.exp(both * log_p))
        of_both += beta * _excess(alpha * u, mixed, of_q)
        return of_both / (alpha * beta * both), (of_q - mixed) / alpha
    else:  # of a mixture, by log q - log m
        ratio = tl.where(u < -_BOUND, _BOUND, tl.where(u > _BOUND, -_BOUND, -u))
        share = 1.0 - alpha if kind == REVERSE_SKEW else alpha
        over = -_log1p(share * _expm1(ratio))
        mixed = share * p + (1.0 - share) * q
        if kind == REVERSE_SKEW:
            return _excess(-over, q, mixed), q * (over - alpha * tl.exp(over))
        of_teacher = _excess(-(over + ratio), p, mixed)
        if kind == SKEW:
            return of_teacher, (alpha - 1.0) * q * tl.exp(over + ratio)
        else:
            of_student = (1.0 - alpha) * _excess(-over, q, mixed)
            return beta * (alpha * of_teacher + of_student), beta * (1.0 - alpha) * q * over


@triton.jit
def _logs(a, b, shift, largest_q, log_z_q, largest_p, log_z_p):
    """Return log q, log p, and their difference, which keeps the digits of logits that agree."""
    # Beyond the last class a - b would be NaN
    return a - largest_q - log_z_q, b - largest_p - log_z_p, tl.where(a == b, 0.0, a - b) - shift


@triton.jit
def rows(
    student,
    teacher,
    index,
    values,
    gradient,
    scale,
    told,
    first,
    count,
    classes,
    student_stride,
    student_step,
    teacher_stride,
    teacher_step,
    gradient_stride,
    inverse,
    slope,
    alpha,
    beta,
    kind: tl.constexpr,
    indexed: tl.constexpr,
    wanted: tl.constexpr,
    scaled: tl.constexpr,
    tells: tl.constexpr,
    block: tl.constexpr,
):
    """Write one row's value, gradient and what telemetry tells of it.

    Args:
        student, teacher: The logits, by a stride from row to row and a step from class to class.
        index: ``(N,)``, the rows that count, where ``indexed``.
        values: ``(N,)``, float32.
        gradient: ``(N, C)`` in the student's type, where ``wanted``: times ``slope``, or where
            ``scaled`` divided by its largest entry.
        scale: ``(N,)``, that largest entry times ``slope``.
        told: ``(3, N)``: forward KL and both entropies, where ``tells``.
        first: ``(2, N)``: the class that student and teacher put first, where ``tells``.
        inverse: One over the temperature.
        alpha, beta: The divergence's arguments.
        block: How many classes at once, a power of two.
    """
    n = tl.program_id(0).to(tl.int64)
    at = tl.load(index + n) if indexed else n
    student += at * student_stride
    teacher += at * teacher_stride
    lanes = tl.arange(0, block)

    nothing, zero = tl.full((), float("-inf"), tl.float32), tl.full((), 0.0, tl.float32)
    largest_q, total_q, first_q = nothing, zero, zero.to(tl.int32)
    largest_p, total_p, first_p = nothing, zero, zero.to(tl.int32)
    for start in range(0, classes, block):
        a = _load(student, start + lanes, student_step, classes, inverse)
        b = _load(teacher, start + lanes, teacher_step, classes, inverse)
        largest_q, total_q, first_q = _online(largest_q, total_q, first_q, a, start)
        largest_p, total_p, first_p = _online(largest_p, total_p, first_p, b, start)
    log_z_q, log_z_p = tl.log(total_q), tl.log(total_p)
    shift = (largest_q - largest_p) + tl.log(total_q / total_p)

    # The pull of these two adds up to -1 whatever the logits are
    known: tl.constexpr = (kind == FORWARD) or (kind == SOFT_CROSS_ENTROPY)
    at_once: tl.constexpr = known and (not scaled)
    value, pulled = tl.zeros([block], tl.float32), tl.zeros([block], tl.float32)
    kl = tl.zeros([block], tl.float32)
    entropy_q, entropy_p = tl.zeros([block], tl.float32), tl.zeros([block], tl.float32)
    for start in range(0, classes, block):
        columns = start + lanes
        inside = columns < classes
        a = _load(student, columns, student_step, classes, inverse)
        b = _load(teacher, columns, teacher_step, classes, inverse)
        log_q, log_p, u = _logs(a, b, shift, largest_q, log_z_q, largest_p, log_z_p)
        term, pull = _terms(log_q, log_p, u, alpha, beta, kind)
        value += tl.where(inside, term, 0.0)
        pulled += tl.where(inside, pull, 0.0)
        if tells:
            q, p = tl.exp(log_q), tl.exp(log_p)
            kl += tl.where(inside, _excess(u, p, q), 0.0)
            entropy_q -= tl.where(inside, q * log_q, 0.0)
            entropy_p -= tl.where(inside, p * log_p, 0.0)
        if wanted and at_once:
            target = gradient + n * gradient_stride + columns
            slanted = slope * (pull + tl.exp(log_q))
            tl.store(target, slanted.to(gradient.dtype.element_ty), mask=inside)
    tl.store(values + n, tl.sum(value, axis=0))
    if tells:
        tl.store(told + n, tl.sum(kl, axis=0))
        tl.store(told + count + n, tl.sum(entropy_q, axis=0))
        tl.store(told + 2 * count + n, tl.sum(entropy_p, axis=0))
        tl.store(first + n, first_q.to(tl.int64))
        tl.store(first + count + n, first_p.to(tl.int64))

    if wanted and (not at_once):
        total = -1.0 if known else tl.sum(pulled, axis=0)
        if scaled:
            peak = tl.zeros([block], tl.float32)
            for start in range(0, classes, block):
                columns = start + lanes
                a = _load(student, columns, student_step, classes, inverse)
                b = _load(teacher, columns, teacher_step, classes, inverse)
                log_q, log_p, u = _logs(a, b, shift, largest_q, log_z_q, largest_p, log_z_p)
                pull = _terms(log_q, log_p, u, alpha, beta, kind)[1]
                slanted = tl.where(columns < classes, pull - tl.exp(log_q) * total, 0.0)
                peak = tl.maximum(peak, tl.abs(slanted))
            largest = tl.maximum(tl.max(peak, axis=0), 1.1754943508222875e-38)
            tl.store(scale + n, slope * largest)
            slope = 1.0 / largest
        for start in range(0, classes, block):
            columns = start + lanes
            a = _load(student, columns, student_step, classes, inverse)
            b = _load(teacher, columns, teacher_step, classes, inverse)
            log_q, log_p, u = _logs(a, b, shift, largest_q, log_z_q, largest_p, log_z_p)
            pull = _terms(log_q, log_p, u, alpha, beta, kind)[1]
            slanted = slope * (pull - tl.exp(log_q) * total)
            target = gradient + n * gradient_stride + columns
            tl.store(target, slanted.to(gradient.dtype.element_ty), mask=columns < classes)
