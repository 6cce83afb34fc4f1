import json
import os
import shutil
import signal
import sys
import textwrap
import time
from pathlib import Path

import psutil
import pytest
from krabby_cli.errors import ServiceDied
from krabby_cli.supervise import ChildSpec, Supervisor

SERVICE = """
    import json, math, os, signal, sys, time

    name, journal = sys.argv[1:3]
    class Stop:
        # Not an Event: a handler that sets one can deadlock with the thread that waits for it.
        asked = False
        def wait(self, seconds=math.inf):
            end = time.monotonic() + seconds
            while not self.asked and time.monotonic() < end:
                time.sleep(min(seconds, 0.02))
            return self.asked
    stop = Stop()
    signal.signal(signal.SIGINT, lambda *_: setattr(stop, "asked", True))
    def say(event, **facts):
        print(json.dumps({"level": "info", "service": name, "event": event, **facts}), flush=True)
    say("starting", pid=os.getpid(), run_id=os.environ["KRABBY_RUN_ID"])
    say("running")
    while not stop.wait(0.05):
        pass
    with open(journal, "a") as file:
        file.write(name + "\\n")
    say("summary", stopped_by="SIGINT", figure=42)
"""


@pytest.fixture
def scripts(tmp_path):
    """Writes a script and gives the command that runs it."""

    def command(code, *args):
        path = tmp_path / f"script{len(list(tmp_path.glob('script*')))}.py"
        path.write_text(textwrap.dedent(code))
        return (sys.executable, str(path), *map(str, args))

    return command


@pytest.fixture
def supervise(tmp_path):
    """Makes supervisors whose echo goes to `.heard`."""

    def make(*specs, **options):
        heard = []
        supervisor = Supervisor(
            specs=specs,
            folder=tmp_path,
            env={**os.environ, "KRABBY_RUN_ID": "feed"},
            echo=lambda name, line: heard.append((name, line.readable())),
            **options,
        )
        supervisor.heard = heard
        return supervisor

    return make


def until(condition, supervisor):
    """Poll until a child has done what it does, for at most 60 s."""
    end = time.monotonic() + 60.0
    while time.monotonic() < end:
        supervisor.poll()
        if condition():
            return
        time.sleep(0.01)
    raise AssertionError("it did not happen within 60 s")


def test_processes_are_started_watched_and_stopped_in_order(tmp_path, scripts, supervise):
    journal = tmp_path / "journal"
    specs = [ChildSpec(name=n, argv=scripts(SERVICE, n, journal)) for n in ("a", "b", "c")]
    with supervise(*specs, stop_order=("b", "c", "a")) as supervisor:
        supervisor.start()
        assert supervisor.not_ready == ["a", "b", "c"]
        until(lambda: supervisor.all_ready, supervisor)
        pids = [child.pid for child in supervisor.children.values()]
        statuses = supervisor.stop()

    assert statuses == {"a": 0, "b": 0, "c": 0}
    assert journal.read_text().split() == ["b", "c", "a"]
    assert not any(psutil.pid_exists(pid) for pid in pids)
    assert supervisor.children["a"].summary["figure"] == 42
    first = json.loads((tmp_path / "a.log").read_text().splitlines()[0])
    assert first["run_id"] == "feed"
    assert first["pid"] == pids[0], "the tether became the service, it is not its parent"


def test_a_process_that_dies_is_named_with_its_status_and_last_words(scripts, supervise):
    dying = """
        import json, sys
        print(json.dumps({"level": "info", "event": "running"}), flush=True)
        print(json.dumps({"level": "error", "event": "no ground", "depth_m": 2}), flush=True)
        sys.stderr.write("sim-hal: cannot go on\\n")
        sys.exit(3)
    """
    spec = ChildSpec(name="sim-hal", argv=scripts(dying))
    with supervise(spec) as supervisor:
        supervisor.start()
        with pytest.raises(ServiceDied) as died:
            until(lambda: False, supervisor)

    message = str(died.value)
    assert "sim-hal ended with status 3" in message
    assert "error: no ground depth_m=2" in message
    assert "sim-hal: cannot go on" in message
    assert ("sim-hal", "error: no ground depth_m=2") in supervisor.heard
    assert ("sim-hal", "info: running") not in supervisor.heard


