"""The launchers: dry runs that a shell reads back as they were meant, exit codes, signals."""

import contextlib
import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

LAUNCH = Path(__file__).parents[1] / "launch"
SCRIPTS = sorted(path for path in LAUNCH.glob("*.sh") if path.name != "common.sh")
AWKWARD = [
    "--config.name=a b",
    "it's",
    '"q"',
    "$(touch /tmp/never)",
    "a;b&c|d",
    "*",
    "é",
    "$$",
    "pa$$word",
    "\\n",
]

JOBSET = ("cub", "registry.example/sdfp:1", "2", "8", "--")
RUN = """
import os, signal, sys, time
from pathlib import Path

folder = Path(sys.argv[1])
with (folder / "runs").open("a") as runs:
    runs.write(f"{os.getpid()}\\n")

def save(number, frame):
    time.sleep(0.3)
    (folder / "saved").write_text(signal.Signals(number).name)
    sys.exit(int(sys.argv[2]))

signal.signal(signal.SIGTERM, save)
(folder / "listens").touch()
time.sleep(60)
"""


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
    folder.mkdir(parents=True)
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
    start = told.index("-m")
    assert told[start : start + 2 + len(AWKWARD)] == ["-m", "sdfp.main", *AWKWARD]


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


def jobset(*arguments, environment=None) -> dict:
    """What Kubernetes is given."""
    done = launch("kubernetes.sh", "--dry-run", *JOBSET, *arguments, environment=environment)
    assert (done.returncode, done.stderr) == (0, "")
    return yaml.safe_load(done.stdout)


def container(found: dict) -> dict:
    (group,) = found["spec"]["replicatedJobs"]
    (found,) = group["template"]["spec"]["template"]["spec"]["containers"]
    return found


def test_a_jobset_has_a_pod_for_each_process():
    found = jobset("-m", "sdfp.main", environment={"SDFP_RESTARTS": "7"})
    assert (found["apiVersion"], found["kind"]) == ("jobset.x-k8s.io/v1alpha2", "JobSet")
    assert found["metadata"] == {"name": "cub"}
    spec = found["spec"]
    assert spec["network"] == {"enableDNSHostnames": True}
    assert spec["failurePolicy"]["maxRestarts"] == 7
    (rule,) = spec["failurePolicy"]["rules"]
    assert (rule["action"], rule["onJobFailureReasons"]) == ("FailJobSet", ["PodFailurePolicy"])
    (group,) = spec["replicatedJobs"]
    job = group["template"]["spec"]
    assert (job["parallelism"], job["completions"], job["completionMode"]) == (2, 2, "Indexed")
    assert job["backoffLimit"] == 0
    (rule,) = job["podFailurePolicy"]["rules"]
    assert rule["action"] == "FailJob"
    assert rule["onExitCodes"] == {"containerName": "sdfp", "operator": "In", "values": [1, 2]}
    pod = job["template"]["spec"]
    assert pod["restartPolicy"] == "Never"
    assert pod["terminationGracePeriodSeconds"] > 30
    run = container(found)
    assert (run["name"], run["image"]) == ("sdfp", "registry.example/sdfp:1")
    assert run["resources"] == {"limits": {"nvidia.com/gpu": 8}}
    variables = {entry["name"]: entry["value"] for entry in run["env"]}
    # <job set>-<group>-<number of the job>-<number of the pod>.<job set>
    assert variables["COORDINATOR"] == f"cub-{group['name']}-0-0.cub:8476"
    volumes = {volume["name"]: volume for volume in pod["volumes"]}
    assert volumes["data"]["persistentVolumeClaim"] == {"claimName": "sdfp-data"}
    assert {mount["name"]: mount["mountPath"] for mount in run["volumeMounts"]} == {
        "data": "/data",
        "memory": "/dev/shm",
    }
    assert jobset("-m", "sdfp.main")["spec"]["failurePolicy"]["maxRestarts"] == 100


@pytest.mark.parametrize(
    ("given", "number"), [(["cub", "image", "0", "8"], "0"), (["cub", "image", "2", "x"], "x")]
)
def test_what_a_jobset_cannot_be(given, number):
    done = launch("kubernetes.sh", "--dry-run", *given, "--", "-m", "sdfp.main")
    assert (done.returncode, done.stdout) == (2, "")
    assert f"{number}: a number of pods" in done.stderr


