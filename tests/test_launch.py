"""The launchers: dry runs that a shell reads back as they were meant, exit codes."""

import json
import os
import shlex
import subprocess
from pathlib import Path

import pytest

LAUNCH = Path(__file__).parents[1] / "launch"
SCRIPTS = sorted(path for path in LAUNCH.glob("*.sh") if path.name != "common.sh")
AWKWARD = ["--config.name=a b", "it's", '"q"', "$(touch /tmp/never)", "a;b&c|d", "*", "é", "\\n"]


def launch(script, *arguments, environment=None, **how):
    return subprocess.run(
        ["bash", LAUNCH / script, *arguments],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | (environment or {}),
        **how,
    )


def dry(script, *arguments) -> list[list[str]]:
    """The commands of a dry run, as a shell reads them."""
    done = launch(script, "--dry-run", *arguments)
    assert (done.returncode, done.stderr) == (0, "")
    return [shlex.split(line) for line in done.stdout.splitlines()]


def stand_ins(folder: Path, **programs: str) -> dict[str, str]:
    """An environment where these programs are scripts."""
    folder.mkdir()
    for name, text in programs.items():
        path = folder / name
        path.write_text(f"#!/usr/bin/env bash\n{text}\n")
        path.chmod(0o755)
    return {"PATH": f"{folder}:{os.environ['PATH']}"}


def test_there_are_launchers_and_they_can_be_run():
    names = ["gpu_node.sh", "kubernetes.sh", "local.sh", "slurm.sh", "tpu_vm.sh"]
    assert [path.name for path in SCRIPTS] == names
    assert all(os.access(path, os.X_OK) for path in SCRIPTS)


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_without_arguments_one_line_and_exit_code_2(script):
    done = launch(script.name)
    assert (done.returncode, done.stdout) == (2, "")
    assert len(done.stderr.splitlines()) == 1
    assert script.name in done.stderr


def test_local_gives_each_process_its_number():
    commands = dry("local.sh", "3", "-m", "sdfp.main", *AWKWARD)
    assert len(commands) == 3
    for number, command in enumerate(commands):
        start = command.index("-m")
        assert command[start:-6] == ["-m", "sdfp.main", *AWKWARD]
        assert command[-4:] == ["--num_processes", "3", "--process_id", str(number)]
        assert command[-6:-4] == ["--coordinator", "127.0.0.1:PORT"]


def test_a_gpu_node_has_one_process():
    (command,) = dry("gpu_node.sh", "-m", "sdfp.main", *AWKWARD)
    assert command[-len(AWKWARD) - 2 :] == ["-m", "sdfp.main", *AWKWARD]


def test_slurm_has_a_task_per_gpu_that_sees_all():
    given = ["--nodes=2", "--gpus-per-node=4", "--time=1:00", "--", "-m", "sdfp.main", *AWKWARD]
    (command,) = dry("slurm.sh", *given)
    script = command.index(str(LAUNCH / "slurm.sh"))
    assert {"--gres=gpu:4", "--ntasks-per-node=4", "--requeue", "--nodes=2"} <= set(
        command[:script]
    )
    assert command[script + 1 :] == ["--inside", "-m", "sdfp.main", *AWKWARD]
    refused = launch("slurm.sh", "--dry-run", "--gpus-per-task=1", "--", "-m", "sdfp.main")
    assert (refused.returncode, "--gpus-per-node" in refused.stderr) == (2, True)


def test_a_tpu_host_gets_the_same_arguments():
    (command,) = dry("tpu_vm.sh", "run", "sdfp", "europe-west4-b", "-m", "sdfp.main", *AWKWARD)
    assert command[:7] == ["gcloud", "compute", "tpus", "tpu-vm", "ssh", "sdfp", command[6]]
    assert "--worker=all" in command
    (remote,) = (word for word in command if word.startswith("--command="))
    told = shlex.split(remote.removeprefix("--command="))
    assert told[-len(AWKWARD) - 2 :] == ["-m", "sdfp.main", *AWKWARD]


@pytest.mark.parametrize(
    ("action", "more", "expected"),
    [
        ("create", ["v5litepod-16", "--spot"], ["queued-resources", "create", "--spot"]),
        ("setup", [], ["archive", "scp", "--worker=all"]),
        ("status", [], ["queued-resources", "describe"]),
        ("delete", [], ["queued-resources", "delete", "--force"]),
    ],
)
def test_what_else_is_done_with_a_tpu(action, more, expected):
    commands = dry("tpu_vm.sh", action, "sdfp", "europe-west4-b", *more)
    words = [word for command in commands for word in command]
    assert set(expected) <= set(words)
    if action != "setup":
        assert "--zone=europe-west4-b" in words


