"""Who gets what through the relay, and what a peer can do to it.

Attackers are separate processes or bare sockets. The relay runs in a thread here, and as the
processes of `krabby relay` in the command line's tests.
"""

import contextlib
import json
import socket as tcp
import subprocess
import sys
import threading
import time

import numpy as np
import psutil
import pytest
from krabby_proto import (
    NAV,
    STATE,
    AccessRefused,
    CommandStatus,
    ControlClient,
    ControlServer,
    EndpointError,
    HalClient,
    LatestSubscriber,
    Publisher,
    Requester,
    make_hello,
)
from krabby_proto.access import ROLES, ClientKey, KeyFolder, KeyPair, use_client_key
from krabby_proto.errors import KeyFileError
from krabby_proto.front import Limits, _Connection
from krabby_proto.relay import Relay, RelayEnd
from krabby_proto.testing import FakeHal

DOORS = ("state", "command", "safety", "nav", "control")
PATIENT_S = 60.0
"""For what has to happen at all; the relay and the robot are threads of this process."""


class Robot:
    """A HAL, an ear for walking commands and a game loop's control, behind a relay."""

    def __init__(self, folder, **limits):
        self.folder = folder
        self.keys = KeyFolder(folder / "keys")
        inside = {name: f"ipc://{folder}/{name}" for name in DOORS}
        self.hal = FakeHal(inside, armed=True, ttl_s=5.0, capture_ttl_s=5.0)
        self.nav = LatestSubscriber(inside["nav"], NAV, bind=True)
        self.control = ControlServer(inside["control"], hello=make_hello(service="gameloop"))
        self.asked = []
        self.inside = inside
        self.limits = Limits(**limits)
        self.end = None
        self.worst_s = 0.0
        self._stop = threading.Event()

    def start(self):
        self.relay = Relay(
            self.keys,
            self.inside,
            lambda name, plus: "tcp://127.0.0.1:*",
            streams=DOORS,
            limits=self.limits,
        )
        self.endpoints = self.relay.endpoints
        self.thread = threading.Thread(target=self._run)
        self.thread.start()

    def _run(self):
        while not self._stop.is_set():
            try:
                self.relay.poll(0.02)
            except RelayEnd as end:
                self.end = str(end)
                return
            self.control.poll(0.0, lambda request: self.asked.append(request["op"]) or {"ok": True})

    def client(self, name, *roles):
        """Connect as a client of these roles from now on; its file."""
        pair = KeyPair.make()
        if roles:
            self.keys.authorise(name, pair.public, roles)
        return self.as_client(name, pair, self.keys.robot().public)

    def as_client(self, name, pair, robot):
        path = self.folder / f"{name}.toml"
        ClientKey(pair, robot).write(path)
        use_client_key(path)
        return path

    def refused(self, door):
        counts = self.relay.refusals.counts
        return {reason: n for (name, reason), n in counts.copy().items() if name == door}

    def close(self):
        self._stop.set()
        self.thread.join()
        self.relay.close()
        self.nav.close()
        self.control.close()


@pytest.fixture
def make_robot(tmp_path, monkeypatch):
    monkeypatch.setattr("krabby_proto.access._chosen", None)
    monkeypatch.setattr("krabby_proto.endpoint.REVIVE_S", 0.1)
    with contextlib.ExitStack() as stack:

        def make(*clients, **limits):
            robot = Robot(tmp_path, **limits)
            stack.enter_context(robot.hal)
            for name, *roles in clients:
                robot.client(name, *roles)
            robot.start()
            stack.callback(robot.close)
            return robot

        yield make


def command(client):
    return client.send_command(np.zeros(18), capture_ns=time.monotonic_ns(), deadline_s=10.0)


def hears_state(robot, patience_s=PATIENT_S):
    with LatestSubscriber(robot.endpoints["state"], STATE) as reader:
        end = time.monotonic() + patience_s
        while time.monotonic() < end and not reader.refusal:
            if reader.wait(0.1) is not None:
                break
        return reader.received > 0, reader.refusal


def walks(robot):
    """Whether a walking command arrives."""
    before = robot.nav.received
    with Publisher(robot.endpoints["nav"], NAV, bind=False) as publisher:
        end = time.monotonic() + PATIENT_S
        while time.monotonic() < end and not publisher.refusal and robot.nav.received == before:
            publisher.publish((0.1, 0, 0), capture_ns=time.monotonic_ns())
            robot.nav.wait(0.05)
    return robot.nav.received > before


