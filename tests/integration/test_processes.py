"""Two processes on the CPU: the same teachers, the same numbers, as in one."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from integration.harness import batch_norm_mlp
from integration.workers import evaluating, memory, ranks
from integration.workers import features as features_workers

from composer_distill.terms.sampling import sample_teachers

TESTS = Path(__file__).parents[1]
TIMEOUT = 600  # seconds; a hang fails instead of stopping the suite


def free_port():
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return server.getsockname()[1]


def launch(worker, folder, processes=2):
    """Run a worker in processes; return a function that gives what a rank found."""
    paths = [str(TESTS), str(TESTS.parent), os.environ.get("PYTHONPATH", "")]
    launcher = [sys.executable, "-m", "composer.cli.launcher", "-n", str(processes)]
    launched = subprocess.run(
        [
            *launcher,
            *("--master_addr", "127.0.0.1", "--master_port", str(free_port())),
            str(TESTS / "integration" / "workers" / worker),
            str(folder),
        ],
        env={
            **os.environ,
            "PYTHONPATH": os.pathsep.join(filter(None, paths)),
            "OMP_NUM_THREADS": "1",
            "GLOO_SOCKET_IFNAME": "lo",
            "CUDA_VISIBLE_DEVICES": "",
        },
        timeout=TIMEOUT,
        capture_output=True,
        text=True,
        check=False,
    )

    def result(scenario, rank=0):
        path = folder / f"{scenario}.{rank}.pt"
        assert path.exists(), launched.stdout[-4000:] + launched.stderr[-4000:]
        found = torch.load(path, weights_only=False)
        assert "error" not in found, found["error"]
        return found

    return result


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """Run every scenario in two processes, once; return what a rank found."""
    return launch("ranks.py", tmp_path_factory.mktemp("ranks"))


AS_IN_ONE = [
    "equal_microbatches",
    "other_microbatches",
    "uneven_batches",
    "windows_and_schedules",
    "two_instances",
    "no_task_loss",
    "moving_average",
    "routed_teachers",
    "judged_answers",
    "adapter_free",
    "overlapping_teachers",
]


@pytest.mark.parametrize("scenario", AS_IN_ONE)
def test_two_processes_train_the_weights_of_one(two, scenario, tmp_path):
    alone = getattr(ranks, scenario)(tmp_path)["weights"]
    for rank in (0, 1):
        together = two(scenario, rank)["weights"]
        torch.testing.assert_close(
            sorted_values(together), sorted_values(alone), rtol=1e-6, atol=1e-7
        )


def sorted_values(found):
    return [found[name] for name in sorted(found)]


@pytest.mark.parametrize("scenario", AS_IN_ONE)
def test_two_processes_log_the_values_of_one(two, scenario, tmp_path):
    alone, together = getattr(ranks, scenario)(tmp_path)["log"], two(scenario)["log"]
    names = [name for name in alone if measured(name)]
    assert "loss/train/kd" in names
    for name in names:
        assert [step for step, _ in together[name]] == [step for step, _ in alone[name]], name
        expected = [value for _, value in alone[name]]
        assert [value for _, value in together[name]] == pytest.approx(expected, rel=1e-5), name


def measured(name):
    """Return whether a value tells of the training and not of the clock."""
    return name.startswith(("loss/", "distillation")) and not name.endswith("teacher_time")


@pytest.mark.parametrize("scenario", AS_IN_ONE)
def test_both_ranks_log_alike(two, scenario):
    first, second = (two(scenario, rank)["log"] for rank in (0, 1))
    for name in filter(measured, first):
        assert first[name] == second[name], name


def test_every_rank_and_microbatch_draws_the_same_teachers(two):
    expected = [[i for i, _ in sample_teachers([1.0] * 4, 1, 0, batch)] for batch in range(8)]
    assert two("drawn_teachers", 0)["drawn"] == two("drawn_teachers", 1)["drawn"] == expected
    assert len({tuple(drawn) for drawn in expected}) > 1


def test_a_noisy_teacher_moves_the_stream_of_no_rank(two):
    assert two("streams_after_a_noisy_teacher", 0)["same"]
    assert two("streams_after_a_noisy_teacher", 1)["same"]


def test_teachers_are_unchanged_on_every_rank(two):
    expected = batch_norm_mlp(1).state_dict()
    for rank in (0, 1):
        torch.testing.assert_close(
            two("teacher_untouched", rank)["teacher"], dict(expected), rtol=0, atol=0
        )


def test_teachers_beside_the_student_train_the_very_weights(two):
    for rank in (0, 1):
        beside, behind = two("overlapping_teachers", rank), two("equal_microbatches", rank)
        torch.testing.assert_close(beside["weights"], behind["weights"], rtol=0, atol=0)
        assert beside["faults"] == []
        assert beside["apart"] > 0


def test_ranks_whose_teachers_differ_stop_and_name_the_teacher_and_the_ranks(two):
    for rank in (0, 1):
        said = two("differing_teachers", rank)["said"]
        assert said.startswith("teacher 1 (Sequential): the ranks hold different teachers"), said
        assert "rank 0: Sequential, " in said
        assert "rank 1: Sequential, " in said
        assert "Load one checkpoint on every rank" in said


def test_a_resumed_run_of_two_processes_ends_bitwise_where_the_straight_one_ends(two):
    for rank in (0, 1):
        straight, *resumed = two("resumed", rank)["runs"]
        for run in resumed:
            torch.testing.assert_close(run["weights"], straight["weights"], rtol=0, atol=0)


@pytest.mark.parametrize("kind", ["plain", "composer", "mixed"])
def test_sharded_teachers_answer_as_whole_ones(two, kind):
    found = two("sharded_students")
    whole, cut = found[f"{kind}, replicated"], found[f"{kind}, sharded"]
    assert whole["cut"] == [False] * 3
    assert cut["cut"] == [True] * 3
    assert whole["marks"] == cut["marks"]
    for name in filter(measured, whole["log"]):
        expected = [value for _, value in whole["log"][name]]
        assert [value for _, value in cut["log"][name]] == pytest.approx(expected, rel=1e-5), name
    assert len(whole["log"]["loss/train/kd"]) == 8


def test_sharded_teachers_take_part_where_a_rank_has_no_samples_for_them(two):
    found = two("sharded_routes")
    whole, cut = found["replicated"], found["sharded"]
    assert (whole["cut"], cut["cut"]) == ([False] * 3, [True] * 3)
    assert len(whole["log"]["loss/train/kd"]) == 8
    for name in filter(measured, whole["log"]):
        assert [step for step, _ in cut["log"][name]] == [step for step, _ in whole["log"][name]]
        expected = [value for _, value in whole["log"][name]]
        assert [v for _, v in cut["log"][name]] == pytest.approx(expected, rel=1e-5, abs=1e-7), name
    assert "teacher 0 (Sequential): it is cut over the ranks" in found["said"]
    assert "Leave microbatch_size out" in found["said"]


def test_small_teachers_stay_whole_beside_a_sharded_student(two):
    assert two("auto_sharding")["cut"] is False


@pytest.fixture(scope="module")
def evaluated_alone():
    return ranks.padded_evaluations(None)["log"]


@pytest.mark.filterwarnings("ignore:Cannot split tensor of length")
@pytest.mark.parametrize("label", evaluating.SETS)
def test_a_sample_that_fills_up_an_evaluation_set_counts_once(two, evaluated_alone, label):
    names = [name for name in evaluated_alone if name.startswith(f"metrics/{label}/")]
    assert {name.split("/", 2)[2] for name in names} == {
        "teacher_agreement",
        "teacher_kl",
        *(
            f"{owner}{metric}"
            for owner in ("", "teacher_0/", "teacher_1/")
            for metric in ("MulticlassAccuracy", "CrossEntropy")
        ),
    }
    for rank in (0, 1):
        together = two("padded_evaluations", rank)["log"]
        for name in names:
            expected = [value for _, value in evaluated_alone[name]]
            assert [value for _, value in together[name]] == pytest.approx(expected, rel=1e-5), name


def test_a_cache_of_two_processes_trains_to_the_weights_of_the_live_teacher_bit_for_bit(two):
    for rank in (0, 1):
        found = two("cached_answers", rank)
        assert found["samples"] == (40, 40)
        assert found["parts"] == (2, 2)
        for name, (cached, live) in found["runs"].items():
            torch.testing.assert_close(cached, live, rtol=0, atol=0, msg=name)


def test_each_row_of_two_processes_meets_its_own_answer(two):
    ranks_found = [two("rows_of_ranks", rank) for rank in (0, 1)]
    for name, length in {"drop_last=False": 38, "drop_last=True": 32, "stream": 38}.items():
        first, second = (found[name] for found in ranks_found)
        assert len(first) == len(second) == length, name
        epoch = {*first[: length // 2], *second[: length // 2]}
        assert len(epoch) == (32 if "True" in name else 37), name
        assert first[: length // 2] != first[length // 2 :]


def test_a_teacher_that_is_cut_over_two_processes_writes_the_answers_of_the_whole_one(two):
    for rank in (0, 1):
        found = two("cached_by_a_cut_teacher", rank)
        assert found["cut"]
        assert found["identity"]
        assert found["samples"] == (40, 48)
        torch.testing.assert_close(found["answers"], found["expected"], rtol=1e-5, atol=1e-6)


LOADED = ["loaded_ddp", "loaded_fsdp2_without_distillation", "loaded_fsdp2"]


@pytest.mark.parametrize("scenario", LOADED)
def test_a_run_of_two_processes_that_loads_its_middle_ends_bitwise_like_the_straight_one(
    two, scenario
):
    for rank in (0, 1):
        run = two(scenario, rank)
        assert run["batches"] == 8
        torch.testing.assert_close(run["resumed"], run["straight"], rtol=0, atol=0)


@pytest.mark.parametrize("sharding", ["replicated", "sharded"])
def test_a_teacher_from_the_meta_device_answers_as_an_ordinary_one(two, sharding):
    found = two("meta_teachers")
    for name in filter(measured, found["ordinary"]):
        expected = [value for _, value in found["ordinary"][name]]
        assert [v for _, v in found[sharding][name]] == pytest.approx(expected, rel=1e-5), name
    assert len(found[sharding]["loss/train/kd"]) == 4


def test_a_teacher_that_runs_out_of_memory_on_one_rank_restarts_the_batch_on_both(tmp_path):
    alone = memory.exhausted_teacher()
    assert alone["sizes"] == [16, 16, 16]
    two = launch("memory.py", tmp_path)
    for rank in (0, 1):
        together = two("exhausted_teacher", rank)
        assert together["microbatches"] == [4, 2, 2]
        assert together["sizes"] == [8, 4, 4, 4, 4, *[2] * 8]
        torch.testing.assert_close(
            sorted_values(together["weights"]),
            sorted_values(alone["weights"]),
            rtol=1e-6,
            atol=1e-7,
        )
        expected = [value for _, value in alone["log"]["loss/train/kd"]]
        assert [value for _, value in together["log"]["loss/train/kd"]] == pytest.approx(expected)


def tensors_of(found):
    """Return the student's and the projector's weights, whatever wraps the student."""
    (projector,) = found["projector"].values()
    return [*sorted_values(found["weights"]), *sorted_values(projector)]


@pytest.mark.parametrize("scenario", ["features", "features_in_microbatches"])
def test_features_and_projectors_train_in_two_processes_as_in_one(two, scenario, tmp_path):
    alone = features_workers.features(tmp_path)
    for rank in (0, 1):
        together = two(scenario, rank)
        torch.testing.assert_close(tensors_of(together), tensors_of(alone), rtol=1e-6, atol=1e-7)
        values = [value for _, value in together["log"]["distillation/features/3"]]
        expected = [value for _, value in alone["log"]["distillation/features/3"]]
        assert values == pytest.approx(expected, rel=1e-6)


def test_a_projector_that_ranks_made_apart_is_one_from_the_start(two):
    first, second = (two("features_of_a_module_that_ranks_made_apart", rank) for rank in (0, 1))
    torch.testing.assert_close(tensors_of(first), tensors_of(second), rtol=0, atol=0)


def test_a_parameter_that_one_rank_uses_trains_alike_on_all(two):
    first, second = (two("features_of_a_module_that_one_rank_uses_whole", r) for r in (0, 1))
    torch.testing.assert_close(tensors_of(first), tensors_of(second), rtol=0, atol=0)
    (projector,) = first["projector"].values()
    assert (projector["bias"] != 0).all()


def test_an_fsdp2_run_with_a_projector_resumes_bitwise(two):
    for rank in (0, 1):
        found = two("features_under_fsdp2", rank)
        assert found["resumed"]["batches"] == found["straight"]["batches"] == 8
        torch.testing.assert_close(found["resumed"], found["straight"], rtol=0, atol=0)
    projectors = [two("features_under_fsdp2", rank)["straight"]["projector"] for rank in (0, 1)]
    torch.testing.assert_close(*projectors, rtol=0, atol=0)
