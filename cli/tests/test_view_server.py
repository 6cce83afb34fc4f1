"""The cockpit's server with real sockets: roles, origins, deadmen, broken and hostile pages."""

import contextlib
import json
import socket
import struct
import threading
import time
import urllib.error
import urllib.request

import pytest
from krabby.robot.description import RobotDescription
from krabby.runtime.testing import free_ports, until
from krabby_cli.keys import NavLimits
from krabby_cli.operator import Operator
from krabby_cli.view.access import Tokens
from krabby_cli.view.frames import STATE_FIELDS, STATE_FRAME
from krabby_cli.view.hub import Hub
from krabby_cli.view.live import LiveSource
from krabby_cli.view.scene import CourseName
from krabby_cli.view.server import PageServer, application, listening
from krabby_proto import (
    COLOUR,
    FLAG_OPERATOR,
    NAV,
    ControlServer,
    LatestSubscriber,
    WatchedPublisher,
    make_hello,
)
from krabby_proto.testing import FakeHal
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import connect

SECRET = "abcdefghijklmnopqrstuvwxyz"
LOOP = {
    "ok": True, "mode": "policy", "safety": "active", "policy": "gait", "walking": "gait",
    "nav": [0.1, 0.0, 0.0], "nav_source": "none", "nav_clamped": [],
    "command_range": {"vx": [0.0, 0.3]},
}  # fmt: skip
HELLO = make_hello(
    service="sim-hal",
    robot=RobotDescription.load().identity,
    camera={"width": 106, "height": 60},
    extra={"course": {"name": "steps", "difficulty": 0.3, "seed": 5}},
)


class Loop:
    """A game loop's control socket in a thread: answers status, notes other requests."""

    def __init__(self, endpoint):
        self.asked = []
        self._stop = threading.Event()
        self._server = ControlServer(endpoint, hello=make_hello(service="gameloop"))
        self.endpoint = self._server.endpoint
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self):
        with self._server:
            while not self._stop.is_set():
                self._server.poll(0.05, self._answer)

    def _answer(self, request):
        if request["op"] != "status":
            self.asked.append((request["op"], request.get("policy")))
        return LOOP

    def close(self):
        self._stop.set()
        self._thread.join()


class View:
    """The server of `krabby view` in a thread, beside a fake HAL, a loop and its nav socket."""

    def __init__(self, stack, **hub):
        self.hal = stack.enter_context(FakeHal(hello=HELLO, armed=True))
        self.nav = stack.enter_context(LatestSubscriber("tcp://127.0.0.1:*", NAV, bind=True))
        self.loop = Loop("tcp://127.0.0.1:*")
        stack.callback(self.loop.close)
        places = [f"tcp://127.0.0.1:{port}" for port in free_ports(2)]
        endpoints = {
            **self.hal.endpoints,
            "nav": self.nav.endpoint,
            "control": self.loop.endpoint,
            **dict(zip(("features", "colour"), places, strict=True)),
        }
        self.endpoints = endpoints
        operator = stack.enter_context(Operator(endpoints, "view"))
        self.source = LiveSource(endpoints, None)
        self.hub = Hub(self.source, operator, NavLimits(speed=0.5, yaw_rate=0.6), **hub)
        self.tokens = Tokens(SECRET)
        listener = stack.enter_context(listening("127.0.0.1", 0))
        self.port = listener.getsockname()[1]
        self.failures = []
        stopping = threading.Event()
        app = application(
            self.hub,
            self.tokens,
            loopback=True,
            names=frozenset(),
            failed=lambda: self.failures.append(1),
        )
        server = PageServer(app, stopping.is_set)
        thread = threading.Thread(target=lambda: server.run(sockets=[listener]))
        thread.start()

        def stop():
            stopping.set()
            thread.join()
            assert self.failures == []

        stack.callback(stop)
        self._stack = stack

    def page(self, token=SECRET, *, origin=""):
        """A connection that has shown its secret."""
        origin = origin or f"http://127.0.0.1:{self.port}"
        socket_ = self._stack.enter_context(
            # A page that has not read everything need not wait for the end of its connection.
            connect(f"ws://127.0.0.1:{self.port}/socket", origin=origin, close_timeout=0.1)
        )
        if token is not None:
            tell(socket_, t="token", token=token)
        return socket_

    def walked(self, wanted, timeout_s=60.0):
        """Wait until a walking command that passes the test has arrived; returns it."""
        end = time.monotonic() + timeout_s
        while time.monotonic() < end:
            message = self.nav.wait(0.05)
            if message is not None and wanted(message.payload.tolist()):
                return message
        raise AssertionError("that walking command did not come")


