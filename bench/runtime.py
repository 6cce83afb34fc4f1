"""Measures the runtime, each figure beside its floor, in one run.

python bench/runtime.py --duration 30
"""

# mujoco is an extension module without stubs.
# pyright: reportAttributeAccessIssue=false

from __future__ import annotations

import argparse
import itertools
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Final

import mujoco
import numpy as np
import psutil
import zmq
from krabby.course.courses import make_course
from krabby.mujoco.depth_camera import DepthRenderer, camera_pose
from krabby.mujoco.model import build_model
from krabby.policy.bundle import OnnxEncoder, OnnxPolicy, PolicyBundle, bundle_dir
from krabby.policy.depth_image import IMAGE_SHAPE, DepthPreprocessor
from krabby.policy.network import NetworkSpec
from krabby.policy.observation import ObservationBuilder, ObservationInputs
from krabby.policy.onnx_runtime import OnnxRuntime
from krabby.policy.testing import write_seeing_gait
from krabby.robot.description import RobotDescription
from krabby.runtime.rate import Rate
from krabby.runtime.tracing import TracingCfg, make_tracer
from krabby.safety.gate import GateCfg, SafetyGate
from krabby_cli.plan import DEFAULT_POLICY
from krabby_proto import (
    CAMERA,
    FEATURES,
    STATE,
    STREAMS,
    TICKS,
    TRACE,
    TRUTH,
    HalClient,
    Publisher,
    SafetyOutcome,
    decode,
    encode,
)
from krabby_proto.access import use_client_key
from krabby_proto.testing import FakeHal
from onnx import TensorProto, helper

Samples = list[float]
Quantiles = dict[str, float]

SCALES: Final = {"us": 1e6, "ms": 1e3}
_STAND_IN: Final = "stand-in"
_REPO: Final = Path(__file__).resolve().parents[1]


class Table:
    """Rows of ours beside the floor, printed as they come."""

    def __init__(self) -> None:
        self.rows: list[dict[str, Any]] = []
        columns = f"{'p50':>9} {'p99':>9} {'max':>9}  | {'p50':>9} {'p99':>9}"
        print(f"{'':<46} {'':>4} {'ours':^29}  | {'floor':^19}")
        print(f"{'what':<46} {'unit':>4} {columns}  floor is")

    def add(
        self, what: str, unit: str, ours: Quantiles, floor: Quantiles | None, floor_is: str
    ) -> None:
        self.rows.append(
            {"what": what, "unit": unit, "ours": ours, "floor": floor, "floor_is": floor_is}
        )
        cells = " ".join(f"{_cell(ours, key):>9}" for key in ("p50", "p99", "max"))
        floor_cells = " ".join(f"{_cell(floor, key):>9}" for key in ("p50", "p99"))
        print(f"{what:<46} {unit:>4} {cells}  | {floor_cells}  {floor_is}", flush=True)

    def compare(
        self, what: str, unit: str, ours: Samples, floor: Samples | None, floor_is: str
    ) -> None:
        """A row of times [s]."""
        bare = None if floor is None else quantiles(floor, unit)
        self.add(what, unit, quantiles(ours, unit), bare, floor_is)


def _cell(values: Quantiles | None, key: str) -> str:
    return f"{values[key]:.3f}" if values and key in values else ""


def quantiles(samples_s: Samples, unit: str) -> Quantiles:
    """p50, p99 and maximum of times [s], in `unit`."""
    values = np.asarray(samples_s) * SCALES[unit]
    p50, p99 = np.quantile(values, (0.5, 0.99))
    return {"p50": float(p50), "p99": float(p99), "max": float(values.max())}


