"""What the evidence on students made from their teachers is measured with."""

import re
import sys
from pathlib import Path
from statistics import mean

import pytest
import torch
from torch.nn import functional as F

ROOT = Path(__file__).parent.parent
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))  # as `python -m tests.benchmarks.evidence.…` has it

from composer_distill import student_from_teacher  # noqa: E402
from tests.benchmarks.evidence import cut_encoder_decoder as seq2seq  # noqa: E402
from tests.benchmarks.evidence import cut_students as llama  # noqa: E402
from tests.benchmarks.evidence import expect  # noqa: E402
from tests.benchmarks.evidence.experiment import load  # noqa: E402
from tests.benchmarks.evidence.pages import DOCS  # noqa: E402
from tests.benchmarks.evidence.students import corpus, scored_by_chance  # noqa: E402
from tests.benchmarks.evidence.tables import changes, runs_of, values  # noqa: E402


@pytest.fixture(scope="module")
def teacher():
    return llama.make_model(corpus()[2], 32)


def neurons(student):
    return student.model.layers[0].mlp.up_proj.weight


def test_chance_takes_the_place_of_activations_and_goes_again(teacher):
    batches = llama.asked(corpus()[0], 1, seed=1)

    def of(chance=None):
        if chance is None:
            return neurons(student_from_teacher(teacher, intermediate=32, batches=batches))
        with scored_by_chance(chance):
            return neurons(student_from_teacher(teacher, intermediate=32, batches=[]))

    before, first, again, other = of(), of(1), of(1), of(2)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert not torch.equal(first, before)
    assert torch.equal(of(), before)
    theirs = {tuple(row.tolist()) for row in teacher.model.model.layers[0].mlp.up_proj.weight}
    assert {tuple(row.tolist()) for row in first} < theirs


@pytest.mark.parametrize(
    ("cut", "shape"),
    [("neurons", (6, 64, 64)), ("heads", (6, 128, 64)), ("channels", (6, 128, 48))],
)
def test_a_cut_is_what_it_is_called(cut, shape):
    setting = llama.Setting(llama.Scale(), cut, llama.CHANCE, llama.UNTRAINED)
    student = llama.made(llama.make_model(corpus()[2], 64), setting, 1, [])
    assert (len(student.model.model.layers), *neurons(student.model).shape) == shape
    heads = student.model.model.layers[0].self_attn.q_proj.out_features // 16
    assert heads == (2 if cut == "heads" else 4)


def test_layers_are_told_by_their_weights(teacher):
    setting = llama.Setting(llama.Scale(width=32), "layers", llama.EVEN, llama.UNTRAINED)
    assert llama.origins(llama.made(teacher, setting, 1, []), teacher) == [0, 3, 5]


def test_the_encoder_reads_a_line_without_its_vowels():
    characters = sorted(set("".join(seq2seq.pydoc_data.topics.topics.values())))
    line = "The encoder reads every line AEI"
    assert len(line) == seq2seq.LENGTH
    ids = torch.tensor([characters.index(c) for c in line])
    sample = seq2seq.Lines(ids, torch.tensor([0]))[0]
    read = sample["input_ids"][sample["attention_mask"].bool()]
    assert "".join(characters[i - 1] for i in read) == re.sub("[aeiouAEIOU]", "", line)
    assert "".join(characters[i - 1] for i in sample["labels"]) == line
    assert (sample["input_ids"] == seq2seq.PADDING).sum() == len(re.findall("[aeiouAEIOU]", line))


def test_nats_are_those_of_every_character():
    held_out = corpus()[1][:6500]
    model = seq2seq.make_model(corpus()[2], 32)
    total, count = 0.0, 0
    for line in seq2seq.Lines(held_out, torch.arange(0, len(held_out) - 32, 32)):
        with torch.no_grad():
            logits = model.model(**{name: x[None] for name, x in line.items()}).logits[0]
        total += F.cross_entropy(logits, line["labels"], reduction="sum").item()
        count += len(line["labels"])
    assert count > 128 * 32  # more than a batch, and a part of one
    assert seq2seq.nats(model, held_out) == pytest.approx(total / count, rel=1e-5)
    assert seq2seq.nats(model, held_out, another=True) != seq2seq.nats(model, held_out)


HOW_TO = " ".join((DOCS / "how-to-student.md").read_text("utf-8").partition("gained")[2].split())
LLAMA = load(DOCS / "evidence" / "cut_students.json")
SAID = (DOCS / "evidence" / "cut_students.md").read_text("utf-8").partition("## What it says")[2]
SAID = " ".join(SAID.split())
CHOSEN = [(cut, choice) for cut in llama.CUTS for choice in llama.choices(cut)]


def rows_of_both(cut, choice):
    return llama.row(cut, choice, llama.ALONE), llama.row(cut, choice, llama.DISTILLED)


@pytest.mark.parametrize(("cut", "choice"), CHOSEN)
def test_the_guide_quotes_the_cut_students(cut, choice):
    untrained, alone = (
        f"{mean(values(LLAMA, llama.row(cut, choice, how), 'nll')):.3f}"
        for how in (llama.UNTRAINED, llama.ALONE)
    )
    assert f"{untrained}, then {alone} |" in HOW_TO
    of_random = values(LLAMA, llama.row(cut, llama.RANDOM, llama.ALONE), "nll")
    assert f"| {mean(of_random):.3f} |" in HOW_TO


