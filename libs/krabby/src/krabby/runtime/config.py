"""One way to configure: a frozen dataclass in code, one TOML file, overrides on the command line.

The dataclass is the only list of keys: its fields are the keys, their annotations the types, the
string literal under each field its meaning. Reading is strict. A misspelt key that is silently
ignored costs an afternoon, so an unknown one is refused and the nearest valid key is named.
"""

from __future__ import annotations

import ast
import dataclasses
import difflib
import functools
import inspect
import itertools
import math
import re
import textwrap
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, cast, get_type_hints

import msgspec

from krabby.runtime.errors import ConfigError

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

    C = TypeVar("C", bound=DataclassInstance)
else:
    C = TypeVar("C")

__all__ = ["check", "check_range", "describe", "load_config", "parse_override", "to_dict"]

_COMMAND_LINE = "command line"
_TABLE_LINE = re.compile(r"^\s*\[\s*([^\[\]]+?)\s*\]")
_KEY_LINE = re.compile(r"""^\s*([A-Za-z0-9_\-."' ]+?)\s*=""")


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class _Value:
    """A value as read, before its type is known."""

    value: object
    source: str
    """Where it was written: `file:line` or the command line."""
    text: str | None = None
    """The bare text of an override: `name=2024` means a string when `name` is one."""


def load_config(cls: type[C], path: Path | None, overrides: Sequence[str] = ()) -> C:
    """Read `cls` from a TOML file and overrides; later wins, defaults fill the rest.

    Args:
        cls: A frozen keyword-only dataclass, every field with a default; tables are fields that
            are such dataclasses themselves.
        path: The TOML file, or None for the defaults alone.
        overrides: `dotted.key=value`, the value written as in TOML or as a bare word.

    Raises:
        ConfigError: Unreadable file, bad syntax, unknown key, wrong type or a value the dataclass
            refuses; the message names the place, the key, the value and what was expected.
    """
    values: dict[str, _Value] = {}
    if path is not None:
        values.update(_read_file(path))
    for override in overrides:
        key, value = parse_override(override)
        # `table={a = 1}` sets only the keys it names, like a table in the file
        for name, each in _flatten({key: value}).items():
            text = override.partition("=")[2].strip() if name == key else None
            values[name] = _Value(value=each, source=_COMMAND_LINE, text=text)
    return _build(cls, "", _expand(cls, values))


def parse_override(text: str) -> tuple[str, object]:
    """Split `dotted.key=value`; the value is read as TOML, or taken as a bare word.

    Raises:
        ConfigError: There is no `=`, or nothing in front of it.
    """
    key, equals, value = text.partition("=")
    key, value = key.strip(), value.strip()
    if not equals or not key:
        raise ConfigError(
            f"{text!r} is not an override; write dotted.key=value", source=_COMMAND_LINE
        )
    try:
        parsed = tomllib.loads(f"value = {value}")
    except tomllib.TOMLDecodeError:
        return key, value
    return key, parsed["value"] if set(parsed) == {"value"} else value


def check(condition: bool, key: str, value: object, expected: str) -> None:
    """Refuse a field's value from `__post_init__`; the loader puts the tables before `key`."""
    if not condition:
        raise ConfigError(f"{value!r} is out of range, expected {expected}", key=key)


def check_range(
    cfg: DataclassInstance,
    key: str,
    *,
    minimum: float = -math.inf,
    maximum: float = math.inf,
) -> None:
    """Refuse a number field outside [minimum, maximum], or one that is not finite."""
    value = getattr(cfg, key)
    if math.isinf(maximum):
        expected = f"a finite number of at least {minimum:g}"
    elif math.isinf(minimum):
        expected = f"a finite number of at most {maximum:g}"
    else:
        expected = f"{minimum:g} to {maximum:g}"
    check(math.isfinite(value) and minimum <= value <= maximum, key, value, expected)


def to_dict(cfg: DataclassInstance) -> dict[str, Any]:
    """The configuration as plain data, for the log line at start and for stored runs."""
    plain = msgspec.json.encode(cfg, enc_hook=str)  # tuples and paths become what JSON has
    return cast("dict[str, Any]", msgspec.json.decode(plain))