def in_turn(
    ours: Callable[[], object], floor: Callable[[], object], n: int
) -> tuple[Samples, Samples]:
    """Times of both, one call of each in turn, after a warm-up."""
    calls = (ours, floor)
    for call in calls:
        for _ in range(max(20, n // 20)):
            call()
    samples: tuple[Samples, Samples] = ([], [])
    for _ in range(n):
        for call, into in zip(calls, samples, strict=True):
            start = time.perf_counter()
            call()
            into.append(time.perf_counter() - start)
    return samples


def bench_codec(table: Table) -> None:
    """Encoding plus decoding of a message, beside a copy of its payload."""
    rng = np.random.default_rng(0)
    for stream, size in ((STATE, STATE.size), (CAMERA, 60 * 106)):
        payload = rng.random(size, dtype=np.float32)

        def there_and_back(stream: Any = stream, payload: Any = payload) -> None:
            frames = encode(stream, payload, instance_id=1, sequence=1, capture_ns=1, publish_ns=1)
            decode(frames, stream)

        ours, floor = in_turn(there_and_back, payload.copy, 3000)
        note = f"a copy of its {payload.nbytes} bytes"
        table.compare(f"codec: encode and decode {stream.name}", "us", ours, floor, note)


class Echo:
    """The bare floor of a request: a REP socket that sends two frames back, in a thread."""

    def __init__(self, endpoint: str) -> None:
        self._context = zmq.Context()
        self._server = self._context.socket(zmq.REP)
        self._server.bind(endpoint)
        self._client = self._context.socket(zmq.REQ)
        self._client.connect(self._server.getsockopt_string(zmq.LAST_ENDPOINT))
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def __call__(self, frames: list[bytes]) -> None:
        self._client.send_multipart(frames)
        self._client.recv_multipart()

    def close(self) -> None:
        self([b"stop", b""])
        self._thread.join()
        self._server.close(0)
        self._client.close(0)
        self._context.term()

    def _run(self) -> None:
        while True:
            frames = self._server.recv_multipart()
            self._server.send_multipart(frames)
            if frames[0] == b"stop":
                return


_LOADED: Final = 'python -c "import zmq"'
_HAL: Final = """
import json, sys, time
from krabby_proto.testing import FakeHal
with FakeHal(json.loads(sys.argv[1])) as ipc, FakeHal() as tcp:
    print(json.dumps([ipc.endpoints, tcp.endpoints]), flush=True)
    sys.stdin.read()
"""
_RELAY: Final = """
import json, sys
from pathlib import Path
import krabby_proto.front
from krabby_proto.access import ClientKey, KeyFolder, KeyPair
from krabby_proto.relay import Relay
folder = Path(sys.argv[1])
folder.mkdir(exist_ok=True)
keys, pair = KeyFolder(folder / "keys"), KeyPair.make()
keys.authorise("bench", pair.public, ["see", "command"])
ClientKey(pair, keys.robot().public).write(folder / "bench.toml")
if sys.argv[3] == "without keys":
    krabby_proto.front._security = lambda *_: ()
relay = Relay(keys, json.loads(sys.argv[2]), lambda *_: "tcp://127.0.0.1:*",
              streams=("state", "command"))
print(json.dumps(relay.endpoints), flush=True)
while True:
    relay.poll(1.0)
"""


_PROXY: Final = """
import json, sys, zmq
context = zmq.Context()
front, back = context.socket(zmq.ROUTER), context.socket(zmq.DEALER)
front.bind("tcp://127.0.0.1:*")
back.connect(json.loads(sys.argv[1])["command"])
print(json.dumps({"command": front.getsockopt_string(zmq.LAST_ENDPOINT)}), flush=True)
zmq.proxy(front, back)
"""


def _inside(folder: str, *names: str) -> dict[str, str]:
    """Endpoints of a HAL in a folder: state, command, and those of `names`."""
    return {name: f"ipc://{folder}/{name}" for name in ("state", "command", *names)}


def bench_estop(table: Table, n: int) -> None:
    """From the start of `krabby estop` to the gate's ESTOP, beside a Python that loads ZeroMQ.

    The floor counts to the end of its process, which has nothing to do after the import.
    """
    stopped: Samples = []

    class Hal(FakeHal):
        def on_safety(self, op: str, by: str) -> SafetyOutcome:
            stopped.append(time.perf_counter())
            return super().on_safety(op, by)

    with tempfile.TemporaryDirectory() as folder, Hal(_inside(folder, "safety")) as hal:
        place = f"safety={hal.endpoints['safety']}"
        # The command of this environment, as a shell finds it.
        command = [str(Path(sys.executable).with_name("krabby")), "estop", "--endpoint", place]
        started: Samples = []

        def estop() -> None:
            started.append(time.perf_counter())
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL)

        bare = [sys.executable, "-c", "import zmq"]
        whole, floor = in_turn(estop, lambda: subprocess.run(bare, check=True), n)
    ours = [gate - began for began, gate in zip(started, stopped, strict=True)][-n:]
    table.compare("krabby estop: from the shell to ESTOP (100 ms)", "ms", ours, floor, _LOADED)
    table.compare("krabby estop: to the end of its process", "ms", whole, floor, _LOADED)


_RECEIVER: Final = """
import json, sys
from krabby.runtime.testing_traces import TraceReceiver
with TraceReceiver() as receiver:
    print(json.dumps(receiver.endpoint), flush=True)
    sys.stdin.read()
"""


def bench_tracing(table: Table, n: int) -> None:
    """What a tick that is traced adds, and below it what one that is not does."""
    with ExitStack() as stack:
        where = _started(stack, _RECEIVER)
        tracer = make_tracer(TracingCfg(endpoint=where, every=1 << 62), "bench")
        assert tracer is not None
        stack.callback(tracer.close)
        facts = {"krabby.mode": "policy", "krabby.state.sequence": 1}
        names = ("read", "observe", "infer", "exchange", "record")

        def trace() -> None:
            now_ns = time.monotonic_ns()
            time.sleep(0.001)  # the thread that sends has the interpreter meanwhile
            began = time.perf_counter()
            stages = [(name, now_ns, now_ns) for name in names]
            tracer.trace("tick", now_ns, now_ns, stages, facts)
            traced.append(time.perf_counter() - began)

        traced: Samples = []
        _, untraced = in_turn(trace, tracer.due, n)
    table.compare("trace of a tick with 5 stages", "us", traced[-n:], untraced, "a tick without")


def _started(stack: ExitStack, script: str, *arguments: str) -> Any:
    """What a Python process says in its first line; it is ended with the stack."""
    command = [sys.executable, "-c", script, *arguments]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    stack.callback(process.wait)
    stack.callback(process.kill)
    assert process.stdout is not None
    return json.loads(process.stdout.readline())


def bench_transports(table: Table, n: int) -> None:
    """Command round trip and age of a state on arrival, over each transport in turn, at 100 Hz.

    HAL, relays and client are processes; the floor is a bare echo of as many bytes over TCP. The
    floor of a relay is libzmq's own proxy, without keys and checks: one more process on the way.
    """
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        ipc, tcp = _started(stack, _HAL, json.dumps(_inside(str(folder))))
        kinds = ("with keys", "without keys")
        keyed, open_ = (
            _started(stack, _RELAY, str(folder / kind), json.dumps(ipc), kind) for kind in kinds
        )
        bare = {name: place.replace("curve", "tcp") for name, place in open_.items()}
        proxy = {**tcp, **_started(stack, _PROXY, json.dumps(ipc))}
        use_client_key(folder / kinds[0] / "bench.toml")
        clients = {
            name: stack.enter_context(HalClient(places))
            for name, places in (
                ("Unix socket", ipc),
                ("plain TCP", tcp),
                ("relay with keys", keyed),
                ("relay without keys", bare),
                ("libzmq's proxy", proxy),
            )
        }
        echo = Echo("tcp://127.0.0.1:*")
        stack.callback(echo.close)
        target, same_bytes = np.zeros(18, dtype=np.float32), [bytes(7 + 48), bytes(72)]
        trips: dict[str, Samples] = {name: [] for name in clients}
        ages: dict[str, Samples] = {name: [] for name in clients}
        floor: Samples = []
        for client in clients.values():
            client.hello(5.0)
            client.state.wait(5.0)
        rate = Rate(0.01)
        for _ in range(n):
            for name, client in clients.items():
                now_ns = rate.wait().woke_ns
                start = time.perf_counter()
                if client.send_command(target, capture_ns=now_ns, deadline_s=0.1):
                    trips[name].append(time.perf_counter() - start)
                client.state.latest()
                state = client.state.wait(
                    0.02
                )  # waits for the next one: its age is the transport's
                if state is not None:
                    ages[name].append((time.monotonic_ns() - state.header.publish_ns) * 1e-9)
            rate.wait()
            start = time.perf_counter()
            echo(same_bytes)
            floor.append(time.perf_counter() - start)
        for name in clients:
            what = f"command round trip, {name}"
            table.compare(what, "ms", trips[name], floor, "REQ/REP echo of two frames, TCP")
        for name in clients:
            table.compare(f"age of a state on arrival, {name}", "ms", ages[name], None, "")
        for what, one, other in (
            ("keys", "relay with keys", "relay without keys"),
            ("the relay with keys", "relay with keys", "plain TCP"),
            ("libzmq's proxy", "libzmq's proxy", "plain TCP"),
        ):
            more, less = (quantiles(trips[name], "ms") for name in (one, other))
            p50, p99 = (more[key] - less[key] for key in ("p50", "p99"))
            load = os.getloadavg()[0]
            print(f"{what}: round trip p50 {p50:+.3f} ms, p99 {p99:+.3f} ms, load {load:.1f}")


def bench_gate(table: Table, desc: RobotDescription) -> None:
    """One HAL cycle of the safety gate."""
    gate = SafetyGate(GateCfg.from_description(desc))
    zero, upright = np.zeros(18), np.array([0.0, 0.0, 0.0, 1.0])
    pos = desc.default_joint_pos
    clock = itertools.count(1_000_000, 5_000_000)
    gate.observe(pos, zero, zero, upright, next(clock))
    gate.request("arm", next(clock))

    def cycle() -> None:
        now_ns = next(clock)
        gate.observe(pos, zero, zero, upright, now_ns)
        gate.command(pos, now_ns)
        gate.step(now_ns)

    ours, floor = in_turn(cycle, lambda: np.clip(pos, desc.joint_lower, desc.joint_upper), 3000)
    table.compare(
        "safety gate: observe, command, step", "us", ours, floor, "one np.clip of 18 numbers"
    )


def bench_policy(table: Table, desc: RobotDescription, name: str) -> None:
    """Observation and one step of the policy."""
    bundle = PolicyBundle.load(bundle_dir(name), desc)
    policy = OnnxPolicy(bundle)
    builder = ObservationBuilder(bundle.observation, desc)
    term = bundle.observation.term("features")
    nothing = np.zeros(3)
    inputs = ObservationInputs(
        base_quat_w=np.array([0.0, 0.0, 0.0, 1.0]),
        base_ang_vel_b=nothing,
        base_lin_acc_b=nothing,
        joint_pos=desc.default_joint_pos,
        joint_vel=np.zeros(18),
        foot_contact=np.ones(6),
        nav_command=np.array([0.35, 0.0, 0.1]),
        last_action=np.zeros(18),
        features=None if term is None else np.zeros(term.size),
        features_age=np.zeros(1),
    )
    ours, floor = in_turn(lambda: policy.step(builder.build(inputs)), inputs.joint_pos.copy, 2000)
    what = f"policy {bundle.name}: observation and inference"
    table.compare(what, "us", ours, floor, "a copy of 18 numbers")


def bench_networks(table: Table, desc: RobotDescription, bundle: PolicyBundle) -> None:
    """Encoder and actor of a policy that sees, on one thread."""
    rng = np.random.default_rng(0)
    actor, encoder = OnnxPolicy(bundle), OnnxEncoder(bundle)
    obs = rng.standard_normal((1, bundle.observation.size)).astype(np.float32)
    image = rng.uniform(-0.5, 0.5, IMAGE_SHAPE).astype(np.float32)
    layout = encoder.spec.proprio
    eye = None if layout is None else np.zeros((1, layout.size), np.float32)
    for part, step, seen in (
        ("actor", lambda: actor.step(obs), obs),
        ("depth encoder", lambda: encoder.step(image, eye), image[None, None]),
    ):
        ours, floor = in_turn(step, _copying_network(seen), 2000)
        what = f"policy {bundle.name}: {part}, one thread"
        table.compare(what, "ms", ours, floor, "a network that copies its input")


def _copying_network(value: Any) -> Callable[[], object]:
    """One step of a network that does nothing, run by the same runtime."""
    shapes = [helper.make_tensor_value_info(x, TensorProto.FLOAT, value.shape) for x in "xy"]
    node = helper.make_node("Identity", ["x"], ["y"])
    graph = helper.make_graph([node], "copy", shapes[:1], shapes[1:])
    opset = helper.make_opsetid("", 18)
    model = helper.make_model(graph, opset_imports=[opset], ir_version=9)
    spec = NetworkSpec(
        content=model.SerializeToString(),
        source="copy",
        inputs={"x": value.shape},
        output=("y", value.shape),
    )
    network = OnnxRuntime().open(spec)

    def step() -> None:
        network.set_input("x", value)
        network.run()

    return step


def bench_depth(table: Table, desc: RobotDescription) -> None:
    """The policy image, and the picture it is made from beside MuJoCo's own ray caster."""
    camera = desc.camera
    rng = np.random.default_rng(0)
    image = rng.uniform(0.3, camera.far_m, (camera.height, camera.width)).astype(np.float32)
    preprocess = DepthPreprocessor(camera)
    ours, floor = in_turn(lambda: preprocess(image), image.copy, 1000)
    what = "depth frame to policy image"
    table.compare(what, "us", ours, floor, "a copy of the frame")

    course = make_course("mixed", difficulty=0.5, seed=0)
    renderer = DepthRenderer(camera, course.boxes)
    pos_w, optical_wc = camera_pose(camera, np.array([1.5, 0.0, 0.45]), np.array([0, 0, 0, 1.0]))
    caster = _ray_caster(build_model(desc, course), renderer, pos_w, optical_wc)
    ours, floor = in_turn(lambda: renderer.render(pos_w, optical_wc), image.copy, 300)
    peer, _ = in_turn(caster, image.copy, 100)
    what = f"depth image {camera.height} x {camera.width}, course mixed"
    table.compare(what, "ms", ours, floor, "a copy of the frame")
    table.compare(f"{what}, mj_multiRay", "ms", peer, None, "(the peer)")


def _ray_caster(
    model: mujoco.MjModel, renderer: DepthRenderer, pos_w: Any, optical_wc: Any
) -> Callable[[], None]:
    data = mujoco.MjData(model)
    mujoco.mj_forward(model, data)
    right, down = renderer.rays
    grid = np.stack([*np.meshgrid(right, down), np.ones((down.size, right.size))], axis=-1)
    rays = (grid.reshape(-1, 3) @ optical_wc.T).astype(np.float64)
    rays = np.ascontiguousarray(rays / np.linalg.norm(rays, axis=1, keepdims=True)).ravel()
    n = down.size * right.size
    geom, distance = np.zeros(n, np.int32), np.zeros(n)
    terrain = np.array([1, 0, 0, 0, 0, 0], np.uint8)

    def cast() -> None:
        mujoco.mj_multiRay(
            model, data, pos_w, rays, terrain, True, -1, geom, distance, None, n, 15.0
        )

    return cast


def bare_loop(duration_s: float) -> Samples:
    """Lateness [s] of a loop that does nothing but sleep until the next 10 ms."""
    period_ns = 10_000_000
    due = (time.monotonic_ns() // period_ns + 2) * period_ns
    late: Samples = []
    for _ in range(round(duration_s * 100)):
        time.sleep(max(due - time.monotonic_ns(), 0) * 1e-9)
        late.append((time.monotonic_ns() - due) * 1e-9)
        due += period_ns
    return late


def bench_stack(table: Table, duration_s: float, policy: str, course: str) -> dict[str, Any]:
    """The three processes as users run them, their own summaries beside a bare loop."""
    idle = quantiles(bare_loop(min(duration_s, 10.0)), "ms")
    command = [
        *(sys.executable, "-m", "krabby_cli", "up", "--base-port", "0", "--no-view"),
        *("--duration", str(duration_s), "--policy", policy, "--course", course),
    ]
    process = subprocess.Popen(
        command, cwd=_REPO, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    )
    beside = quantiles(bare_loop(duration_s), "ms")
    output, _ = process.communicate(timeout=60.0 + duration_s)
    if process.returncode:
        sys.exit(f"krabby up ended with status {process.returncode}; run it alone to see why")
    summary = json.loads(output.splitlines()[-1])
    logs = _REPO / summary["logs"]
    loop, hal, camera = (_last_summary(logs / f"{name}.log") for name in _SERVICES)
    for name, values in (("gameloop", loop), ("sim-hal", hal)):
        lateness = _from_summary(values, "lateness")
        if lateness:
            table.add(f"{name}: wake-up lateness", "ms", lateness, idle, "bare loop, idle machine")
            table.add("", "ms", {}, beside, "bare loop beside the three")
    for what, values, name in (
        ("gameloop: receive", loop, "receive"),
        ("gameloop: observe", loop, "observe"),
        ("gameloop: infer", loop, "infer"),
        ("gameloop: command round trip", loop, "command_rtt"),
        ("gameloop: all stages of a tick, of 10 ms", loop, "work"),
        ("state: capture to actuator write", loop, "obs_age"),
        ("features: age when used", loop, "features_age"),
        ("sim-hal: depth image in the stack", hal, "render"),
        ("camera: frame received to features published", camera, "processing"),
    ):
        table.add(what, "ms", _from_summary(values, name), None, "")
    print(
        f"loop_hz {summary['loop_hz']}, deadline misses {summary['deadline_misses']}, "
        f"cores {summary['cpu_cores']}, distance {summary['distance_m']} m"
    )
    return summary


def bench_recorders(duration_s: float, policy: str, course: str) -> dict[str, Any]:
    """Age of the state at the drives with the black box and a recording, and without, in turn."""
    choices = {"none": ["--no-black-box"], "black box": [], "black box and recording": None}
    ages: dict[str, list[float]] = {name: [] for name in choices}
    with tempfile.TemporaryDirectory() as folder:
        for number in range(_ROUNDS):
            for name, options in choices.items():
                record = [f"--record={folder}/{number}.mcap"] if options is None else options
                command = [
                    *(sys.executable, "-m", "krabby_cli", "up", "--base-port", "0", "--no-view"),
                    *("--duration", str(duration_s), "--policy", policy, "--course", course),
                    *record,
                ]
                done = subprocess.run(
                    command, cwd=_REPO, capture_output=True, timeout=120.0 + duration_s, check=True
                )
                summary = json.loads(done.stdout.splitlines()[-1])
                ages[name].append(summary["obs_age_p99_ms"])
    figures = {name: float(np.median(ages[name])) for name in choices}
    floor = figures["none"]
    print(f"\nstate, capture to actuator write, p99, median of {_ROUNDS} runs of {duration_s:g} s")
    for name, age in figures.items():
        print(f"  with {name:<24} {age:7.3f} ms, {age / floor:5.2f} x none")
    print(f"  load {os.getloadavg()[0]:.1f}")
    return figures


def bench_ring(duration_s: float) -> dict[str, float]:
    """What the black box costs while nothing happens: every stream at its rate, played to it."""
    rng = np.random.default_rng(0)
    depth = np.linspace(0.3, 4.0, 106 * 60) + rng.normal(0.0, 0.01, (16, 106 * 60))
    records = rng.integers(0, 256, (16, 900), dtype=np.uint8)
    records[:, 0], records[:, 1:4] = 3, 0
    # Stream, payloads in turn and every how many slots of 5 ms.
    played = (
        (STATE, rng.random((64, STATE.size)), 1),
        (TRUTH, np.zeros((1, TRUTH.size)), 2),
        (TRACE, records[:, :191], 2),
        (TICKS, records, 2),
        (FEATURES, rng.random((16, 32)), 6),
        (CAMERA, depth.astype(np.float32), 6),
    )
    with ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory())
        place = {name: f"ipc://{folder}/{name}" for name in STREAMS}
        publishers = [
            (stack.enter_context(Publisher(place[stream.name], stream)), payloads, slots)
            for stream, payloads, slots in played
        ]
        options = [f"--endpoint={name}={endpoint}" for name, endpoint in place.items()]
        command = [sys.executable, "-m", "krabby_cli", "record", f"--ring={folder}/ring", *options]
        process = subprocess.Popen(command)
        stack.callback(process.wait)
        stack.callback(process.terminate)
        box = psutil.Process(process.pid)
        rate, began = Rate(0.005), None
        for slot in range(round((duration_s + _RING_STARTS_S) * 200)):
            rate.wait()
            if began is None and slot >= _RING_STARTS_S * 200:
                began, began_s = box.cpu_times(), time.monotonic()
            for publisher, payloads, slots in publishers:
                if slot % slots == 0:
                    payload = payloads[slot // slots % len(payloads)]
                    publisher.publish(payload, capture_ns=time.monotonic_ns())
        assert began is not None
        ended, elapsed_s = box.cpu_times(), time.monotonic() - began_s
        share = (ended.user + ended.system - began.user - began.system) / elapsed_s
        memory_mb = box.memory_info().rss / 2**20
    load = os.getloadavg()[0]
    print(
        f"\nblack box while nothing happens: {100 * share:.2f} % of a core, {memory_mb:.0f} MB, "
        f"over {elapsed_s:.0f} s at a load of {load:.1f}"
    )
    return {"cores": share, "memory_mb": memory_mb, "load": load}


_RING_STARTS_S: Final = 5.0
_ROUNDS: Final = 3
_SERVICES: Final = ("gameloop", "sim-hal", "camera")


def _last_summary(path: Path) -> dict[str, Any]:
    events = [json.loads(line) for line in path.read_text().splitlines() if line.startswith("{")]
    return next(event for event in reversed(events) if event["event"] == "summary")


def _from_summary(summary: Mapping[str, Any], name: str) -> Quantiles:
    keys = {key: f"{name}_{key}_ms" for key in ("p50", "p99", "max")}
    return {key: summary[full] for key, full in keys.items() if full in summary}


def main() -> None:
    """Run all of it; the last line of stdout is JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--duration", type=float, default=30.0, help="length of the run [s]")
    parser.add_argument(
        "--policy",
        default=DEFAULT_POLICY,
        help=f"a name under assets/policies, a folder, or {_STAND_IN!r}: the gait with the eyes of "
        "an untrained student (default %(default)s)",
    )
    parser.add_argument("--course", default="flat", help="course of that run (default %(default)s)")
    options = parser.parse_args()
    desc = RobotDescription.load()
    table = Table()
    with tempfile.TemporaryDirectory() as folder:
        stand_in = write_seeing_gait(Path(folder) / _STAND_IN, desc, features="latent")
        policy = str(stand_in.path) if options.policy == _STAND_IN else options.policy
        bundle = PolicyBundle.load(bundle_dir(policy), desc)
        bench_codec(table)
        bench_gate(table, desc)
        bench_policy(table, desc, policy)
        bench_networks(table, desc, stand_in if bundle.encoder is None else bundle)
        bench_depth(table, desc)
        bench_transports(table, 500)
        bench_estop(table, 40)
        bench_tracing(table, 2000)
        summary = bench_stack(table, options.duration, policy, options.course)
        ring = bench_ring(min(options.duration, 20.0))
        recorders = bench_recorders(min(options.duration, 20.0), policy, options.course)
    print(json.dumps({"rows": table.rows, "stack": summary, "ring": ring, "recorders": recorders}))


if __name__ == "__main__":
    main()