def ask(robot, door, op):
    """Whether a request is accepted, or why not."""
    client = ControlClient if door == "control" else (lambda place: HalClient({"safety": place}))
    with client(robot.endpoints[door]) as asking:
        link = asking._requester if door == "control" else asking._requester(door)
        end = time.monotonic() + PATIENT_S
        while not (link.connected or link.refusal) and time.monotonic() < end:
            time.sleep(0.001)
        timeout_s = PATIENT_S if link.connected else 0.5
        try:
            if door == "control":
                answer = asking.request(op, timeout_s=timeout_s)
            else:
                answer = asking.safety(op, "test", timeout_s=timeout_s)
        except AccessRefused as error:
            return str(error)
    return answer["ok"] or answer["reason"]


@pytest.mark.parametrize("role", ROLES)
def test_a_role_may_do_what_it_names_and_stop_the_robot(make_robot, role):
    robot = make_robot(("anna", role))
    see, operate = role == "see", role == "operate"
    heard, refusal = hears_state(robot)
    assert heard == see
    assert bool(refusal) == (not see)
    assert walks(robot) == operate
    status = ask(robot, "control", "status")
    assert status is True if see or operate else "the key lacks the role" in status
    stand = ask(robot, "control", "stand")
    assert stand is True if operate else "lack" in stand
    assert robot.asked == ["status"] * (see or operate) + ["stand"] * operate
    with HalClient({"command": robot.endpoints["command"]}) as client:
        client._requester("command").wait_connected(PATIENT_S if role == "command" else 0.5)
        reply = command(client)
    assert (reply is not None and reply.status == CommandStatus.APPLIED) == (role == "command")
    assert bool(robot.hal.applied) == (role == "command")
    arm = ask(robot, "safety", "arm")
    assert arm is True if operate else arm == "key anna lacks the role operate, which arm needs"
    assert ask(robot, "safety", "estop") is True
    done = [op for op, _ in robot.hal.operators if op != "status"]
    assert done == ["arm"] * operate + ["estop"]
    if not see:
        assert robot.refused("state")["role"] >= 1
    if not operate:
        assert robot.refused("nav")["role"] >= 1
        assert robot.refused("safety") == {"role": 1}


@pytest.mark.parametrize("who", ["unlisted", "wrong robot", "no key"])
def test_without_a_key_of_the_robot_nothing_is_delivered_and_both_ends_say_so(
    make_robot, who, caplog, eventually
):
    robot = make_robot(("anna", *ROLES))
    if who == "unlisted":
        robot.client("eve")
    elif who == "wrong robot":
        robot.as_client("eve", KeyPair.make(), KeyPair.make().public)
    else:
        robot.endpoints = {n: e.replace("curve", "tcp") for n, e in robot.endpoints.items()}
    said = "does not know this key" if who == "unlisted" else "one side uses keys and the other"
    heard, refusal = hears_state(robot)
    assert not heard
    assert said in refusal
    assert not walks(robot)
    for door, op in (("safety", "estop"), ("safety", "arm"), ("control", "stand")):
        assert said in ask(robot, door, op)
    with HalClient({"command": robot.endpoints["command"]}) as client:
        for _ in range(20):
            assert command(client) is None
            time.sleep(0.02)
        eventually(lambda: client._requester("command").refusal, PATIENT_S)
        with pytest.raises(AccessRefused, match=said):
            client.hello(0.5)
    assert robot.hal.applied == []
    assert robot.hal.operators == []
    assert robot.asked == []
    reason = "unknown_key" if who == "unlisted" else "handshake"
    for door in DOORS:
        assert eventually(lambda d=door: robot.refused(d).get(reason)), door
    assert said in caplog.text
    assert f"refused at safety: {reason}" in caplog.text


def test_a_dead_authenticator_refuses_known_keys_and_ends_the_relay(make_robot, monkeypatch):
    monkeypatch.setattr(Relay, "_watch", lambda self: None)
    robot = make_robot(("anna", "see"))
    robot.relay.authenticator.stop()
    assert hears_state(robot, 2.0)[0] is False
    monkeypatch.undo()
    robot.thread.join(PATIENT_S)
    assert robot.end == "the authenticator is dead"