def test_a_pod_runs_the_arguments_as_they_are(tmp_path):
    """The container's command, run as a pod would, after Kubernetes has replaced $$ by $."""
    run = container(jobset("-m", "sdfp.main", *harmful(tmp_path)))
    environment = stand_ins(tmp_path / "bin", python="printf '%s\\0' \"$@\"")
    environment |= {"COORDINATOR": "first:8476", "JOB_COMPLETION_INDEX": "1"}
    command = [*run["command"], *(word.replace("$$", "$") for word in run["args"])]
    done = subprocess.run(
        command, env=os.environ | environment, capture_output=True, text=True, check=True
    )
    processes = ["--coordinator", "first:8476", "--num_processes", "2", "--process_id", "1"]
    assert done.stdout.split("\0")[:-1] == ["-m", "sdfp.main", *harmful(tmp_path), *processes]
    assert not (tmp_path / "never").exists()


def harmful(folder: Path) -> list[str]:
    """Arguments that leave a mark where a shell reads them as anything but words."""
    mark = folder / "never"
    return [*AWKWARD, f"$(touch {mark})", f"`touch {mark}`", f"; touch {mark}", f"x\ntouch {mark}"]


@pytest.mark.parametrize(
    ("script", "before"),
    [
        ("gpu_node.sh", ()),
        ("local.sh", ("2",)),
        ("slurm.sh", ("--nodes=2", "--")),
    ],
)
def test_arguments_stay_words(tmp_path, script, before):
    """A shell prints what it has read back of a dry run."""
    words = harmful(tmp_path)
    done = launch(script, "--dry-run", *before, "-m", "sdfp.main", *words)
    assert done.returncode == 0, done.stderr

    def read_back(line: str) -> list[str]:
        command = ["bash", "-c", f"printf '%s\\0' {line}"]
        told = subprocess.run(command, capture_output=True, text=True, check=True)
        return told.stdout.split("\0")[:-1]

    line = done.stdout if script != "local.sh" else done.stdout[: done.stdout.index("\nenv ") + 1]
    found = read_back(line)
    start = found.index("-m")
    assert found[start : start + 2 + len(words)] == ["-m", "sdfp.main", *words]
    assert not (tmp_path / "never").exists()


TPU_RUN = ("run", "sdfp", "europe-west4-b", "-m", "sdfp.main")


def tpu_host(folder: Path, python: str) -> dict[str, str]:
    """An environment where gcloud runs the command in `folder`, a host's home with this python."""
    (folder / "sdfp").mkdir()
    stand_ins(folder / "sdfp/.venv/bin", python=python)
    remote = f'for last; do :; done; cd "{folder}"; exec bash -c "${{last#--command=}}"'
    return stand_ins(folder / "bin", gcloud=remote)


@pytest.mark.parametrize("code", [0, 1, 2, 130])
def test_a_tpu_host_runs_the_arguments_and_tells_the_exit_code(tmp_path, code):
    words = harmful(tmp_path)
    environment = tpu_host(tmp_path, f"printf '<%s>' \"$@\"; echo told >&2; exit {code}")
    done = launch("tpu_vm.sh", *TPU_RUN, *words, environment=environment, timeout=30)
    shown = "".join(f"<{word}>" for word in ("-m", "sdfp.main", *words))
    assert (done.returncode, done.stdout, done.stderr) == (code, f"{shown}told\n", "")
    assert not (tmp_path / "never").exists()


def test_a_tpu_host_starts_again_what_was_killed(tmp_path):
    environment = tpu_host(tmp_path, "[[ -e was ]] && exec echo after; touch was; kill -KILL $$")
    done = launch("tpu_vm.sh", *TPU_RUN, environment=environment, timeout=30)
    assert (done.returncode, done.stdout) == (0, "after\n")
    assert "ended with 137: goes on" in done.stderr


