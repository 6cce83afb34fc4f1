"""Strict configuration: what is wrong is named, with its place, its value and the way out."""

import dataclasses
from pathlib import Path
from typing import Literal

import pytest
from krabby.runtime.config import check, check_range, describe, load_config, parse_override, to_dict
from krabby.runtime.errors import ConfigError


@dataclasses.dataclass(frozen=True, kw_only=True)
class CourseCfg:
    name: Literal["flat", "steps"] = "flat"
    """Which course."""
    difficulty: float = 0.5
    """0 is easy,
    1 is hard."""

    def __post_init__(self):
        check_range(self, "difficulty", minimum=0, maximum=1)


@dataclasses.dataclass(frozen=True, kw_only=True)
class BaseCfg:
    metrics_port: int = 0
    """TCP port; 0 for none."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Cfg(BaseCfg):
    course: CourseCfg = dataclasses.field(default_factory=CourseCfg)
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
        load_config(Cfg, write(tmp_path, text), overrides)
    return str(caught.value)


def test_defaults_hold_without_file_and_overrides():
    assert load_config(Cfg, None) == Cfg()


def test_file_and_overrides_are_read_and_later_wins(tmp_path):
    path = write(
        tmp_path, 'speed = 2\ncpus = [0, 1]\nrecord = "a.mcap"\n[course]\nname = "steps"\n'
    )
    cfg = load_config(Cfg, path, ["speed=3", "course.difficulty=0.25", "course.name=flat"])
    assert cfg == Cfg(
        speed=3.0,
        cpus=(0, 1),
        record=Path("a.mcap"),
        course=CourseCfg(name="flat", difficulty=0.25),
    )
    assert isinstance(cfg.speed, float)


def test_a_table_given_as_override_sets_only_the_keys_it_names(tmp_path):
    path = write(tmp_path, '[course]\nname = "steps"\n')
    cfg = load_config(Cfg, path, ["course={difficulty = 0.75}"])
    assert cfg.course == CourseCfg(name="steps", difficulty=0.75)


@pytest.mark.parametrize(
    ("text", "key", "value"),
    [
        ("a.b=3", "a.b", 3),
        ("a=tcp://127.0.0.1:6000", "a", "tcp://127.0.0.1:6000"),
        ('a="quoted = text"', "a", "quoted = text"),
        (" a = [1, 2] ", "a", [1, 2]),
        ("a=", "a", ""),
        ("a=true", "a", True),
        ("a=1\nb=2", "a", "1\nb=2"),
    ],
)
def test_an_override_is_toml_or_a_bare_word(text, key, value):
    assert parse_override(text) == (key, value)


@pytest.mark.parametrize("text", ["speed", "=3"])
def test_an_override_without_key_or_value_says_how_to_write_it(text):
    with pytest.raises(ConfigError, match=r"write dotted\.key=value"):
        parse_override(text)


def test_an_override_that_looks_like_a_number_is_text_where_text_is_due():
    assert load_config(Cfg, None, ["name=2024"]).name == "2024"


def test_unknown_key_names_file_line_and_nearest_key(tmp_path):
    message = failure(tmp_path, "speed = 1\n\n[course]\ndificulty = 0.3\n")
    assert message.endswith(
        "robot.toml:4: course.dificulty: unknown key; did you mean 'course.difficulty'?"
    )


def test_unknown_key_finds_its_name_in_another_table(tmp_path):
    message = failure(tmp_path, "", "difficulty=0.3")
    assert message == "command line: difficulty: unknown key; did you mean 'course.difficulty'?"


def test_unknown_key_like_no_other_lists_the_valid_ones(tmp_path):
    message = failure(tmp_path, "zzzzzz = 1\n")
    assert "zzzzzz: unknown key; valid keys: metrics_port, course.name" in message


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("speed = 'fast'", "speed: 'fast' is text, expected number"),
        ("metrics_port = 1.5", "metrics_port: 1.5 is a number, expected int"),
        ("metrics_port = true", "metrics_port: True is true/false, expected int"),
        ("enabled = 1", "enabled: 1 is an integer, expected true or false"),
        ("cpus = ['a']", "cpus: ['a'] is a list, expected tuple[int, ...]"),
        ("course.name = 'step'", "course.name: 'step' is text, expected one of 'flat', 'steps'"),
        ("course = 3", "course: 3 given for a table with the keys name, difficulty"),
        ("record = 3", "record: 3 is an integer, expected Path | None"),
        ("speed.x = 3", "speed.x: 'speed' is a single value, it has no key 'x'"),
    ],
)
def test_wrong_type_names_place_key_value_and_expectation(tmp_path, line, expected):
    assert failure(tmp_path, f"# a comment\n{line}\n").endswith(f"robot.toml:2: {expected}")


def test_a_range_error_of_a_nested_table_carries_the_dotted_key_and_its_line(tmp_path):
    message = failure(tmp_path, "[course]\nname = 'flat'\ndifficulty = 2\n")
    assert message.endswith("robot.toml:3: course.difficulty: 2.0 is out of range, expected 0 to 1")


@pytest.mark.parametrize("value", ["nan", "inf", "-0.1"])
def test_a_range_refuses_what_is_not_finite(tmp_path, value):
    assert "course.difficulty" in failure(tmp_path, "", f"course.difficulty={value}")


def test_a_plain_value_error_of_a_dataclass_becomes_a_config_error(tmp_path):
    assert "13 is bad luck" in failure(tmp_path, "speed = 13\n")


def test_a_half_open_range_is_told_as_one():
    @dataclasses.dataclass(frozen=True)
    class Half:
        low: float = -1.0
        high: float = 1.0

    with pytest.raises(ConfigError, match="a finite number of at least 0"):
        check_range(Half(), "low", minimum=0)
    with pytest.raises(ConfigError, match="a finite number of at most 0"):
        check_range(Half(), "high", maximum=0)


def test_syntax_error_names_file_and_line(tmp_path):
    message = failure(tmp_path, "speed = 1\nname = crab\n")
    assert "robot.toml:2: not valid TOML" in message


def test_missing_file_names_the_path_and_the_way_out(tmp_path):
    with pytest.raises(ConfigError, match=r"absent\.toml: cannot read .*No such file.*defaults"):
        load_config(Cfg, tmp_path / "absent.toml")


def test_binary_file_is_refused(tmp_path):
    path = tmp_path / "bad.toml"
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigError, match=r"bad\.toml: not UTF-8 text"):
        load_config(Cfg, path)


def test_description_tells_every_key_with_type_default_and_meaning():
    assert describe(Cfg).splitlines()[:6] == [
        "  metrics_port  (int, default 0)",
        "      TCP port; 0 for none.",
        "  course.name  (one of 'flat', 'steps', default \"flat\")",
        "      Which course.",
        "  course.difficulty  (number, default 0.5)",
        "      0 is easy, 1 is hard.",
    ]
    assert "  cpus  (tuple[int, ...], default [])" in describe(Cfg)


def test_configuration_as_plain_data(tmp_path):
    plain = to_dict(load_config(Cfg, None, ["record=a.mcap"]))
    assert plain == {
        "metrics_port": 0,
        "course": {"name": "flat", "difficulty": 0.5},
        "speed": 1.0,
        "name": "crab",
        "cpus": [],
        "record": "a.mcap",
        "enabled": True,
    }
