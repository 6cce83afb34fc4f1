"""After any request, valid or not, the next one is answered."""

import json
import os
import resource
import shutil
import time

import pytest
import zmq
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from krabby.robot.errors import BundleError
from krabby.runtime.testing import free_port, until
from krabby_gameloop.control_socket import ControlSocket
from krabby_gameloop.rehearsal import rehearse
from krabby_proto import ControlClient, make_hello


@pytest.fixture
def asked():
    """What reached the loop."""
    return []


@pytest.fixture
def control(desc, asked, monkeypatch):
    for module in ("rehearsal", "control_socket"):  # for a busy machine
        monkeypatch.setattr(f"krabby_gameloop.{module}.LIMIT_S", 50.0)
    control = ControlSocket(
        f"tcp://127.0.0.1:{free_port()}",
        desc,
        control_rate_hz=100.0,
        hello=make_hello(service="gameloop"),
        status=lambda: {"mode": "passive"},
        request=asked.append,
    )
    yield control
    began_s = time.monotonic()
    control.close()
    assert time.monotonic() - began_s < 40.0  # the limit of a rehearsal is 50 s here


@pytest.fixture
def ask(control):
    client = ControlClient(control.endpoint)
    yield lambda op, **facts: client.request(op, 60.0, **facts)
    client.close()


def bundle(policies, folder, **changes):
    """A copy of the bundle `blind`, with other values in its manifest."""
    shutil.copytree(policies / "blind", folder, dirs_exist_ok=True)
    manifest = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps(manifest | changes))
    return folder


def deep(policies, folder):
    bundle(policies, folder)
    text = (folder / "manifest.json").read_text().rstrip()
    nested = '{"a":' * 100_000 + "1" + "}" * 100_000
    (folder / "manifest.json").write_text(f'{text[:-1]}, "evaluation": {nested}}}')


def fifo(policies, folder):
    folder.mkdir()
    os.mkfifo(folder / "manifest.json")


def fifo_network(policies, folder):
    bundle(policies, folder)
    (folder / "policy.onnx").unlink()
    os.mkfifo(folder / "policy.onnx")


def device(policies, folder):
    folder.mkdir()
    (folder / "manifest.json").symlink_to("/dev/zero")


def directory(policies, folder):
    (folder / "manifest.json").mkdir(parents=True)


def loop(policies, folder):
    folder.symlink_to(folder)


def huge(policies, folder):
    bundle(policies, folder)
    with (folder / "manifest.json").open("ab") as file:
        file.truncate(1 << 40)  # sparse


def many_numbers(policies, folder):
    term = {"name": "nav_command", "size": 3, "scale": 1.0, "history": 1_000_000}
    bundle(policies, folder, observation=[term])


def huge_state(policies, folder):
    state = {"input": "h", "output": "h2", "shape": [1_000_000, 1_000_000, 1_000_000]}
    bundle(policies, folder, state=[state])


def not_a_number(policies, folder):
    bundle(policies, folder, control_rate_hz=float("nan"))


def not_onnx(policies, folder):
    bundle(policies, folder)
    content = os.urandom(1000)
    (folder / "policy.onnx").write_bytes(content)


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (deep, "nested too deeply"),
        (fifo, "is not a regular file"),
        (fifo_network, "is not a regular file"),
        (device, "is not a regular file"),
        (directory, "Is a directory"),
        (loop, "cannot read"),
        (huge, "at most 1048576 are read"),
        (many_numbers, "3000000 numbers; at most 1000000"),
        (huge_state, "at most 1000000"),
        (not_a_number, "is not JSON"),
        (not_onnx, "SHA-256"),
    ],
)
def test_a_bundle_that_is_none_is_refused_and_control_goes_on(
    tmp_path, policies, ask, control, make, reason
):
    make(policies, tmp_path / "evil")
    answer = ask("policy", policy=str(tmp_path / "evil"))
    assert not answer["ok"]
    assert reason in answer["reason"]
    assert control.take_runner() is None
    assert ask("status")["mode"] == "passive"


