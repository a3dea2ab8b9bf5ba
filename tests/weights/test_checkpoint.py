"""Real checkpoints, loaded into the models that they came from and into others."""

import logging
import re

import pytest
import torch
from composer.algorithms import BlurPool
from composer.models import ComposerClassifier, HuggingFaceModel
from torch import nn

from composer_distill.teachers import load_weights
from composer_distill.weights.memory import release
from composer_distill.weights.sources import resolve_path


def test_full_checkpoint_into_the_composer_model(zoo, trained):
    model, folder = trained
    fresh = zoo.classifier()
    load_weights(fresh, folder / "ep2-ba8-rank0.pt")
    assert zoo.same(fresh, model)


def test_full_checkpoint_into_the_bare_module(zoo, trained, caplog):
    model, folder = trained
    fresh = zoo.net()
    with caplog.at_level(logging.INFO):
        load_weights(fresh, folder / "ep2-ba8-rank0.pt", name="the expert")
    assert zoo.same(fresh, model.module)
    assert "the prefix 'module.' was removed" in caplog.text
    assert "the expert" in caplog.text


def test_weights_only_checkpoint_into_both(zoo, trained_weights_only):
    model, folder = trained_weights_only
    wrapped, bare = zoo.classifier(), zoo.net()
    load_weights(wrapped, folder / "ep2-ba8-rank0.pt")
    load_weights(bare, str(folder / "ep2-ba8-rank0.pt"))
    assert zoo.same(wrapped, model)
    assert zoo.same(bare, model.module)


def test_latest_is_followed(zoo, trained):
    model, folder = trained
    fresh = zoo.classifier()
    load_weights(fresh, folder / "latest-rank0.pt")
    assert zoo.same(fresh, model)


def test_an_earlier_checkpoint_differs(zoo, trained):
    model, folder = trained
    fresh = zoo.classifier()
    load_weights(fresh, folder / "ep1-ba4-rank0.pt")
    assert not zoo.same(fresh, model)


def test_hugging_face_checkpoint_into_both(zoo, trained_bert):
    model, folder = trained_bert
    wrapped, bare = HuggingFaceModel(zoo.bert()), zoo.bert()
    load_weights(wrapped, folder / "latest-rank0.pt")
    load_weights(bare, folder / "latest-rank0.pt")
    assert zoo.same(wrapped, model)
    assert zoo.same(bare, model.model)


def test_plain_weights_into_a_composer_model(zoo, tmp_path):
    net = zoo.net()
    torch.save(net.state_dict(), tmp_path / "net.pt")
    fresh = zoo.classifier()
    load_weights(fresh, tmp_path / "net.pt")
    assert zoo.same(fresh.module, net)


def test_loading_draws_nothing_and_shares_nothing(zoo, trained):
    model, folder = trained
    one, other = zoo.classifier(), zoo.classifier()
    before = torch.get_rng_state()
    load_weights(one, folder / "latest-rank0.pt")
    load_weights(other, folder / "latest-rank0.pt")
    assert torch.equal(torch.get_rng_state(), before)
    with torch.no_grad():
        one.module[1].weight.zero_()
    assert zoo.same(other, model)
    assert not zoo.same(one, model)


def test_missing_path_names_teacher_and_neighbours(zoo, trained):
    _, folder = trained
    with pytest.raises(FileNotFoundError, match=r"the expert: .*no checkpoint at .*ep1-ba4-rank0"):
        load_weights(zoo.classifier(), folder / "ep9.pt", name="the expert")


@pytest.mark.parametrize(
    ("names", "told"),
    [
        (["best_model.pt", "notes.txt", "z.bin"], "; the folder {} holds best_model.pt"),
        (["a.pt", "notes.txt", "z.safetensors"], "; the folder {} holds a.pt, z.safetensors"),
        ([f"{i}.bin" for i in range(8)], "; the folder {} holds 0.bin, 1.bin, .*4.bin and 3 more"),
        (["bin", "etc"], "; nothing in the folder {} is called so, or ends as weights do"),
    ],
)
def test_a_missing_path_is_told_with_what_is_alike_or_holds_weights(tmp_path, names, told):
    for name in names:
        (tmp_path / name).touch()
    with pytest.raises(FileNotFoundError, match=told.format(re.escape(str(tmp_path))) + "$"):
        resolve_path(tmp_path / "best_models.pth")


def test_missing_folder_is_said(zoo, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"the folder .*nowhere does not exist"):
        load_weights(zoo.classifier(), tmp_path / "nowhere" / "a.pt")


