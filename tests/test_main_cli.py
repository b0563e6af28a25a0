"""The command line: what is wrong is one line on stderr, exit code 2, and nothing written."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from absl.testing import flagsaver

from sdfp import cli, config, experiment, main, page
from sdfp.types import UserError

ROOT = Path(__file__).parents[1]
DIGITS = str(ROOT / "configs" / "digits.py")


@pytest.fixture
def started(monkeypatch):
    """Does what `python -m sdfp.main` does, up to the run: returns (config, work directory)."""
    runs = []
    monkeypatch.setattr(experiment, "run", lambda *given: runs.append(given) or {"failed": []})
    monkeypatch.setattr(experiment, "show", lambda *given: None)
    monkeypatch.setattr(page, "write", lambda *given: None)

    def start(*arguments):
        with flagsaver.flagsaver():
            main.main(config.parse_flags(["sdfp.main", *arguments]))
        return runs.pop()

    return start


@pytest.fixture
def told(started):
    """The line with which a command line is refused."""

    def line_of(*arguments) -> str:
        with pytest.raises(UserError) as caught:
            started(*arguments)
        assert "\n" not in str(caught.value)
        assert "Traceback" not in str(caught.value)
        return str(caught.value)

    return line_of


@pytest.fixture
def config_file(tmp_path):
    """Writes a config file: the digits config with `lines` in its `get_config`."""

    def write(*lines: str) -> str:
        body = ["from configs import digits", "def get_config():"]
        body += ["config = digits.get_config()", *lines, "return config"]
        path = tmp_path / "mine.py"
        path.write_text("\n".join(body[:2] + ["    " + line for line in body[2:]]) + "\n")
        return str(path)

    return write


def sdfp(*arguments, platform="cpu") -> subprocess.CompletedProcess:
    """A real process."""
    return subprocess.run(
        [sys.executable, "-m", "sdfp.main", *map(str, arguments)],
        cwd=ROOT,
        env={**os.environ, "JAX_PLATFORMS": platform, "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
        timeout=300,
    )


def test_defaults(started):
    values, workdir = started()
    assert values.to_dict() == config.read(DIGITS).to_dict()
    assert workdir == Path("runs/digits")


def test_file_variant_override_and_workdir(started):
    values, workdir = started(
        "--workdir", "/x", "--config.seeds=5,6", "--config", f"{DIGITS}:smoke", "--config.seed=3"
    )
    assert (values.name, values.seeds, values.seed) == ("digits_smoke", (5, 6), 3)
    assert workdir == Path("/x")
    assert started("--config.name=else")[1] == Path("runs/else")


@pytest.mark.parametrize(
    ("argument", "line"),
    [
        (
            "--config.stages.finetune.stepz=3",
            '--config.stages.finetune.stepz: no such key. Did you mean "stages.finetune.steps"?',
        ),
        ("--config.lrr=1", '--config.lrr: no such key. Did you mean "'),
        ("--config.finetune.learning_rat=1", 'Did you mean "stages.finetune.learning_rate"?'),
        ("--noconfig.run.tensorbord", "--config.run.tensorbord: no such key."),
        ("--config.seeds[0]=1", '--config.seeds[0]: no such key. Did you mean "seeds"?'),
        ("--config.seed.x=1", '--config.seed.x: no such key. Did you mean "'),
        ("--config.=1", "--config.: no such key."),
        ("--config.seed", "--config.seed"),
        ("--config.stages.finetune.steps=many", "--config.stages.finetune.steps=many: invalid"),
        ("--config.stages.finetune.steps=2.5", "--config.stages.finetune.steps=2.5: invalid"),
        ("--config.run.tensorboard=maybe", "--config.run.tensorboard=maybe: "),
        ("--config.stages.finetune=3", "--config.stages.finetune: a block of keys"),
        ("--config.stages=None", "--config.stages: a block of keys"),
        ("--wrokdir=x", "Unknown command line flag 'wrokdir'. Did you mean: workdir"),
        ("--workdir", "Missing value for flag --workdir"),
        ("digits", "Arguments not understood: digits."),
        ("config.seed=3", "Arguments not understood: config.seed=3."),
        ("--config=/nowhere/my.py", "--config=/nowhere/my.py: no such Python file"),
        (f"--config={ROOT}", "no such Python file"),
        (f"--config={ROOT}/README.md", "no such Python file"),
        ("--config=", "--config=: no such Python file"),
        (f"--config={DIGITS}:foo", f'{DIGITS}:foo: config variant "foo": there are "full"'),
        (f"--config={ROOT}/configs/common.py:full", "its get_config cannot take ('full',)"),
        (f"--config={ROOT}/sdfp/types.py", "it has no function get_config"),
    ],
)
def test_what_is_wrong_is_told(told, argument, line):
    assert line in told(argument)


def test_left_over_value(told):
    assert told("--config.seed", "3").startswith("Arguments not understood: 3.")


def test_config_file_that_returns_nothing(told, tmp_path):
    (tmp_path / "mine.py").write_text("def get_config():\n    pass\n")
    assert "returns no ConfigDict; got None" in told(f"--config={tmp_path / 'mine.py'}")


def test_the_home_folder(started, monkeypatch, tmp_path, config_file):
    """The shell leaves it in --flag=~/x."""
    monkeypatch.setenv("HOME", str(tmp_path))
    assert started("--workdir=~/w")[1] == tmp_path / "w"
    config_file()
    assert started("--config=~/mine.py")[0].name == "digits"


@pytest.mark.parametrize("number", cli.PATHS)
def test_a_path_that_nobody_can_reach(capsys, number):
    def fail():
        raise OSError(number, os.strerror(number), "/some/where")

    assert cli.exit_code(fail) == 2
    assert capsys.readouterr().err.endswith(f"{os.strerror(number)}: '/some/where'\n")


@pytest.mark.parametrize(
    ("lines", "error"),
    [
        (["1 / 0"], ZeroDivisionError),
        (["config.stages.finetune.stepz + 1"], AttributeError),
        (["config.stages['stepz']"], KeyError),
        (["'1' + 1"], TypeError),
        (["int('x')"], ValueError),
        (["open('/nowhere')"], FileNotFoundError),
        (["import nowhere"], ModuleNotFoundError),
        (["=="], SyntaxError),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_what_is_wrong_in_a_config_file_is_told_with_its_line(told, config_file, lines, error):
    """Also where an override of the same name is around."""
    path = config_file(*lines)
    line = told(f"--config={path}", "--config.stages.finetune.steps=3")
    assert line.startswith(f"--config={path}, line 4: {error.__name__}: ")


def test_a_config_file_that_ends_the_program(told, config_file):
    path = config_file("import sys", "sys.exit(0)")
    assert told(f"--config={path}").startswith(f"--config={path}, line 5: SystemExit: 0")


def refused(process: subprocess.CompletedProcess) -> str:
    """The one line of a process that was refused."""
    assert process.returncode == 2, process.stderr
    assert process.stdout == ""
    line, *others = process.stderr.splitlines()
    assert others == []
    assert line.startswith("sdfp: ")
    return line


def test_process_with_a_misspelled_override(tmp_path):
    workdir = tmp_path / "work"
    line = refused(sdfp(f"--workdir={workdir}", "--config.stages.finetune.stepz=3"))
    assert '--config.stages.finetune.stepz: no such key. Did you mean "stages.finetune' in line
    assert not workdir.exists()


def test_process_with_a_key_misspelled_in_the_file(tmp_path, config_file):
    workdir = tmp_path / "work"
    file = config_file("config.stages.finetune.stepz = 3")
    line = refused(sdfp(f"--config={file}", f"--workdir={workdir}"))
    assert "config.stages.finetune.stepz: no such key. Did you mean" in line
    assert not workdir.exists()


def test_process_with_nan(tmp_path):
    workdir = tmp_path / "work"
    line = refused(sdfp(f"--workdir={workdir}", "--config.stages.finetune.learning_rate=nan"))
    assert "config.stages.finetune.learning_rate: a finite number is expected" in line
    assert not workdir.exists()


def test_process_with_a_bug_in_the_file(tmp_path, config_file):
    workdir = tmp_path / "work"
    line = refused(sdfp(f"--config={config_file('1 / 0')}", f"--workdir={workdir}"))
    assert line.endswith("mine.py, line 4: ZeroDivisionError: division by zero")
    assert not workdir.exists()


@pytest.mark.parametrize(
    ("platform", "check", "told"),
    [
        ("cuda", "--check", "no device: JAX_PLATFORMS=cuda: there is nothing of the kind"),
        ("elsewhere", "--nocheck", "no device: Unable to initialize backend 'elsewhere': "),
    ],
)
def test_process_without_a_device(tmp_path, platform, check, told):
    """Also where a driver fails, or another program holds the TPU."""
    workdir = tmp_path / "work"
    line = refused(sdfp(f"--workdir={workdir}", check, platform=platform))
    assert told in line
    assert not workdir.exists()


def test_process_help():
    process = sdfp("--help")
    assert process.returncode == 0
    assert process.stderr == ""
    assert process.stdout.startswith("python -m sdfp.main [--config FILE[:VARIANT]]")
    assert "--workdir" in process.stdout


def test_message_of_many_lines_is_joined(monkeypatch, capsys):
    """TensorStore's messages, which a damaged checkpoint hands on, have line breaks."""

    def fail(*_, **__):
        raise UserError("no such\nthing")

    monkeypatch.setattr(main.app, "run", fail)
    with pytest.raises(SystemExit) as ended:
        main.run()
    assert ended.value.code == 2
    assert capsys.readouterr().err == "sdfp: no such thing\n"
