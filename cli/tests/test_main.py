import subprocess
import sys

import pytest
from krabby_cli import __main__ as main_module
from krabby_cli.__main__ import main
from krabby_proto.testing import FakeHal

COMMANDS = [
    "up", "teleop", "dump", "record", "check-hal", "course", "doctor", "arm", "disarm", "estop",
    "reset", "stand", "sit", "policy", "status",
]  # fmt: skip


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help(command, capsys):
    with pytest.raises(SystemExit) as ended:
        main([command, "--help"])
    assert ended.value.code == 0
    assert "usage: krabby" in capsys.readouterr().out


def test_without_a_command_all_are_listed(capsys):
    assert main([]) == 2
    said = capsys.readouterr().err
    assert all(f"    {command} " in said for command in COMMANDS)


def test_a_reader_that_goes_away_is_no_error():
    command = [sys.executable, "-m", "krabby_cli", "dump", "--json", "--period", "0.05"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        process.stdout.readline()
        process.stdout.close()
        assert process.wait(timeout=60) == 0
        assert process.stderr.read() == b""


def parsers():
    (commands,) = [
        action for action in main_module._parser()._actions if hasattr(action, "_name_parser_map")
    ]
    return commands._name_parser_map.items()


def test_every_option_is_explained_and_every_command_has_an_example():
    for name, parser in parsers():
        assert f"krabby {name}" in (parser.epilog or "") + (parser.description or ""), name
        for action in parser._actions:
            assert action.help or action.dest == "action", (name, action.dest)


def test_every_default_that_is_a_value_is_shown():
    for name, parser in parsers():
        for action in parser._actions:
            if (
                action.nargs != 0
                and isinstance(action.default, str | int | float)
                and action.default
            ):
                assert "default" in action.help or "%(default)s" in action.help, (name, action.dest)


def test_an_estop_loads_nothing_that_it_does_not_use(tmp_path):
    """Each module that is loaded before the request delays it."""
    tmp_path.chmod(0o700)
    code = (
        "import sys; from krabby_cli.__main__ import main; "
        "assert main(['estop', '--endpoint', sys.argv[1]]) == 0; print(*sys.modules)"
    )
    places = {name: f"ipc://{tmp_path}/{name}" for name in ("state", "command", "safety")}
    with FakeHal(places) as hal:
        command = [sys.executable, "-c", code, f"safety={hal.endpoints['safety']}"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
        assert [op for op, _ in hal.operators] == ["estop"]
    loaded = set(done.stdout.splitlines()[-1].split())
    assert done.stdout.startswith("safety gate: estop\n")
    ours = {name for name in loaded if name.startswith("krabby")}
    assert ours == {
        "krabby_cli", "krabby_cli.__main__", "krabby_cli.endpoints", "krabby_cli.errors",
        "krabby_cli.operate", "krabby_cli.options", "krabby_cli.text",
        "krabby_proto", "krabby_proto.clocks", "krabby_proto.endpoint", "krabby_proto.errors",
        "krabby_proto.folder", "krabby_proto.header", "krabby_proto.hello",
        "krabby_proto.operators", "krabby_proto.requests", "krabby_proto.streams",
    }  # fmt: skip
    floor = [sys.executable, "-c", "import sys, zmq; print(*sys.modules)"]
    done = subprocess.run(floor, capture_output=True, text=True, timeout=60, check=True)
    assert not (loaded - set(done.stdout.split())) & {  # on Python 3.12 pyzmq loads `inspect`
        "dataclasses", "hashlib", "inspect", "logging", "shutil", "socket", "tempfile", "tomllib",
        "msgspec", "numpy", "psutil", "structlog",
    }  # fmt: skip


def test_every_command_is_in_the_table_of_its_module():
    listed = [name for names in main_module._MODULES.values() for name in names]
    assert sorted(listed) == sorted(name for name, _ in parsers())
    for name in listed:
        assert name in main_module._parser(name).format_help()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("statsu", "krabby statsu: no such command; did you mean status? krabby --help lists all"),
        ("up --durtion 3", "krabby up: unknown --durtion; did you mean --duration? krabby up"),
        ("up --bogus", "krabby up: unknown --bogus; krabby up --help shows how"),
        ("up --duration abc", "krabby up: --duration: 'abc' is no number; krabby up --help"),
        ("up --seed 1.5", "krabby up: --seed: '1.5' is no whole number; krabby up --help"),
        ("up --backend isaac", "krabby up: --backend: invalid choice: 'isaac' (choose from"),
        ("film run.mcap", "krabby film: the following arguments are required: OUT; krabby film"),
    ],
)  # fmt: skip
def test_what_is_wrong_with_the_words_is_one_line_with_the_value_and_a_remedy(words, said, capsys):
    try:
        status = main(words.split())
    except SystemExit as ended:
        status = ended.code
    line = capsys.readouterr().err
    assert status == 2
    assert line.startswith(said)
    assert line.endswith("\n")
    assert line.count("\n") == 1


def test_without_a_robot_a_command_says_how_to_start_or_name_one(tmp_path, capsys):
    nothing = f"--endpoint=safety=ipc://{tmp_path}/nothing"
    assert main(["status", nothing]) == 1
    line = capsys.readouterr().err
    assert line.startswith(f"krabby status: no answer from ipc://{tmp_path}/nothing")
    assert "Start it (`krabby up`), or say where it is with --host" in line
    assert line.count("\n") == 1