def test_a_process_killed_by_a_signal_is_said_to_be(scripts, supervise):
    spec = ChildSpec(name="camera", argv=scripts("import os; os.kill(os.getpid(), 11)"))
    with supervise(spec) as supervisor:
        supervisor.start()
        with pytest.raises(ServiceDied, match="camera ended by SIGSEGV"):
            until(lambda: False, supervisor)


def ready_then(code):
    return f"""
        import json, os, sys, time
        print(json.dumps({{"level": "info", "event": "running", "pid": os.getpid()}}), flush=True)
        time.sleep(0.05)
        {code}
    """


def test_a_process_that_dies_after_its_startup_is_started_again(tmp_path, scripts, supervise):
    once = tmp_path / "once"
    mortal = ready_then(
        f"os.path.exists({str(once)!r}) or (open({str(once)!r}, 'w'), os.kill(os.getpid(), 9)); "
        "time.sleep(60)"
    )
    spec = ChildSpec(name="gameloop", argv=scripts(mortal))
    with supervise(spec, restarts=1) as supervisor:
        supervisor.start()
        first = supervisor.children["gameloop"].pid
        until(lambda: supervisor.deaths and supervisor.all_ready, supervisor)
        assert supervisor.children["gameloop"].pid != first
        (death,) = supervisor.deaths
    assert death.startswith("gameloop ended by SIGKILL")
    text = (tmp_path / "gameloop.log").read_text()
    lines = [json.loads(line) for line in text.splitlines() if line.startswith("{")]
    assert [line["event"] for line in lines] == ["running", "running"], "one log of both"
    assert lines[0]["pid"] == first


def test_a_process_that_dies_again_and_again_is_given_up(scripts, supervise):
    spec = ChildSpec(name="gameloop", argv=scripts(ready_then("os.kill(os.getpid(), 9)")))
    with supervise(spec, restarts=2) as supervisor:
        supervisor.start()
        with pytest.raises(ServiceDied, match="gameloop ended by SIGKILL"):
            until(lambda: False, supervisor)
    assert len(supervisor.deaths) == 2


def test_a_process_that_dies_in_its_startup_is_not_started_again(scripts, supervise):
    spec = ChildSpec(name="gameloop", argv=scripts("import sys; sys.exit(2)"))
    with supervise(spec, restarts=3) as supervisor:
        supervisor.start()
        with pytest.raises(ServiceDied, match="gameloop ended with status 2"):
            until(lambda: False, supervisor)
    assert supervisor.deaths == []


def test_a_process_cannot_take_more_memory_than_its_limit(scripts, supervise):
    hungry = """
        kept = [bytearray(40 << 20)]
        print("40 MB")
        kept.append(bytearray(200 << 20))
    """
    spec = ChildSpec(name="gameloop", argv=scripts(hungry), memory_bytes=150 << 20)
    with supervise(spec) as supervisor:
        supervisor.start()
        with pytest.raises(ServiceDied) as died:
            until(lambda: False, supervisor)
    assert "40 MB" in str(died.value)
    assert "MemoryError" in str(died.value)


def test_a_log_that_may_be_incomplete_is_said_to_be(scripts, supervise, monkeypatch):
    usage = shutil.disk_usage("/")._replace(free=0)
    monkeypatch.setattr("krabby_cli.supervise.shutil.disk_usage", lambda _: usage)
    with supervise(ChildSpec(name="camera", argv=scripts("import sys; sys.exit(1)"))) as supervisor:
        supervisor.start()
        with pytest.raises(
            ServiceDied, match=r"camera\.log, which is incomplete: the disk is full"
        ):
            until(lambda: False, supervisor)


