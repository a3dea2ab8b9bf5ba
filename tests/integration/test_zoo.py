"""Each architecture of transformers' mappings: the logged KL is that of its own loss's positions.

A fifth of them runs by default; ``ZOO=all pytest tests/integration/test_zoo.py`` walks through all,
and tries those again that are listed as not covered.
"""

import os

import pytest

transformers = pytest.importorskip("transformers")
zoo = pytest.importorskip("tests.integration.zoo")

pytestmark = pytest.mark.skipif(
    not transformers.__version__.startswith("4.53."), reason="the table is of transformers 4.53"
)
ALL = os.environ.get("ZOO") == "all"
ARCHITECTURES = [(kind, *found) for kind in zoo.KINDS for found in zoo.architectures(kind)]
LISTED = {name for names in zoo.NOT_COVERED.values() for name in names}
COVERED = [found for found in ARCHITECTURES if found[2] not in LISTED]
# What was wrong once, and every fifth of the others
FOUND = {
    "WhisperForCausalLM", "M2M100ForConditionalGeneration", "BlenderbotForConditionalGeneration",
    "XLMWithLMHeadModel", "FlaubertWithLMHeadModel", "XLNetLMHeadModel", "BartForCausalLM",
    "MarianForCausalLM", "PegasusForCausalLM", "TrOCRForCausalLM", "Wav2Vec2ForCTC",
    "BertForQuestionAnswering", "T5ForTokenClassification", "BartForSequenceClassification",
}  # fmt: skip
CHOSEN = [a for i, a in enumerate(COVERED) if ALL or i % 5 == 0 or a[2] in FOUND]
AGAIN = [found for found in ARCHITECTURES if found[2] in LISTED - zoo.TOO_LARGE] if ALL else []


def check(kind, model_type, name):
    student, teacher = (zoo.build(model_type, name, seed) for seed in (1, 2))
    batch = zoo.for_model(student, zoo.batch_of(kind, student))
    expected = zoo.by_hand(student, teacher, batch, kind)
    logged = zoo.logged_kl(student, teacher, batch, kind)
    assert logged == pytest.approx(expected, rel=1e-4, abs=3e-7)  # float32 near agreement


@pytest.mark.filterwarnings("ignore")  # of transformers, about settings that are this small
@pytest.mark.parametrize(("kind", "model_type", "name"), CHOSEN, ids=str)
def test_the_logged_kl_is_that_of_the_positions_of_the_models_own_loss(kind, model_type, name):
    check(kind, model_type, name)


def test_each_name_in_the_table_is_of_a_mapping():
    assert {name for *_, name in ARCHITECTURES} >= LISTED


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("kind", "model_type", "name"), AGAIN, ids=str)
def test_what_is_listed_is_still_not_covered(kind, model_type, name):
    with pytest.raises(Exception):  # noqa: B017, PT011
        check(kind, model_type, name)