@pytest.mark.parametrize(
    "name",
    [
        *("/\0", "\0", "/\ud800", "\ud800", "..", "/etc", "../../../etc/passwd"),
        *("x" * 10_000, "/" + "x" * 10_000, "/" * 5000),
    ],
    ids=range(10),
)
def test_a_name_that_is_no_path_is_refused_and_control_goes_on(ask, control, name):
    answer = ask("policy", policy=name)
    assert not answer["ok"]
    assert answer["reason"]
    assert ask("status")["mode"] == "passive"


def test_a_good_policy_is_handed_over(policies, ask, control):
    assert ask("policy", policy=str(policies / "other")) == {
        "ok": True,
        "mode": "passive",
        "policy": str(policies / "other"),
    }
    assert control.take_runner().bundle.name == "other"
    assert control.take_runner() is None


def test_while_a_policy_loads_others_are_answered(endless, policies, ask, asked, control):
    """A network that never comes to an end: stand and sit and status do not wait for it."""
    with zmq.Context() as context, context.socket(zmq.DEALER) as other:
        other.linger = 0
        other.connect(control.endpoint)
        request = {"op": "policy", "policy": str(endless)}
        other.send_multipart([b"", b"control", json.dumps(request).encode()])
        until(lambda: control._load is not None)
        assert ask("status")["ok"]
        assert ask("stand")["ok"]
        assert asked == ["stand"]
        refused = ask("policy", policy=str(policies / "other"))
        assert "still loading policy" in refused["reason"]
        assert not other.poll(0)


@pytest.mark.slow
def test_who_asked_for_a_network_that_never_ends_is_told(endless, ask, monkeypatch):
    monkeypatch.setattr("krabby_gameloop.rehearsal.LIMIT_S", 2.0)
    answer = ask("policy", policy=str(endless))
    assert not answer["ok"]
    assert "given up" in answer["reason"]


@pytest.mark.slow
def test_a_network_that_never_ends_is_given_up(endless, desc):
    began_s = time.monotonic()
    with pytest.raises(BundleError, match="not loaded within 3 s, given up"):
        rehearse(str(endless), desc, 100.0, limit_s=3.0)
    assert time.monotonic() - began_s < 20.0


def test_a_network_that_takes_all_memory_is_refused_in_bounded_memory(hungry, desc):
    before_kb = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    with pytest.raises(BundleError, match=r"Failed to allocate memory .*; export it again$"):
        rehearse(str(hungry), desc, 100.0)
    peak_kb = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    # Of any child so far; a child counts this process, which it was before it ran its program.
    own_kb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert peak_kb < max(400_000, before_kb + 1, own_kb + 1)


def test_a_rehearsal_ends_when_the_loop_does(endless, desc):
    with pytest.raises(BundleError, match="about to end"):
        rehearse(str(endless), desc, 100.0, stopping=lambda: True)


def test_a_rehearsal_that_crashes_is_a_refusal(policies, desc, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", "")
    monkeypatch.setattr("krabby.runtime.child.sys.executable", "/bin/false")
    with pytest.raises(BundleError, match="ended with status 1"):
        rehearse(str(policies / "blind"), desc, 100.0)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)


@settings(
    max_examples=60,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(
    body=st.one_of(
        st.lists(st.binary(max_size=80), max_size=6),
        json_values.map(lambda value: [b"control", json.dumps(value).encode()]),
        st.fixed_dictionaries(
            {"op": st.sampled_from(["policy", "stand", "status", "jump"]) | json_values},
            # numbers in place of names: a name would start a child process each time
            optional={"policy": st.none() | st.integers() | st.lists(st.text()), "by": json_values},
        ).map(lambda value: [b"control", json.dumps(value).encode()]),
    )
)
def test_whatever_comes_in_the_next_request_is_answered(control, ask, body):
    with zmq.Context() as context, context.socket(zmq.DEALER) as raw:
        raw.linger = 1000
        raw.connect(control.endpoint)
        raw.send_multipart([b"", *body])
        raw.poll(0)
    assert ask("status")["mode"] == "passive"


def test_the_rates_of_the_rehearsal_and_of_the_loop_are_one(policies, desc):
    with pytest.raises(BundleError, match="control_rate_hz"):
        rehearse(str(policies / "blind"), desc, 50.0)
    assert len(rehearse(str(policies / "blind"), desc, 100.0)) == 64
