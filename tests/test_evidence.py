"""The evidence's pages show their committed JSON, and every experiment runs end to end."""

import json
import re
import sys
from dataclasses import replace
from pathlib import Path
from statistics import mean

import pytest
import torch

from composer_distill import copy_matching

ROOT = Path(__file__).parent.parent
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))  # as `python -m tests.benchmarks.evidence.…` has it

from tests.benchmarks.evidence import (  # noqa: E402
    classes,
    copied_blocks,
    dark_knowledge,
    expect,
    fashion,
    other_task,
    prune_recover,
    recovery,
    teacher_windows,
    tuning,
)
from tests.benchmarks.evidence import runs as settings  # noqa: E402
from tests.benchmarks.evidence.experiment import collect, load, main  # noqa: E402
from tests.benchmarks.evidence.pages import DOCS, EXPERIMENTS, render, shown  # noqa: E402
from tests.benchmarks.evidence.runs import FAST  # noqa: E402
from tests.benchmarks.evidence.tables import difference, rows_of, runs_of, values  # noqa: E402

PAGES = DOCS / "evidence"
each_experiment = pytest.mark.parametrize("experiment", EXPERIMENTS, ids=lambda e: e.name)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """One folder for all, so that equal runs and teachers are trained once."""
    return tmp_path_factory.mktemp("evidence")


@pytest.fixture
def threads():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@each_experiment
@pytest.mark.filterwarnings("ignore:Some targets have less than 1 total probability")
def test_an_experiment_runs_end_to_end(experiment, folder, threads, capsys):
    if lacking := experiment.missing(experiment.scales[True], folder):
        pytest.skip(lacking)
    main(experiment, ["--output", str(folder), "--fast", "--seeds", "1"])
    document = load(folder / f"{experiment.name}.json")
    assert rows_of(document) == list(experiment.rows(1, experiment.scales[True]))
    assert all(0 <= value <= 1 for run in document["runs"] for value in [run.get("accuracy", 0)])
    assert experiment.table(document) in (folder / f"{experiment.name}.md").read_text("utf-8")
    assert experiment.table(document) in capsys.readouterr().out
    assert (folder / f"evidence-{experiment.name}.png").stat().st_size > 10_000


@each_experiment
def test_a_page_shows_its_json(experiment):
    document = load(PAGES / f"{experiment.name}.json")
    page = (PAGES / f"{experiment.name}.md").read_text("utf-8")
    assert shown(page) == render(experiment, document)
    assert f"python -m tests.benchmarks.evidence.{experiment.name} --output" in page
    assert (DOCS / "images" / f"evidence-{experiment.name}.png").exists()
    assert f"(../images/evidence-{experiment.name}.png)" in page


def test_the_index_lists_what_was_measured():
    index = (PAGES / "index.md").read_text("utf-8")
    listed = index.partition("{toctree}")[2].partition("```")[0].split()[2:]
    assert sorted(listed) == sorted(experiment.name for experiment in EXPERIMENTS)
    assert sorted(path.stem for path in PAGES.glob("*.md") if path.stem != "index") == sorted(
        listed
    )


@each_experiment
def test_the_committed_runs_are_those_of_the_script(experiment):
    """Every row and seed of the script as it stands is there, with its settings."""
    document = load(PAGES / f"{experiment.name}.json")
    seeds = {run["seed"] for run in document["runs"]}
    assert seeds == set(range(1, experiment.seeds + 1))
    for seed in seeds:
        expected = {n: json.loads(json.dumps(s.plain())) for n, s in rows(experiment, seed).items()}
        found = {run["row"]: run["setting"] for run in document["runs"] if run["seed"] == seed}
        assert found == expected


def rows(experiment, seed):
    return experiment.rows(seed, experiment.scales[False])


