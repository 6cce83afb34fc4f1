"""Between the robot and the pages: one loop that reads streams and sends frames, one that drives.

Without a page nothing is subscribed and nothing asked. A page that is slow gets the newest of each
kind and misses the rest.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable, Mapping
from typing import Any, Final

import structlog
from krabby_proto import ProtoError
from starlette.websockets import WebSocket

from krabby_cli.keys import Nav, NavLimits
from krabby_cli.operator import PERIOD_S, Operator
from krabby_cli.view import messages
from krabby_cli.view.access import Role
from krabby_cli.view.driving import Driving, clamped
from krabby_cli.view.live import LiveSource
from krabby_cli.view.replay import Player, ReplaySource

__all__ = ["Client", "Hub"]

log = structlog.get_logger(__name__)

_FRAME_S: Final = 1 / 30
_DEPTH_FRAMES: Final = 3
_FACTS_FRAMES: Final = 3
"""Frames of the state for each depth image, and for each look at the facts."""
_LATE_WORDS: Final = "came late over the link and was left out; ask again"


class Client:
    """One page that has shown its secret."""

    def __init__(self, number: int, role: Role, socket: WebSocket) -> None:
        self.number = number
        self.role: Role = role
        self.player: Player | None = None
        self.scene: list[dict[str, Any]] | None = None
        """What it was told of robot and course."""
        self._socket = socket
        self._slots: dict[str, bytes | str] = {}
        self._filled = asyncio.Event()

    def offer(self, kind: str, content: bytes | str) -> None:
        """Send this soon; a newer one of its kind takes its place."""
        self._slots[kind] = content
        self._filled.set()

    async def send(self) -> None:
        """Send what is offered, for ever."""
        while True:
            await self._filled.wait()
            self._filled.clear()
            while self._slots:
                content = self._slots.pop(next(iter(self._slots)))
                if isinstance(content, bytes):
                    await self._socket.send_bytes(content)
                else:
                    await self._socket.send_text(content)


class Hub:
    """The pages of one source. Everything but the requests of `Operator` is in one thread."""

    def __init__(
        self,
        source: LiveSource | ReplaySource,
        operator: Operator | None,
        limits: NavLimits,
        *,
        read_only: bool = False,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.source = source
        self.driving = Driving(limits)
        self.clients: dict[int, Client] = {}
        self._operator = operator
        self._read_only = read_only
        self._clock = clock
        self._count = 0
        self._arrived = asyncio.Event()
        self._engaged = asyncio.Event()
        self._last_facts: dict[int, str] = {}
        self._said = ""
        """What came of a request that was not passed on."""

    # --- pages -------------------------------------------------------------------------------

    def join(self, role: Role, socket: WebSocket) -> Client:
        """A page has shown its secret."""
        if not self.clients and isinstance(self.source, LiveSource):
            self.source.open()
        self._count += 1
        client = Client(self._count, "see" if self._read_only else role, socket)
        if isinstance(self.source, ReplaySource):
            client.player = Player(self.source)
        self.clients[client.number] = client
        self._arrived.set()
        log.info("page", number=client.number, role=client.role, pages=len(self.clients))
        return client

    def leave(self, client: Client) -> None:
        """Its connection has ended."""
        del self.clients[client.number]
        self._last_facts.pop(client.number, None)
        drove = self.driving.driver == client.number
        self.driving.leave(client.number)
        if drove:
            log.warning("the driver's page has gone, the robot is commanded to stand")
        if not self.clients:
            self._arrived.clear()
            if isinstance(self.source, LiveSource):
                self.source.close()
        log.info("page left", number=client.number, pages=len(self.clients))

    def hear(self, client: Client, message: messages.Message) -> None:
        """Do what a page asks, if its role allows that."""
        if isinstance(message, messages.Ping):
            client.offer("pong", json.dumps({"t": "pong", "at": message.at}))
        elif isinstance(message, messages.Play):
            if client.player is not None:
                client.player.control(message.playing, message.speed, message.at_s)
        elif self._operator is None:
            return
        elif isinstance(message, messages.Estop):
            self.driving.stop()
            log.warning("e-stop", page=client.number)
            self._operator.request("estop")
        elif client.role == "operate":
            self._operate(client, message, self._operator)

    def _operate(self, client: Client, message: messages.Message, operator: Operator) -> None:
        now_s = self._clock()
        number = client.number
        if isinstance(message, messages.Back):
            self.driving.hand_back(number)
        elif isinstance(message, messages.Sticks):
            self.driving.hear(number, message.s, message.n, message.at * 1e-3, now_s)
        elif isinstance(message, messages.Token):
            return
        else:
            assert isinstance(message, (messages.Take, messages.Ask, messages.Policy))
            late = self.driving.is_late(number, message.at * 1e-3, now_s)
            self._said = ""
            if isinstance(message, messages.Ask) and message.op in ("sit", "disarm"):
                self.driving.stop()
                operator.request(message.op)  # safe when late
            elif late:
                self._said = f"request {_LATE_WORDS}"
            elif isinstance(message, messages.Take):
                self.driving.take(number)
            elif isinstance(message, messages.Ask):
                operator.request(message.op)
            else:
                operator.change_policy(message.name)
        if self.driving.engaged:
            self._engaged.set()

    # --- loops -------------------------------------------------------------------------------

    async def show(self) -> None:
        """Send frames and facts to the pages, 30 times a second while there are any."""
        frame, due_s = 0, self._clock()
        while True:
            await self._arrived.wait()
            if not self.clients:  # the one that arrived has left before this ran
                continue
            now_s = self._clock()
            due_s = max(due_s + _FRAME_S, now_s)
            frame += 1
            if isinstance(self.source, LiveSource):
                self._show_live(self.source, frame)
            else:
                for client in self.clients.values():
                    self._show_recorded(client)
            if frame % _FACTS_FRAMES == 0:
                self._tell(now_s)
            await asyncio.sleep(max(0.001, due_s - self._clock()))

    def _show_live(self, source: LiveSource, frame: int) -> None:
        source.look()
        state = source.state_frame()
        depth = source.depth_frame() if frame % _DEPTH_FRAMES == 0 else None
        colour = source.colour_frame()
        for client in self.clients.values():
            self._introduce(client)
            if colour is not None:
                client.offer("colour", colour)
            if state is not None:
                client.offer("state", state)
            if depth is not None:
                client.offer("depth", depth)

    def _show_recorded(self, client: Client) -> None:
        self._introduce(client)
        if client.player is not None:
            for content in client.player.advance(_FRAME_S):
                client.offer(f"frame {content[0]}", content)

    def _introduce(self, client: Client) -> None:
        """Tell a page of robot and course, when it does not know these yet."""
        if client.scene is not self.source.scene:
            client.scene = self.source.scene
            for message in self.source.scene:
                client.offer(message["t"], json.dumps(message))

    def _tell(self, now_s: float) -> None:
        """Send the facts to each page for which they changed."""
        shared: dict[str, Any] = {"t": "facts", "recorded": self.source.recorded}
        if isinstance(self.source, LiveSource):
            shared |= self.source.facts()
            left_s = self.driving.left_s(now_s)
            shared["stops_in_s"] = None if left_s is None else round(left_s, 1)
            shared["engaged"] = self.driving.engaged
            shared["asked"] = self._command(now_s)
            shared["said"] = self._said or ("" if self._operator is None else self._operator.said)
        for client in self.clients.values():
            own: dict[str, Any] = {"role": client.role}
            if client.player is not None:
                own |= client.player.facts()
            driver = self.driving.driver
            own["driver"] = (
                "" if driver is None else "you" if driver == client.number else "another page"
            )
            text = json.dumps(shared | own)
            if self._last_facts.get(client.number) != text:
                self._last_facts[client.number] = text
                client.offer("facts", text)

    def _command(self, now_s: float) -> Nav | None:
        """The walking command to send now, within the range of the policy; None for none."""
        nav = self.driving.command(now_s)
        loop: Mapping[str, Any] = self.source.loop
        return None if nav is None else clamped(nav, loop.get("command_range"))

    async def drive(self) -> None:
        """Send walking commands at 20 Hz for as long as a person has the robot."""
        due_s = self._clock()
        while self._operator is not None:
            await self._engaged.wait()
            now_s = self._clock()
            due_s = max(due_s + PERIOD_S, now_s)
            command = self._command(now_s)
            if command is None:
                self._engaged.clear()
                continue
            try:
                self._operator.publish(command)
            except ProtoError as error:
                self._said = str(error)
            await asyncio.sleep(max(0.001, due_s - self._clock()))
