"""Which models are trained on what: the comparison itself."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from composer.core import Algorithm, Callback
from composer.models import ComposerClassifier
from torch import Tensor
from tqdm.auto import tqdm

from composer_distill import Distillation, KLDivergence
from composer_distill.demo.data import DigitSet, few_labels, load_split, without_labels
from composer_distill.demo.models import build_student, build_teacher, count_parameters, jitter
from composer_distill.demo.scores import Scores, answer, score
from composer_distill.demo.settings import Settings
from composer_distill.demo.training import Curve, Plan, Point, Progress, train

TEACHER, ALONE, DISTILLED = "teacher", "student alone", "student distilled"
FEW_ALONE, FEW_DISTILLED = "few labels alone", "no labels distilled"


@dataclass(frozen=True)
class Run:
    """One trained model.

    Args:
        arm: Which side of which comparison it is.
        seed: The seed that it shares with its pair.
        labels: How many labels it saw.
        seconds: How long its training took, with the curve's measurements.
        scores: Its scores at the end.
        curve: Its scores on the way.
    """

    arm: str
    seed: int
    labels: int
    seconds: float
    scores: Scores
    curve: list[Point]


@dataclass(frozen=True)
class Result:
    """All that the demo trained.

    Args:
        checkpoint: The teacher's checkpoint.
        teacher_parameters: How many parameters the teacher has.
        student_parameters: How many parameters each student has.
        test_images: How many images the scores are means over.
        runs: The teacher's run, then each seed's.
    """

    checkpoint: Path
    teacher_parameters: int
    student_parameters: int
    test_images: int
    runs: list[Run]


@dataclass(frozen=True)
class Arm:
    """One student to train: on what, how long, with which algorithms.

    Args:
        name: What tables and curves call it.
        data: What it trains on.
        labels: How many true labels ``data`` holds.
        steps: Batches to train on.
        algorithms: Makes the Trainer's algorithms, anew for each run.
    """

    name: str
    data: DigitSet
    labels: int
    steps: int
    algorithms: Callable[[], list[Algorithm]] = list


def run_experiment(settings: Settings, checkpoint: Path) -> Result:
    """Train the teacher, save it to ``checkpoint``, and train every pair of students."""
    train_set, test_set = load_split(settings.train_images)
    with tqdm(total=count_steps(settings), unit="batch", desc=TEACHER, leave=False) as bar:
        callbacks = [Progress(bar)]
        teacher, seconds = train_teacher(settings, train_set, checkpoint, callbacks)
        logits = answer(teacher, test_set)
        scores = score(logits, test_set.labels, logits)
        runs = [Run(TEACHER, 0, len(train_set), seconds, scores, [])]
        for seed in range(1, settings.seeds + 1):
            for arm in make_arms(settings, train_set, checkpoint, seed):
                bar.set_description(f"seed {seed} of {settings.seeds}, {arm.name}")
                runs.append(run_arm(settings, arm, seed, test_set, logits, callbacks))
    return Result(
        checkpoint,
        count_parameters(teacher),
        count_parameters(build_student(0)),
        len(test_set),
        runs,
    )


def count_steps(settings: Settings) -> int:
    """Return how many batches the whole demo trains on."""
    return settings.teacher_steps + settings.seeds * 2 * (settings.steps + settings.few_steps)


def train_teacher(
    settings: Settings, data: DigitSet, checkpoint: Path, callbacks: Sequence[Callback]
) -> tuple[ComposerClassifier, float]:
    """Return the trained teacher and the seconds that it took."""
    teacher = build_teacher()
    plan = _plan(settings, data, settings.teacher_steps, seed=0, augment=True)
    return teacher, train(teacher, plan, callbacks=callbacks, checkpoint=checkpoint)


def make_arms(settings: Settings, data: DigitSet, checkpoint: Path, seed: int) -> Iterator[Arm]:
    """Yield the students of one seed: two pairs, each once alone and once distilled."""

    def distil(kd_loss_weight: float, org_loss_weight: float) -> list[Algorithm]:
        return [
            Distillation(
                teachers={str(checkpoint): build_teacher()},
                kd_loss_fn=KLDivergence(temperature=settings.temperature),
                kd_loss_weight=kd_loss_weight,
                org_loss_weight=org_loss_weight,
                telemetry=False,
            )
        ]

    count = len(data)
    few = few_labels(data, settings.labels_per_class, seed)
    unlabelled = without_labels(data.images)
    yield Arm(ALONE, data, count, settings.steps)
    weights = settings.kd_loss_weight, settings.org_loss_weight
    yield Arm(DISTILLED, data, count, settings.steps, lambda: distil(*weights))
    yield Arm(FEW_ALONE, few, len(few), settings.few_steps)
    yield Arm(FEW_DISTILLED, unlabelled, 0, settings.few_steps, lambda: distil(1.0, 0.0))


def run_arm(
    settings: Settings,
    arm: Arm,
    seed: int,
    test_set: DigitSet,
    teacher_logits: Tensor,
    callbacks: Sequence[Callback],
) -> Run:
    """Train one student; its initial weights and its batches depend on ``seed`` alone."""
    student = build_student(seed)
    curve = Curve(test_set, teacher_logits, max(1, arm.steps // settings.points))
    seconds = train(
        student,
        _plan(settings, arm.data, arm.steps, seed),
        algorithms=arm.algorithms(),
        callbacks=[curve, *callbacks],
    )
    scores = score(answer(student, test_set), test_set.labels, teacher_logits)
    return Run(arm.name, seed, arm.labels, seconds, scores, curve.points)


def _plan(
    settings: Settings, data: DigitSet, steps: int, seed: int, *, augment: bool = False
) -> Plan:
    transform = jitter if augment else None
    return Plan(data, steps, settings.batch_size, settings.learning_rate, seed, transform)
