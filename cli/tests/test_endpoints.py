import argparse
import json
import socket
import subprocess
import sys

import pytest
from krabby.runtime.testing import free_port, until
from krabby_cli.endpoints import add_endpoint_options, endpoints_of, parse_endpoint
from krabby_cli.errors import UsageError
from krabby_cli.wiring import Wiring, check_free, wire
from krabby_proto import STREAMS, default_endpoints


def options(*argv):
    parser = argparse.ArgumentParser()
    add_endpoint_options(parser)
    return parser.parse_args(argv)


def test_the_standard_wiring_is_the_streams_table():
    wiring = wire("tcp", 6000)
    assert wiring.endpoints == default_endpoints("tcp://127.0.0.1")
    assert wiring.metrics_ports == {"sim-hal": 9101, "camera": 9102, "gameloop": 9103}


def test_another_base_port_moves_streams_and_metrics_together():
    wiring = wire("tcp", 7000)
    assert wiring.endpoints["state"] == "tcp://127.0.0.1:7001"
    assert wiring.endpoints["truth"] == "tcp://127.0.0.1:7010"
    assert wiring.metrics_ports == {"sim-hal": 7011, "camera": 7012, "gameloop": 7013}


def test_base_port_zero_finds_ports_that_are_all_different_and_free():
    wiring = wire("tcp", 0)
    ports = [endpoint.rpartition(":")[2] for endpoint in wiring.endpoints.values()]
    ports += map(str, wiring.metrics_ports.values())
    assert len(set(ports)) == len(STREAMS) + 3
    check_free(wiring)


def test_unix_sockets_have_one_folder_per_user_or_one_per_run(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    assert wire("ipc", 6000).endpoints == default_endpoints(f"ipc://{tmp_path}/krabby")
    assert endpoints_of(options()) == default_endpoints()
    assert wire("ipc", 7000).endpoints["state"] == f"ipc://{tmp_path}/krabby-7000/state"
    assert endpoints_of(options("--base-port", "7000")) == wire("ipc", 7000).endpoints
    own = wire("ipc", 0)
    assert own.own_folder
    assert own.endpoints["nav"] == f"ipc://{own.own_folder}/nav"


@pytest.mark.parametrize("port", [-1, 80, 65530])
def test_a_base_port_out_of_range_is_refused(port):
    with pytest.raises(UsageError, match=f"base port {port} is out of range"):
        wire("tcp", port)


def test_a_busy_port_is_named_with_its_owner_and_the_remedy():
    with socket.socket() as busy:
        busy.bind(("127.0.0.1", 0))
        busy.listen()
        port = busy.getsockname()[1]
        wiring = Wiring(endpoints={"state": f"tcp://127.0.0.1:{port}"}, metrics_ports={})
        with pytest.raises(UsageError, match=rf"{port} \(state\) is already in use.*--base-port"):
            check_free(wiring)
        wiring = Wiring(endpoints={}, metrics_ports={"camera": port})
        with pytest.raises(UsageError, match=rf"{port} \(metrics of camera\)"):
            check_free(wiring)


def test_who_holds_a_port_is_named_by_its_module():
    """Services are started by `python -m`: the program's name alone would be that of Python."""
    port = free_port()
    command = [sys.executable, "-m", "http.server", str(port), "--bind", "127.0.0.1"]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as holder:
        try:
            until(lambda: answers(port))
            wiring = Wiring(endpoints={"state": f"tcp://127.0.0.1:{port}"}, metrics_ports={})
            with pytest.raises(UsageError, match=rf"by process {holder.pid} \(http\.server\)"):
                check_free(wiring)
        finally:
            holder.kill()


def answers(port):
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def test_a_busy_unix_socket_is_noticed_and_a_dead_one_is_not(tmp_path):
    path = tmp_path / "state"
    wiring = Wiring(endpoints={"state": f"ipc://{path}"}, metrics_ports={})
    check_free(wiring)
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(path))
        server.listen()
        with pytest.raises(UsageError, match="is already in use"):
            check_free(wiring)
    assert path.exists(), "a process that dies leaves its socket behind"
    check_free(wiring)


def test_one_stream_may_be_elsewhere():
    endpoints = endpoints_of(options("--host", "crab", "--endpoint", "state=tcp://127.0.0.1:7001"))
    assert endpoints["state"] == "tcp://127.0.0.1:7001"
    assert endpoints["camera"] == "curve://crab:6000"


def test_the_endpoints_of_a_run_are_read_from_its_folder(tmp_path):
    endpoints = default_endpoints("tcp://127.0.0.9")
    (tmp_path / "run.json").write_text(json.dumps({"endpoints": endpoints}))
    assert endpoints_of(options("--run", str(tmp_path))) == endpoints


def test_a_folder_without_a_run_is_refused(tmp_path):
    with pytest.raises(UsageError, match="is not the record of a run"):
        endpoints_of(options("--run", str(tmp_path)))


@pytest.mark.parametrize("text", ["state", "sttae=tcp://x:1", "state=6001"])
def test_a_misspelt_endpoint_names_streams_and_form(text):
    with pytest.raises(argparse.ArgumentTypeError, match="camera, state, command"):
        parse_endpoint(text)
