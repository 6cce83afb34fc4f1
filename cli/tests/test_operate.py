import threading

import pytest
from krabby.runtime.testing import free_port
from krabby_cli.__main__ import main
from krabby_cli.status import gate_lines, inability_words, loop_lines
from krabby_proto import ControlServer, make_hello
from krabby_proto.testing import FakeHal


@pytest.fixture
def hal():
    with FakeHal() as fake:
        yield fake


@pytest.fixture
def loop():
    """A game loop's control endpoint: `.asked` has the requests, `.answer` is what it says."""
    stop = threading.Event()
    server = ControlServer(f"tcp://127.0.0.1:{free_port()}", hello=make_hello(service="gameloop"))
    server.asked = []
    server.answer = {"ok": True, "mode": "stand_up", "policy": "gait", "nav": [0.1, 0.0, 0.0]}

    def handle(request):
        server.asked.append(request)
        return server.answer

    def serve():
        while not stop.is_set():
            server.poll(0.05, handle)

    thread = threading.Thread(target=serve)
    thread.start()
    yield server
    stop.set()
    thread.join()
    server.close()


def safety(hal):
    return f"--endpoint=safety={hal.endpoints['safety']}"


def test_arming_and_stopping_reach_the_gate_with_a_name(hal, capsys):
    for op, state in (("arm", "active"), ("estop", "estop"), ("reset", "disarmed")):
        assert main([op, "--by", "ada", safety(hal)]) == 0
        assert capsys.readouterr().out == f"safety gate: {state}\n"
    assert hal.operators == [("arm", "ada"), ("estop", "ada"), ("reset", "ada")]


def test_a_refusal_gives_the_gates_reason(hal, capsys):
    main(["estop", safety(hal)])
    assert main(["arm", safety(hal)]) == 1
    said = capsys.readouterr().err
    assert said == "krabby arm: the safety gate refused arm: the e-stop is latched; reset first\n"


def test_without_an_answer_endpoint_and_deadline_are_named(capsys):
    endpoint = f"tcp://127.0.0.1:{free_port()}"
    assert main(["estop", "--timeout", "0.1", f"--endpoint=safety={endpoint}"]) == 1
    said = capsys.readouterr().err
    assert endpoint in said
    assert "within 0.1 s" in said


def test_standing_and_sitting_reach_the_game_loop(loop, capsys):
    for op in ("stand", "sit"):
        assert main([op, f"--endpoint=control={loop.endpoint}"]) == 0
    assert [request["op"] for request in loop.asked] == ["stand", "sit"]
    assert "game loop: stand_up, policy gait\n" in capsys.readouterr().out


def test_a_stand_that_the_loop_has_only_noted_is_not_told_as_rest(loop, capsys):
    loop.answer = {"ok": True, "mode": "passive", "policy": "gait"}
    assert main(["stand", f"--endpoint=control={loop.endpoint}"]) == 0
    told = "game loop: stands up once the drives are stiff, policy gait\n"
    assert capsys.readouterr().out == told


def test_a_policy_name_is_passed_on_and_a_path_made_absolute(loop, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    where = f"--endpoint=control={loop.endpoint}"
    assert main(["policy", "gait", where]) == 0
    assert main(["policy", "./mine", where]) == 0
    assert [request["policy"] for request in loop.asked] == ["gait", str(tmp_path / "mine")]


def test_a_policy_the_loop_refuses_is_an_error(loop, capsys):
    loop.answer = {"ok": False, "reason": "joint 4 is named otherwise"}
    assert main(["policy", "gait", f"--endpoint=control={loop.endpoint}"]) == 1
    assert "the game loop refused policy gait: joint 4" in capsys.readouterr().err


def test_status_asks_both_and_tells_what_they_do_in_words(hal, loop, capsys):
    both = safety(hal), f"--endpoint=control={loop.endpoint}"
    loop.answer = {
        **{"ok": True, "mode": "policy", "policy": "parkour", "walking": "parkour"},
        **{"blind": False, "sight": "fresh", "nav_source": "operator"},
        **{"nav": [0.5, 0.0, -0.25], "nav_asked": [0.9, 0.0, -0.25], "nav_clamped": ["vx"]},
        "abilities": {"stands": False, "reverses": None, "side_steps": False},
    }
    main(["arm", *both[:1]])
    capsys.readouterr()
    assert main(["status", *both]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "safety gate: active, follows commands",
        "game loop: policy, parkour walks",
        "  policy   parkour",
        "  command  0.50 m/s forward, 0.25 rad/s turning right, from an operator",
        "  asked    0.90 m/s forward, 0.25 rad/s turning right; the policy does less",
        "  note     parkour cannot side-step",
    ]
    main(["estop", *both[:1]])
    loop.answer = {"ok": True, "mode": "passive", "nav": [0.0, 0.0, 0.0], "nav_source": "none"}
    capsys.readouterr()
    assert main(["status", *both]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "safety gate: estop, the robot is limp after an emergency stop; reset, then arm",
        "game loop: passive, the robot rests until it is armed and asked to stand",
        "  command  zero",
    ]


def test_status_names_a_fault_and_says_what_it_is():
    assert gate_lines({"state": "damp", "faults": ["bus", "unheard_of"]}) == [
        "safety gate: damp, the robot is limp after a fault; arm it",
        "  fault    bus, the bus to the drives failed",
        "  fault    unheard_of",
    ]


def test_status_tells_what_the_chosen_policy_cannot_while_another_stands_in_its_place():
    abilities = {"stands": False, "reverses": False, "side_steps": None, "turns_in_place": False}
    answer = {"policy": "parkour", "walking": "gait", "blind": False, "abilities": abilities}
    assert inability_words(answer) == "parkour cannot walk backward, turn in place"
    walks = {**answer, "walking": "parkour"}
    assert inability_words(walks) == "parkour cannot stand still, walk backward, turn in place"
    walks["nav"] = [0.2, 0.0, 0.0]
    assert inability_words(walks) == "parkour cannot walk backward, turn in place"
    assert inability_words({"walking": "gait", "blind": True, "policy": "parkour"}) == ""


def test_status_tells_who_walks_in_place_of_a_policy_without_images():
    answer = {"mode": "policy", "policy": "parkour", "walking": "gait", "blind": True}
    assert loop_lines({**answer, "nav": [0.0, 0.0, 0.0], "nav_source": "mission"}) == [
        "game loop: policy, gait stands",
        "  policy   parkour, gait walks blind in its place",
        "  command  zero, from a mission",
    ]


def test_what_a_loop_answers_cannot_forge_a_line_or_drive_the_terminal(loop, capsys):
    where = f"--endpoint=control={loop.endpoint}"
    loop.answer = {"ok": False, "reason": "\x1b[2Jno\nkrabby stand: done"}
    assert main(["stand", where]) == 1
    said = capsys.readouterr().err
    assert said == "krabby stand: the game loop refused stand: \\x1b[2Jno\\nkrabby stand: done\n"
    loop.answer = {"ok": True, "mode": "sit\r\x1b[31m"}
    assert main(["stand", where]) == 0
    assert capsys.readouterr().out == "game loop: sit\\r\\x1b[31m\n"
