"""The README is the contract for other languages: its tables are compared, its C is compiled."""

import json
import re
import shutil
import struct
import subprocess
from pathlib import Path

import pytest
import zmq
from krabby_proto import (
    FAULT_BITS,
    SAFETY_STATES,
    STATE,
    STREAMS,
    TRUTH,
    CommandReply,
    CommandStatus,
    Header,
    header,
    schema_hash,
)
from krabby_proto.access import ROLES, KeyFolder, KeyPair
from krabby_proto.endpoint import MAX_FRAMES
from krabby_proto.front import Limits
from krabby_proto.header import HEADER_FORMAT
from krabby_proto.relay import Relay
from krabby_proto.replies import REPLY_FORMAT
from krabby_proto.testing import FakeHal

PROTO = Path(__file__).parents[1]
TEXT = (PROTO / "README.md").read_text()
COMPILER = shutil.which("cc")


def table(*columns):
    """Rows of the table whose head starts with these columns, as lists of cells."""
    lines = iter(TEXT.splitlines())
    for line in lines:
        if line.startswith(f"| {' | '.join(columns)} |"):
            next(lines)
            break
    rows = []
    for line in lines:
        if not line.startswith("|"):
            return rows
        rows.append([cell.strip() for cell in line.strip("|").split("|")])
    return rows


def layout(struct_format, names):
    """Offset and size of every field of a struct without padding."""
    codes = re.findall(r"\d*[a-zA-Z]", struct_format)
    offset, rows = 0, []
    for name, code in zip(names, codes, strict=True):
        size = struct.calcsize("<" + code)
        rows.append([name, str(offset), str(size)])
        offset += size
    return rows


def test_streams_are_listed_as_they_are():
    patterns = {"pub": "PUB/SUB", "req": "REQ/ROUTER"}
    assert [row[:4] for row in table("stream", "id")] == [
        [s.name, str(s.id), str(s.port), patterns[s.pattern]]
        for s in sorted(STREAMS.values(), key=lambda s: s.id)
    ]


@pytest.mark.parametrize("stream", [STATE, TRUTH], ids=["state", "truth"])
def test_fields_are_listed_as_they_are(stream):
    assert table(stream.name, "offset") == [
        [f.name, str(stream.slices[f.name].start), str(f.size), f.unit] for f in stream.fields
    ]


def test_header_and_reply_are_listed_as_they_are():
    assert [row[:3] for row in table("header", "offset")] == layout(HEADER_FORMAT, Header._fields)
    assert [row[:3] for row in table("reply", "offset")] == layout(
        REPLY_FORMAT, CommandReply._fields
    )


def test_flags_statuses_states_and_faults_are_listed_as_they_are():
    flags = {name: getattr(header, f"FLAG_{name}") for name, *_ in table("flag", "bit value")}
    assert [row[:2] for row in table("flag", "bit value")] == [
        [n, str(v)] for n, v in flags.items()
    ]
    assert len(flags) == sum(name.startswith("FLAG_") for name in header.__all__)
    assert [row[:2] for row in table("status", "number")] == [
        [s.name.lower(), str(int(s))] for s in CommandStatus
    ]
    for names in (SAFETY_STATES, FAULT_BITS):
        listed = ", ".join(f"{number} {name}" for number, name in enumerate(names))
        assert listed in TEXT.replace("\n", " ")


def test_limits_and_hash_are_those_of_the_code():
    assert f'"schema_hash": "{schema_hash()}"' in TEXT
    camera, features = STREAMS["camera"].max_elements, STREAMS["features"].max_elements
    assert f"camera 1 to {camera}, features 1 to {features}" in TEXT


def test_the_hex_dump_is_the_golden_command():
    golden = json.loads((PROTO / "golden" / "command.json").read_text())["frames"]
    dump = re.search(r"```text\ntopic(.*?)```", TEXT, re.DOTALL)[1]
    columns = "".join(line[9:51] for line in ("topic" + dump).splitlines())
    shown = re.sub(r"[^0-9a-f.]", "", columns)
    head, tail = shown.split("...")
    assert "".join(golden).startswith(head)
    assert golden[2].endswith(tail)


@pytest.fixture(scope="module")
def c_files(tmp_path_factory):
    """The README's C sources by their names."""
    folder = tmp_path_factory.mktemp("c")
    for source in re.findall(r"```c\n(/\* (\S+):.*?)```", TEXT, re.DOTALL):
        (folder / source[1]).write_text(source[0])
    return folder


def build(folder, name, *options):
    if COMPILER is None:
        pytest.skip("no C compiler")
    program = folder / name
    flags = ["-Wall", "-Wno-unused-function", "-Werror", "-std=c11", "-D_GNU_SOURCE"]
    source = str(folder / f"{name}.c")
    subprocess.run([COMPILER, *flags, source, "-o", str(program), *options], check=True)
    return program


