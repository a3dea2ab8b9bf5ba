"""One run of ``prune_recover``: a student cut from SmolLM2-135M, or of random weights, trained.

Model, texts and training loop are those of ``composer-distill demo --real``.
"""

import gc
import json
import time
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
import transformers

from composer_distill.demo.models import count_parameters
from composer_distill.demo.real.material import Material, draw, load_material
from composer_distill.demo.real.scores import Scores, score
from composer_distill.demo.real.students import cut, random_like
from composer_distill.demo.real.training import Curve, Point, answers_to, distilled_by, train
from tests.benchmarks.evidence.experiment import Rows
from tests.benchmarks.evidence.runs import DIGITS, today

UNTRAINED, TEXT, LIVE, CACHED = "cut, untrained", "cut, text alone", "cut, live", "cut, cached"
RANDOM = "random, text alone"
METRICS = ("nll", "agreement", "ece")
RATES = (1e-4, 3e-4, 1e-3, 3e-3)
# What the tuning preferred, on other articles
TEXT_RATE, TEACHER_RATE = 1e-3, 1e-3


@dataclass(frozen=True)
class Scale:
    """How long everything trains, and on how much it is judged."""

    model: str = "SmolLM2-135M"
    layers: int = 10
    length: int = 64
    batch_size: int = 4
    steps: int = 300
    longer: int = 450
    tuning_steps: int = 60
    points: tuple[int, ...] = (25, 50, 100, 150, 200, 300, 450)
    windows: int = 64
    samples: int = 50


FAST = Scale("tiny", 2, 16, 4, 4, 6, 2, (2, 4, 6), 6, 5)


@dataclass(frozen=True)
class Setting:
    """All that a student's run depends on, beside its seed.

    Args:
        scale: How long and how much.
        first: Its first weights: ``"cut"`` from the teacher or ``"random"``.
        learns: From ``"nothing"``, the ``"text"``, a ``"live"`` teacher or a ``"cached"`` one.
        learning_rate: After a few steps of warm-up.
        tuning: Whether it is judged by the text that learning rates are chosen by.
    """

    scale: Scale
    first: str
    learns: str
    learning_rate: float = 0.0
    tuning: bool = False

    @property
    def steps(self) -> int:
        """How many batches it trains on: on the text alone some more, the control."""
        if self.learns == "nothing":
            return 0
        if self.tuning:
            return self.scale.tuning_steps
        control = (self.first, self.learns) == ("cut", "text")
        return self.scale.longer if control else self.scale.steps

    def plain(self) -> dict[str, Any]:
        """Return the setting as JSON holds it."""
        return asdict(self) | {"steps": self.steps, "teachers": [self.scale.model]}


def rows(seed: int, scale: Scale) -> Rows:
    """Return the tuning, on the first seed, and the students."""
    found: dict[str, Setting] = {}
    if seed == 1:
        for rate in RATES:
            for learns in ("text", "cached"):
                found[tuned(learns, rate)] = Setting(scale, "cut", learns, rate, tuning=True)
    return found | {
        UNTRAINED: Setting(scale, "cut", "nothing"),
        TEXT: Setting(scale, "cut", "text", TEXT_RATE),
        CACHED: Setting(scale, "cut", "cached", TEACHER_RATE),
        LIVE: Setting(scale, "cut", "live", TEACHER_RATE),
        RANDOM: Setting(scale, "random", "text", TEXT_RATE),
    }


def tuned(learns: str, rate: float) -> str:
    """Return what the table calls a cell of the tuning."""
    return f"tuning: {learns}, lr {rate:g}"


@cache
def material(model: str, length: int) -> Material:
    """Return the teacher and its texts."""
    return tiny(length) if model == "tiny" else load_material(length)