def test_a_relay_whose_authenticator_failed_ends(make_robot, monkeypatch):
    robot = make_robot(("anna", "see"))

    def fail(*_):
        raise MemoryError

    monkeypatch.setattr("krabby_proto.relay._Porter.callback", fail)
    monkeypatch.setattr(threading, "excepthook", lambda _: None)
    assert hears_state(robot, 2.0)[0] is False
    robot.thread.join(PATIENT_S)
    assert robot.end == "the authenticator is dead"
    closing = threading.Thread(target=robot.relay.close, daemon=True)
    monkeypatch.setattr(robot.relay, "close", lambda: None)
    closing.start()
    closing.join(PATIENT_S)
    assert not closing.is_alive()


def test_a_changed_key_ends_the_relay_and_its_connections_and_a_new_one_knows_it(
    make_robot, eventually
):
    robot = make_robot(("anna", "see"))
    with LatestSubscriber(robot.endpoints["state"], STATE) as reader:
        assert reader.wait(PATIENT_S) is not None
        robot.keys.revoke("anna")
        robot.thread.join(PATIENT_S)
        assert robot.end == "keys were changed"
        robot.relay.close()
        place = robot.endpoints["state"].replace("curve", "tcp")
        robot.relay = Relay(robot.keys, robot.inside, lambda *_: place, streams=("state",))
        robot.thread = threading.Thread(target=robot._run)
        robot.thread.start()
        assert eventually(lambda: reader.latest() and "does not know this key" in reader.refusal)
        robot.keys.authorise(
            "anna", ClientKey.read(robot.folder / "anna.toml").pair.public, ["see"]
        )
        robot.thread.join(PATIENT_S)
        robot.relay.close()
        robot.relay = Relay(robot.keys, robot.inside, lambda *_: place, streams=("state",))
        robot.thread = threading.Thread(target=robot._run)
        robot.thread.start()
        assert reader.wait(PATIENT_S) is not None, "a client that was refused tries again"
        assert reader.refusal == ""


def test_while_the_robots_key_is_rotated_both_are_served(make_robot, tmp_path):
    robot = make_robot(("anna", "see", "stop"))
    robot.keys.begin_rotation()
    robot.thread.join(PATIENT_S)
    robot.relay.close()
    robot.start()
    assert hears_state(robot)[0]
    assert ask(robot, "safety", "estop") is True
    after = {d.name: f"curve{d.fronts[1].endpoint[3:]}" for d in robot.relay.doors}
    old = ClientKey.read(tmp_path / "anna.toml")
    robot.as_client("anna-next", old.pair, robot.keys.next_robot().public)
    robot.endpoints = after
    assert hears_state(robot)[0]
    assert ask(robot, "safety", "status") is True
    robot.keys.finish_rotation()
    assert robot.keys.robot().public == ClientKey.read(tmp_path / "anna-next.toml").robot
    assert robot.keys.next_robot() is None


# --- what one key can take ------------------------------------------------------------------

ATTACK = """
import sys, time, zmq
from pathlib import Path
from krabby_proto.access import ClientKey
kind, endpoint, key = sys.argv[1:4]
socket = zmq.Context().socket(getattr(zmq, kind))
for option, value in ClientKey.read(Path(key)).options:
    socket.setsockopt(option, value)
socket.setsockopt(zmq.LINGER, 0)
socket.setsockopt(zmq.SNDHWM, 0)
socket.connect(endpoint.replace("curve", "tcp"))
"""
FRAMES = """
socket.send_multipart([b"", b"safety", *([b""] * 1500), b"x"])
time.sleep(2)
"""
BULK = """
end = time.monotonic() + 2
while time.monotonic() < end:
    socket.send_multipart([b"", b"nav" + b"y" * 60_000])
    time.sleep(0.001)
"""
MALFORMED = """
while True:
    socket.send_multipart([b"nav", b"x" * 48, b"y"])
    time.sleep(0.1)
"""
FOREIGN = """
for number in range(40_000):
    socket.subscribe(b"%09d" % number + b"z" * 180)
time.sleep(3)
"""