@pytest.mark.parametrize(
    ("name", "row", "metric", "quoted"),
    [
        ("efficiency", "alone, 500 steps", "nll", "0.083 nats"),
        ("efficiency", "distilled, 2000 steps", "nll", "0.056 nats"),
        ("efficiency", "alone, 2000 steps", "nll", "against 0.078"),
        ("efficiency", "labels smoothed, 2000 steps", "accuracy", "(98.4 %)"),
        ("sampling", "sample 1 of 5", "accuracy", "97.7 % and"),
        ("sampling", "sample 1 of 5", "nll", "0.081 nats both"),
        ("sampling", "mean probabilities of 5", "accuracy", "97.7 % and"),
        ("sampling", "mean probabilities of 5", "nll", "0.081 nats both"),
        ("sampling", "sample 1 of 5", "step_cpu_ms", "for 10.9 instead"),
        ("sampling", "mean probabilities of 5", "step_cpu_ms", "of 24.2 ms"),
        ("scheduling", "end_dur=0.1", "nll", "(0.106"),
        ("scheduling", "end_dur=0.2", "nll", "0.101 nats"),
        ("scheduling", "start_dur=0.3", "nll", "best (0.077)"),
        ("dark_knowledge", dark_knowledge.HARD, "absent", "0.0 % of them"),
        ("dark_knowledge", "distilled at T=20, no 3", "absent", "51.7 % distilled"),
        ("dark_knowledge", "distilled at T=4, no 3", "absent", "29.9 % at T=4"),
        ("dark_knowledge", "distilled at T=20, no 3", "absent_matched", "without labels, 90.6 %"),
        ("few_labels", "no labels: distilled on 1000 unlabelled images", "accuracy", "97.6 %"),
        ("copied_layers", "copied, alone", "nll", "1.529 nats a character"),
        ("copied_layers", "random, alone", "nll", "and 2.375 from"),
        ("copied_layers", "random, distilled", "nll", "brings 2.349"),
        ("copied_layers", "copied, distilled", "nll", "and 1.594, a loss"),
        ("cut_students", "neurons, importance: untrained", "nll", "importance have 1.449 nats"),
        ("cut_students", "neurons, importance: alone", "nll", "and 1.227 after"),
        ("cut_students", "neurons, chance: untrained", "nll", "by chance 2.258"),
        ("cut_students", "neurons, chance: alone", "nll", "and 1.272, of"),
        ("cut_students", "neurons, random weights: alone", "nll", "random weights 2.683"),
        ("cut_students", "layers, importance: alone", "nll", "trained them, 1.393"),
        ("cut_students", "layers, chance: alone", "nll", "has 1.564."),
        ("cut_students", "layers, even: alone", "nll", "and 1.393;"),
        ("cut_encoder_decoder", "half the decoder: alone", "nll", "has 0.934 nats"),
        (
            "cut_encoder_decoder",
            "half the decoder, random weights: alone",
            "nll",
            "random weights 2.506",
        ),
        ("cut_encoder_decoder", "half the decoder: distilled", "nll", "loses: 1.092"),
        ("prune_recover", "cut, text alone", "nll", "5.751 on text alone"),
        ("prune_recover", "cut, cached", "nll", "5.560 nats cached"),
        ("prune_recover", "cut, live", "nll", "5.512 live (the"),
        ("other_teachers", "EMA of itself", "nll", "0.075 nats against"),
        ("other_teachers", "alone", "nll", "against 0.082 alone"),
        ("other_teachers", "a teacher for each half: routed", "accuracy", "96.5 % routed"),
        ("other_teachers", "a teacher for each half: averaged", "accuracy", "87.9 % averaged"),
        ("other_teachers", "poor teacher: where above 0.5", "nll", "alone 0.096"),
        ("other_teachers", "poor teacher: all answers", "nll", "all of them 1.407"),
        ("teacher_windows", "assistant, then large", "accuracy", "(97.62 % and"),
        ("teacher_windows", "large", "accuracy", "and 97.49 %)"),
        ("teacher_windows", "large, then assistant", "accuracy", "worse (96.81 %)"),
        ("teacher_windows", "assistant", "accuracy", "worst (96.61 %)"),
        ("teacher_windows", "assistant, then large", "step_cpu_ms", "take 6.0 ms"),
        ("teacher_windows", "mean of both", "step_cpu_ms", "throughout 7.6."),
        ("copied_blocks", "copied, untrained", "accuracy", "(13.0 %)"),
        ("copied_blocks", "short: copied, alone", "accuracy", "batches 74.0 %"),
        ("copied_blocks", "short: random, alone", "accuracy", "against 62.0 %"),
        ("copied_blocks", "long: copied, alone", "accuracy", "150 77.5 %"),
        ("copied_blocks", "long: random, alone", "accuracy", "against 73.6 %"),
        ("fashion", "medium: mean of 3", "accuracy", "bring 88.6 %"),
        ("fashion", "medium: alone", "accuracy", "against 88.0 % alone"),
        ("fashion", "medium: twice as long", "accuracy", "as long 89.3 %"),
        ("fashion", "medium: mean of 3, twice as long", "accuracy", "or 89.8 % with"),
        ("fashion", fashion.FEW + "alone", "accuracy", "against 76.3 %, or"),
        (
            "fashion",
            fashion.FEW + "all images unlabelled, teacher of these labels",
            "accuracy",
            "any 81.2 %",
        ),
        (
            "fashion",
            fashion.FEW + "all images unlabelled, teacher of all labels",
            "accuracy",
            "or 88.5 %",
        ),
        ("other_task", "250 labels: hint", "accuracy", "(72.8 % against"),
        ("other_task", "250 labels: alone", "accuracy", "against 73.5 % alone"),
        ("other_task", "5000 labels: hint", "accuracy", "(85.2 % against"),
        ("other_task", "5000 labels: alone", "accuracy", "against 84.9 %)"),
        ("other_task", "250 labels: twice as long", "accuracy", "labels give 73.5 %"),
        (
            "other_task",
            "250 labels: hint first, on all images",
            "accuracy",
            "250 labels to 76.0 %",
        ),
        ("feature_images", "alone", "accuracy", "(81.2 %)"),
        ("feature_images", "AT", "accuracy", "73.8 %"),
        ("feature_images", "logits, SP", "nll", "0.511 nats"),
        ("feature_images", "logits", "nll", "for 0.524"),
        ("feature_text", "narrow: alone", "nll", "2.864 nats"),
        ("feature_text", "narrow: logits", "nll", "2.625 from"),
        ("feature_text", "narrow: logits, MiniLMv2", "nll", "2.507 with"),
        ("feature_text", "narrow: logits, TinyBERT", "nll", "2.376 with"),
        ("classes", "movies, 3 layers: logits", "accuracy", "bring 77.3 %"),
        ("classes", "movies, 3 layers: alone", "accuracy", "against 76.6 % alone"),
        ("classes", "movies, 3 layers: twice as long", "accuracy", "alone 78.8 %"),
        ("classes", "movies, 3 layers: relations", "accuracy", "relations 76.6 %"),
        ("classes", "movies, 3 layers: hidden", "accuracy", "states 76.7 %"),
        ("classes", expect.NEWS.format(60) + "alone", "accuracy", "from 86.6 %"),
        ("classes", expect.NEWS.format(60) + expect.ALL_TEXTS, "accuracy", "to 76.2 %"),
        ("classes", expect.NEWS.format(240) + "alone", "accuracy", "from 88.7 %"),
        ("classes", expect.NEWS.format(240) + expect.ALL_TEXTS, "accuracy", "to 91.8 %"),
        ("few_labels", "50 labels: alone", "accuracy", "82.6 %"),
        ("few_labels", "100 labels: alone", "accuracy", "88.0 %"),
        (
            "few_labels",
            "100 labels: distilled on 1000 unlabelled images, teacher of the same labels",
            "accuracy",
            "91.3 %",
        ),
    ],
)
def test_the_index_quotes_the_json(name, row, metric, quoted):
    index = " ".join((PAGES / "index.md").read_text("utf-8").split())
    assert quoted in index
    number = re.search(r"\d+\.\d+", quoted)[0]
    places = len(number.partition(".")[2])
    assert f"{mean(values(load(PAGES / f'{name}.json'), row, metric)):.{places}f}" == number


