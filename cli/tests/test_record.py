from krabby.runtime.testing import free_port
from krabby_cli.__main__ import main
from krabby_proto.recording import Recording
from krabby_proto.testing import FakeHal
from prometheus_client import REGISTRY


def test_what_was_heard_is_in_the_file(tmp_path, capsys):
    path = tmp_path / "run.mcap"
    exposed = {"stream": "state"}
    recorded = "krabby_recorder_messages_total"
    before = REGISTRY.get_sample_value(recorded, exposed) or 0.0
    with FakeHal(rate_hz=100.0) as hal:
        where = [f"--endpoint={n}={e}" for n, e in hal.endpoints.items()]
        assert main(["record", str(path), "state", "truth", "--duration", "1", *where]) == 0
    messages = list(Recording(path))
    assert REGISTRY.get_sample_value(recorded, exposed) - before == len(messages)
    assert REGISTRY.get_sample_value("krabby_recorder_missed_messages_total", exposed) == 0
    assert len(messages) >= 5
    assert {message.stream.name for message in messages} == {"state"}
    assert capsys.readouterr().out == f"{path}: {len(messages)} state\n"


def test_a_file_that_exists_is_not_overwritten(tmp_path, capsys):
    path = tmp_path / "run.mcap"
    path.write_text("precious")
    assert main(["record", str(path)]) == 2
    assert "exists already" in capsys.readouterr().err
    assert path.read_text() == "precious"


def test_silence_is_an_error_that_says_where_it_listened(tmp_path, capsys):
    endpoint = f"tcp://127.0.0.1:{free_port()}"
    argv = ["record", str(tmp_path / "run.mcap"), "state", "--duration", "0.1"]
    assert main([*argv, f"--endpoint=state={endpoint}"]) == 1
    assert endpoint in capsys.readouterr().err


def test_a_folder_that_is_not_there_is_named(tmp_path, capsys):
    assert main(["record", str(tmp_path / "missing" / "run.mcap")]) == 1
    assert "cannot write the recording" in capsys.readouterr().err
