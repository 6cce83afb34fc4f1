"""Strict configuration: what is wrong is named, with its place, its value and the way out."""

from pathlib import Path
from typing import Literal

import pytest
from krabby.config import (
    Config,
    ConfigError,
    Positive,
    Share,
    Text,
    check,
    describe,
    load,
    parse,
    read_toml,
    split_override,
    to_dict,
)


class CourseCfg(Config, frozen=True, kw_only=True):
    name: Literal["flat", "steps"] = "flat"
    """Which course."""
    difficulty: Share = 0.5
    """0 is easy,
    1 is hard."""


class BaseCfg(Config, frozen=True, kw_only=True):
    metrics_port: int = 0
    """TCP port; 0 for none."""


class Cfg(BaseCfg, frozen=True, kw_only=True):
    course: CourseCfg = CourseCfg()
    speed: float = 1.0
    """How fast."""
    name: str = "crab"
    """Who."""
    cpus: tuple[int, ...] = ()
    """Where."""
    record: Path | None = None
    """Recording."""
    enabled: bool = True
    """Whether."""

    def __post_init__(self):
        if self.speed == 13:
            raise ValueError("13 is bad luck")
        check(self.name != "", "name", self.name, "a name")


def write(tmp_path, text):
    path = tmp_path / "robot.toml"
    path.write_text(text)
    return path


def failure(tmp_path, text="", *overrides):
    with pytest.raises(ConfigError) as caught:
        load(Cfg, write(tmp_path, text), overrides)
    return str(caught.value)


def test_defaults_hold_without_file_and_overrides():
    assert load(Cfg, None) == Cfg()


def test_file_and_overrides_are_read_and_later_wins(tmp_path):
    path = write(
        tmp_path, 'speed = 2\ncpus = [0, 1]\nrecord = "a.mcap"\n[course]\nname = "steps"\n'
    )
    cfg = load(Cfg, path, ["speed=3", "course.difficulty=0.25", "course.name=flat"])
    assert cfg == Cfg(
        speed=3.0,
        cpus=(0, 1),
        record=Path("a.mcap"),
        course=CourseCfg(name="flat", difficulty=0.25),
    )
    assert isinstance(cfg.speed, float)


def test_a_table_given_as_override_sets_only_the_keys_it_names(tmp_path):
    path = write(tmp_path, '[course]\nname = "steps"\n')
    cfg = load(Cfg, path, ["course={difficulty = 0.75}"])
    assert cfg.course == CourseCfg(name="steps", difficulty=0.75)


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("name=tcp://127.0.0.1:6000", "tcp://127.0.0.1:6000"),
        ('name="quoted = text"', "quoted = text"),
        (" name = crab ", "crab"),
        ("name=true", "true"),
        ("name=a\nb=2", "a\nb=2"),
    ],
)
def test_an_override_is_toml_or_a_bare_word(text, name):
    assert load(Cfg, None, [text]).name == name


def test_an_override_may_be_a_list_and_splits_at_the_first_equals_sign():
    assert load(Cfg, None, [" cpus = [1, 2] "]).cpus == (1, 2)
    assert split_override("a.b=c=d") == ("a.b", "c=d")


@pytest.mark.parametrize("text", ["speed", "=3"])
def test_an_override_without_key_or_value_says_how_to_write_it(text):
    with pytest.raises(ConfigError, match=r"write table\.key=value"):
        load(Cfg, None, [text])


def test_an_override_that_looks_like_a_number_is_text_where_text_is_due():
    assert load(Cfg, None, ["name=2024"]).name == "2024"


def test_unknown_key_names_file_line_and_nearest_key(tmp_path):
    message = failure(tmp_path, "speed = 1\n\n[course]\ndificulty = 0.3\n")
    assert message.endswith(
        "robot.toml:4: unknown key course.dificulty; did you mean course.difficulty?"
    )


