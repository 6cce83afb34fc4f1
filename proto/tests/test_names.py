"""Host names: resolved beside the I/O thread, within a time limit, and again without an answer."""

import socket
import threading
import time

import numpy as np
import pytest
from krabby_proto import STATE, LatestSubscriber, Publisher, names
from krabby_proto.names import HostName


class NameService:
    """Answers with what it is told, when it is told."""

    def __init__(self, *addresses):
        self.addresses = addresses
        self.asked = 0
        self.answers = threading.Event()
        self.answers.set()

    def __call__(self, host, port, *, type):
        self.asked += 1
        self.answers.wait(10.0)
        if not self.addresses:
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        families = [socket.AF_INET6 if ":" in each else socket.AF_INET for each in self.addresses]
        return [
            (family, type, 6, "", (address, port))
            for family, address in zip(families, self.addresses, strict=True)
        ]


@pytest.fixture
def service(monkeypatch):
    service = NameService("127.0.0.1")
    monkeypatch.setattr(names.socket, "getaddrinfo", service)
    yield service
    service.answers.set()


@pytest.fixture
def quick_revival(monkeypatch):
    for module in ("endpoint", "requests", "sockets"):
        monkeypatch.setattr(f"krabby_proto.{module}.REVIVE_S", 0.05)


def flows(publisher, subscriber):
    """Whether a message that is sent now or a little later arrives."""
    publisher.publish(np.zeros(STATE.size, np.float32), capture_ns=time.monotonic_ns())
    return subscriber.wait(0.05)


@pytest.mark.parametrize(
    "endpoint",
    ["tcp://127.0.0.1:6001", "tcp://[::1]:6001", "tcp://*:6001", "ipc:///run/x", "inproc://x"],
)
def test_where_there_is_no_name_no_service_is_asked(service, endpoint):
    assert HostName.of(endpoint) is None
    assert service.asked == 0


def test_a_name_becomes_addresses_the_older_kind_first(service):
    service.addresses = ("::1", "10.0.0.7", "10.0.0.7")
    name = HostName.of("tcp://localhost:6001")
    assert name.endpoints(5.0) == ("tcp://10.0.0.7:6001", "tcp://[::1]:6001")


def test_a_name_that_is_none_is_no_address(service):
    service.addresses = ()
    assert HostName.of("tcp://nowhere:6001").endpoints(5.0) == ()


def test_a_name_server_that_does_not_answer_delays_no_message(service, context, eventually):
    service.answers.clear()
    with (
        Publisher("tcp://127.0.0.1:*", STATE, context=context) as publisher,
        LatestSubscriber(publisher.endpoint, STATE, context=context) as neighbour,
    ):
        begun_s = time.monotonic()
        with LatestSubscriber("tcp://localhost:6001", STATE, context=context) as subscriber:
            assert time.monotonic() - begun_s < 1.0
            assert subscriber.latest() is None
            assert eventually(lambda: flows(publisher, neighbour))
    assert service.asked == 1


def test_an_answer_that_comes_late_is_taken(service, context, eventually, quick_revival):
    service.answers.clear()
    with Publisher("tcp://127.0.0.1:*", STATE, context=context) as publisher:
        port = publisher.endpoint.rpartition(":")[2]
        with LatestSubscriber(f"tcp://localhost:{port}", STATE, context=context) as subscriber:
            assert not flows(publisher, subscriber)
            service.answers.set()
            assert eventually(lambda: flows(publisher, subscriber))


@pytest.mark.parametrize("addresses", [("127.0.0.9",), ("127.0.0.9", "127.0.0.1")])
def test_a_host_that_moved_is_found(service, context, eventually, quick_revival, addresses):
    service.addresses = addresses  # there is no listener at the first
    with Publisher("tcp://127.0.0.1:*", STATE, context=context) as publisher:
        port = publisher.endpoint.rpartition(":")[2]
        with LatestSubscriber(f"tcp://localhost:{port}", STATE, context=context) as subscriber:
            assert not flows(publisher, subscriber)
            service.addresses = (*addresses[1:], "127.0.0.1")
            assert eventually(lambda: flows(publisher, subscriber))
            asked = service.asked
            time.sleep(0.2)
            assert flows(publisher, subscriber)
            assert service.asked <= asked + 1  # who is connected asks no more


def test_a_name_that_is_known_connects_at_once(service, context, eventually):
    with Publisher("tcp://127.0.0.1:*", STATE, context=context) as publisher:
        port = publisher.endpoint.rpartition(":")[2]
        with LatestSubscriber(f"tcp://localhost:{port}", STATE, context=context) as subscriber:
            assert eventually(lambda: flows(publisher, subscriber), timeout_s=0.9)
