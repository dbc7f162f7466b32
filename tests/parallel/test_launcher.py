"""Which of several processes this is, by the flags or by what started it."""

import pytest

from restore_jax.cli import flags
from restore_jax.errors import UsageError
from restore_jax.parallel import launcher
from tests.support import command_line

JOB = ("--coordinator=localhost:1", "--num_processes=2", "--process_id=0")
TRAIN = ("--config=configs/sca_unet.py:sample",)
RESTORE = ("--mode=restore", "--workdir=w", "--input=i", "--output=o")


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ((*TRAIN, *JOB[:2]), ["--process_id: missing", "--coordinator needs it"]),
        ((*TRAIN, *JOB[1:]), ["--coordinator: missing"]),
        ((*TRAIN, "--process_id=0"), ["--coordinator: missing"]),
        ((*TRAIN, *JOB, "--process_id=2"), ["--process_id=2", "give 0 to 1"]),
        ((*TRAIN, *JOB, "--num_processes=0"), ["--num_processes=0"]),
        ((*TRAIN, *JOB, "--coordinator=localhost"), ["HOST:PORT"]),
        ((*TRAIN, *JOB, "--distributed"), ["--coordinator: not with --distributed"]),
        ((*TRAIN, "--distributed"), ["--distributed", "srun"]),
        (("--mode=compare", "--workdir=w", *JOB), ["--mode=compare runs in one process"]),
        (("--mode=export", "--workdir=w", "--output=o", *JOB), ["runs in one process"]),
        (("--mode=evaluate", "--workdir=w", "--watch", *JOB), ["--watch: not with"]),
        (("--mode=evaluate", "--workdir=w", "--write_tree", *JOB), ["--write_tree: not with"]),
        ((*RESTORE, "--shard=1/2", *JOB), ["--shard: not with --coordinator"]),
    ],
    ids=str,
)
def test_wrong_flags_are_one_line_and_status_2(given, words, capsys):
    with pytest.raises(SystemExit) as stop, command_line.parsed(*given):
        pass
    assert stop.value.code == UsageError.exit_status
    (line,) = capsys.readouterr().err.strip().splitlines()
    for word in words:
        assert word in line


def test_processes_that_train_or_evaluate_wait_for_each_other():
    for given in (TRAIN, ("--mode=evaluate", "--workdir=w")):
        with command_line.parsed(*given, *JOB):
            assert flags.joined_job() == launcher.Job(0, 2, "localhost:1")
        # A job of one has nobody to wait for.
        with command_line.parsed(*given, *JOB, "--num_processes=1"):
            assert flags.joined_job() is None
    with command_line.parsed(*TRAIN):
        assert flags.joined_job() is None


def test_processes_that_restore_have_a_part_each_and_wait_for_nobody():
    for index, part in enumerate(("1/2", "2/2")):
        with command_line.parsed(*RESTORE, *JOB, f"--process_id={index}"):
            assert flags.given()["shard"] == part
            assert flags.joined_job() is None


def test_the_launcher_tells_which_process_this_is():
    slurm = {"SLURM_PROCID": "2", "SLURM_NTASKS": "4"}
    found = launcher.from_flags(None, None, None, True, slurm)
    assert (found.index, found.count, found.coordinator, found.shard) == (2, 4, None, "3/4")
    mpi = {"OMPI_COMM_WORLD_RANK": "0", "OMPI_COMM_WORLD_SIZE": "2"}
    assert launcher.from_flags(None, None, None, True, mpi).shard == "1/2"
    # Not by the variables alone: a batch script has them too.
    assert launcher.from_flags(None, None, None, False, slurm) is None
    with pytest.raises(UsageError, match="not started by Slurm or Open MPI"):
        launcher.from_flags(None, None, None, True, {})