def attack(robot, kind, door, script, key):
    arguments = (kind, robot.endpoints[door], str(key))
    return subprocess.Popen([sys.executable, "-c", ATTACK + script, *arguments])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "door", "script", "reason"),
    [
        ("DEALER", "safety", FRAMES, "frames"),
        ("DEALER", "safety", BULK, "bytes"),
        ("DEALER", "command", BULK, "bytes"),
        ("PUB", "nav", BULK, "malformed"),
        ("SUB", "state", FOREIGN, "topic"),
    ],
    ids=["frames", "bulk to safety", "bulk to command", "bulk to nav", "foreign topics"],
)
def test_what_a_key_sends_beyond_the_contract_is_cut_off_with_bounded_memory(
    make_robot, kind, door, script, reason
):
    robot = make_robot(("eve", *ROLES), ("anna", *ROLES))
    if door == "nav":
        script = script.replace('[b"", ', "[")
    used = psutil.Process().memory_info().rss
    most = 0
    with (
        attack(robot, kind, door, script, robot.folder / "eve.toml") as attacker,
        HalClient({"safety": robot.endpoints["safety"]}) as anna,
    ):
        assert anna.safety("status", "anna", timeout_s=PATIENT_S)["ok"]
        end = time.monotonic() + PATIENT_S
        while time.monotonic() < end and not (
            robot.refused(door).get(reason) and attacker.poll() is not None
        ):
            if robot.end is None:
                assert anna.safety("estop", "anna", timeout_s=PATIENT_S)["ok"]
            most = max(most, psutil.Process().memory_info().rss - used)
            time.sleep(0.1)
        attacker.kill()
    assert robot.end is None or "frames" in robot.end
    assert robot.refused(door)[reason] >= 1
    assert most < 100e6, f"{most / 1e6:.0f} MB"


def frame(body, more=True):
    """One ZMTP frame."""
    return bytes([2 + more]) + len(body).to_bytes(8, "big") + body


def test_a_message_without_an_end_takes_bounded_memory(make_robot, monkeypatch):
    """libzmq hands on whole messages only, so bytes are counted at the connection. Without keys
    here, since a peer that encrypts such a message has to be written for it."""
    monkeypatch.setattr("krabby_proto.front._security", lambda *_: ())
    robot = make_robot()
    used = psutil.Process().memory_info().rss
    port = int(robot.endpoints["safety"].rpartition(":")[2])
    ready = b"\x05READY\x0bSocket-Type\0\0\0\x06DEALER"
    greeting = b"\xff" + bytes(8) + b"\x7f\x03\0NULL" + bytes(16 + 1 + 31)
    with tcp.create_connection(("127.0.0.1", port), timeout=60) as peer:
        peer.sendall(greeting + bytes([4, len(ready)]) + ready)
        answer = b""
        while b"ROUTER" not in answer:  # the handshake is over
            answer += peer.recv(1000)
        sent, most = 0, 0
        with contextlib.suppress(ConnectionError):
            while sent < 500e6:
                peer.sendall(frame(b"y" * 60_000))
                sent += 60_000
                most = max(most, psutil.Process().memory_info().rss - used)
    assert sent < 500e6, "the connection was cut"
    assert robot.refused("safety") == {"bytes": 1}
    assert most < 100e6, f"{most / 1e6:.0f} MB"


def test_a_peer_with_a_full_window_learns_that_it_was_cut(eventually):
    """Without a reset it would wait for a window that is never opened again."""
    with contextlib.ExitStack() as stack:
        server = stack.enter_context(tcp.create_server(("127.0.0.1", 0)))
        peer = stack.enter_context(tcp.create_connection(server.getsockname()))
        accepted = stack.enter_context(server.accept()[0])
        connection = _Connection(accepted.fileno())
        peer.setblocking(False)

        def window_is_full():
            with contextlib.suppress(BlockingIOError):
                while True:
                    peer.send(bytes(60_000))
            probes = peer.getsockopt(tcp.IPPROTO_TCP, tcp.TCP_INFO, 4)[3]
            return probes > 0

        assert eventually(window_is_full)
        connection.kick()
        connection.socket.close()
        while accepted.recv(60_000):  # as libzmq does: to the end, then it closes
            pass
        accepted.close()
        peer.settimeout(30)

        def send_on():
            while True:
                peer.sendall(bytes(60_000))

        with pytest.raises(ConnectionError):
            send_on()


def test_a_number_that_became_another_socket_is_a_connection_that_is_gone():
    """libzmq tells of a connection by number, and may have closed it before this is read."""
    with contextlib.ExitStack() as stack:
        one, other = (stack.enter_context(end) for end in tcp.socketpair())
        number = one.fileno()
        with pytest.raises(OSError, match="closed again already"):
            _Connection(number)
        other.sendall(b"x")
        assert one.recv(1) == b"x", "the other socket is left as it was"