def describe(cls: type[DataclassInstance]) -> str:
    """Every key with type, default and meaning, as `--help` prints it."""
    lines: list[str] = []
    for key, hint, default, doc in _keys(cls, ""):
        lines.append(f"  {key}  ({_type_name(hint)}, default {_show(default)})")
        lines.extend(textwrap.wrap(doc, 92, initial_indent="      ", subsequent_indent="      "))
    return "\n".join(lines)


# --- reading -----------------------------------------------------------------------------------


def _read_file(path: Path) -> dict[str, _Value]:
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(
            f"cannot read the configuration ({error.strerror}); check the path or leave it out "
            "to run with defaults",
            source=str(path),
        ) from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"not UTF-8 text ({error})", source=str(path)) from error
    try:
        table = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        at = re.search(r"\(at line (\d+), column (\d+)\)", str(error))
        where = f"{path}:{at.group(1)}" if at else str(path)
        raise ConfigError(f"not valid TOML: {error}", source=where) from error
    lines = _line_numbers(text)
    return {
        key: _Value(value=value, source=f"{path}:{lines[key]}" if key in lines else str(path))
        for key, value in _flatten(table).items()
    }


def _flatten(table: Mapping[str, object], prefix: str = "") -> dict[str, object]:
    flat: dict[str, object] = {}
    for name, value in table.items():
        key = f"{prefix}{name}"
        if isinstance(value, dict) and value:
            flat.update(_flatten(cast("dict[str, object]", value), f"{key}."))
        else:
            flat[key] = value
    return flat


def _line_numbers(text: str) -> dict[str, int]:
    """Line of each `key =` and `[table]`, by dotted key; good enough to point a finger.

    The TOML reader of the standard library keeps no positions. Keys inside inline tables or
    multi-line values may be missed or shadowed, then the message names only the file.
    """
    found: dict[str, int] = {}
    table = ""
    for number, line in enumerate(text.splitlines(), start=1):
        if header := _TABLE_LINE.match(line):
            table = _plain_key(header.group(1)) + "."
            found.setdefault(table.rstrip("."), number)
        elif key := _KEY_LINE.match(line):
            found.setdefault(table + _plain_key(key.group(1)), number)
    return found


def _plain_key(text: str) -> str:
    return ".".join(part.strip().strip("\"'") for part in text.split("."))


def _expand(cls: type[DataclassInstance], flat: Mapping[str, _Value]) -> dict[str, Any]:
    """Put dotted keys into a tree of tables, refusing the keys that `cls` does not have."""
    tree: dict[str, Any] = {}
    for key, value in flat.items():
        node, here = cast("type[DataclassInstance] | None", cls), tree
        parts = key.split(".")
        for depth, part in enumerate(parts):
            if node is None:
                parent = ".".join(parts[:depth])
                raise ConfigError(
                    f"{parent!r} is a single value, it has no key {'.'.join(parts[depth:])!r}",
                    key=key,
                    source=value.source,
                )
            hints = _hints(node)
            if part not in hints:
                raise _unknown_key(cls, key, value.source)
            node = _table_type(hints[part])
            if depth < len(parts) - 1:
                here = here.setdefault(part, {})
        if node is None:
            here[parts[-1]] = value
        elif value.value != {}:
            raise ConfigError(
                f"{value.value!r} given for a table with the keys "
                f"{', '.join(f.name for f in dataclasses.fields(node))}",
                key=key,
                source=value.source,
            )
    return tree


def _unknown_key(cls: type[DataclassInstance], key: str, source: str) -> ConfigError:
    valid = [name for name, _, _, _ in _keys(cls, "")]
    last = key.rpartition(".")[2]
    near = difflib.get_close_matches(key, valid, n=1, cutoff=0.6) or [
        name for name in valid if name.rpartition(".")[2] == last
    ]
    if not near:
        close = difflib.get_close_matches(last, [v.rpartition(".")[2] for v in valid], n=1)
        near = [v for v in valid if close and v.rpartition(".")[2] == close[0]]
    hint = f"did you mean {near[0]!r}?" if near else f"valid keys: {', '.join(valid)}"
    return ConfigError(f"unknown key; {hint}", key=key, source=source)