def test_a_run_on_a_tpu_outlives_ssh(tmp_path):
    """Hung up, with nobody who reads; a second one is refused until the first has ended."""
    goes_on = "echo begun; until [[ -e end ]]; do echo line; sleep 0.05; done; touch ended"
    environment = tpu_host(tmp_path, goes_on)
    with subprocess.Popen(
        ["bash", LAUNCH / "tpu_vm.sh", *TPU_RUN],
        env=os.environ | environment,
        stdout=subprocess.PIPE,
        start_new_session=True,
    ) as first:
        assert first.stdout.readline() == b"begun\n"
        first.stdout.close()
        os.killpg(first.pid, signal.SIGHUP)
        assert first.wait(timeout=30) == -signal.SIGHUP
    second = launch("tpu_vm.sh", *TPU_RUN, environment=environment, timeout=30)
    assert (second.returncode, second.stdout) == (2, "")
    assert "a run goes on here" in second.stderr
    (tmp_path / "sdfp/end").touch()
    wait_for(tmp_path / "sdfp/ended")
    assert (tmp_path / "sdfp/run.log").read_text().startswith("begun\nline\n")


def test_setup_overwrites_nothing_and_leaves_nothing(tmp_path):
    """In a folder of all, a name that can be guessed may be another user's link."""
    kept, shared = tmp_path / "kept", tmp_path / "tmp"
    kept.write_text("mine")
    shared.mkdir()
    (shared / "sdfp_sdfp.tar.gz").symlink_to(kept)
    environment = stand_ins(tmp_path / "bin", gcloud='[[ "$4" != scp ]] || tar -tzf "$5"')
    environment |= {"TMPDIR": str(shared)}
    done = launch("tpu_vm.sh", "setup", "sdfp", "europe-west4-b", environment=environment)
    assert done.returncode == 0, done.stderr
    assert "launch/tpu_vm.sh" in done.stdout.split()
    assert kept.read_text() == "mine"
    assert [path.name for path in shared.iterdir()] == ["sdfp_sdfp.tar.gz"]


@pytest.mark.parametrize("stopped", [134, 137, 139, 143])
@pytest.mark.parametrize("status", [0, 1, 2, 130])
def test_only_what_was_interrupted_starts_again(tmp_path, stopped, status):
    """gpu_node.sh: twice `stopped`, then `status`."""
    runs = tmp_path / "runs"
    program = f"echo x >> {runs}; (($(wc -l < {runs}) < 3)) && exit {stopped}; exit {status}"
    environment = stand_ins(tmp_path / "bin", python=program, **{"nvidia-smi": "true"})
    done = launch("gpu_node.sh", "-m", "sdfp.main", environment=environment)
    assert done.returncode == status
    assert runs.read_text().count("x") == 3
    assert done.stderr.count(f"ended with {stopped}: goes on") == 2


def test_restarts_have_an_end(tmp_path):
    runs = tmp_path / "runs"
    program = f"echo x >> {runs}; exit 137"
    environment = stand_ins(tmp_path / "bin", python=program, **{"nvidia-smi": "true"})
    done = launch(
        "gpu_node.sh", "-m", "sdfp.main", environment=environment | {"SDFP_RESTARTS": "2"}
    )
    assert done.returncode == 137
    assert runs.read_text().count("x") == 3


def wait_for(path: Path) -> None:
    until = time.monotonic() + 60
    while not path.exists():
        assert time.monotonic() < until, path
        time.sleep(0.02)


