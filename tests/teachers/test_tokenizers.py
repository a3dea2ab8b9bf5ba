"""Every teacher's tokenizer is compared with the student's, wherever the teacher came from."""

import pytest
import tokenizers
import torch
from composer import Trainer
from composer.models import HuggingFaceModel
from transformers import PreTrainedTokenizerFast

from composer_distill import Distillation, KLDivergence, Teacher
from composer_distill.teachers.tokenizers import folder_tokenizer, stored_tokenizer

WORDS = ["?", *(f"w{i}" for i in range(49))]
OTHERS = ["?", *reversed(WORDS[1:])]
# Composer's own, at each model of its kind
pytestmark = pytest.mark.filterwarnings("ignore:The tokenizer was not provided")


def tokenizer(words):
    core = tokenizers.Tokenizer(
        tokenizers.models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="?")
    )
    return PreTrainedTokenizerFast(tokenizer_object=core, unk_token="?")


@pytest.fixture(scope="module")
def sources(zoo, tmp_path_factory):
    """A teacher's folder and its Composer checkpoint, for each of two tokenizers."""
    made = {}
    for name, words in (("same", WORDS), ("other", OTHERS)):
        folder, run = (tmp_path_factory.mktemp(f"{name}-{kind}") for kind in ("folder", "run"))
        model = zoo.bert()
        model.save_pretrained(folder)
        tokenizer(words).save_pretrained(folder)
        wrapped = HuggingFaceModel(model, tokenizer=tokenizer(words))
        zoo.train(wrapped, run, zoo.text_loader(), max_duration="1ba")
        made[name] = {
            "folder": lambda folder=folder: Teacher.from_pretrained(folder),
            "checkpoint": lambda run=run: Teacher.from_composer_checkpoint(run / "latest-rank0.pt"),
            "model": lambda wrapped=wrapped: Teacher(wrapped),
        }
    return made


@pytest.mark.parametrize("source", ["folder", "checkpoint", "model"])
def test_a_teacher_with_other_words_is_refused(zoo, sources, source):
    student = HuggingFaceModel(zoo.bert(), tokenizer=tokenizer(WORDS))

    def trainer(teacher):
        return Trainer(
            model=student,
            algorithms=Distillation(teacher, KLDivergence()),
            optimizers=torch.optim.SGD(student.parameters(), lr=0.1),
            progress_bar=False,
        )

    trainer(sources["same"][source]()).close()
    with pytest.raises(
        ValueError, match=r"teacher 0 .*: its tokenizer is not the student's: 48 of"
    ):
        trainer(sources["other"][source]())


def test_a_folder_without_a_tokenizer(zoo, tmp_path):
    zoo.bert().save_pretrained(tmp_path)
    assert Teacher.from_pretrained(tmp_path).model.tokenizer is None


def test_a_tokenizer_that_cannot_be_read_is_told_and_not_compared(zoo, tmp_path, caplog):
    zoo.bert().save_pretrained(tmp_path)
    (tmp_path / "tokenizer.json").write_text("[]")
    assert Teacher.from_pretrained(tmp_path).model.tokenizer is None
    assert "its tokenizer could not be read, and is not compared" in caplog.text


@pytest.mark.parametrize("kind", ["folder", "checkpoint"])
def test_code_beside_a_tokenizer_is_not_run(tmp_path, witness, kind, caplog):
    code = f"open({str(witness)!r}, 'w')\nclass Planted: pass\n"
    config = {
        "tokenizer_class": "Planted",
        "auto_map": {"AutoTokenizer": ["planted.Planted", None]},
    }
    if kind == "folder":
        (tmp_path / "tokenizer_config.json").write_text(
            str(config).replace("'", '"').replace("None", "null")
        )
        (tmp_path / "planted.py").write_text(code)
        found = folder_tokenizer(str(tmp_path), "it")
    else:
        files = {
            "tokenizer_config.json": {"file_extension": ".json", "content": config},
            "planted.py": {"file_extension": ".py", "content": code},
            f"../{tmp_path.name}.json": {"file_extension": ".json", "content": config},
        }
        found = stored_tokenizer({"integrations": {"huggingface": {"tokenizer": files}}}, "it")
    assert found is None
    assert not witness.exists()
    assert "could not be read" in caplog.text


def test_a_checkpoint_whose_tokenizer_is_none(caplog):
    for files in ({"a.json": 3}, {"a.txt": {"file_extension": ".txt", "content": 3}}):
        stored = {"integrations": {"huggingface": {"tokenizer": files}}}
        assert stored_tokenizer(stored, "it") is None
    assert caplog.text.count("could not be read") == 2


def test_the_streams_stay_where_they_are(sources):
    before = torch.get_rng_state()
    sources["same"]["folder"]()
    sources["same"]["checkpoint"]()
    assert torch.equal(torch.get_rng_state(), before)