def test_unknown_key_finds_its_name_in_another_table(tmp_path):
    message = failure(tmp_path, "", "difficulty=0.3")
    assert message == "command line: unknown key difficulty; did you mean course.difficulty?"


def test_unknown_key_like_no_other_lists_the_valid_ones(tmp_path):
    message = failure(tmp_path, "zzzzzz = 1\n")
    assert "unknown key zzzzzz; valid keys: metrics_port, course.name" in message


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("speed = 'fast'", "speed is 'fast'; expected a number"),
        ("metrics_port = 1.5", "metrics_port is 1.5; expected a whole number"),
        ("metrics_port = true", "metrics_port is True; expected a whole number"),
        ("enabled = 1", "enabled is 1; expected true or false"),
        ("cpus = [0, 'a']", "cpus[1] is 'a'; expected a whole number"),
        ("cpus = 3", "cpus is 3; expected a list, each a whole number"),
        ("course.name = 'step'", "course.name is 'step'; expected one of 'flat', 'steps'"),
        ("course = 3", "course is 3; expected a table with the keys name, difficulty"),
        ("record = 3", "record is 3; expected a path"),
        ("speed.x = 3", "speed is {'x': 3}; expected a number"),
        ("speed = nan", "speed is nan; expected a finite number"),
    ],
)
def test_wrong_type_names_place_key_value_and_expectation(tmp_path, line, expected):
    assert failure(tmp_path, f"# a comment\n{line}\n").endswith(f"robot.toml:2: {expected}")


def test_a_range_error_of_a_nested_table_carries_the_dotted_key_and_its_line(tmp_path):
    message = failure(tmp_path, "[course]\nname = 'flat'\ndifficulty = 2\n")
    assert message.endswith("robot.toml:3: course.difficulty is 2; expected a number from 0 to 1")


@pytest.mark.parametrize("value", ["nan", "inf", "-0.1"])
def test_a_range_refuses_what_is_not_finite(tmp_path, value):
    assert "course.difficulty" in failure(tmp_path, "", f"course.difficulty={value}")


def test_a_plain_value_error_of_a_dataclass_becomes_a_config_error(tmp_path):
    assert "13 is bad luck" in failure(tmp_path, "speed = 13\n")


class PartCfg(Config, frozen=True, kw_only=True):
    mass: Positive
    """[kg]"""
    at: tuple[float, float] = (0.0, 0.0)


class RobotCfg(Config, frozen=True, kw_only=True):
    name: Text
    body: PartCfg
    legs: dict[str, PartCfg]
    spare: PartCfg | None = None
    bill: tuple[PartCfg, ...] = ()


ROBOT = """
name = "crab"
[body]
mass = 10
[legs.lf]
mass = 1.5
at = [0.25, 0.3]
[[bill]]
mass = 2
"""


def robot(tmp_path, **changes):
    text = ROBOT
    for old, new in changes.values():
        assert old in text
        text = text.replace(old, new)
    return load(RobotCfg, write(tmp_path, text), error=LookupError)


def test_tables_by_name_lists_of_tables_and_required_keys_are_read(tmp_path):
    crab = robot(tmp_path)
    assert crab.body == PartCfg(mass=10.0)
    assert crab.legs == {"lf": PartCfg(mass=1.5, at=(0.25, 0.3))}
    assert crab.bill == (PartCfg(mass=2.0),)
    assert crab.spare is None
    assert robot(tmp_path, add=("[body]", "[spare]\nmass = 1\n[body]")).spare == PartCfg(mass=1.0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("mass = 10", ""), "robot.toml:3: body.mass is missing; add it"),
        (("[body]\nmass = 10", ""), "robot.toml: body is missing; add it"),
        (("mass = 1.5", "mass = 0"), "robot.toml:6: legs.lf.mass is 0; expected a number above 0"),
        (("mass = 1.5", "masss = 1"), "unknown key legs.lf.masss; did you mean legs.lf.mass?"),
        (("[0.25, 0.3]", "[0.25, inf]"), "legs.lf.at[1] is inf; expected a finite number"),
        (("[0.25, 0.3]", "[0.25]"), "legs.lf.at is [0.25]; expected a list of 2, each a number"),
        (("mass = 2", "mas = 2"), "unknown key bill[0].mas; did you mean bill[0].mass?"),
        (('"crab"', '""'), "robot.toml:2: name is ''; expected text that is not empty"),
        (("[body]", "[spare]\nmas = 1\n[body]"), "unknown key spare.mas; did you mean spare.mass?"),
    ],
)
def test_errors_inside_tables_name_the_whole_key_and_are_of_the_class_asked_for(
    tmp_path, change, message
):
    with pytest.raises(LookupError) as caught:
        robot(tmp_path, change=change)
    assert message in str(caught.value)


