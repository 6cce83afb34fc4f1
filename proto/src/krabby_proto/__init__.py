"""The wire contract: streams, header, codec, HAL client and HAL server.

The package offers what its modules name in `__all__`. What opens sockets is imported at its first
use: a process that needs only the tables, the codec or the safety states works without libzmq.
"""

# ruff: noqa: F403
# pyright: reportWildcardImportFromLibrary=false

from importlib import import_module
from typing import TYPE_CHECKING

from krabby_proto.admission import *
from krabby_proto.clocks import *
from krabby_proto.codec import *
from krabby_proto.errors import *
from krabby_proto.folder import *
from krabby_proto.header import *
from krabby_proto.hello import *
from krabby_proto.replies import *
from krabby_proto.states import *
from krabby_proto.streams import *

if TYPE_CHECKING:
    from krabby_proto.client import *
    from krabby_proto.server import *
    from krabby_proto.sockets import *


def __getattr__(name: str) -> object:
    if not name.startswith("_"):
        for module in ("client", "server", "sockets"):
            found = import_module(f"{__name__}.{module}")
            if name in found.__all__:
                return getattr(found, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