def _build(cls: type[C], prefix: str, tree: Mapping[str, Any]) -> C:
    values: dict[str, object] = {}
    for name, hint in _hints(cls).items():
        key = f"{prefix}.{name}" if prefix else name
        table = _table_type(hint)
        if table is not None:
            values[name] = _build(table, key, tree.get(name, {}))
        elif name in tree:
            values[name] = _convert(key, cast("_Value", tree[name]), hint)
    try:
        return cls(**values)
    except ConfigError as error:
        source = tree.get(error.key.split(".")[0])
        where = source.source if isinstance(source, _Value) else ""
        raise error.within(prefix, where) from None
    except ValueError as error:
        raise ConfigError(str(error), key=prefix) from error
    except TypeError as error:
        raise ConfigError(f"{cls.__name__} cannot be built: {error}", key=prefix) from error


def _convert(key: str, value: _Value, hint: Any) -> object:
    candidates = [value.value]
    if value.text is not None and value.text != value.value:
        candidates.append(value.text)
    for candidate in candidates:
        try:
            return cast("object", msgspec.convert(candidate, hint, dec_hook=_decode))
        except (msgspec.ValidationError, TypeError, ValueError):
            continue
    raise ConfigError(
        f"{value.value!r} is {_kind(value.value)}, expected {_type_name(hint)}",
        key=key,
        source=value.source,
    )


def _decode(kind: type, value: object) -> object:
    if kind is Path and isinstance(value, str):
        return Path(value)
    raise TypeError(f"cannot read {kind}")


# --- describing --------------------------------------------------------------------------------


def _keys(cls: type[DataclassInstance], prefix: str) -> list[tuple[str, Any, object, str]]:
    """(dotted key, type, default, meaning) of every value, tables opened, in field order."""
    found: list[tuple[str, Any, object, str]] = []
    docs = _field_docs(cls)
    for field, hint in zip(dataclasses.fields(cls), _hints(cls).values(), strict=True):
        table = _table_type(hint)
        if table is not None:
            found.extend(_keys(table, f"{prefix}{field.name}."))
        else:
            found.append((prefix + field.name, hint, _default(field), docs.get(field.name, "")))
    return found


def _default(field: dataclasses.Field[Any]) -> object:
    if field.default is not dataclasses.MISSING:
        return field.default
    if field.default_factory is not dataclasses.MISSING:
        return field.default_factory()
    return None


@functools.cache
def _hints(cls: type[DataclassInstance]) -> dict[str, Any]:
    hints = get_type_hints(cls)
    return {field.name: hints[field.name] for field in dataclasses.fields(cls)}


@functools.cache
def _field_docs(cls: type[DataclassInstance]) -> dict[str, str]:
    """The string literal under each field, base classes first; empty where source is missing."""
    docs: dict[str, str] = {}
    for base in reversed(cls.__mro__):
        if not dataclasses.is_dataclass(base):
            continue
        try:
            tree = ast.parse(textwrap.dedent(inspect.getsource(base)))
        except (OSError, TypeError, SyntaxError):
            continue
        body = cast("ast.ClassDef", tree.body[0]).body
        for here, after in itertools.pairwise(body):
            match (here, after):
                case (
                    ast.AnnAssign(target=ast.Name(id=name)),
                    ast.Expr(value=ast.Constant(value=str() as text)),
                ):
                    docs[name] = inspect.cleandoc(text).replace("\n", " ")
                case _:
                    pass
    return docs


def _table_type(hint: Any) -> type[DataclassInstance] | None:
    if isinstance(hint, type) and dataclasses.is_dataclass(hint):
        return hint
    return None


def _type_name(hint: Any) -> str:
    text = hint.__name__ if isinstance(hint, type) and not _has_args(hint) else str(hint)
    text = re.sub(r"\b(?:typing|pathlib|collections\.abc)\.", "", text)
    if text.startswith("Literal["):
        text = "one of " + text[len("Literal[") : -1]
    return {"str": "text", "bool": "true or false", "float": "number"}.get(text, text)


def _has_args(hint: Any) -> bool:
    return bool(getattr(hint, "__args__", ()))


def _kind(value: object) -> str:
    names = {"str": "text", "bool": "true/false", "float": "a number", "int": "an integer"}
    name = type(value).__name__
    return names.get(name, {"list": "a list", "dict": "a table"}.get(name, name))


def _show(value: object) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str | Path):
        return f'"{value}"'
    if isinstance(value, tuple):
        return str(list(cast("tuple[object, ...]", value)))
    return str(value)
