"""A mapping of plain types says what Python says, and a wrong one is refused under its path."""

import inspect
import json
from typing import get_type_hints

import composer.optim
import pytest
import torch
import yaml
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
from transformers import GPT2Config, GPT2LMHeadModel

import composer_distill
import composer_distill.losses
from composer_distill import (
    CachedTeacher,
    Distillation,
    EMATeacher,
    FeatureTerm,
    Snapshot,
    Teacher,
    cache_teacher,
    distillation_from_config,
    loss_positions,
    losses,
)
from composer_distill.config import names
from composer_distill.config.distillation import READER
from composer_distill.config.foundry import FoundryDistillation

SNAPSHOT = {"snapshot": {"start_dur": 0.5}}
ROOT = "algorithms.distillation"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A Hugging Face folder."""
    path = tmp_path_factory.mktemp("teacher")
    config = GPT2Config(vocab_size=11, n_positions=8, n_embd=4, n_layer=1, n_head=1)
    GPT2LMHeadModel(config).save_pretrained(path)
    return str(path)


@pytest.fixture(scope="module")
def answers(tmp_path_factory):
    """A cache of two classes."""
    path = str(tmp_path_factory.mktemp("answers") / "cache")
    data = TensorDataset(torch.randn(4, 3), torch.tensor([0, 1, 0, 1]))
    cache_teacher(nn.Linear(3, 2), DataLoader(data, batch_size=2), path)
    return path


def plain(**changes):
    return {"teachers": SNAPSHOT, "kd_loss_fn": "kl_divergence", **changes}


def read(text):
    return distillation_from_config(yaml.safe_load(text))


# --- the table of names


def test_every_public_loss_has_the_name_of_its_function():
    public = {n: getattr(losses, n) for n in losses.__all__}
    bases = {losses.DistillationLoss, losses.FeatureLoss}
    classes = {v for v in public.values() if inspect.isclass(v)} - bases
    table = names.losses()
    assert set(table.values()) == classes
    functions = {n for n in public if n.islower()} - {"standardize"}
    assert functions == set(table) - {"weighted_sum", "standardized_logits"}
    for name in functions:  # the class computes what the function of its name does
        assert table[name].__module__ == public[name].__module__


REQUIRED = {
    "top_k_kl": {"k": 3},
    "standardized_logits": {"loss": {"name": "kl_divergence"}},
    "weighted_sum": {"terms": [[0.5, "kl_divergence"], [2, {"name": "logit_mse"}]]},
}


@pytest.mark.parametrize("name", sorted(names.losses()))
def test_every_loss_and_each_of_its_defaults_can_be_said(name):
    make = names.losses()[name]
    told = {
        key: each.default
        for key, each in inspect.signature(make).parameters.items()
        if each.default is not each.empty
    }
    given = json.loads(json.dumps({**told, **REQUIRED.get(name, {})}))
    loss = distillation_from_config(plain(kd_loss_fn={"name": name, **given})).kd_loss_fn
    assert type(loss) is make
    bare = distillation_from_config(plain(kd_loss_fn={"name": name, **REQUIRED.get(name, {})}))
    assert repr(bare.kd_loss_fn) == repr(loss)


def test_every_scheduler_of_composer_can_be_said():
    public = {n for n in composer.optim.__all__ if n.endswith("Scheduler")} - {"ComposerScheduler"}
    assert {v.__name__ for v in names.schedules().values()} == public


FUNCTIONS = {  # which no plain value can say
    "input_fn",
    "output_fn",
    "student_output_fn",
    "projector_optimizer",
    "model",
    "route",
}


@pytest.mark.parametrize("make", [Distillation, Teacher, CachedTeacher, FeatureTerm])
def test_every_argument_but_functions_takes_some_plain_value(make):
    hints = get_type_hints(make.__init__)
    for name in inspect.signature(make).parameters:
        told = READER._described(_options(hints[name]))
        assert (told in ("null", "left out")) == (name in FUNCTIONS), name


def _options(hint):
    from composer_distill.config.reading import _alternatives

    return _alternatives(hint)


# --- what is built


def test_all_arguments_arrive(folder, answers):
    algorithm = read(f"""
        teachers:
          - pretrained_model_name_or_path: {folder}
            name: first
            weight: {{schedule: cosine_annealing, alpha_f: 0.5}}
            start_dur: 2ba
            end_dur: 0.75
            dtype: bf16
            compile: {{dynamic: true}}
            offload: true
            microbatch_size: 2
            strict: true
          - cache: {answers}
            name: kept
            weight: 3
            unfinished: true
            tail: uniform
          - ema_teacher: {{decay: 0.9, update_every: 2ba, warmup: 3}}
          - snapshot:
        kd_loss_fn:
          name: kl_divergence
          temperature: {{schedule: linear, alpha_i: 4.0, alpha_f: 1.0}}
        kd_loss_weight: {{schedule: linear_decay_with_warmup, t_warmup: 2ba, alpha_f: 0.0}}
        org_loss_weight: 0
        start_dur: 1ba
        end_dur: 0.5
        n_teachers_to_sample: 1
        combine: probabilities
        seed: 7
        mask_fn: {{name: loss_positions, shift: false}}
        vocab_size: 10
        telemetry: false
        verify_teachers: false
        overlap: true
        teacher_sharding: replicated
        feature_terms:
          - student: transformer.h.0
            teacher: [transformer.h.*]
            loss: {{name: hidden_mse, normalize: true}}
            weight: {{schedule: constant, alpha: 2.0}}
            projector: mlp
            mask_fn: attended_positions
            start_dur: 0.25
            end_dur: 5ba
            of: input
            name: layer
    """)
    first, kept, ema, snapshot = algorithm.teachers
    assert (first.name, first.dtype, first.offload) == ("first", torch.bfloat16, True)
    assert (first.microbatch_size, first.compile) == (2, {"dynamic": True})
    assert isinstance(first.model, GPT2LMHeadModel)
    assert isinstance(first.weight, composer.optim.CosineAnnealingScheduler)
    assert first.window.start.to_timestring() == "2ba"
    assert isinstance(kept, CachedTeacher)
    assert (kept.name, kept.weight, kept.tail) == ("kept", 3, "uniform")
    assert isinstance(ema, EMATeacher)
    assert (ema.decay, ema.every, ema.warmup) == (0.9, 2, 3)
    assert isinstance(snapshot, Snapshot)
    temperature = algorithm.kd_loss_fn.temperature
    assert (temperature.alpha_i, temperature.alpha_f) == (4.0, 1.0)
    assert isinstance(algorithm.kd_loss_weight, composer.optim.LinearWithWarmupScheduler)
    assert (algorithm.org_loss_weight, algorithm.seed, algorithm.vocab_size) == (0, 7, 10)
    assert algorithm.window.start.to_timestring() == "1ba"
    assert (algorithm.combine, algorithm.n_teachers_to_sample) == ("probabilities", 1)
    assert algorithm.mask_fn.func is loss_positions
    assert algorithm.mask_fn.keywords == {"shift": False}
    assert (algorithm.telemetry, algorithm.verify_teachers, algorithm.overlap) == (
        False,
        False,
        True,
    )
    assert algorithm.teacher_sharding == "replicated"
    (term,) = algorithm.feature_terms
    assert (term.student, term.teacher) == ("transformer.h.0", ("transformer.h.*",))
    assert (term.loss.normalize, term.weight.alpha, term.projector) == (True, 2.0, "mlp")
    assert (term.of, term.name) == ("input", "layer")
    assert (term.start_dur.value, term.end_dur.to_timestring()) == (0.25, "5ba")
    assert term.mask_fn is composer_distill.attended_positions


def test_a_live_teacher_answers_what_a_cache_lacks(folder, tmp_path):
    tokens = torch.randint(0, 11, (2, 5))
    data = DataLoader([{"input_ids": t, "labels": t} for t in tokens], batch_size=2)
    cache_teacher(Teacher.from_pretrained(folder), data, str(tmp_path / "kept"))
    entry = {
        "cache": str(tmp_path / "kept"),
        "teacher": {"pretrained_model_name_or_path": folder},
    }
    (teacher,) = distillation_from_config(plain(teachers=[entry])).teachers
    assert isinstance(teacher.teacher.model, GPT2LMHeadModel)


@pytest.mark.parametrize(
    ("mask", "told"),
    [
        ("teacher_correct", "teacher_correct"),
        ({"name": "teacher_confident", "probability": 0.25}, "teacher_confident(0.25)"),
    ],
)
def test_judges_can_be_said(mask, told):
    assert repr(distillation_from_config(plain(mask_fn=mask)).mask_fn) == told


def test_features_alone_need_no_loss_of_logits():
    terms = [{"student": "0", "loss": "hidden_mse"}]
    algorithm = distillation_from_config(plain(kd_loss_fn=None, feature_terms=terms))
    assert algorithm.kd_loss_fn is None


def test_the_entry_point_gives_a_distillation_itself():
    algorithm = FoundryDistillation(**plain(seed=3))
    assert type(algorithm) is Distillation
    assert algorithm.seed == 3


# --- what is refused

REFUSED = {
    # a key
    "kd_loss_wieght: 1.0": (".kd_loss_wieght", "'kd_loss_weight'"),
    "kd_loss_fn: {name: kl_divergence, temprature: 2}": (
        ".kd_loss_fn.temprature",
        "'temperature'",
    ),
    "teachers: [{snapshot: {}}, {snapshot: {begin: 1}}]": (
        ".teachers[1].snapshot.begin",
        "Choose one of",
    ),
    "teachers: [{snapshot: {}, weight: 2.0}]": (".teachers[0].weight", "within snapshot"),
    "feature_terms: [{students: a, loss: cka}]": (".feature_terms[0].students", "'student'"),
    "kd_loss_weight: {schedule: linear, alpah_f: 0.0}": (".kd_loss_weight.alpah_f", "'alpha_f'"),
    "mask_fn: {name: teacher_correct, axis: 1}": (".mask_fn.axis", "has none"),
    # a word
    "kd_loss_fn: {name: kl_divergense}": (".kd_loss_fn.name", "'kl_divergence'"),
    "kd_loss_fn: kl_div": (".kd_loss_fn:", "'kl_divergence'"),
    "kd_loss_weight: {schedule: lienar}": (".kd_loss_weight.schedule", "'linear'"),
    "mask_fn: los_positions": (".mask_fn:", "'loss_positions'"),
    "on_nonfinite: rise": (".on_nonfinite", "'raise'"),
    "combine: probability": (".combine", "'probabilities'"),
    "feature_terms: [{student: a, loss: cka, projector: liner}]": (
        ".feature_terms[0].projector",
        "'linear'",
    ),
    # a kind
    "seed: many": (".seed", "an integer"),
    "seed: 1.5": (".seed", "an integer"),
    "telemetry: 1": (".telemetry", "true or false"),
    "kd_loss_weight: '1e-3'": (".kd_loss_weight", "a number"),
    "kd_loss_fn: [kl_divergence]": (".kd_loss_fn", "{name: kl_divergence}"),
    "teachers: [./teacher]": (".teachers[0]", "{cache: ./answers}"),
    "teachers: ./teacher": (".teachers", "{cache: ./answers}"),
    "kd_loss_fn: {name: weighted_sum, terms: [[1.0]]}": (".kd_loss_fn.terms[0]", "2 entries"),
    # a value, in the words of the object itself
    "start_dur: 2.0": (".start_dur", "[0, 1]"),
    "start_dur: 20 batches": (".start_dur", "'200ba'"),
    "start_dur: 0.8\nend_dur: 0.2": (".start_dur", "Swap them"),
    "kd_loss_weight: {schedule: linear, t_max: half}": (".kd_loss_weight.t_max", "'0.5dur'"),
    "kd_loss_weight: {schedule: linear, t_max: 0.5}": (".kd_loss_weight.t_max", "'0.5dur'"),
    "kd_loss_weight: {schedule: multi_step, milestones: [1ba, half]}": (
        ".kd_loss_weight.milestones[1]",
        "'0.5dur'",
    ),
    "kd_loss_fn: {name: kl_divergence, temperature: -1}": (".kd_loss_fn.temperature", "-1"),
    "teachers: [{snapshot: {start_dur: 7.0}}]": (".teachers[0].snapshot.start_dur", "7.0"),
    "teachers: [{ema_teacher: {update_every: 2ep}}]": (
        ".teachers[0].ema_teacher.update_every",
        "'1ba'",
    ),
    "n_teachers_to_sample: 2": (".n_teachers_to_sample", "[1, 1]"),
    # what is missing
    "kd_loss_fn: {temperature: 2}": (".kd_loss_fn.name", "missing"),
    "kd_loss_fn: top_k_kl": (".kd_loss_fn.k", "missing"),
    "feature_terms: [{loss: cka}]": (".feature_terms[0].student", "missing"),
    # a function
    "student_output_fn: my.module": (".student_output_fn", "in Python"),
    "projector_optimizer: adamw": (".projector_optimizer", "in Python"),
    # sources of weights
    "teachers: [{}]": (".teachers[0]", "needs one of"),
    "teachers: [{chekpoint: a.pt}]": (".teachers[0]", "'checkpoint'"),
    "teachers: [{checkpoint: a.pt, cache: b}]": (".teachers[0]", "checkpoint, cache"),
    "teachers: [{model: {name: mpt_causal_lm}}]": (".teachers[0]", "random"),
    "teachers: [{cache: b, model: {name: mpt_causal_lm}}]": (".teachers[0].model", "Leave one"),
    "teachers: [{checkpoint: 3}]": (".teachers[0].checkpoint", "text"),
    "teachers: [{checkpoint: nowhere.pt}]": (".teachers[0].checkpoint:", "nowhere.pt"),
    "teachers: [{cache: nowhere}]": (".teachers[0].cache:", "nowhere"),
    "teachers: [{pretrained_model_name_or_path: ./nowhere}]": (
        ".teachers[0].pretrained_model_name_or_path",
        "nowhere",
    ),
}


@pytest.mark.parametrize("text", REFUSED)
def test_what_is_wrong_is_refused_under_its_path(text):
    where, remedy = REFUSED[text]
    with pytest.raises((TypeError, ValueError, OSError)) as caught:
        distillation_from_config(plain(**yaml.safe_load(text)))
    message = str(caught.value)
    assert message.startswith(ROOT + where), message
    assert remedy in message


def test_options_of_a_folder_are_read_before_its_weights():
    entry = {"pretrained_model_name_or_path": "./nowhere", "dtpye": "bfloat16"}
    with pytest.raises(ValueError, match=r"teachers\[0\].dtpye.*'dtype'"):
        distillation_from_config(plain(teachers=[entry]))


def test_what_an_option_s_own_check_refuses_is_refused_under_the_option(folder, answers):
    """And not under the source of the weights, which is read in the same call."""
    for source in ({"pretrained_model_name_or_path": folder}, {"cache": answers}):
        with pytest.raises(ValueError, match=r"teachers\[0\].weight: teacher .*-1"):
            distillation_from_config(plain(teachers=[source | {"weight": -1}]))


def test_a_type_that_does_not_exist_is_refused(folder):
    entry = {"pretrained_model_name_or_path": folder, "dtype": "bflot16"}
    with pytest.raises(ValueError, match=r"teachers\[0\].dtype.*'bfloat16'"):
        distillation_from_config(plain(teachers=[entry]))


def test_an_empty_entry_says_what_it_needs():
    with pytest.raises(ValueError, match=r"algorithms.distillation.teachers is missing"):
        FoundryDistillation()


def test_objects_are_not_plain():
    with pytest.raises(TypeError, match="build Distillation in Python"):
        distillation_from_config(plain(kd_loss_fn=nn.MSELoss()))


def test_the_path_is_the_caller_s():
    with pytest.raises(ValueError, match="^distill.sed"):
        distillation_from_config(plain(sed=1), path="distill")
