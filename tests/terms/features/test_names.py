import pytest
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from composer_distill.terms.features.huggingface import read_layers
from composer_distill.terms.features.layers import pairs_of
from composer_distill.terms.features.names import find, pair


class Wrapper(nn.Module):
    """What wraps a model: it stands between the model and its name."""

    def __init__(self, attribute, module):
        super().__init__()
        self.add_module(attribute, module)


class DDP(DistributedDataParallel):
    """What DDP looks like from outside, without processes."""

    def __init__(self, module):
        nn.Module.__init__(self)
        self.module = module


def blocks(n):
    layers = nn.ModuleList(nn.Sequential(nn.Linear(2, 2), nn.ReLU()) for _ in range(n))
    return nn.ModuleDict({"encoder": nn.ModuleDict({"layer": layers})})


@pytest.mark.parametrize(
    "wrap",
    [
        lambda m: m,
        lambda m: Wrapper("module", m),
        lambda m: Wrapper("model", m),
        lambda m: Wrapper("_orig_mod", Wrapper("module", m)),
        lambda m: Wrapper("_fsdp_wrapped_module", Wrapper("model", m)),
        lambda m: Wrapper("module", Wrapper("_orig_mod", m)),
        lambda m: DDP(Wrapper("module", m)),
    ],
)
def test_a_name_is_the_users_own_whatever_wraps_the_model(wrap):
    model = blocks(2)
    ((name, module),) = find(wrap(model), "encoder.layer.1", "the student")
    assert (name, module) == ("encoder.layer.1", model["encoder"]["layer"][1])


def test_a_name_may_be_that_of_the_whole():
    model = blocks(2)
    found = find(Wrapper("module", model), "module.encoder.layer.1", "the student")
    assert found[0][1] is model["encoder"]["layer"][1]


@pytest.mark.parametrize("wrapper", ["_fsdp_wrapped_module", "_checkpoint_wrapped_module"])
def test_of_a_wrapped_layer_the_wrapper_is_heard(wrapper):
    model = blocks(2)
    inner = model["encoder"]["layer"][1]
    outer = Wrapper(wrapper, inner)
    model["encoder"]["layer"][1] = outer
    assert find(model, "encoder.layer.1", "the student")[0][1] is outer
    assert find(model, "encoder.layer.1.0", "the student")[0][1] is inner[0]


def test_a_star_stands_for_one_part_of_a_name():
    names = [name for name, _ in find(blocks(11), "encoder.layer.*", "the student")]
    assert names == [f"encoder.layer.{i}" for i in range(11)]
    assert len(find(blocks(3), "*.layer.*.0", "the student")) == 3


def test_an_unknown_name_tells_the_nearest():
    with pytest.raises(ValueError, match=r"has no layer 'encoder.layers.1'.*'encoder.layer.1'"):
        find(blocks(2), "encoder.layers.1", "the student")


def test_a_layer_of_two_names_has_both():
    layer = nn.Linear(2, 2)
    model = nn.Sequential(layer, nn.ReLU(), layer)
    assert find(model, "2", "the student")[0][1] is layer


def test_pairs():
    ours, theirs = ["a", "b"], ["p", "q", "r", "s"]
    assert pair(ours, theirs[:2]) == [("a", "p"), ("b", "q")]
    assert pair(ours, theirs, by_glob=True) == [("a", "q"), ("b", "s")]
    for teacher, by_glob in ((theirs, False), (theirs[:3], True), (theirs[:1], True)):
        with pytest.raises(ValueError, match="must name as many layers, got 2"):
            pair(ours, teacher, by_glob=by_glob)


def test_a_glob_takes_every_second_layer_of_a_teacher_twice_as_deep():
    student = read_layers(blocks(2), "encoder.layer.*", "output", "the student")
    teacher = read_layers(blocks(4), "encoder.layer.*", "output", "the teacher")
    pairs = pairs_of(student, teacher, "encoder.layer.*")
    assert [(a.name, b.name) for a, b in pairs] == [
        ("encoder.layer.0", "encoder.layer.1"),
        ("encoder.layer.1", "encoder.layer.3"),
    ]
    listed = read_layers(blocks(4), ("encoder.layer.3", "encoder.layer.0"), "output", "the teacher")
    pairs = pairs_of(student, listed, ("encoder.layer.3", "encoder.layer.0"))
    assert [b.name for _, b in pairs] == ["encoder.layer.3", "encoder.layer.0"]
