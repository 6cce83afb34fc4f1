"""Configuration: every TOML file is read into a msgspec struct, strictly.

The struct is the only list of keys. Its fields are the keys, their types and `msgspec.Meta` hold
the constraints, and the string literal under a field is its description. Unknown keys, missing
keys, wrong types and values out of range are errors that name the file, the line, the key, the
value and what is allowed; an unknown key also names the nearest valid one.

    class CourseCfg(Config, frozen=True, kw_only=True):
        difficulty: Share = 0.5
        "0 is easy, 1 is hard."

    cfg = load(CourseCfg, Path("course.toml"), ["difficulty=0.25"])

A field whose key in the file differs has `msgspec.field(name="key")`. Conditions between fields go
into `__post_init__`, by `check`.
"""

from __future__ import annotations

import ast
import contextlib
import dataclasses
import difflib
import functools
import inspect
import itertools
import math
import re
import textwrap
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Final, TypeVar, cast, get_args, get_origin, get_type_hints

import msgspec
from msgspec import Meta
from msgspec import inspect as types

__all__ = [
    "Config",
    "ConfigError",
    "Count",
    "NonNegative",
    "Port",
    "Positive",
    "Share",
    "Text",
    "check",
    "describe",
    "load",
    "parse",
    "read_toml",
    "split_override",
    "to_dict",
]

C = TypeVar("C")

Count = Annotated[int, Meta(ge=1)]
Port = Annotated[int, Meta(ge=0, le=65535)]
NonNegative = Annotated[float, Meta(ge=0)]
Positive = Annotated[float, Meta(gt=0)]
Share = Annotated[float, Meta(ge=0, le=1)]
Text = Annotated[str, Meta(min_length=1)]

_COMMAND_LINE: Final = "command line"
_MOST_BYTES: Final = 1 << 20
"""Of a TOML file; the largest shipped one has 6 kB."""
_TABLE_LINE: Final = re.compile(r"^\s*\[+\s*([^\[\]]+?)\s*\]")
_KEY_LINE: Final = re.compile(r"""^\s*([A-Za-z0-9_\-."' ]+?)\s*=""")
_INDEX: Final = re.compile(r" - at `\$((?:\[\d+\])+)")