def test_the_guide_quotes_what_distillation_changed():
    found = {each: changes(LLAMA, *rows_of_both(*each), "nll") for each in CHOSEN}
    assert f"{max(abs(mean(each)) for each in found.values()):.3f} nats at most" in HOW_TO
    lost = found.pop(("neurons", llama.CHANCE))
    assert min(lost) > 0
    assert f"neurons by chance, which lost {mean(lost):.3f} on every seed" in HOW_TO
    assert all(mean(each) < 0 for each in found.values())


def test_the_page_says_which_rows_gain_by_distillation_and_which_lose():
    said = {}
    for each in CHOSEN:
        question = expect.Question("", "cut_students", *rows_of_both(*each))
        difference, half = expect.interval(LLAMA, question)
        said.setdefault(expect.verdict(difference, half, "nll"), {})[each] = f"{difference:+.3f}"
    assert said[expect.LOSS] == {("neurons", llama.CHANCE): "+0.003"}
    assert said[expect.GAIN] == {
        ("layers", llama.IMPORTANCE): "-0.012",
        ("layers", llama.CHANCE): "-0.022",
        ("neurons", llama.IMPORTANCE): "-0.005",
        ("channels", llama.IMPORTANCE): "-0.005",
        ("channels", llama.CHANCE): "-0.005",
    }
    assert list(said[expect.UNCLEAR]) == [
        ("layers", llama.EVEN),
        ("heads", llama.IMPORTANCE),
        ("heads", llama.CHANCE),
    ]
    assert min(said[expect.UNCLEAR].values(), key=float) == "-0.004"
    assert "five of nine rows gain: layers by chance 0.022," in SAID
    assert "layers by importance 0.012, though on one seed they lose 0.002;" in SAID
    assert "neurons by importance and both rows of channels 0.005." in SAID
    assert "layers at even distances and both rows of heads, 0.004 at most." in SAID
    assert "Neurons by chance lose 0.003, and on every seed." in SAID


@pytest.mark.parametrize(
    ("cut", "quoted"), [("neurons", 0.045), ("heads", 0.022), ("channels", 0.011)]
)
def test_importance_is_better_than_chance_on_every_seed(cut, quoted):
    for how in (llama.ALONE, llama.DISTILLED):
        rows = [llama.row(cut, choice, how) for choice in (llama.CHANCE, llama.IMPORTANCE)]
        moved = changes(LLAMA, *rows, "nll")
        assert len(moved) == 5
        assert max(moved) < 0
        if how == llama.ALONE:
            assert round(-mean(moved), 3) == quoted
            assert f"{quoted:.3f} " in SAID


@pytest.mark.parametrize(
    ("how", "quoted"), [(llama.UNTRAINED, "by 0.285"), (llama.DISTILLED, "by 0.010")]
)
def test_importance_is_better_than_even_distances_where_the_page_says_so(how, quoted):
    rows = [llama.row("layers", choice, how) for choice in (llama.EVEN, llama.IMPORTANCE)]
    moved = changes(LLAMA, *rows, "nll")
    assert max(moved) < 0
    assert f"by {-mean(moved):.3f}" == quoted
    assert quoted in SAID


def test_the_first_layer_has_to_stay():
    (teacher,) = LLAMA["teachers"].values()
    nats = teacher["by_chance"]["layers"]  # in the order of combinations
    assert len(nats) == 20
    assert (f"{min(nats[10:]):.3f}", f"{max(nats[:10]):.3f}") == ("3.862", "2.720")
    assert "have 3.862 and more, those with it at most 2.720." in SAID
    (lost, kept), (lost_distilled, kept_distilled) = (
        [
            [f"{run['nll']:.3f}" for run in by_chance if (run["kept"][0] == 0) == first]
            for first in (False, True)
        ]
        for by_chance in (runs_of(LLAMA, row) for row in rows_of_both("layers", llama.CHANCE))
    )
    without, has = " and ".join(lost), f"{min(kept)} to {max(kept)}"
    assert f"{without} on text alone, {' and '.join(lost_distilled)} distilled, with it" in SAID
    assert f"with it {has} and {min(kept_distilled)} to {max(kept_distilled)}." in SAID
    assert f"{without}, else to {has}:" in HOW_TO


@pytest.mark.parametrize("how", ["alone", "distilled"])
def test_the_guide_quotes_the_encoder_decoder(how):
    document = load(DOCS / "evidence" / "cut_encoder_decoder.json")
    rows = [seq2seq.row(choice, how) for choice in seq2seq.CHOICES]
    whole, both, of_random = (f"{mean(values(document, row, 'nll')):.3f}" for row in rows)
    (teacher,) = document["teachers"].values()
    assert {
        "alone": f"{whole} nats (the teacher: {teacher['nll']:.3f}), with half the encoder gone "
        f"too to {both}, and random weights of the first one's shape to {of_random}.",
        "distilled": f"they reach {whole}, {both} and {of_random}:",
    }[how] in HOW_TO
