"""The wire contract: streams, header, codec, HAL client and HAL server.

Each name is imported from its module at its first use. So a process that needs only the tables or
the safety states works without libzmq, and one that only sends a request, such as an e-stop, starts
in the time that libzmq takes.
"""

# ruff: noqa: F403
# pyright: reportWildcardImportFromLibrary=false

from importlib import import_module
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from krabby_proto.admission import *
    from krabby_proto.batches import *
    from krabby_proto.client import *
    from krabby_proto.clocks import *
    from krabby_proto.codec import *
    from krabby_proto.errors import *
    from krabby_proto.exchanges import *
    from krabby_proto.folder import *
    from krabby_proto.header import *
    from krabby_proto.hello import *
    from krabby_proto.operators import *
    from krabby_proto.replies import *
    from krabby_proto.requests import *
    from krabby_proto.schema import *
    from krabby_proto.server import *
    from krabby_proto.sockets import *
    from krabby_proto.states import *
    from krabby_proto.streams import *
    from krabby_proto.ticks import *

_PLACES: Final = {
    "admission": ("MAX_AHEAD_NS", "Admission", "CommandAdmission", "untimely"),
    "batches": ("Batches",),
    "client": ("ControlServer", "HalClient"),
    "clocks": ("PeerClock", "clocks_differ"),
    "codec": ("FloatArray", "Message", "decode", "encode", "pack", "topic_of", "unpack"),
    "errors": (
        *("AccessRefused", "BadMagic", "CorruptPayload", "EncodeError", "EndpointError"),
        *("EndpointInUse", "FrameError", "HelloMismatch", "KeyFileError", "ProtoError"),
        *("RecordingError", "RequestTimeout", "SchemaVersionMismatch", "ShortFrame"),
        *("WrongFrameCount", "WrongLength", "WrongStream"),
    ),
    "exchanges": ("AskedTarget", "Exchange", "ExchangeKind", "GateView"),
    "folder": ("private_folder", "runtime_folder"),
    "header": (
        *("FLAG_FEATURES_DUE", "FLAG_HOLD", "FLAG_LATENT", "FLAG_LOCKSTEP", "FLAG_NAV_DUE"),
        *("FLAG_OPERATOR", "FLAG_RESET", "HEADER_FORMAT", "HEADER_SIZE", "MAGIC"),
        *("SCHEMA_VERSION", "Header", "unpack_header"),
    ),
    "hello": (
        *("CLOCKS", "HELLO_TOPIC", "MAX_JSON_BYTES", "HelloAnswer", "JsonObject", "check_hello"),
        *("clock_of", "make_hello", "parse_json", "parse_request"),
    ),
    "operators": ("ControlClient", "SafetyClient"),
    "replies": (
        *("REPLY_FORMAT", "REPLY_MAGIC", "REPLY_SIZE", "CommandOutcome", "CommandReply"),
        *("SafetyOutcome",),
    ),
    "requests": ("Request", "Requester", "Router", "serve_within"),
    "schema": ("schema_hash",),
    "server": ("HalHandler", "HalServer", "ServerStats"),
    "sockets": (
        *("LatestSubscriber", "Publisher", "RawMessage", "WatchedPublisher", "new_instance_id"),
        *("wait_any", "wait_readable"),
    ),
    "states": (
        *("FAULT_BITS", "SAFETY_OPS", "SAFETY_STATES", "CommandStatus", "Fault", "SafetyState"),
        *("fault_names",),
    ),
    "streams": (
        *(
            "CAMERA",
            "COLOUR",
            "COMMAND",
            "CONTROL",
            "FEATURES",
            "NAV",
            "NUM_FEET",
            "NUM_JOINTS",
            "SAFETY",
        ),
        *("STATE", "STREAMS", "TICKS", "TRACE", "TRUTH", "Field", "Stream", "beside"),
        *("default_endpoints",),
    ),
    "ticks": (
        *("LOOP_MODES", "NavTaken", "ReplyTaken", "StateSeen", "Tick", "TickInput", "TickReader"),
        *("TickRecord", "TickRequest"),
    ),
}
"""Names by module."""


def __getattr__(name: str) -> object:
    for module, names in _PLACES.items():
        if name in names:
            found = getattr(import_module(f"{__name__}.{module}"), name)
            globals()[name] = found
            return found
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