def test_both_sides_use_what_the_tuning_preferred():
    document = load(PAGES / "tuning.json")

    def chosen(group):
        row = tuning.best(document, group)
        return next(run["setting"] for run in document["runs"] if run["row"] == row)

    for group, rates in (
        ("alone", settings.ALONE_RATES),
        ("distilled", settings.DISTILLED_RATES),
        (tuning.FEW_ALONE, settings.FEW_RATES),
    ):
        assert chosen(group)["rates"] == {
            "learning_rate": rates.learning_rate,
            "weight_decay": rates.weight_decay,
        }
    assert chosen("distilled")["temperature"] == settings.TEMPERATURE
    assert chosen("smoothed")["smoothing"] == settings.SMOOTHING


@pytest.mark.parametrize(
    "module",
    [fashion, other_task, classes, copied_blocks],
    ids=["fashion", "other_task", "classes", "copied_blocks"],
)
def test_students_of_real_data_use_what_the_tuning_preferred(module):
    document = load(PAGES / f"{module.EXPERIMENT.name}.json")
    for kind, rate in module.RATES.items():
        grid = [row for row in rows_of(document) if row.startswith(f"{module.TUNING}{kind}:")]
        assert len(grid) == len(module.GRID)
        found = min(grid, key=lambda row: mean(values(document, row, "nll")))
        assert found == f"{module.TUNING}{kind}: {rate:g}"