@contextlib.contextmanager
def started(folder: Path, code: int, script: str, *arguments: str, before=()):
    """A launcher in front of a real process, which ends with `code` when it is told to stop."""
    (folder / "run.py").write_text(RUN)
    run = f'exec "{sys.executable}" "{folder}/run.py" "{folder}" {code}'
    environment = stand_ins(folder / "bin", python=run, gcloud=run, **{"nvidia-smi": "true"})
    with subprocess.Popen(
        [*before, "bash", LAUNCH / script, *arguments],
        env=os.environ | environment,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        wait_for(folder / "listens")
        yield process
        process.kill()


@pytest.mark.parametrize(
    ("script", "arguments"),
    [("gpu_node.sh", ()), ("tpu_vm.sh", ("run", "sdfp", "europe-west4-b"))],
)
@pytest.mark.parametrize(
    ("number", "code", "ends_with"),
    [
        (signal.SIGTERM, 143, 143),
        (signal.SIGINT, 143, 130),
        (signal.SIGTERM, 0, 0),  # it came just before the end
        (signal.SIGTERM, 2, 2),  # the save failed
        (signal.SIGTERM, 137, 137),  # whatever it dies of then: nothing is started any more
    ],
)
def test_a_signal_reaches_the_run(tmp_path, script, arguments, number, code, ends_with):
    """And the launcher waits for its end, and starts no other."""
    with started(tmp_path, code, script, *arguments, "-m", "sdfp.main") as launcher:
        launcher.send_signal(number)
        assert launcher.wait(timeout=30) == ends_with, launcher.stderr.read()
    assert (tmp_path / "saved").read_text() == "SIGTERM"
    (own,) = (tmp_path / "runs").read_text().split()
    assert not Path("/proc", own).exists()


def test_a_signal_reaches_the_run_from_the_first_process_of_a_pod(tmp_path):
    """Which the kernel spares every signal that it does not listen to."""
    alone = ("unshare", "--pid", "--fork")
    if subprocess.run([*alone, "true"], capture_output=True, check=False).returncode:
        pytest.skip("no namespaces here")
    with started(tmp_path, 143, "gpu_node.sh", "-m", "sdfp.main", before=alone) as outside:
        (first,) = Path(f"/proc/{outside.pid}/task/{outside.pid}/children").read_text().split()
        os.kill(int(first), signal.SIGTERM)
        assert outside.wait(timeout=30) == 143
    assert (tmp_path / "saved").read_text() == "SIGTERM"


@pytest.mark.parametrize(
    ("codes", "ends_with", "requeued"),
    [
        ((0, 0), 0, False),
        ((143, 143), 0, True),
        ((134, 143), 0, True),  # pre-empted outside of a stage: the other one lost it
        ((137, 134), 0, True),
        ((137, 139), 0, True),
        ((143, 1), 101, False),
        ((2, 134), 101, False),  # the first one's disk is full
    ],
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


def test_slurm_does_not_requeue_for_ever(tmp_path):
    asked = tmp_path / "asked"
    environment = stand_ins(tmp_path / "bin", srun="exit 10", scontrol=f"touch {asked}")
    environment |= {"SLURM_JOB_ID": "7", "SLURM_RESTART_COUNT": "100"}
    done = launch("slurm.sh", "--inside", "-m", "sdfp.main", environment=environment)
    assert (done.returncode, asked.exists()) == (10, False)


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


def test_slurm_does_not_requeue_what_was_cancelled(tmp_path):
    """scancel: TERM reaches this script, too."""
    asked = tmp_path / "asked"
    srun, scontrol = "kill -TERM $PPID; sleep 0.1; exit 10", f"touch {asked}"
    environment = stand_ins(tmp_path / "bin", srun=srun, scontrol=scontrol)
    environment |= {"SLURM_JOB_ID": "7"}
    done = launch("slurm.sh", "--inside", "-m", "sdfp.main", environment=environment)
    assert (done.returncode, asked.exists()) == (10, False)


def test_local_stops_all_that_it_is_still_starting(tmp_path):
    """TERM comes between the first process and the second; `command` is called before each."""
    own, fake = tmp_path / "own", tmp_path / "fake"
    own.write_text("calls=0; command() { ((++calls != 2)) || kill -TERM $$; return 1; }")
    fake.write_text('#!/usr/bin/env bash\n[[ "$1" == -c ]] && echo 1 && exit\nexec sleep 60\n')
    fake.chmod(0o755)
    environment = {"PYTHON": str(fake), "BASH_ENV": str(own)}
    done = launch("local.sh", "3", "-m", "x", environment=environment, timeout=30, cwd=tmp_path)
    assert done.returncode == 143, done.stderr


def test_local_tells_what_ended_first(tmp_path):
    """Pre-empted outside of a stage: the others lose it within a minute, and are waited for."""
    program = "for last; do :; done; ((last == 1)) && exit 143; sleep 0.5; touch lost; exit 134"
    fake = tmp_path / "fake"
    fake.write_text(f'#!/usr/bin/env bash\n[[ "$1" == -c ]] && echo 1 && exit\n{program}\n')
    fake.chmod(0o755)
    environment = {"PYTHON": str(fake)}
    done = launch("local.sh", "2", "-m", "x", environment=environment, timeout=30, cwd=tmp_path)
    assert (done.returncode, (tmp_path / "lost").exists()) == (143, True), done.stderr


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