@pytest.mark.parametrize("name", ["Sdfp", "a b", "-x", "a;rm"])
def test_names_that_a_tpu_cannot_have(name):
    done = launch("tpu_vm.sh", "--dry-run", "status", name, "europe-west4-b")
    assert (done.returncode, done.stdout) == (2, "")


def test_kubernetes_gets_yaml_with_the_arguments_as_they_are():
    done = launch(
        *("kubernetes.sh", "--dry-run", "cub", "registry.example/sdfp:1", "2", "8"),
        *("--", "-m", "sdfp.main", *AWKWARD),
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert "@" not in done.stdout.replace('"$@"', "").replace('\\"$@\\"', "")
    (line,) = (line for line in done.stdout.splitlines() if line.strip().startswith("args:"))
    told = json.loads(line.partition(":")[2])
    assert told[-len(AWKWARD) :] == [word.replace("$(", "$$(") for word in AWKWARD]
    assert "--num_processes 2 " in done.stdout
    assert "nvidia.com/gpu: 8" in done.stdout


@pytest.mark.parametrize("status", [0, 1, 2, 130])
def test_only_what_was_pre_empted_starts_again(tmp_path, status):
    """gpu_node.sh: 143 twice, then `status`."""
    runs = tmp_path / "runs"
    program = f"echo x >> {runs}; (($(wc -l < {runs}) < 3)) && exit 143; exit {status}"
    environment = stand_ins(tmp_path / "bin", python=program, **{"nvidia-smi": "true"})
    done = launch("gpu_node.sh", "-m", "sdfp.main", environment=environment)
    assert done.returncode == status
    assert runs.read_text().count("x") == 3
    assert done.stderr.count("pre-empted") == 2


@pytest.mark.parametrize(
    ("codes", "ends_with", "requeued"),
    [((0, 0), 0, False), ((143, 143), 0, True), ((143, 1), 101, False), ((137, 2), 101, False)],
)
def test_slurm_requeues_what_was_pre_empted_and_no_fault(tmp_path, codes, ends_with, requeued):
    """srun runs the command for each task and returns the highest code; scontrol leaves a mark."""
    asked = tmp_path / "asked"
    tasks = "; ".join(f'TASK={code} "${{@:2}}" || c=$?; ((c > m)) && m=$c' for code in codes)
    environment = stand_ins(
        tmp_path / "bin",
        python='exit "$TASK"',
        srun=f'm=0 c=0; {tasks}; exit "$m"',
        scontrol=f'echo "$@" > {asked}',
    )
    done = launch(
        *("slurm.sh", "--inside", "-m", "sdfp.main"),
        environment=environment | {"SLURM_JOB_ID": "7"},
    )
    assert done.returncode == ends_with, done.stderr
    assert asked.exists() == requeued
    assert not requeued or asked.read_text() == "requeue 7\n"


def test_slurm_waits_for_the_save_of_a_task_that_is_told_to_stop(tmp_path):
    """SLURM's TERM reaches the shell around python as well."""
    saved, asked = tmp_path / "saved", tmp_path / "asked"
    environment = stand_ins(
        tmp_path / "bin",
        python=f'trap "sleep 0.3; touch {saved}; exit 143" TERM; kill -TERM $PPID $$; sleep 5',
        srun='"${@:2}"',
        scontrol=f'echo "$@" > {asked}',
    )
    done = launch(
        *("slurm.sh", "--inside", "-m", "sdfp.main"),
        environment=environment | {"SLURM_JOB_ID": "7"},
    )
    assert (done.returncode, saved.exists(), asked.exists()) == (0, True, True), done.stderr


def test_local_stops_the_others_when_one_fails(tmp_path):
    program = "for last; do :; done; ((last == 1)) && exit 3; exec sleep 60"
    environment = stand_ins(tmp_path / "bin", fake=program) | {
        "SDFP_LOGS": str(tmp_path / "logs"),
        "PYTHON": str(tmp_path / "bin" / "fake"),
    }
    # What asks for a free port is python, too.
    (tmp_path / "bin" / "fake").write_text(
        f'#!/usr/bin/env bash\n[[ "$1" == -c ]] && echo 1 && exit\n{program}\n'
    )
    done = launch("local.sh", "3", "-m", "sdfp.main", environment=environment, timeout=30)
    assert done.returncode == 3
    assert "a process failed with 3" in done.stderr
    assert sorted(path.name for path in (tmp_path / "logs").iterdir()) == [
        f"process_{number}.log" for number in range(3)
    ]
