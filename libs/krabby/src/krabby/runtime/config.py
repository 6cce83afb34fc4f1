"""Configuration that every service has."""

from typing import Annotated

from msgspec import Meta

from krabby.config import Config, Port

__all__ = ["RealtimeCfg", "ServiceCfg"]


class RealtimeCfg(Config, frozen=True, kw_only=True):
    """Real-time features of a process; all off, which suits a simulation on a shared machine."""

    fifo_priority: Annotated[int, Meta(ge=0, le=99)] = 0
    """SCHED_FIFO priority of the loop, 50 to 80 on the robot; 0 leaves the normal scheduler.
    Where it is refused, the loop gets a short time slice instead."""
    cpus: tuple[Annotated[int, Meta(ge=0)], ...] = ()
    """CPU numbers the process may run on; empty for all."""
    lock_memory: bool = False
    """Lock all memory with mlockall, so that a page fault never stops the loop."""
    collect_when_idle: bool = False
    """Switch automatic garbage collection off; the loop collects in the idle part of a slot."""


class ServiceCfg(Config, frozen=True, kw_only=True):
    """Keys of every service; a service's own configuration derives from this."""

    metrics_port: Port = 0
    """TCP port of the Prometheus exposition and of /healthz; 0 for none."""
    metrics_address: str = "127.0.0.1"
    """Interface the exposition binds; 0.0.0.0 only inside a container network."""
    health_file: str = ""
    """File touched twice a second while the loop turns, on a tmpfs; empty for none."""
    realtime: RealtimeCfg = RealtimeCfg()