def tell(page, **message):
    page.send(json.dumps(message))


def hear(page, kind, wanted=lambda _: True, timeout_s=60.0):
    """The next JSON message of a kind that passes the test."""
    end = time.monotonic() + timeout_s
    while time.monotonic() < end:
        content = page.recv(timeout=timeout_s)
        if isinstance(content, str):
            message = json.loads(content)
            if message["t"] == kind and wanted(message):
                return message
    raise AssertionError(f"no such message: {kind}")


def frame(page, kind, timeout_s=60.0):
    """The next frame of a kind: its payload."""
    end = time.monotonic() + timeout_s
    while time.monotonic() < end:
        content = page.recv(timeout=timeout_s)
        if isinstance(content, bytes) and content[0] == kind:
            return content[16:]
    raise AssertionError(f"no frame {kind}")


def closed_with(page):
    """The code that the server closes a connection with."""
    try:
        while True:
            page.recv(timeout=60)
    except ConnectionClosed as closed:
        return closed.rcvd.code if closed.rcvd is not None else None


class Hand:
    """A person at a page: a stick that is held until it is let go, sent by a thread as pages do."""

    def __init__(self, page, sticks=(1.0, 0.0, 0.0)):
        self._page, self._sticks = page, sticks
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._inputs = 0

    def _run(self):
        while not self._stop.wait(0.04):
            self._inputs += 1
            with contextlib.suppress(ConnectionClosed):
                tell(self._page, t="sticks", s=self._sticks, n=self._inputs, at=now_ms())

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *_):
        self._stop.set()
        self._thread.join()


def now_ms():
    return time.monotonic() * 1e3


@pytest.fixture
def view():
    with contextlib.ExitStack() as stack:
        yield View(stack)


def get(view, path="/", **headers):
    request = urllib.request.Request(f"http://127.0.0.1:{view.port}{path}", headers=headers)
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return answer.status, answer.headers, answer.read()
    except urllib.error.HTTPError as error:
        return error.code, error.headers, error.read()


def test_the_page_and_its_libraries_come_from_this_server_alone(view):
    status, headers, body = get(view)
    assert status == 200
    assert b'src="app.js"' in body
    assert b"//" not in body.replace(b"http://www.w3.org", b"")
    assert headers["Content-Security-Policy"].startswith("default-src 'self';")
    status, headers, _ = get(view, "/vendor/three.js")
    assert (status, headers["Content-Encoding"]) == (200, "gzip")
    assert headers["Content-Type"].startswith("text/javascript")


@pytest.mark.parametrize(
    "path",
    ["/../server.py", "/%2e%2e/server.py", "//etc/passwd", "/vendor", "/app.js/x", "/..%2fhub.py"],
)
def test_no_other_file_can_be_read(view, path):
    assert get(view, path)[0] == 404


def test_a_request_under_another_name_is_refused(view):
    assert get(view, Host="rebound.example:80")[0] == 403
    assert get(view, Host=f"127.0.0.1:{view.port}")[0] == 200


def test_another_sites_page_cannot_connect(view):
    with pytest.raises(InvalidStatus) as refused:
        view.page(origin="http://example.org")
    assert refused.value.response.status_code == 403


def test_without_the_secret_nothing_is_shown_and_nothing_is_subscribed(view):
    page = view.page("wrong" * 6)
    assert closed_with(page) == 4401
    assert view.hub.clients == {}
    assert view.source._subscribers == {}
    assert view.hal.operators == []


def test_a_page_is_told_of_robot_course_gate_and_loop(view):
    page = view.page()
    robot = hear(page, "robot")
    assert robot["name"] == "crab_hex"
    assert robot["urdf"].startswith("<?xml")
    assert robot["joints"] == list(RobotDescription.load().joint_names)
    assert {"gait", "parkour"} <= set(robot["policies"])
    assert "teacher" not in robot["policies"]  # the loop refuses it
    course = hear(page, "course")
    assert (course["name"], course["difficulty"], course["seed"]) == ("steps", 0.3, 5)
    assert len(course["waypoints"]) == 8
    assert {len(box) for box in course["boxes"]} == {11}
    facts = hear(page, "facts", lambda facts: facts["gate"] and facts["loop"])
    assert (facts["role"], facts["gate"], facts["link"]) == ("operate", "active", "ok")
    assert facts["loop"]["nav"] == [0.1, 0.0, 0.0]