def test_idle_connections_make_room_for_an_e_stop(make_robot, eventually):
    robot = make_robot(("anna", "stop"), connections=16)
    port = int(robot.endpoints["safety"].rpartition(":")[2])
    with contextlib.ExitStack() as stack:

        def many_are_pushed_out():
            # More come until it is so: libzmq itself ends those whose handshake takes too long.
            stack.enter_context(tcp.create_connection(("127.0.0.1", port)))
            return robot.refused("safety").get("connections", 0) >= 180

        assert eventually(many_are_pushed_out)
        assert ask(robot, "safety", "estop") is True
        assert robot.relay.connections["safety"] <= 17
    assert eventually(lambda: robot.relay.connections["safety"] == 0), "none is forgotten"


def test_a_silent_client_with_a_key_keeps_its_connection(make_robot, eventually):
    """As an e-stop button: it sends nothing until it is pressed."""
    robot = make_robot(("anna", "stop"), connections=16)
    (front,) = robot.relay.doors[DOORS.index("safety")].fronts
    with HalClient({"safety": robot.endpoints["safety"]}) as button:
        assert eventually(lambda: front.connections)
        (connection,) = front.connections.values()
        connection.since_s -= 10.0  # as if it had come long ago
        port = int(robot.endpoints["safety"].rpartition(":")[2])
        with contextlib.ExitStack() as stack:

            def forty_are_pushed_out():
                stack.enter_context(tcp.create_connection(("127.0.0.1", port)))
                return robot.refused("safety").get("connections", 0) >= 40

            assert eventually(forty_are_pushed_out)
            assert connection in front.connections.values()
            assert button.safety("estop", "anna", timeout_s=PATIENT_S)["ok"] is True
            assert connection in front.connections.values()


def test_one_key_has_few_connections(make_robot, eventually):
    robot = make_robot(("eve", "see"), ("anna", "see"), connections_of_key=4)
    use_client_key(robot.folder / "eve.toml")
    with contextlib.ExitStack() as stack:
        for _ in range(10):
            stack.enter_context(LatestSubscriber(robot.endpoints["state"], STATE))
        assert eventually(lambda: robot.refused("state").get("connections", 0) >= 6)
        use_client_key(robot.folder / "anna.toml")
        assert hears_state(robot)[0]


FEW = {"command": 250.0, "nav": 10.0, "safety": 5.0, "control": 50.0}
"""Requests per second that a test exceeds on a busy machine too."""


def test_a_flood_of_requests_is_cut_and_never_delays_an_e_stop(make_robot):
    robot = make_robot(("anna", "operate"), requests_per_s=FEW)
    with HalClient({"safety": robot.endpoints["safety"]}) as client:
        answers = [client.safety("status", "anna", timeout_s=PATIENT_S) for _ in range(150)]
        refused = [one for one in answers if not one["ok"]]
        assert refused
        assert refused[-1]["reason"] == "key anna sends over 5 per s"
        assert robot.refused("safety")["rate"] == len(refused)
        assert client.safety("estop", "anna", timeout_s=PATIENT_S)["state"] == "estop"


def told(robot, door, request):
    """What is answered to a request as a client in another language may send it."""
    use_client_key(robot.folder / "anna.toml")
    with Requester(robot.endpoints[door], name=door) as asking:
        body = [door.encode(), json.dumps(request).encode()]
        answer = asking.request_patiently(lambda: body, PATIENT_S)
    return json.loads(answer[1])


@pytest.mark.parametrize(
    ("door", "op"), [("safety", "arm"), ("safety", "reset"), ("control", "stand")]
)
def test_what_leads_to_motion_needs_a_stamp_and_is_refused_late(make_robot, door, op):
    robot = make_robot(("anna", "operate"))
    for stamp in ({}, {"sent_ns": None}, {"sent_ns": "now"}, {"sent_ns": [1]}):
        answer = told(robot, door, {"op": op, "by": "anna", **stamp})
        assert answer["ok"] is False
        assert answer["reason"] == (
            f"{op} through the relay needs sent_ns, CLOCK_MONOTONIC of the robot"
        )
    assert robot.refused(door) == {"stamp": 4}
    assert robot.asked == []
    assert robot.hal.operators == []
    if door == "safety":
        late_ns = time.monotonic_ns() - 1_100_000_000
        answer = told(robot, door, {"op": op, "by": "anna", "sent_ns": late_ns})
        assert answer["reason"] == f"{op} was sent more than 1 s ago; send it again"
        assert told(robot, door, {"op": "disarm", "by": "anna"})["ok"]
        assert [op for op, _ in robot.hal.operators] == ["disarm"]
    assert ask(robot, door, op) is True