def test_a_process_that_may_end_by_itself_is_reported_not_raised(scripts, supervise):
    spec = ChildSpec(name="sim-hal", argv=scripts("pass"), may_end=True)
    with supervise(spec) as supervisor:
        supervisor.start()
        until(lambda: supervisor.children["sim-hal"].status is not None, supervisor)
        assert supervisor.poll() == "sim-hal"


def test_a_process_that_cannot_be_started_says_what_to_do(tmp_path, supervise):
    spec = ChildSpec(name="camera", argv=(str(tmp_path / "missing"),))
    with supervise(spec) as supervisor:
        supervisor.start()
        with pytest.raises(ServiceDied, match=r"missing cannot be started: No such.*make setup"):
            until(lambda: False, supervisor)


def test_a_process_stopped_while_it_starts_ends_quietly_and_well(scripts, supervise):
    slow = """
        import time
        open(__file__ + ".began", "w").close()
        time.sleep(60)
    """
    argv = scripts(slow)
    with supervise(ChildSpec(name="slow", argv=argv)) as supervisor:
        supervisor.start()
        until(lambda: Path(argv[1] + ".began").exists(), supervisor)
        assert supervisor.stop() == {"slow": 0}
    assert supervisor.heard == []


def test_a_process_that_ignores_sigint_gets_sigterm(scripts, supervise):
    deaf = """
        import json, signal, time
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        print(json.dumps({"event": "running"}), flush=True)
        while True:
            time.sleep(1)
    """
    with supervise(ChildSpec(name="deaf", argv=scripts(deaf)), grace_s=1.0) as supervisor:
        supervisor.start()
        until(lambda: supervisor.all_ready, supervisor)
        assert supervisor.stop() == {"deaf": -signal.SIGTERM}


def test_impatience_kills_at_once_what_ignores_every_signal(scripts, supervise):
    deaf = """
        import json, signal, time
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        print(json.dumps({"event": "running"}), flush=True)
        while True:
            time.sleep(1)
    """
    spec = ChildSpec(name="deaf", argv=scripts(deaf))
    with supervise(spec, grace_s=60.0, is_impatient=lambda: True) as supervisor:
        supervisor.start()
        until(lambda: supervisor.all_ready, supervisor)
        assert supervisor.stop() == {"deaf": -signal.SIGKILL}


def test_nothing_is_left_behind_when_the_supervising_code_fails(scripts, supervise, tmp_path):
    spec = ChildSpec(name="a", argv=scripts(SERVICE, "a", tmp_path / "journal"))
    supervisor = supervise(spec)

    def fail_while_running():
        with supervisor:
            supervisor.start()
            until(lambda: supervisor.all_ready, supervisor)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail_while_running()
    assert supervisor.children["a"].status == 0


def test_processes_end_when_their_supervisor_is_killed(scripts, tmp_path):
    supervisor_code = f"""
        import os, sys, time
        from pathlib import Path
        from krabby_cli.supervise import ChildSpec, Supervisor
        spec = ChildSpec(name="a", argv=tuple(sys.argv[1:]))
        s = Supervisor(specs=[spec], folder=Path({str(tmp_path)!r}),
                       env={{**os.environ, "KRABBY_RUN_ID": "x"}}, echo=print)
        s.start()
        while not s.all_ready:
            s.poll()
            time.sleep(0.02)
        print(s.children["a"].pid, flush=True)
        time.sleep(60)
    """
    service = scripts(SERVICE, "a", tmp_path / "journal")
    with psutil.Popen(scripts(supervisor_code, *service), stdout=-1) as supervisor:
        child = psutil.Process(int(supervisor.stdout.readline()))
        supervisor.kill()
        supervisor.wait()
    while True:
        try:
            if child.status() == psutil.STATUS_ZOMBIE:
                break
        except psutil.NoSuchProcess:
            break
        time.sleep(0.01)