def test_a_state_frame_has_the_fields_that_the_page_is_told(view):
    page = view.page()
    layout = hear(page, "robot")["layout"]
    assert layout == [list(field) for field in STATE_FIELDS]
    payload = frame(page, STATE_FRAME)
    values = struct.unpack(f"<{len(payload) // 4}f", payload)
    assert len(values) == sum(size for _, size in layout) == 77
    start = sum(size for _, size in STATE_FIELDS[:3])
    at_rest = view.hal.state[10:28].tolist()  # joint_pos of the state stream
    assert list(values[start : start + 18]) == pytest.approx(at_rest, abs=1e-6)


def test_a_depth_image_comes_as_a_picture(view):
    page = view.page()
    depth = [2.0] * (106 * 60)
    until(lambda: view.source.scene)
    view.hal.submit(lambda server: server.publish_camera(depth, time.monotonic_ns()))
    stop = threading.Event()

    def publish():
        while not stop.wait(0.05):
            view.hal.submit(lambda server: server.publish_camera(depth, time.monotonic_ns()))

    thread = threading.Thread(target=publish)
    thread.start()
    try:
        assert frame(page, 2).startswith(b"\x89PNG")
    finally:
        stop.set()
        thread.join()


def test_a_colour_image_comes_as_it_is(view):
    endpoint = view.endpoints["colour"]
    with WatchedPublisher(endpoint, COLOUR) as publisher:
        page = view.page()
        assert publisher.wait_for_reader(60.0), "the page subscribes"
        stop = threading.Event()

        def publish():
            while not stop.wait(0.05):
                publisher.publish(b"\xff\xd8 a picture", capture_ns=time.monotonic_ns())

        thread = threading.Thread(target=publish)
        thread.start()
        try:
            assert frame(page, 3) == b"\xff\xd8 a picture"
        finally:
            stop.set()
            thread.join()
        page.close()
        until(lambda: not publisher.is_read())


def test_a_held_stick_walks_within_the_policys_range_and_as_an_operator(view):
    page = view.page()
    hear(page, "facts", lambda facts: facts["loop"])
    with Hand(page, (1.0, 0.0, -0.5)):
        message = view.walked(lambda nav: nav[0] > 0)
        assert message.payload.tolist() == pytest.approx([0.3, 0.0, -0.3])  # vx 0.5, range to 0.3
        assert message.flags & FLAG_OPERATOR
        hear(page, "facts", lambda facts: facts["driver"] == "you" and facts["engaged"])


def test_letting_go_commands_zero(view):
    page = view.page()
    with Hand(page):
        view.walked(lambda nav: nav[0] > 0)
    tell(page, t="sticks", s=[0, 0, 0], n=10**6, at=now_ms())
    view.walked(lambda nav: nav == [0, 0, 0])


def test_a_page_that_is_cut_off_leaves_the_robot_commanded_to_stand(view):
    page = view.page()
    with Hand(page):
        view.walked(lambda nav: nav[0] > 0)
        page.socket.shutdown(socket.SHUT_RDWR)
    for _ in range(3):  # zeros go on: no mission takes over
        view.walked(lambda nav: nav == [0, 0, 0])
    until(lambda: view.hub.driving.driver is None)


def test_a_page_that_freezes_while_it_is_connected_stops_the_robot(view):
    page = view.page()
    with Hand(page):
        view.walked(lambda nav: nav[0] > 0)
    view.walked(lambda nav: nav == [0, 0, 0])  # nothing was let go, only silence
    assert len(view.hub.clients) == 1


def test_handing_back_ends_the_walking_commands(view):
    page = view.page()
    with Hand(page):
        view.walked(lambda nav: nav[0] > 0)
    tell(page, t="back")
    hear(page, "facts", lambda facts: not facts["engaged"])
    until(lambda: view.nav.wait(0.3) is None)


def test_a_viewer_sees_and_may_stop_and_no_more(view):
    page = view.page(view.tokens.see)
    assert hear(page, "facts")["role"] == "see"
    tell(page, t="take", at=now_ms())
    tell(page, t="sticks", s=[1, 0, 0], n=1, at=now_ms())
    for op in ("arm", "disarm", "reset", "stand", "sit"):
        tell(page, t="ask", op=op, at=now_ms())
    tell(page, t="policy", name="gait", at=now_ms())
    tell(page, t="estop")
    hear(page, "facts", lambda facts: facts["gate"] == "estop")
    assert [op for op, _ in view.hal.operators] == ["estop"]
    assert view.loop.asked == []
    assert not view.hub.driving.engaged
    assert view.nav.wait(0.2) is None