def test_walking_commands_beyond_the_rate_do_not_arrive(make_robot, eventually):
    robot = make_robot(("anna", "operate"), requests_per_s=FEW)
    with Publisher(robot.endpoints["nav"], NAV, bind=False) as publisher:
        assert walks(robot)
        before, begun = robot.nav.received, time.monotonic()

        def hundred_are_refused():
            publisher.publish((0.1, 0, 0), capture_ns=time.monotonic_ns())
            return robot.refused("nav").get("rate", 0) > 100

        assert eventually(hundred_are_refused)
        robot.nav.take()
        passed_s = time.monotonic() - begun
    assert robot.nav.received - before <= 20 + 10 * passed_s


def test_what_is_not_a_walking_command_ends_its_connection(make_robot, eventually):
    robot = make_robot(("eve", "operate"))
    with attack(robot, "PUB", "nav", MALFORMED, robot.folder / "eve.toml") as attacker:
        assert eventually(lambda: robot.refused("nav").get("malformed"))
        attacker.kill()
    assert robot.nav.received == robot.nav.invalid == 0


# --- key files ------------------------------------------------------------------------------


def test_a_key_file_that_others_can_read_is_refused(make_robot, tmp_path):
    robot = make_robot()
    robot.client("anna", "see").chmod(0o640)
    with pytest.raises(EndpointError, match=r"mode 0640.*chmod 600 .*anna\.toml"):
        HalClient(robot.endpoints)


def test_without_a_key_file_the_error_says_how_to_get_one(monkeypatch, tmp_path):
    monkeypatch.setattr("krabby_proto.access._chosen", None)
    monkeypatch.setenv("KRABBY_KEY", str(tmp_path / "none.toml"))
    with pytest.raises(EndpointError, match="krabby keys create NAME"):
        HalClient({"safety": "curve://127.0.0.1:6005"})


@pytest.mark.parametrize(
    "content",
    [
        "",
        "public = 1",
        'public = "short"\nsecret = "short"\nrobot = "short"',
        "\x00",
        "a = " + "[" * 4000,
        'robot = "{0}"\npublic = "{0}"\nsecret = "{1}"',
    ],
)
def test_a_spoilt_key_file_is_refused(tmp_path, content):
    pair, other = KeyPair.make(), KeyPair.make()
    path = tmp_path / "key.toml"
    path.write_text(content.replace("{0}", pair.public).replace("{1}", other.secret))
    path.chmod(0o600)
    with pytest.raises(EndpointError, match=r"key\.toml"):
        ClientKey.read(path)


@pytest.mark.parametrize("name", ["", "../anna", "a/b", ".hidden", "x" * 65, "a\nb"])
def test_a_name_cannot_leave_the_folder(tmp_path, name):
    keys = KeyFolder(tmp_path / "keys")
    with pytest.raises(EndpointError, match="cannot name a key"):
        keys.authorise(name, KeyPair.make().public, ["see"])


@pytest.mark.parametrize("roles", [[], ["root"], ["see", "root"]])
def test_roles_that_do_not_exist_are_refused(tmp_path, roles):
    keys = KeyFolder(tmp_path / "keys")
    with pytest.raises(EndpointError, match="roles are see, operate, command, stop"):
        keys.authorise("anna", KeyPair.make().public, roles)
    assert keys.authorised() == []


def test_one_key_has_one_name(tmp_path):
    keys = KeyFolder(tmp_path / "keys")
    public = KeyPair.make().public
    keys.authorise("anna", public, ["see"])
    keys.authorise("anna", public, ["stop"])
    with pytest.raises(EndpointError, match="authorised already, as anna"):
        keys.authorise("eve", public, ["command"])
    assert [(one.name, one.roles) for one in keys.authorised()] == [("anna", {"stop"})]


@pytest.mark.parametrize(
    "damaged",
    [
        b'robot = "x"',
        b"robot = " + b"[" * 3000,
        b"\xa7",
        b'robot = "' + b"#" * 40 + b'"',  # five characters beyond 2^32
        b"x" * 5000,
    ],
    ids=range(5),
)
def test_a_damaged_key_file_is_one_error(tmp_path, damaged):
    path = tmp_path / "key.toml"
    ClientKey(KeyPair.make(), KeyPair.make().public).write(path)
    whole = path.read_bytes()
    path.write_bytes(damaged + b"\n" + whole.partition(b"\n")[2])
    with pytest.raises(KeyFileError, match=r"key\.toml"):
        ClientKey.read(path)


def test_a_public_key_is_no_option_of_a_command_line():
    """One in 85 random ones begins with a dash."""
    assert not any(KeyPair.make().public.startswith("-") for _ in range(500))
