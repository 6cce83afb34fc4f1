import subprocess
import sys

import pytest
from krabby_cli import __main__ as main_module
from krabby_cli.__main__ import main

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
    with pytest.raises(SystemExit) as ended:
        main([])
    assert ended.value.code == 2
    assert "COMMAND" in capsys.readouterr().err


def test_a_reader_that_goes_away_is_no_error():
    command = [sys.executable, "-m", "krabby_cli", "dump", "--json", "--period", "0.05"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        process.stdout.readline()
        process.stdout.close()
        assert process.wait(timeout=20) == 0
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


def test_an_estop_loads_neither_numpy_nor_another_command():
    code = (
        "import sys; from krabby_cli.__main__ import main; "
        "status = main(['estop', '--endpoint', 'safety=ipc:///nowhere/safety', '--timeout', '0']); "
        "names = {name for name in sys.modules if name.startswith('krabby_cli.')}; "
        "print(status, 'numpy' in sys.modules, 'psutil' in sys.modules, 'krabby_cli.up' in names)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["1", "False", "False", "False"], done.stderr


def test_every_command_is_in_the_table_of_its_module():
    listed = [name for names in main_module._MODULES.values() for name in names]
    assert sorted(listed) == sorted(name for name, _ in parsers())
    for name in listed:
        assert name in main_module._parser(name).format_help()