def tiny(length: int) -> Material:
    """Return a Llama of random weights and texts of random tokens."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        config = transformers.LlamaConfig(
            vocab_size=32,
            hidden_size=16,
            intermediate_size=32,
            num_hidden_layers=4,
            num_attention_heads=2,
            tie_word_embeddings=True,
            initializer_range=0.5,
        )
        teacher = transformers.LlamaForCausalLM(config)
        train, tuning, held_out = (torch.randint(32, (n, length)) for n in (64, 8, 8))
    return Material(teacher, train, tuning, held_out)


def judged(scale: Scale, tuning: bool) -> torch.Tensor:
    """Return the windows that students are scored on."""
    known = material(scale.model, scale.length)
    return draw(known.tuning if tuning else known.held_out, scale.windows, 0)


@cache
def teachers_answers(scale: Scale, tuning: bool) -> tuple[Scores, torch.Tensor]:
    """Return the teacher's scores, and the tokens that it puts first."""
    return score(material(scale.model, scale.length).teacher, judged(scale, tuning))


def run(setting: Setting, seed: int, folder: Path) -> dict[str, Any]:
    """Train one student and return what was measured."""
    gc.collect()  # a Trainer that is done holds its student and optimizer in a circle
    scale = setting.scale
    teacher = material(scale.model, scale.length).teacher
    student = cut(teacher, scale.layers)
    tell(setting, student, folder)
    if setting.first == "random":
        student = random_like(student, seed)
    text = judged(scale, setting.tuning)
    _, first = teachers_answers(scale, setting.tuning)
    if setting.learns == "nothing":
        return {"date": today(), **plain(Point(0, 0.0, score(student, text, first)[0]))}
    drawn = draw(material(scale.model, scale.length).train, scale.longer * scale.batch_size, seed)
    cache_seconds, algorithm = 0.0, None
    if setting.learns == "live":
        algorithm = distilled_by(teacher)
    elif setting.learns == "cached":
        asked = drawn[: scale.steps * scale.batch_size]
        cache_seconds, cached = answered(setting, asked, folder / "answers" / str(seed))
        algorithm = distilled_by(cached)
    points = train(
        student,
        drawn[: setting.steps * scale.batch_size],
        Curve(text, first, [setting.steps] if setting.tuning else scale.points),
        batch_size=scale.batch_size,
        learning_rate=setting.learning_rate,
        seed=seed,
        algorithm=algorithm,
    )
    last = next(p for p in points if setting.tuning or p.step == scale.steps)
    return {
        "date": today(),
        **plain(last),
        "cache_seconds": round(cache_seconds, 1),
        "points": [plain(point) for point in points],
    }


def answered(setting: Setting, windows: torch.Tensor, folder: Path) -> tuple[float, Any]:
    """Return the CPU seconds that the teacher took to answer, once for each seed; and its cache."""
    record = folder.with_suffix(".json")
    began = time.process_time()
    teacher = material(setting.scale.model, setting.scale.length).teacher
    cached = answers_to(teacher, windows, folder, setting.scale.samples)
    if not record.exists():
        record.write_text(json.dumps(time.process_time() - began))
    return json.loads(record.read_text()), cached


def tell(setting: Setting, student: Any, folder: Path) -> None:
    """Write what is known of the teacher, and how large the student is."""
    scale = setting.scale
    record = folder / "teachers" / f"{scale.model}.json"
    if not record.exists():
        scores, _ = teachers_answers(scale, False)
        sizes = {
            "parameters": count_parameters(material(scale.model, scale.length).teacher),
            "student_parameters": count_parameters(student),
        }
        record.parent.mkdir(parents=True, exist_ok=True)
        numbers = {name: round(value, DIGITS) for name, value in asdict(scores).items()}
        record.write_text(json.dumps(numbers | sizes))


def plain(point: Point) -> dict[str, Any]:
    """Return a point as JSON holds it."""
    scores = {name: round(value, DIGITS) for name, value in asdict(point.scores).items()}
    return {"step": point.step, "cpu_seconds": round(point.cpu_seconds, 2), **scores}