def test_what_is_missing_ends_the_command(tmp_path, threads):
    experiment = replace(EXPERIMENTS[0], missing=lambda scale, folder: "install it")
    with pytest.raises(SystemExit, match="install it"):
        main(experiment, ["--output", str(tmp_path), "--fast"])


def test_a_run_that_is_there_is_not_repeated(folder, threads, capsys):
    experiment = next(e for e in EXPERIMENTS if e.name == "scheduling")
    before = collect(experiment, 1, FAST, folder)

    def refuse(*arguments):
        raise AssertionError("trained again")

    again = replace(experiment, run=refuse)
    assert collect(again, 1, FAST, folder) == before
    with pytest.raises(AssertionError, match="trained again"):
        collect(again, 2, FAST, folder)
    assert load(folder / "scheduling.json") == before  # an interrupted experiment loses nothing


def test_runs_of_another_machine_are_refused(folder, tmp_path):
    experiment = next(e for e in EXPERIMENTS if e.name == "scheduling")
    collect(experiment, 1, FAST, folder)
    document = load(folder / "scheduling.json") | {"machine": "another"}
    (tmp_path / "scheduling.json").write_text(json.dumps(document))
    with pytest.raises(SystemExit, match="another machine"):
        collect(experiment, 1, FAST, tmp_path)


def test_differences_are_paired_by_seed():
    runs = [("a", 1, 0.5), ("a", 2, 0.7), ("b", 2, 0.8), ("b", 1, 0.7)]
    document = {"runs": [{"row": r, "seed": s, "accuracy": v, "nll": v} for r, s, v in runs]}
    assert difference(document, "a", "b", "accuracy") == "+15.00 ± 7.07, 2 of 2"
    assert difference(document, "a", "b", "nll") == "+0.150 ± 0.071, 0 of 2"
    assert difference(document, "b", "a", "nll") == "-0.150 ± 0.071, 2 of 2"