def test_parsed_tables_are_checked_like_a_file():
    with pytest.raises(ConfigError, match="hello: body is missing"):
        parse(RobotCfg, {"name": "crab"}, source="hello")


def test_what_cannot_be_read_and_what_is_not_toml_may_be_different_errors(tmp_path):
    with pytest.raises(KeyError, match=r"absent\.toml: No such file or directory; ask"):
        read_toml(tmp_path / "absent.toml", unreadable=KeyError, advice="ask")
    with pytest.raises(LookupError, match="not TOML"):
        read_toml(write(tmp_path, "="), error=LookupError, unreadable=KeyError)


def test_syntax_error_names_file_and_line(tmp_path):
    message = failure(tmp_path, "speed = 1\nname = crab\n")
    assert "robot.toml is not TOML" in message
    assert "line 2" in message


def test_missing_file_names_the_path_and_the_way_out(tmp_path):
    with pytest.raises(ConfigError, match=r"cannot read .*absent\.toml: No such.*check"):
        load(Cfg, tmp_path / "absent.toml")


def test_binary_file_is_refused(tmp_path):
    path = tmp_path / "bad.toml"
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigError, match=r"bad\.toml is not TOML: .*utf-8"):
        load(Cfg, path)


def test_description_tells_every_key_with_type_default_and_meaning():
    assert describe(Cfg).splitlines()[:6] == [
        "  metrics_port  (a whole number, default 0)",
        "      TCP port; 0 for none.",
        "  course.name  (one of 'flat', 'steps', default \"flat\")",
        "      Which course.",
        "  course.difficulty  (a number from 0 to 1, default 0.5)",
        "      0 is easy, 1 is hard.",
    ]
    assert "  cpus  (a list, each a whole number, default [])" in describe(Cfg)


def test_configuration_as_plain_data(tmp_path):
    plain = to_dict(load(Cfg, None, ["record=a.mcap"]))
    assert plain == {
        "metrics_port": 0,
        "course": {"name": "flat", "difficulty": 0.5},
        "speed": 1.0,
        "name": "crab",
        "cpus": [],
        "record": "a.mcap",
        "enabled": True,
    }


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("x = " + "[" * 3000, "is nested too deeply"),
        ("x = " + "9" * 5000, "is not TOML: Exceeds the limit"),
        ("# " + "x" * (1 << 20), "has over 1048576 bytes"),
        ("x = 1\n\xa7".encode("latin-1"), "is not TOML: 'utf-8' codec"),
    ],
    ids=["deep", "digits", "large", "not UTF-8"],
)
def test_a_hostile_file_is_one_error(tmp_path, text, said):
    path = tmp_path / "x.toml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(ConfigError, match=said):
        read_toml(path)


@pytest.mark.parametrize("value", ["[" * 3000, "9" * 5000])
def test_a_hostile_override_is_taken_as_text_and_refused(value):
    with pytest.raises(ConfigError, match="expected"):
        load(Cfg, None, [f"course.difficulty={value}"])
