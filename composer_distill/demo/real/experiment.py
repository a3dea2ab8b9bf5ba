"""What ``composer-distill demo --real`` does: the teacher answers once, and two students learn."""

import time
from dataclasses import dataclass
from pathlib import Path

from tqdm.auto import tqdm

from composer_distill.demo.models import count_parameters
from composer_distill.demo.real.material import Material, draw
from composer_distill.demo.real.scores import Scores, score
from composer_distill.demo.real.settings import RealSettings
from composer_distill.demo.real.students import cut
from composer_distill.demo.real.training import Curve, Point, answers_to, distilled_by, train

ALONE, DISTILLED = "cut, text alone", "cut, cached teacher"


@dataclass(frozen=True)
class RealResult:
    """All that was measured.

    Args:
        teacher: The teacher's scores.
        untrained: Those of the student as it is cut.
        teacher_parameters: How many parameters the teacher has.
        student_parameters: How many each student has.
        cache_seconds: CPU seconds in which the teacher answered the training text.
        curves: The scores of each student on the way, the last at the end.
    """

    teacher: Scores
    untrained: Scores
    teacher_parameters: int
    student_parameters: int
    cache_seconds: float
    curves: dict[str, list[Point]]


def run_experiment(settings: RealSettings, material: Material, answers: Path) -> RealResult:
    """Cut the teacher, and train the student on the text and from the ``answers`` it keeps."""
    windows = draw(material.train, settings.steps * settings.batch_size, settings.seed)
    held_out = draw(material.held_out, settings.held_out, 0)
    scores, first = score(material.teacher, held_out)
    student = cut(material.teacher, settings.layers)
    untrained, _ = score(student, held_out, first)
    print(f"1 of 3: the teacher answers {len(windows)} windows of text once", flush=True)
    began = time.process_time()
    cached = answers_to(material.teacher, windows, answers, settings.samples, progress_bar=True)
    seconds = time.process_time() - began
    curves: dict[str, list[Point]] = {}
    for place, name in enumerate((ALONE, DISTILLED), 2):
        print(f"{place} of 3: {name}", flush=True)
        with tqdm(total=settings.steps, unit="batch") as bar:
            curves[name] = train(
                cut(material.teacher, settings.layers),
                windows,
                Curve(held_out, first, _points(settings), bar),
                batch_size=settings.batch_size,
                learning_rate=settings.learning_rate,
                seed=settings.seed,
                algorithm=distilled_by(cached) if name == DISTILLED else None,
            )
    return RealResult(
        scores,
        untrained,
        count_parameters(material.teacher),
        count_parameters(student),
        seconds,
        curves,
    )


def _points(settings: RealSettings) -> list[int]:
    return [settings.steps * part // settings.points for part in range(1, settings.points + 1)]