def test_the_shift_by_frequency_answers_a_tenth():
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(1000, 10, generator=generator)
    logits[:, dark_knowledge.ABSENT] -= 5.0
    shift = dark_knowledge.matching_shift(logits)
    answers = dark_knowledge.shifted(logits, shift).argmax(-1)
    assert (answers == dark_knowledge.ABSENT).sum() == 100


def test_the_best_shift_is_the_smallest_of_the_best():
    logits = torch.zeros(2, 10)
    logits[0, 1], logits[1, 4] = 2.05, 7.05
    labels = torch.tensor([dark_knowledge.ABSENT, 4])
    assert dark_knowledge.best_shift(logits, labels) == pytest.approx(2.1)


def test_what_to_expect_shows_the_json_of_every_experiment():
    page = expect.PAGE.read_text("utf-8")
    assert expect.shown(page) == expect.render()
    asked = {question.experiment for question in expect.QUESTIONS}
    assert asked == {experiment.name for experiment in EXPERIMENTS}


def test_what_to_expect_compares_the_best_of_the_tuning():
    (question,) = (q for q in expect.QUESTIONS if q.experiment == "tuning")
    document = load(PAGES / "tuning.json")
    assert question.base == tuning.best(document, "alone")
    assert question.row == tuning.best(document, "distilled")


def test_an_interval_is_students():
    runs = [("a", seed, 0.0) for seed in (1, 2, 3)] + [("b", 1, 0.1), ("b", 2, 0.2), ("b", 3, 0.3)]
    document = {"runs": [{"row": r, "seed": s, "nll": v} for r, s, v in runs]}
    difference, half = expect.interval(document, expect.Question("", "", "a", "b"))
    assert difference == pytest.approx(0.2)
    assert half == pytest.approx(4.302653 * 0.1 / 3**0.5)  # two degrees of freedom
    alone = {"runs": [run for run in document["runs"] if run["seed"] == 1]}
    assert expect.interval(alone, expect.Question("", "", "a", "b"))[1] == float("inf")


@pytest.mark.parametrize(
    ("difference", "metric", "said"),
    [
        (-0.2, "nll", expect.GAIN),
        (0.2, "nll", expect.LOSS),
        (0.2, "accuracy", expect.GAIN),
        (-0.2, "accuracy", expect.LOSS),
        (0.1, "accuracy", expect.UNCLEAR),
    ],
)
def test_a_verdict_needs_an_interval_without_0(difference, metric, said):
    assert expect.verdict(difference, 0.1, metric) == said


def test_the_cut_students_use_what_their_tuning_preferred():
    document = load(PAGES / "prune_recover.json")
    assert prune_recover.best(document, "text") == recovery.TEXT_RATE
    assert prune_recover.best(document, "cached") == recovery.TEACHER_RATE


def test_a_curve_is_read_between_its_points():
    points = [(10, 20.0, 8.0), (20, 40.0, 6.0), (30, 60.0, 5.0)]
    run = {"points": [{"step": s, "cpu_seconds": c, "nll": n} for s, c, n in points]}
    assert prune_recover.nats_at(run, 30.0) == pytest.approx(7.0)
    assert prune_recover.nats_at(run, 60.0) == pytest.approx(5.0)
    assert prune_recover.nats_at(run, 19.0) is None
    assert prune_recover.nats_at(run, 61.0) is None
    assert prune_recover.reached(run, 5.5) == pytest.approx((25, 50.0))
    assert prune_recover.reached(run, 9.0) == (10, 20.0)
    assert prune_recover.reached(run, 4.9) is None


@pytest.mark.parametrize("page", ["README.md", "docs/index.md"])
@pytest.mark.parametrize(
    ("row", "number"),
    [("cut, text alone", "5.751"), ("cut, cached", "5.560"), ("cut, live", "5.512")],
)
def test_the_start_quotes_the_language_model_s_rows(page, row, number):
    assert number in (DOCS.parent / page).read_text("utf-8")
    assert f"{mean(values(load(PAGES / 'prune_recover.json'), row, 'nll')):.3f}" == number