class Config(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Base of every table. Only `load` and `parse` check the constraints of `Meta`."""


class ConfigError(ValueError):
    """A configuration that cannot be used: its place, the key, the value and what is allowed.

    `__post_init__` raises it with the field's own name as `key`; the reader prepends the tables.
    """

    def __init__(self, problem: str, *, key: str = "", source: str = "") -> None:
        self.problem = problem
        self.key = key
        self.source = source
        what = f"{key} {problem}" if key else problem
        super().__init__(f"{source}: {what}" if source else what)


def load(
    cls: type[C],
    path: Path | None,
    overrides: Sequence[str] = (),
    *,
    error: type[Exception] = ConfigError,
) -> C:
    """Read `cls` from a TOML file, or from defaults alone, and overrides; the last one wins.

    Args:
        cls: Class of the top table.
        path: The file; None for defaults alone.
        overrides: `table.key=value`, the value written as in TOML or as a bare word.
        error: What to raise instead of `ConfigError`.
    """
    values, lines = ({}, {}) if path is None else read_toml(path, error=error)
    texts: dict[str, str] = {}
    source = "" if path is None else str(path)
    where = {key: f"{source}:{line}" for key, line in lines.items()}
    try:
        for override in overrides:
            key, text = split_override(override)
            for name, value in _leaves(_value(text), key):
                _put(values, name, value)
                texts[name] = text
                where[name] = _COMMAND_LINE
                while name := name.rpartition(".")[0]:
                    where.setdefault(name, _COMMAND_LINE)
        return cast("C", _Reader(cls, source, where, texts).read(cls, values, ""))
    except ConfigError as problem:
        raise _as(error, problem) from problem


def parse(
    cls: type[C],
    values: Mapping[str, Any],
    *,
    source: str,
    lines: Mapping[str, int] | None = None,
    error: type[Exception] = ConfigError,
) -> C:
    """Check parsed tables; errors name `source` and, where `lines` has the key, its line."""
    where = {key: f"{source}:{line}" for key, line in (lines or {}).items()}
    try:
        return cast("C", _Reader(cls, source, where, {}).read(cls, values, ""))
    except ConfigError as problem:
        raise _as(error, problem) from problem


def read_toml(
    path: Path,
    *,
    error: type[Exception] = ConfigError,
    unreadable: type[Exception] | None = None,
    advice: str = "check the path",
) -> tuple[dict[str, Any], dict[str, int]]:
    """The tables of a file, unchecked, and the line of each dotted key.

    Args:
        path: The file.
        error: What to raise when it is not TOML.
        unreadable: What to raise when it cannot be read; `error` by default.
        advice: What to do about that.
    """
    try:
        with path.open("rb") as file:
            raw = file.read(_MOST_BYTES + 1)
        if len(raw) > _MOST_BYTES:
            raise error(f"{path} has over {_MOST_BYTES} bytes; {advice}")
        text = raw.decode()
        return tomllib.loads(text), _line_numbers(text)
    except OSError as problem:
        message = f"cannot read {path}: {problem.strerror}; {advice}"
        raise (unreadable or error)(message) from problem
    except ValueError as problem:  # also a number of thousands of digits
        raise error(f"{path} is not TOML: {problem}; correct that line") from problem
    except RecursionError as problem:
        raise error(f"{path} is nested too deeply; {advice}") from problem


def split_override(text: str) -> tuple[str, str]:
    """Key and value, as text, of `table.key=value`."""
    key, equals, value = text.partition("=")
    if not equals or not key.strip():
        problem = f"{text!r} is not an override; write table.key=value"
        raise ConfigError(problem, source=_COMMAND_LINE)
    return key.strip(), value.strip()


def check(condition: bool, key: str, value: object, expected: str) -> None:
    """Refuse the value of a field, from `__post_init__`."""
    if not condition:
        raise ConfigError(f"is {value!r}; expected {expected}", key=key)


def to_dict(cfg: object) -> dict[str, Any]:
    """The configuration as plain data, for logs and stored runs."""
    plain = msgspec.json.encode(cfg, enc_hook=str)  # tuples and paths become what JSON has
    return cast("dict[str, Any]", msgspec.json.decode(plain))


def describe(cls: type[Any]) -> str:
    """Every key with type, constraints, default and description, as `--help` prints it."""
    lines: list[str] = []
    for key, field, table in _keys(cls):
        doc = _docs(table).get(field.name, "")
        lines.append(f"  {key}  ({_expected(field.type)}, {_default(field)})")
        lines.extend(textwrap.wrap(doc, 92, initial_indent="      ", subsequent_indent="      "))
    return "\n".join(lines)


# --- reading -----------------------------------------------------------------------------------


class _Reader:
    """Reads table by table, so that every error has its dotted key."""

    def __init__(
        self, top: type[Any], source: str, where: Mapping[str, str], texts: Mapping[str, str]
    ) -> None:
        self._top = top
        self._source = source
        self._where = where
        self._texts = texts
        """Overrides as written: in `name=2024` the value is text if the key's type is text."""

    def read(self, hint: Any, value: object, key: str) -> object:
        """`value` as `hint` says."""
        if _is_table(hint):
            return self._table(hint, value, key)
        inner = next(filter(_is_table, get_args(hint)), None)
        if inner is not None and isinstance(value, dict):
            tables = cast("dict[str, object]", value)
            if get_origin(hint) is not dict:  # a table that may be left out
                return self._table(inner, value, key)
            return {name: self._table(inner, v, f"{key}.{name}") for name, v in tables.items()}
        if inner is not None and isinstance(value, list):
            rows = enumerate(cast("list[object]", value))
            return tuple(self._table(inner, row, f"{key}[{i}]") for i, row in rows)
        return self._value(hint, value, key)

    def _table(self, cls: type[Any], value: object, key: str) -> object:
        fields = {field.encode_name: field for field in _fields(cls)}
        if not isinstance(value, Mapping):
            names = ", ".join(fields)
            raise self._error(f"is {value!r}; expected a table with the keys {names}", key)
        table = cast("Mapping[str, object]", value)
        dot = f"{key}." if key else ""
        for name in table:
            if name not in fields:
                raise self._unknown(dot + name, [dot + valid for valid in fields])
        hints = _hints(cls)
        arguments: dict[str, object] = {}
        for name, field in fields.items():
            if name in table or _is_table(hints[field.name]):
                inner = table.get(name, None if field.required else {})
                if inner is not None:
                    arguments[field.name] = self.read(hints[field.name], inner, dot + name)
                    continue
            if field.required:
                raise self._error("is missing; add it", dot + name)
        try:
            return cls(**arguments)
        except ConfigError as problem:
            raise self._error(problem.problem, dot + problem.key) from None
        except ValueError as problem:
            raise self._error(f"cannot be used: {problem}", key) from problem

    def _value(self, hint: Any, value: object, key: str) -> object:
        try:
            return _convert(value, hint)
        except ValueError as problem:
            if key in self._texts:
                with contextlib.suppress(ValueError):
                    return _convert(self._texts[key], hint)
            info = types.type_info(hint)
            index = _INDEX.search(str(problem))
            for each in re.findall(r"\d+", index[1]) if index else ():
                value, info = cast("list[object]", value)[int(each)], _item(info, int(each))
                key = f"{key}[{each}]"
            infinite = isinstance(value, float) and not math.isfinite(value)
            expected = "a finite number" if infinite else _expected(info)
            raise self._error(f"is {value!r}; expected {expected}", key) from None

    def _unknown(self, key: str, siblings: Sequence[str]) -> ConfigError:
        valid = [name for name, _, _ in _keys(self._top)]
        last = key.rpartition(".")[2]
        names = {name.rpartition(".")[2]: name for name in reversed(valid)}
        near = difflib.get_close_matches(key, [*siblings, *valid], n=1) or [
            names[name] for name in difflib.get_close_matches(last, names, n=1)
        ]
        hint = f"did you mean {near[0]}?" if near else f"valid keys: {', '.join(valid)}"
        return ConfigError(f"unknown key {key}; {hint}", source=self._place(key))

    def _error(self, problem: str, key: str) -> ConfigError:
        return ConfigError(problem, key=key, source=self._place(key))

    def _place(self, key: str) -> str:
        """File and line of a key, or of the nearest table around it."""
        path = re.sub(r"\[\d+\]", "", key)
        while path and path not in self._where:
            path = path.rpartition(".")[0]
        return self._where.get(path, self._source)


def _convert(value: object, hint: Any) -> object:
    for place, each in _leaves(value, "$", lists=True):
        if isinstance(each, float) and not math.isfinite(each):
            raise ValueError(f"not finite - at `{place}`")
    return cast("object", msgspec.convert(value, hint, dec_hook=_decode))


def _decode(kind: type, value: object) -> object:
    if kind is Path and isinstance(value, str):
        return Path(value)
    raise ValueError(f"cannot read {kind}")


def _as(error: type[Exception], problem: ConfigError) -> Exception:
    return problem if error is ConfigError else error(str(problem))


def _value(text: str) -> object:
    """An override's value: TOML, or a bare word."""
    try:
        parsed = tomllib.loads(f"value = {text}")
    except (ValueError, RecursionError):
        return text
    return parsed["value"] if set(parsed) == {"value"} else text


def _leaves(value: object, key: str, *, lists: bool = False) -> Iterator[tuple[str, object]]:
    """Dotted key and value of everything in a table, and in lists where asked for."""
    if isinstance(value, dict):
        for name, inner in cast("dict[str, object]", value).items():
            yield from _leaves(inner, f"{key}.{name}", lists=lists)
    elif lists and isinstance(value, list):
        for i, inner in enumerate(cast("list[object]", value)):
            yield from _leaves(inner, f"{key}[{i}]", lists=lists)
    else:
        yield key, value


def _put(values: dict[str, Any], key: str, value: object) -> None:
    *tables, last = key.split(".")
    for name in tables:
        if not isinstance(values.get(name), dict):
            values[name] = {}
        values = values[name]
    values[last] = value


def _line_numbers(text: str) -> dict[str, int]:
    """Line of each `key =` and `[table]`, by dotted key.

    tomllib keeps no positions. A key inside an inline table or a multi-line value may be missed;
    the error then names the line of the table around it.
    """
    found: dict[str, int] = {}
    table = ""
    for number, line in enumerate(text.splitlines(), start=1):
        if header := _TABLE_LINE.match(line):
            path = _plain_key(header[1])
            table = path + "."
        elif key := _KEY_LINE.match(line):
            path = table + _plain_key(key[1])
        else:
            continue
        while path:
            found.setdefault(path, number)
            path = path.rpartition(".")[0]
    return found


def _plain_key(text: str) -> str:
    return ".".join(part.strip().strip("\"'") for part in text.split("."))


# --- describing --------------------------------------------------------------------------------


def _keys(cls: type[Any], prefix: str = "") -> Iterator[tuple[str, types.Field, type[Any]]]:
    """Dotted key, field and table of every value, tables opened, in field order."""
    hints = _hints(cls)
    for field in _fields(cls):
        if _is_table(hints[field.name]):
            yield from _keys(hints[field.name], f"{prefix}{field.encode_name}.")
        else:
            yield prefix + field.encode_name, field, cls


def _is_table(hint: Any) -> bool:
    return isinstance(hint, type) and (
        issubclass(hint, msgspec.Struct) or dataclasses.is_dataclass(hint)
    )


@functools.cache
def _fields(cls: type[Any]) -> tuple[types.Field, ...]:
    info = types.type_info(cls)
    return cast("types.StructType | types.DataclassType", info).fields


@functools.cache
def _hints(cls: type[Any]) -> dict[str, Any]:
    return get_type_hints(cls, include_extras=True)


@functools.cache
def _docs(cls: type[Any]) -> dict[str, str]:
    """The string literal under each field, base classes first; empty where source is missing."""
    docs: dict[str, str] = {}
    for base in reversed(cls.__mro__):
        try:
            tree = ast.parse(textwrap.dedent(inspect.getsource(base)))
        except (OSError, TypeError, SyntaxError):
            continue
        for here, after in itertools.pairwise(cast("ast.ClassDef", tree.body[0]).body):
            match (here, after):
                case (
                    ast.AnnAssign(target=ast.Name(id=name)),
                    ast.Expr(value=ast.Constant(value=str() as text)),
                ):
                    docs[name] = inspect.cleandoc(text).replace("\n", " ")
                case _:
                    pass
    return docs


_NAMES: Final[dict[type[types.Type], str]] = {
    types.BoolType: "true or false",
    types.IntType: "a whole number",
    types.FloatType: "a number",
    types.StrType: "text",
    types.NoneType: "nothing",
    types.DictType: "a table",
    types.StructType: "a table",
    types.DataclassType: "a table",
    types.CustomType: "a path",
}
_BOUNDS: Final = {"gt": "above", "ge": "of at least", "lt": "below", "le": "of at most"}


def _expected(info: types.Type) -> str:
    """What a value of this type has to be, in words."""
    match info:
        case types.Metadata():
            return _expected(info.type)
        case types.UnionType():
            kinds = (kind for kind in info.types if not isinstance(kind, types.NoneType))
            return " or ".join(_expected(kind) for kind in kinds)
        case types.LiteralType():
            return "one of " + ", ".join(map(repr, info.values))
        case types.TupleType():
            return f"a list of {len(info.item_types)}, each {_expected(info.item_types[0])}"
        case types.VarTupleType() | types.ListType():
            return f"a list, each {_expected(info.item_type)}"
        case types.StrType(min_length=1):
            return "text that is not empty"
        case types.IntType() | types.FloatType():
            return _NAMES[type(info)] + _range(info)
        case _:
            return _NAMES.get(type(info), "a value")


def _range(info: types.IntType | types.FloatType) -> str:
    if info.ge is not None and info.le is not None:
        return f" from {info.ge:g} to {info.le:g}"
    bounds = ((word, getattr(info, name)) for name, word in _BOUNDS.items())
    return " and".join(f" {word} {bound:g}" for word, bound in bounds if bound is not None)


def _item(info: types.Type, index: int) -> types.Type:
    match info:
        case types.Metadata():
            return _item(info.type, index)
        case types.TupleType():
            return info.item_types[index]
        case types.VarTupleType() | types.ListType():
            return info.item_type
        case _:
            return info


def _default(field: types.Field) -> str:
    if field.required:
        return "required"
    value = field.default
    if field.default_factory is not msgspec.NODEFAULT:
        value = cast("object", field.default_factory())
    if isinstance(value, str | Path):
        return f'default "{value}"'
    if isinstance(value, tuple):
        value = list(cast("tuple[object, ...]", value))
    return f"default {str(value).lower() if isinstance(value, bool) else value}"
