"""Recordings: everything that one robot's processes said, in one MCAP file, and back.

Needs the extra ``recording``. Raw streams stand in it as they were on the wire, one channel each,
beside what viewers draw (`krabby record`). Log time is the publish time on the robot's clock.

    from krabby_proto.recording import Recording

    recording = Recording(Path("run.mcap"))
    recording.run                 # RunFacts: course, policies, robot, configuration, versions
    recording.metadata            # the same as it stands in the file, text by key by record
    for message in recording: ... # krabby_proto.Message of every raw stream, in order of time
    for tick in recording.ticks(): ...          # krabby_proto.Tick: inputs and decision
    for exchange in recording.exchanges(): ...  # krabby_proto.Exchange: command and reply, safety,
                                                # control, changes of the gate
    for message in recording.navs(): ...        # walking commands of all writers, as they were read
    recording.overview()          # Overview: messages by topic, gaps, first and last time
    recording.damage              # what the last reading could not read; empty for nothing

`tick.state`, `tick.features` and `tick.inputs` hold all that `krabby.control` took in, see
`krabby_proto.ticks`. `verify(path)` checks the hash chain through the file. A file that was cut
short or damaged gives what is readable of it; nothing in a file is trusted, and no more than some
100 MiB are held.
"""

from krabby_proto.recording._chain import SigningKey
from krabby_proto.recording._facts import RunFacts
from krabby_proto.recording._format import GAPS, HELLO
from krabby_proto.recording._read import Overview, Recording
from krabby_proto.recording._verify import Verdict, verify
from krabby_proto.recording._write import Recorder

__all__ = [
    "GAPS",
    "HELLO",
    "Overview",
    "Recorder",
    "Recording",
    "RunFacts",
    "SigningKey",
    "Verdict",
    "verify",
]