@pytest.mark.parametrize("page", ["README.md", "docs/index.md"])
def test_the_start_quotes_what_longer_training_and_the_teacher_come_to(page):
    text, document = (DOCS.parent / page).read_text("utf-8"), load(PAGES / "prune_recover.json")
    longest = [run["points"][-1] for run in runs_of(document, "cut, text alone")]
    assert {point["step"] for point in longest} == {450}
    assert f"{mean(point['nll'] for point in longest):.3f}" in text
    (teacher,) = document["teachers"].values()
    assert f"{teacher['nll']:.3f}" in text


@pytest.mark.parametrize(
    ("page", "name", "row", "metric", "number"),
    [
        ("several-teachers", "teacher_windows", "assistant, then large", "accuracy", "97.62"),
        ("several-teachers", "teacher_windows", "assistant, then large", "nll", "0.089"),
        ("several-teachers", "teacher_windows", "large", "accuracy", "97.49"),
        ("several-teachers", "teacher_windows", "large", "nll", "0.088"),
        ("several-teachers", "teacher_windows", "large, then assistant", "accuracy", "96.81"),
        ("several-teachers", "teacher_windows", "large, then assistant", "nll", "0.103"),
        ("several-teachers", "teacher_windows", "assistant", "accuracy", "96.61"),
        ("several-teachers", "teacher_windows", "assistant", "nll", "0.111"),
        ("several-teachers", "teacher_windows", "alone", "accuracy", "97.42"),
        ("several-teachers", "teacher_windows", "alone", "nll", "0.082"),
        ("several-teachers", "teacher_windows", "assistant, then large", "step_cpu_ms", "6.0"),
        ("several-teachers", "teacher_windows", "mean of both", "step_cpu_ms", "7.6"),
        ("student", "copied_blocks", "copied, untrained", "accuracy", "13.05"),
        ("student", "copied_blocks", "short: copied, alone", "accuracy", "74.00"),
        ("student", "copied_blocks", "short: random, alone", "accuracy", "62.02"),
        ("student", "copied_blocks", "short: copied, distilled", "accuracy", "70.87"),
        ("student", "copied_blocks", "long: copied, alone", "accuracy", "77.54"),
        ("student", "copied_blocks", "long: random, alone", "accuracy", "73.64"),
        ("student", "copied_blocks", "long: copied, distilled", "accuracy", "76.67"),
    ],
)
def test_a_how_to_quotes_the_json(page, name, row, metric, number):
    text = (DOCS / f"how-to-{page}.md").read_text("utf-8")
    (told,) = (part for part in text.split("\n\n") if f"evidence/{name}.md" in part)
    assert re.search(rf"(?<![\d.]){re.escape(number)}(?!\d)", told)
    places = len(number.partition(".")[2])
    assert f"{mean(values(load(PAGES / f'{name}.json'), row, metric)):.{places}f}" == number


def test_a_shallow_student_finds_all_of_itself_in_the_deep_teacher():
    teacher = copied_blocks.make_model(copied_blocks.WIDTH, copied_blocks.TEACHER_BLOCKS, 0)
    report = copy_matching(copied_blocks.make_model(copied_blocks.WIDTH, 1, 1), teacher)
    assert report.missing == report.unlike == ()
    assert {".".join(name.split(".")[1:4]) for name in report.unused} == {
        f"stages.{stage}.{block}" for stage in (0, 1, 2) for block in (1, 2)
    }


def test_the_time_of_a_step_is_told_for_each_half():
    clock = [0.0, 1.0, 2.0, 3.0, 5.0, 7.0, 9.0, 11.0]
    found = teacher_windows.step_means(clock)
    assert found == pytest.approx(
        {
            "step_cpu_ms": 11000 / 7,
            "first_half_step_cpu_ms": 1000,
            "second_half_step_cpu_ms": 2000,
        }
    )