GOLDEN_C = r"""
#include "krabby.h"
#include <stdio.h>
int main(void) {
    float targets[18];
    for (int i = 0; i < 18; i++) targets[i] = 0.25f * i - 2.0f;
    krabby_header h = krabby_make_header(3, 0x0123456789abcdefULL, 44, 1000000000003ULL,
                                         1000000250003ULL, targets, 18);
    for (size_t i = 0; i < sizeof h; i++) printf("%02x", ((unsigned char *)&h)[i]);
    printf(" %08x", krabby_crc32("123456789", 9));
    printf(" %d", krabby_valid(&h, sizeof h, targets, sizeof targets, 3, 18));
    targets[0] = 1.0f;
    printf(" %d\n", krabby_valid(&h, sizeof h, targets, sizeof targets, 3, 18));
    return 0;
}
"""


def test_the_c_code_writes_and_checks_the_golden_bytes(c_files):
    (c_files / "golden.c").write_text(GOLDEN_C)
    program = build(c_files, "golden")
    output = subprocess.run([program], capture_output=True, text=True, check=True).stdout
    golden = json.loads((PROTO / "golden" / "command.json").read_text())["frames"]
    assert output.split() == [golden[1], "cbf43926", "1", "0"]


# What command.c uses of zmq.h, whose constants are part of libzmq's stable interface.
ZMQ_H = """
void *zmq_ctx_new(void); int zmq_ctx_term(void *); void *zmq_socket(void *, int);
int zmq_close(void *); int zmq_connect(void *, const char *);
int zmq_setsockopt(void *, int, const void *, size_t);
int zmq_send(void *, const void *, size_t, int); int zmq_recv(void *, void *, size_t, int);
typedef struct { void *socket; int fd; short events, revents; } zmq_pollitem_t;
int zmq_poll(zmq_pollitem_t *, int, long);
enum { ZMQ_REQ = 3, ZMQ_POLLIN = 1, ZMQ_POLLOUT = 2, ZMQ_DONTWAIT = 1, ZMQ_SNDMORE = 2,
       ZMQ_LINGER = 17, ZMQ_RCVHWM = 24, ZMQ_IMMEDIATE = 39, ZMQ_REQ_CORRELATE = 52,
       ZMQ_REQ_RELAXED = 53, ZMQ_CURVE_PUBLICKEY = 48, ZMQ_CURVE_SECRETKEY = 49,
       ZMQ_CURVE_SERVERKEY = 50 };
"""


@pytest.fixture(scope="module")
def command_c(c_files):
    """The README's client, built."""
    libraries = sorted((Path(zmq.__file__).parents[1] / "pyzmq.libs").glob("libzmq*.so*"))
    if not libraries:
        pytest.skip("pyzmq does not bring its own libzmq here")
    (c_files / "zmq.h").write_text(ZMQ_H)
    folder = libraries[0].parent
    # Its own companions are found at run time, by the path written into the program.
    options = [str(libraries[0]), f"-Wl,-rpath,{folder},--allow-shlib-undefined", f"-I{c_files}"]
    return build(c_files, "command", *options)


def test_the_c_client_commands_a_hal(command_c, context):
    with FakeHal(armed=True, context=context, ttl_s=5.0) as hal:
        for instance, status in (("a1", 0), ("a1", 24), ("b2", 23)):
            output = subprocess.run(
                [command_c, hal.endpoints["command"], instance],
                capture_output=True,
                text=True,
                check=True,
            ).stdout
            assert CommandStatus(int(output)) == status
        assert [message.header.instance_id for message in hal.applied] == [0xA1]


@pytest.mark.parametrize(("role", "status"), [("command", 0), ("see", 255)])
def test_the_c_client_commands_a_hal_through_the_relay_with_a_key(
    command_c, tmp_path, context, role, status
):
    keys, pair = KeyFolder(tmp_path / "keys"), KeyPair.make()
    keys.authorise("c", pair.public, [role])
    inside = {name: f"ipc://{tmp_path}/{name}" for name in ("state", "command")}
    with (
        FakeHal(inside, armed=True, context=context, ttl_s=5.0) as hal,
        Relay(keys, inside, lambda *_: "tcp://127.0.0.1:*", streams=("command",)) as relay,
    ):
        place = relay.endpoints["command"].replace("curve", "tcp")
        arguments = (place, "a1", keys.robot().public, *pair)
        with subprocess.Popen([command_c, *arguments], stdout=subprocess.PIPE, text=True) as client:
            while client.poll() is None:
                relay.poll(0.05)
            assert int(client.stdout.read()) == status
        assert len(hal.applied) == (role == "command")


def test_the_limits_of_the_relay_are_those_of_the_code():
    limits = Limits()
    rows = {row[0]: row[1] for row in table("limit of the relay", "value")}
    assert rows["frames of a message"] == str(MAX_FRAMES)
    assert rows["received on a connection"].startswith(f"{limits.bytes_per_s // 1024} KiB")
    assert rows["connections of a port"] == str(limits.connections)
    assert rows["connections of a key at a port"] == str(limits.connections_of_key)
    rates = ", ".join(f"{name} {rate:g}" for name, rate in limits.requests_per_s.items())
    assert rows["messages of a key per second"].startswith(rates)
    assert [row[0] for row in table("role", "ports")] == [*ROLES[:3], "every key"]
