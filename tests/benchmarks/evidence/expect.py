"""The page "What to expect": one comparison a line, over all experiments, from their JSON.

``python -m tests.benchmarks.evidence.expect`` rewrites its table.
"""

from dataclasses import dataclass
from math import sqrt
from pathlib import Path

from scipy.stats import t

from composer_distill.demo.summary import spread
from tests.benchmarks.evidence.experiment import Document, load
from tests.benchmarks.evidence.tables import LOWER_IS_BETTER, changes, level, table

DOCS = Path(__file__).parents[3] / "docs"
PAGE = DOCS / "what-to-expect.md"
BEGIN, END = "<!-- from the JSON: begin -->", "<!-- from the JSON: end -->"
UNITS = {"nll": "nats"}
GAIN, LOSS, UNCLEAR = "gain", "**loss**", "unclear"
_LEVEL = 0.95


@dataclass(frozen=True)
class Question:
    """Two rows of an experiment that a reader may want to know apart.

    Args:
        asked: What a reader would call it.
        experiment: Whose rows they are.
        base: Without.
        row: With.
        metric: What is compared.
    """

    asked: str
    experiment: str
    base: str
    row: str
    metric: str = "nll"


UNLABELLED = "no labels: distilled on 1000 unlabelled images"
ONE_PERCENT = "1 % of labels: "
MOVIES = "movies, 3 layers (5 % of labels, teacher of 60 batches): "
NEWS = "news, 2 layers (5 % of labels, teacher of {} batches): "
ALL_TEXTS = "logits, all texts unlabelled"
OF_THE_SAME = "distilled on 1000 unlabelled images, teacher of the same labels"
QUESTIONS = (
    Question(
        "no label of its own, 1000 inputs that a teacher answers; against 50 labels",
        "few_labels",
        "50 labels: alone",
        UNLABELLED,
        "accuracy",
    ),
    Question(
        "50 labels: distilled on these inputs alone, good teacher",
        "few_labels",
        "50 labels: alone",
        "50 labels: distilled on the labelled images",
        "accuracy",
    ),
    Question(
        "100 labels, 1000 inputs; the teacher saw the same 100 labels",
        "few_labels",
        "100 labels: alone",
        f"100 labels: {OF_THE_SAME}",
        "accuracy",
    ),
    Question(
        "a class of which the student sees no example: how much of it is found, T=20",
        "dark_knowledge",
        "hard labels, no 3",
        "distilled at T=20, no 3",
        "absent",
    ),
    Question(
        "all 1000 labels, 500 steps", "efficiency", "alone, 500 steps", "distilled, 500 steps"
    ),
    Question(
        "all 1000 labels, 2000 steps", "efficiency", "alone, 2000 steps", "distilled, 2000 steps"
    ),
    Question(
        "the same, accuracy",
        "efficiency",
        "alone, 2000 steps",
        "distilled, 2000 steps",
        "accuracy",
    ),
    Question(
        "the same, against smoothed labels",
        "efficiency",
        "labels smoothed, 2000 steps",
        "distilled, 2000 steps",
        "accuracy",
    ),
    Question(
        "about equal CPU time: 500 steps distilled against 2000 alone",
        "efficiency",
        "alone, 2000 steps",
        "distilled, 500 steps",
    ),
    Question("a poor teacher (84 %)", "poor_teacher", "alone", "teacher of 60 steps", "accuracy"),
    Question(
        "a teacher of 200 labels", "poor_teacher", "alone", "teacher of 200 labels", "accuracy"
    ),
    Question(
        "a poor teacher heard only where it is right; against all its answers",
        "other_teachers",
        "poor teacher: all answers",
        "poor teacher: where right",
    ),
    Question("five teachers instead of one", "sampling", "1 teacher", "mean probabilities of 5"),
    Question(
        "one of five drawn for each batch; against all five",
        "sampling",
        "mean probabilities of 5",
        "sample 1 of 5",
    ),
    Question("teacher in the first 20 % alone", "scheduling", "alone", "end_dur=0.2"),
    Question("teacher from 30 % on", "scheduling", "alone", "start_dur=0.3"),
    Question("T=4 instead of T=1", "temperature", "T=1, weight 0.9", "T=4, weight 0.9"),
    Question(
        "the student's own moving average as teacher", "other_teachers", "alone", "EMA of itself"
    ),
    Question("born again: a teacher like the student", "other_teachers", "alone", "born again"),
    Question(
        "two teachers of half the classes each: routed; against averaged",
        "other_teachers",
        "a teacher for each half: averaged",
        "a teacher for each half: routed",
        "accuracy",
    ),
    Question(
        "an assistant as the teacher; against the large one it learned from",
        "teacher_windows",
        "large",
        "assistant",
    ),
    Question(
        "the assistant first, the large one from half on; against the large one throughout",
        "teacher_windows",
        "large",
        "assistant, then large",
    ),
    Question(
        "characters: the teacher's layers copied, no distillation",
        "copied_layers",
        "random, alone",
        "copied, alone",
    ),
    Question("characters: random weights", "copied_layers", "random, alone", "random, distilled"),
    Question("characters: copied layers", "copied_layers", "copied, alone", "copied, distilled"),
    Question(
        "clothes: the teacher's blocks by name, no distillation, 50 batches",
        "copied_blocks",
        "short: random, alone",
        "short: copied, alone",
        "accuracy",
    ),
    Question(
        "the same, 150 batches",
        "copied_blocks",
        "long: random, alone",
        "long: copied, alone",
        "accuracy",
    ),
    Question(
        "the same, 150 batches: copied blocks, distilled; against copied alone",
        "copied_blocks",
        "long: copied, alone",
        "long: copied, distilled",
        "accuracy",
    ),
    Question(
        "a Llama's neurons halved, untrained: by importance; against by chance",
        "cut_students",
        "neurons, chance: untrained",
        "neurons, importance: untrained",
    ),
    Question(
        "the same, after 100 batches of text",
        "cut_students",
        "neurons, chance: alone",
        "neurons, importance: alone",
    ),
    Question(
        "a Llama's layers halved, 100 batches: by importance; against even distances",
        "cut_students",
        "layers, even: alone",
        "layers, importance: alone",
    ),
    Question(
        "the same at even distances: logits; against text",
        "cut_students",
        "layers, even: alone",
        "layers, even: distilled",
    ),
    Question(
        "a T5's decoder halved, 100 batches: the teacher's weights; against random ones",
        "cut_encoder_decoder",
        "half the decoder, random weights: alone",
        "half the decoder: alone",
    ),
    Question(
        "the same, the teacher's weights: logits; against text",
        "cut_encoder_decoder",
        "half the decoder: alone",
        "half the decoder: distilled",
    ),
    Question(
        "Fashion-MNIST, 550 labels and unlabelled images; the teacher saw the same labels",
        "fashion",
        f"{ONE_PERCENT}alone",
        f"{ONE_PERCENT}all images unlabelled, teacher of these labels",
        "accuracy",
    ),
    Question(
        "Fashion-MNIST, no label, a teacher of all labels; against 550 labels",
        "fashion",
        f"{ONE_PERCENT}alone",
        f"{ONE_PERCENT}all images unlabelled, teacher of all labels",
        "accuracy",
    ),
    Question(
        "Fashion-MNIST, all labels, three teachers",
        "fashion",
        "medium: alone",
        "medium: mean of 3",
        "accuracy",
    ),
    Question(
        "the same; against twice the steps alone",
        "fashion",
        "medium: twice as long",
        "medium: mean of 3",
        "accuracy",
    ),
    Question(
        "the same, both twice as long",
        "fashion",
        "medium: twice as long",
        "medium: mean of 3, twice as long",
        "accuracy",
    ),
    Question(
        "a language model cut to a third of its layers, 300 batches: cached teacher; against text",
        "prune_recover",
        "cut, text alone",
        "cut, cached",
    ),
    Question(
        "the same, live teacher; against text",
        "prune_recover",
        "cut, text alone",
        "cut, live",
    ),
    Question(
        "the same, text alone: layers of the teacher; against random weights",
        "prune_recover",
        "random, text alone",
        "cut, text alone",
    ),
    Question(
        "Fashion-MNIST, 250 labels: a hint of ImageNet features beside them",
        "other_task",
        "250 labels: alone",
        "250 labels: hint",
        "accuracy",
    ),
    Question(
        "Fashion-MNIST, 250 labels: the hint first, unlabelled; against twice the steps",
        "other_task",
        "250 labels: twice as long",
        "250 labels: hint first, on all images",
        "accuracy",
    ),
    Question(
        "masked characters, half the width: logits and TinyBERT's terms",
        "feature_text",
        "narrow: alone",
        "narrow: logits, TinyBERT",
    ),
    Question(
        "the same, against logits alone",
        "feature_text",
        "narrow: logits",
        "narrow: logits, TinyBERT",
    ),
    Question(
        "the same with MiniLMv2's relations, against logits alone",
        "feature_text",
        "narrow: logits",
        "narrow: logits, MiniLMv2",
    ),
    Question(
        "masked characters, copied layers: DistilBERT's recipe",
        "feature_text",
        "copied: alone",
        "copied: logits, cosine (DistilBERT)",
    ),
    Question(
        "clothes: attention transfer, its usual weight",
        "feature_images",
        "alone",
        "AT",
        "accuracy",
    ),
    Question(
        "clothes: similarities beside logits; against logits",
        "feature_images",
        "logits",
        "logits, SP",
    ),
    Question(
        "film reviews, half of MiniLM-L6's layers, copied: logits",
        "classes",
        "movies, 3 layers: alone",
        "movies, 3 layers: logits",
        "accuracy",
    ),
    Question(
        "the same, against twice the steps alone",
        "classes",
        "movies, 3 layers: twice as long",
        "movies, 3 layers: logits",
        "accuracy",
    ),
    Question(
        "the same, 200 labels, 4000 texts; the teacher saw the same labels",
        "classes",
        f"{MOVIES}alone",
        f"{MOVIES}{ALL_TEXTS}",
        "accuracy",
    ),
    Question(
        "BBC topics, a third of MiniLM-L6's layers, all labels: logits",
        "classes",
        "news, 2 layers: alone",
        "news, 2 layers: logits",
        "accuracy",
    ),
    Question(
        "BBC topics, 77 labels, 1559 texts, two layers; a teacher of these labels, 60 batches",
        "classes",
        f"{NEWS.format(60)}alone",
        f"{NEWS.format(60)}{ALL_TEXTS}",
        "accuracy",
    ),
    Question(
        "the same, a teacher of 240 batches",
        "classes",
        f"{NEWS.format(240)}alone",
        f"{NEWS.format(240)}{ALL_TEXTS}",
        "accuracy",
    ),
    Question(
        "all labels, each side's best settings, two seeds",
        "tuning",
        "alone: lr 0.03, wd 0.1",
        "distilled: lr 0.01, T 2",
    ),
)