def test_a_read_only_view_lets_no_page_drive():
    with contextlib.ExitStack() as stack:
        view = View(stack, read_only=True)
        assert hear(view.page(), "facts")["role"] == "see"


def test_requests_reach_gate_and_loop_with_the_operators_name(view):
    page = view.page()
    for op in ("disarm", "arm", "stand", "sit"):
        tell(page, t="ask", op=op, at=now_ms())
        hear(page, "facts", lambda facts, op=op: facts["said"].startswith(f"{op}:"))
    tell(page, t="policy", name="parkour", at=now_ms())
    hear(page, "facts", lambda facts: facts["said"] == "policy parkour: done")
    assert [op for op, _ in view.hal.operators] == ["disarm", "arm"]
    assert all(by.endswith("(view)") for _, by in view.hal.operators)
    assert view.loop.asked == [("stand", None), ("sit", None), ("policy", "parkour")]


def test_a_request_that_came_late_arms_nothing_but_an_e_stop_counts(view):
    page = view.page()
    tell(page, t="ask", op="disarm", at=now_ms())
    hear(page, "facts", lambda facts: facts["said"].startswith("disarm:"))
    tell(page, t="ask", op="arm", at=now_ms() - 1000)
    hear(page, "facts", lambda facts: "came late" in facts["said"])
    tell(page, t="estop")
    hear(page, "facts", lambda facts: facts["gate"] == "estop")
    assert [op for op, _ in view.hal.operators] == ["disarm", "estop"]


def test_an_e_stop_ends_the_motion_of_a_stick_that_stays_held(view):
    page, other = view.page(), view.page(view.tokens.see)
    with Hand(page):
        view.walked(lambda nav: nav[0] > 0)
        tell(other, t="estop")
        until(lambda: view.hal.safety_state == 5)


@pytest.mark.parametrize(
    "text",
    [
        "x" * 2000,
        '{"t": "policy", "name": "../../etc", "at": 1}',
        '{"t": "sticks", "s": [2, 0, 0], "n": 1, "at": 1}',
        '{"t": "sticks", "s": [NaN, 0, 0], "n": 1, "at": 1}',
        '{"t": "ask", "op": "explode", "at": 1}',
        '{"t": "estop", "more": 1}',
        "[" * 900,
        "not json",
        b"bytes",
    ],
)
def test_a_message_that_is_none_ends_its_connection_and_no_other(view, text):
    page, other = view.page(), view.page()
    hear(page, "facts")
    page.send(text)
    assert closed_with(page) in (4400, 1009)
    tell(other, t="ping", at=7)
    assert hear(other, "pong")["at"] == 7


def test_a_flood_of_messages_ends_its_connection(view):
    page = view.page()
    hear(page, "facts")
    with contextlib.suppress(ConnectionClosed):
        for _ in range(2000):
            tell(page, t="ping", at=1)
    assert closed_with(page) in (4429, None)
    until(lambda: view.hub.clients == {})


def test_more_pages_than_there_is_room_for_are_turned_away(view):
    pages = [view.page() for _ in range(16)]
    for page in pages:
        hear(page, "facts")
    with pytest.raises((InvalidStatus, ConnectionClosed)):
        view.page(None).recv(timeout=60)


def test_without_a_page_the_streams_are_left_alone(view):
    page = view.page()
    frame(page, STATE_FRAME)
    assert set(view.source._subscribers) == {"state", "camera", "colour", "features", "truth"}
    page.close()
    until(lambda: view.source._subscribers == {})


def test_a_slow_page_gets_the_newest_and_keeps_the_others_waiting_for_nothing(view):
    slow, quick = view.page(), view.page()
    frame(slow, STATE_FRAME)
    for _ in range(60):  # two seconds in which the slow one reads nothing
        frame(quick, STATE_FRAME)
    assert all(len(client._slots) <= 6 for client in view.hub.clients.values())


def test_a_robot_that_falls_silent_is_said_to_be(view):
    page = view.page()
    hear(page, "facts", lambda facts: facts["link"] == "ok")
    view.hal.publishing = False
    hear(page, "facts", lambda facts: facts["link"] == "lost")


def test_a_course_that_the_robot_does_not_name_is_the_one_of_the_options():
    with contextlib.ExitStack() as stack:
        view = View(stack)
        view.source._given = CourseName("gap", 0.5, 1)
        hello = {**HELLO, "extra": {}}
        view.source._watch = type("Watch", (), {"hello": hello, "loop": {}})()
        view.source.look()
        assert view.source.scene[1]["name"] == "gap"
        view.source._watch = None