def test_dangling_link_is_said(zoo, tmp_path):
    (tmp_path / "latest-rank0.pt").symlink_to("gone.pt")
    with pytest.raises(FileNotFoundError, match=r"a link to gone\.pt, which does not exist"):
        load_weights(zoo.classifier(), tmp_path / "latest-rank0.pt")


@pytest.mark.parametrize(
    "content", [{"lr": 0.1}, {}, [1, 2], {"state": {"model": {}}}, torch.ones(3), "text"]
)
def test_not_a_checkpoint(zoo, tmp_path, content):
    torch.save(content, tmp_path / "other.pt")
    with pytest.raises(ValueError, match=r"the expert: .*other\.pt: it is no checkpoint"):
        load_weights(zoo.classifier(), tmp_path / "other.pt", name="the expert")


def test_another_head(zoo, trained):
    _, folder = trained
    with pytest.raises(ValueError, match=r"Likely cause: another head") as caught:
        load_weights(zoo.classifier(classes=7), folder / "latest-rank0.pt", name="the expert")
    text = str(caught.value)
    assert text.startswith(f"the expert: {folder / 'latest-rank0.pt'}: ")
    assert "7 of the model's 9 weights are in it" in text
    assert "module.4.weight (model (7, 8), file (4, 8))" in text
    assert "output_fn" in text


def test_another_architecture(trained):
    _, folder = trained
    other = ComposerClassifier(nn.Sequential(nn.Conv2d(1, 2, 3), nn.Linear(2, 4)), num_classes=4)
    with pytest.raises(ValueError, match="another architecture") as caught:
        load_weights(other, folder / "latest-rank0.pt")
    assert "unexpected in the file: module.1.bias (8,)" not in str(caught.value)
    assert "missing from the file: module.0.weight (2, 1, 3, 3)" in str(caught.value)
    assert "and 3 more" in str(caught.value)


def test_surgery_that_must_come_first(zoo, tmp_path):
    class Images(ComposerClassifier):
        def __init__(self):
            layers = (nn.Unflatten(1, (1, 4, 4)), nn.Conv2d(1, 16, 3, 2, 1), nn.Flatten())
            super().__init__(nn.Sequential(*layers, nn.Linear(64, 4)), num_classes=4)

    blur = BlurPool(min_channels=1)
    zoo.train(Images(), tmp_path / "full", algorithms=[blur], max_duration="1ba")
    zoo.train(
        Images(), tmp_path / "bare", algorithms=[blur], max_duration="1ba", save_weights_only=True
    )
    for folder in ("full", "bare"):
        with pytest.raises(ValueError, match=r"Likely cause: .*changed by BlurPool"):
            load_weights(Images(), tmp_path / folder / "latest-rank0.pt")


def test_part_of_a_larger_model(zoo, tmp_path):
    torch.save(
        {f"student.net.{k}": v for k, v in zoo.net().state_dict().items()}, tmp_path / "a.pt"
    )
    with pytest.raises(ValueError, match=r"all keys of the file begin with 'student\.'"):
        load_weights(zoo.net(), tmp_path / "a.pt")


def test_lenient_loading_says_what_it_left(zoo, trained, caplog):
    model, folder = trained
    fresh = zoo.classifier(classes=7)
    head = fresh.module[4].weight.clone()
    load_weights(fresh, folder / "latest-rank0.pt", strict=False)
    assert torch.equal(fresh.module[1].weight, model.module[1].weight)
    assert torch.equal(fresh.module[4].weight, head)
    assert "module.4.weight" in caplog.text


def test_lenient_loading_refuses_when_nothing_matched(zoo, trained):
    _, folder = trained
    with pytest.raises(ValueError, match="0 of the model's 2 weights are in it"):
        load_weights(nn.Linear(3, 3), folder / "latest-rank0.pt", strict=False)


def test_integer_weights_do_not_fill_real_ones(tmp_path):
    torch.save(
        {"weight": torch.ones(1, 2, dtype=torch.long), "bias": torch.ones(1)}, tmp_path / "a"
    )
    with pytest.raises(ValueError, match=r"weight \(model torch\.float32, file torch\.int64\)"):
        load_weights(nn.Linear(2, 1), tmp_path / "a")


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(5, 3)
        self.head = nn.Linear(3, 5, bias=False)
        self.head.weight = self.embed.weight


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_tied_weights_need_one_of_their_names_and_stay_tied(tmp_path, device):
    source = Tied()
    torch.save({"embed.weight": source.embed.weight.detach()}, tmp_path / "tied.pt")
    with torch.device(device):
        fresh = Tied()
        fresh.head.weight = fresh.embed.weight
    load_weights(fresh, tmp_path / "tied.pt")
    assert torch.equal(fresh.head.weight, source.embed.weight)
    assert fresh.head.weight is fresh.embed.weight


