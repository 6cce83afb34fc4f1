"""What runs by default."""

from pathlib import Path

from krabby_cli.plan import DEFAULT_COURSE, DEFAULT_POLICY

ROOT = Path(__file__).parents[1]


def test_make_sim_and_the_containers_walk_the_same_policy_on_the_same_course():
    lines = (ROOT / ".env").read_text().splitlines()
    env = dict(line.split("=", 1) for line in lines if line.startswith("KRABBY_"))
    assert (env["KRABBY_POLICY"], env["KRABBY_COURSE"]) == (DEFAULT_POLICY, DEFAULT_COURSE)


def test_no_other_module_has_a_default():
    for name in ("compose.yaml", "compose.jetson.yaml"):
        text = (ROOT / name).read_text()
        assert "${KRABBY_POLICY:" not in text, name
        assert "${KRABBY_COURSE:" not in text, name
    makefile = (ROOT / "Makefile").read_text().splitlines()
    for variable in ("POLICY", "COURSE"):
        (line,) = [line for line in makefile if line.startswith(f"{variable} ")]
        assert line.split("?=")[1].strip() == "", line
