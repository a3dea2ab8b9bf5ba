"""Students of models that read images or sound, against their teachers cut by hand."""

import copy
from functools import reduce

import pytest
import torch
import transformers
from students.multimodal import LISTS, inputs_of, tiny
from torch import nn

from composer_distill import layer_importance, student_from_teacher

pytestmark = pytest.mark.filterwarnings("ignore")  # those of transformers' models
EVERY_LIST = [(name, path) for name, lists in LISTS.items() for path in lists]
WRITES = [name for name in LISTS if name not in ("clip", "siglip")]
# PaliGemma itself reads what it writes otherwise with a cache and without
CACHED = [name for name in WRITES if name != "paligemma"]


@pytest.fixture(autouse=True)
def _quiet():
    transformers.logging.set_verbosity_error()
    yield
    transformers.logging.set_verbosity_warning()


def answer(model, name):
    with torch.no_grad():
        output = model(**inputs_of(name))
    return output.logits if "logits" in output else output.logits_per_image


def cut(teacher, path, kept):
    """Take layers out of a list by hand, and number the others anew."""
    model = copy.deepcopy(teacher)
    parent, _, last = path.rpartition(".")
    layers = nn.ModuleList(model.get_submodule(path)[i] for i in kept)
    for number, layer in enumerate(layers):
        for module in layer.modules():
            if hasattr(module, "layer_idx"):
                module.layer_idx = number
    tower = model.get_submodule(parent)
    setattr(tower, last, layers)
    if hasattr(tower, "fullatt_block_indexes"):  # Qwen's: which of its layers see no windows
        tower.fullatt_block_indexes = [kept.index(i) for i in (1, 3) if i in kept]
    return model


def read(config, dotted):
    return reduce(getattr, dotted.split("."), config)


@pytest.mark.parametrize("loaded", [False, True])
@pytest.mark.parametrize(("name", "path"), EVERY_LIST)
def test_a_student_is_its_teacher_cut_by_hand(name, path, loaded, tmp_path):
    teacher = tiny(name)
    if loaded:  # which copies the parts of its configuration otherwise
        teacher.save_pretrained(tmp_path / "teacher")
        teacher = type(teacher).from_pretrained(tmp_path / "teacher").eval()
    length = len(teacher.get_submodule(path))
    kept = [0, 2, length - 1]
    before = copy.deepcopy(teacher.config.to_dict())
    student = student_from_teacher(teacher, {path: kept})

    assert teacher.config.to_dict() == before
    assert len(student.get_submodule(path)) == read(student.config, LISTS[name][path]) == 3
    for other, count in LISTS[name].items():
        if other != path:
            assert read(student.config, count) == len(student.get_submodule(other)) != 3
    found = answer(student, name)
    assert torch.equal(found, answer(cut(teacher, path, kept), name))
    assert not torch.equal(found, answer(teacher, name))
    student.save_pretrained(tmp_path / "student")
    again = type(student).from_pretrained(tmp_path / "student").eval()
    assert torch.equal(answer(again, name), found)
    assert again.config.to_dict().keys() == student.config.to_dict().keys()


@pytest.mark.parametrize("name", WRITES)
def test_a_student_writes(name, tmp_path):
    path = next(iter(LISTS[name]))
    student = student_from_teacher(tiny(name), {path: 3})
    options = {**inputs_of(name), "max_new_tokens": 5, "do_sample": False}
    written = student.generate(**options)
    if name in CACHED:
        assert torch.equal(student.generate(**options, use_cache=False), written)
    student.save_pretrained(tmp_path)
    again = type(student).from_pretrained(tmp_path)
    assert torch.equal(again.generate(**options), written)


@pytest.mark.parametrize(
    ("setting", "kept", "student_setting"),
    [(-2, [0, 1, 2], -1), (-2, [0, 3], -2), (3, [0, 3], 1), ([1, -1], [1, 2], [0, -1])],
)
def test_the_same_hidden_states_of_a_tower_are_read(setting, kept, student_setting):
    teacher = tiny("llava", vision_feature_layer=setting)
    path = list(LISTS["llava"])[1]
    student = student_from_teacher(teacher, {path: kept})
    assert student.config.vision_feature_layer == student_setting
    assert teacher.config.vision_feature_layer == setting
    for number, layer in enumerate(teacher.get_submodule(path)):
        if number not in kept:
            layer.forward = lambda hidden, *rest, **named: (hidden,)
    assert torch.equal(answer(student, "llava"), answer(teacher, "llava"))


def test_the_whole_configuration_does_not_contradict_its_part():
    teacher = tiny("qwen2_5_vl")
    student = student_from_teacher(teacher, {"language_model": 2})
    assert student.config.num_hidden_layers == student.config.text_config.num_hidden_layers == 2
    tower = student_from_teacher(teacher, {"visual": [1, 2, 3]})
    assert tower.config.vision_config.fullatt_block_indexes == [0, 2]
    assert tower.config.num_hidden_layers == 5


@pytest.mark.parametrize("name", ["blip_2", "llava"])
@pytest.mark.parametrize("asked", [None, "eager"])
def test_each_part_computes_attention_as_its_teacher_does(name, asked):
    def kinds(model):
        parts = [m for m in model.modules() if isinstance(m, transformers.PreTrainedModel)]
        return [part.config._attn_implementation for part in parts]

    teacher = tiny(name, attn_implementation=asked)
    assert ("sdpa" in kinds(teacher)) == (asked is None)
    assert kinds(student_from_teacher(teacher, {"language_model": 2})) == kinds(teacher)


def test_which_list_must_be_said_and_importance_measured():
    teacher = tiny("llava")
    with pytest.raises(ValueError, match=r"of which list.*'model\.language_model\.layers': 3"):
        student_from_teacher(teacher, 3)
    batches = [{**inputs_of("llava"), "labels": inputs_of("llava")["input_ids"]}]
    rises = layer_importance(teacher, batches, stack="model.language_model.layers")
    kept = sorted(sorted(range(5), key=lambda i: -rises[i])[:2])
    student = student_from_teacher(
        teacher, {"language_model": "importance"}, n_layers=2, batches=batches
    )
    expected = student_from_teacher(teacher, {"language_model": kept})
    assert torch.equal(answer(student, "llava"), answer(expected, "llava"))


def test_a_list_can_be_named_with_the_part_of_the_configuration_that_counts_it():
    teacher = tiny("gemma3")
    path = "model.language_model.layers"
    for count in ("text_config.num_hidden_layers", "num_hidden_layers"):
        student = student_from_teacher(teacher, 2, stacks={path: count})
        assert student.config.text_config.num_hidden_layers == 2
    with pytest.raises(ValueError, match=r"'not there'.*such as 'text_config\.num_hidden_layers'"):
        student_from_teacher(teacher, 2, stacks={path: "text.num_hidden_layers"})