def test_a_model_on_the_meta_device_gets_its_memory(zoo, trained):
    model, folder = trained
    with torch.device("meta"):
        fresh = zoo.classifier()
    load_weights(fresh, folder / "latest-rank0.pt")
    assert zoo.same(fresh, model)
    assert isinstance(fresh.module[1].weight, nn.Parameter)


class Masked(nn.Linear):
    def __init__(self):
        super().__init__(2, 2)
        self.register_buffer("mask", torch.ones(2), persistent=False)


def test_a_meta_buffer_that_no_file_holds_is_refused(tmp_path):
    torch.save(Masked().state_dict(), tmp_path / "a.pt")
    with torch.device("meta"):
        fresh = Masked()
    with pytest.raises(ValueError, match=r"nothing for mask, .*build the model on the CPU"):
        load_weights(fresh, tmp_path / "a.pt")


class Doubling(nn.Linear):
    """Stores half of its weight: a module that loads itself in its own way."""

    def _load_from_state_dict(self, state_dict, prefix, *args):
        state_dict[f"{prefix}weight"] = state_dict[f"{prefix}weight"] * 2
        super()._load_from_state_dict(state_dict, prefix, *args)


def test_a_module_that_loads_itself_is_let(tmp_path):
    layer = nn.Sequential(nn.Linear(2, 2))
    torch.save({f"module.{k}": v for k, v in layer.state_dict().items()}, tmp_path / "a.pt")
    fresh = nn.Sequential(Doubling(2, 2))
    load_weights(fresh, tmp_path / "a.pt")
    assert torch.equal(fresh[0].weight, layer[0].weight * 2)
    with pytest.raises(ValueError, match="the model refused it"):
        load_weights(nn.Sequential(Doubling(2, 2), nn.Linear(2, 2)), tmp_path / "a.pt")


def test_released_pages_are_read_again(tmp_path):
    values = torch.arange(100_000.0)
    torch.save({"a": values}, tmp_path / "a.pt")
    view = torch.load(tmp_path / "a.pt", mmap=True, weights_only=True)["a"]
    release(view)
    release(view[3:7])
    assert torch.equal(view, values)


def test_the_moving_average_by_choice(zoo, trained_ema):
    _, folder = trained_ema
    average, plain, trained = zoo.classifier(), zoo.classifier(), zoo.classifier()
    load_weights(average, folder / "latest-rank0.pt", ema=True)
    load_weights(plain, folder / "latest-rank0.pt")
    load_weights(trained, folder / "latest-rank0.pt", ema=False)
    state = torch.load(folder / "latest-rank0.pt", weights_only=False)["state"]
    ema = dict(state["algorithms"])["EMA"]
    assert ema["ema_weights_active"]
    assert zoo.same(average, plain)
    assert torch.equal(
        trained.module[1].weight, ema["ema_model"]["named_parameters_dict"]["module.1.weight"]
    )
    assert not zoo.same(average, trained)


def test_the_moving_average_where_it_stands_apart(zoo, trained_ema, tmp_path):
    _, folder = trained_ema
    found = torch.load(folder / "latest-rank0.pt", weights_only=False)
    ema = dict(found["state"]["algorithms"])["EMA"]
    ema["ema_weights_active"] = False
    torch.save(found, tmp_path / "a.pt")
    average = zoo.classifier()
    load_weights(average, tmp_path / "a.pt", ema=True)
    expected = ema["ema_model"]["named_parameters_dict"]["module.1.weight"]
    assert torch.equal(average.module[1].weight, expected)


def test_no_moving_average_to_choose(zoo, trained, tmp_path):
    _, folder = trained
    with pytest.raises(ValueError, match=r"holds no EMA weights .algorithms in it: none"):
        load_weights(zoo.classifier(), folder / "latest-rank0.pt", ema=True)
    torch.save(zoo.net().state_dict(), tmp_path / "a.pt")
    with pytest.raises(ValueError, match="ema=True was asked for"):
        load_weights(zoo.net(), tmp_path / "a.pt", ema=True)