def interval(document: Document, question: Question) -> tuple[float, float]:
    """Return the mean paired difference and half the width of its 95 % t-interval."""
    moved = changes(document, question.base, question.row, question.metric)
    value = spread(moved)
    if len(moved) < 2:
        return value.mean, float("inf")
    quantile = float(t.ppf((1 + _LEVEL) / 2, len(moved) - 1))
    return value.mean, quantile * value.sd / sqrt(len(moved))


def verdict(difference: float, half: float, metric: str) -> str:
    """Return what the interval allows to say."""
    if abs(difference) <= half:
        return UNCLEAR
    return GAIN if (difference < 0) == (metric in LOWER_IS_BETTER) else LOSS


def line(question: Question) -> list[str]:
    """Return a line of the table."""
    document = load(DOCS / "evidence" / f"{question.experiment}.json")
    difference, half = interval(document, question)
    places = 3 if question.metric in LOWER_IS_BETTER else 1
    unit = UNITS.get(question.metric, "%" if question.metric != "agreement" else "% agreement")
    pairs = len(changes(document, question.base, question.row, question.metric))
    levels = [
        level(document, row, question.metric, places).partition(" ±")[0]
        for row in (question.base, question.row)
    ]
    return [
        f"[{question.asked}](evidence/{question.experiment}.md)",
        *levels,
        f"{difference:+.{places}f} {_width(half, places)}{unit}",
        str(pairs),
        verdict(difference, half, question.metric),
    ]


def _width(half: float, places: int) -> str:
    return "" if half == float("inf") else f"± {half:.{places}f} "


def render() -> str:
    """Return what stands between the markers."""
    headers = ["what is compared", "without", "with", "difference, 95 %", "seeds", ""]
    return f"{BEGIN}\n\n{table(headers, [line(question) for question in QUESTIONS])}\n\n{END}"


def shown(page: str) -> str:
    """Return what stands between the markers of ``page``, with them."""
    return page[page.index(BEGIN) : page.index(END) + len(END)]


def write() -> None:
    """Rewrite the table of the page."""
    text = PAGE.read_text(encoding="utf-8")
    PAGE.write_text(text.replace(shown(text), render()), encoding="utf-8")


if __name__ == "__main__":
    write()
