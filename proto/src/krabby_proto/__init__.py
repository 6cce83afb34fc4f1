"""The wire contract: streams, header, codec, HAL client and HAL server.

What opens sockets is imported at its first use, so that a process which only needs the tables, the
codec or the numbers of safety states works without libzmq.
"""

from importlib import import_module
from typing import TYPE_CHECKING

from krabby_proto.admission import MAX_AHEAD_NS, untimely
from krabby_proto.codec import FloatArray, Message, decode, encode, pack, unpack
from krabby_proto.errors import (
    BadMagic,
    CorruptPayload,
    EncodeError,
    EndpointError,
    EndpointInUse,
    FrameError,
    HelloMismatch,
    ProtoError,
    RecordingError,
    RequestTimeout,
    SchemaVersionMismatch,
    ShortFrame,
    WrongFrameCount,
    WrongLength,
    WrongStream,
)
from krabby_proto.header import (
    FLAG_FEATURES_DUE,
    FLAG_LATENT,
    FLAG_LOCKSTEP,
    FLAG_NAV_DUE,
    FLAG_OPERATOR,
    FLAG_RESET,
    HEADER_SIZE,
    MAGIC,
    SCHEMA_VERSION,
    Header,
)
from krabby_proto.hello import JsonObject, check_hello, make_hello
from krabby_proto.replies import CommandOutcome, CommandReply, SafetyOutcome
from krabby_proto.states import (
    FAULT_BITS,
    SAFETY_OPS,
    SAFETY_STATES,
    CommandStatus,
    Fault,
    SafetyState,
    fault_names,
)
from krabby_proto.streams import (
    CAMERA,
    COMMAND,
    CONTROL,
    FEATURES,
    NAV,
    NUM_FEET,
    NUM_JOINTS,
    SAFETY,
    STATE,
    STREAMS,
    TRUTH,
    Field,
    Stream,
    default_endpoints,
    schema_hash,
)

if TYPE_CHECKING:
    from krabby_proto.client import ControlClient, ControlServer, HalClient
    from krabby_proto.server import HalHandler, HalServer
    from krabby_proto.sockets import LatestSubscriber, Publisher, new_instance_id, wait_any

__all__ = [
    "CAMERA",
    "COMMAND",
    "CONTROL",
    "FAULT_BITS",
    "FEATURES",
    "FLAG_FEATURES_DUE",
    "FLAG_LATENT",
    "FLAG_LOCKSTEP",
    "FLAG_NAV_DUE",
    "FLAG_OPERATOR",
    "FLAG_RESET",
    "HEADER_SIZE",
    "MAGIC",
    "MAX_AHEAD_NS",
    "NAV",
    "NUM_FEET",
    "NUM_JOINTS",
    "SAFETY",
    "SAFETY_OPS",
    "SAFETY_STATES",
    "SCHEMA_VERSION",
    "STATE",
    "STREAMS",
    "TRUTH",
    "BadMagic",
    "CommandOutcome",
    "CommandReply",
    "CommandStatus",
    "ControlClient",
    "ControlServer",
    "CorruptPayload",
    "EncodeError",
    "EndpointError",
    "EndpointInUse",
    "Fault",
    "Field",
    "FloatArray",
    "FrameError",
    "HalClient",
    "HalHandler",
    "HalServer",
    "Header",
    "HelloMismatch",
    "JsonObject",
    "LatestSubscriber",
    "Message",
    "ProtoError",
    "Publisher",
    "RecordingError",
    "RequestTimeout",
    "SafetyOutcome",
    "SafetyState",
    "SchemaVersionMismatch",
    "ShortFrame",
    "Stream",
    "WrongFrameCount",
    "WrongLength",
    "WrongStream",
    "check_hello",
    "decode",
    "default_endpoints",
    "encode",
    "fault_names",
    "make_hello",
    "new_instance_id",
    "pack",
    "schema_hash",
    "unpack",
    "untimely",
    "wait_any",
]

_WITH_SOCKETS = {
    "client": ("ControlClient", "ControlServer", "HalClient"),
    "server": ("HalHandler", "HalServer"),
    "sockets": ("LatestSubscriber", "Publisher", "new_instance_id", "wait_any"),
}


def __getattr__(name: str) -> object:
    for module, names in _WITH_SOCKETS.items():
        if name in names:
            found = getattr(import_module(f"{__name__}.{module}"), name)
            globals()[name] = found
            return found
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
