"""Everything this package raises on purpose.

ServiceError
├── ConfigError          a configuration that cannot be used: key, value, expected
└── MetricsPortInUse     the exposition port belongs to somebody else

Every message is one line for the person at the keyboard: what happened, with which values, and
what to do next.
"""

__all__ = ["ConfigError", "MetricsPortInUse", "ServiceError"]


class ServiceError(Exception):
    """Base of the tree."""


class ConfigError(ServiceError):
    """A configuration that cannot be used.

    The message names the key, its value, what was expected and where it came from. `key` is the
    dotted path once known: a dataclass checking itself knows only its own field name, the loader
    adds the tables in front.
    """

    def __init__(self, problem: str, *, key: str = "", source: str = "") -> None:
        self.problem = problem
        self.key = key
        self.source = source
        where = f"{source}: " if source else ""
        what = f"{key}: " if key else ""
        super().__init__(f"{where}{what}{problem}")

    def within(self, table: str, source: str = "") -> "ConfigError":
        """The same error with `table` put in front of its key, and its source if it had none."""
        key = ".".join(part for part in (table, self.key) if part)
        return ConfigError(self.problem, key=key, source=self.source or source)


class MetricsPortInUse(ServiceError):  # noqa: N818 - named for what happened
    """The exposition port belongs to somebody else."""
