"""The wire contract: streams, header, codec, HAL client and HAL server.

The package offers what its modules name in `__all__`. What opens sockets or handles payloads is
imported at its first use: a process that needs only the tables or the safety states works without
libzmq, and one that only sends a request, such as an e-stop, starts without loading NumPy.
"""

# ruff: noqa: F403
# pyright: reportWildcardImportFromLibrary=false

from importlib import import_module
from typing import TYPE_CHECKING, Final

from krabby_proto.clocks import *
from krabby_proto.errors import *
from krabby_proto.folder import *
from krabby_proto.header import *
from krabby_proto.hello import *
from krabby_proto.replies import *
from krabby_proto.states import *
from krabby_proto.streams import *

if TYPE_CHECKING:
    from krabby_proto.admission import *
    from krabby_proto.batches import *
    from krabby_proto.client import *
    from krabby_proto.codec import *
    from krabby_proto.exchanges import *
    from krabby_proto.server import *
    from krabby_proto.sockets import *
    from krabby_proto.ticks import *

_LATER: Final = {
    "admission": ("MAX_AHEAD_NS", "Admission", "CommandAdmission", "untimely"),
    "batches": ("Batches",),
    "client": ("ControlClient", "ControlServer", "HalClient"),
    "codec": ("FloatArray", "Message", "decode", "encode", "pack", "topic_of", "unpack"),
    "exchanges": ("Exchange", "ExchangeKind", "GateView"),
    "server": ("HalHandler", "HalServer", "ServerStats"),
    "sockets": (
        *("LatestSubscriber", "Publisher", "RawMessage", "Request", "Requester", "Router"),
        *("new_instance_id", "serve_within", "wait_any", "wait_readable"),
    ),
    "ticks": (
        *("LOOP_MODES", "NavTaken", "ReplyTaken", "StateSeen", "Tick", "TickInput", "TickReader"),
        *("TickRecord", "TickRequest"),
    ),
}
"""Names by module, of the modules that are imported at the first use of one of them."""


def __getattr__(name: str) -> object:
    for module, names in _LATER.items():
        if name in names:
            return getattr(import_module(f"{__name__}.{module}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
