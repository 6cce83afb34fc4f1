"""A device's own clock on ours."""

from typing import Final

__all__ = ["ClockMap"]

_FORGET_NS: Final = 5_000_000_000


class ClockMap:
    """Takes a device's time stamps to CLOCK_MONOTONIC, without the jitter of their journey.

    A message cannot arrive before it was sent, so the shortest journey seen says best how far the
    clocks are apart. The estimate may rise by `drift_ppm`, so that a device whose clock is slow is
    followed too; one whose clock is fast is followed at once. A device clock that goes backwards,
    or stands 5 s off, was restarted: so is the estimate.
    """

    def __init__(self, *, drift_ppm: float = 200.0) -> None:
        """`drift_ppm`: largest difference in rate that is followed; crystals stay below 100."""
        self._drift = drift_ppm * 1e-6
        self.reset()

    def reset(self) -> None:
        """Forget the estimate: another device, or it was switched off."""
        self._offset_ns: int | None = None
        self._device_ns = 0

    def __call__(self, device_ns: int, arrived_ns: int) -> int:
        """The device's stamp `device_ns` on our clock, never later than `arrived_ns`."""
        offset_ns = arrived_ns - device_ns
        since_ns = device_ns - self._device_ns
        self._device_ns = device_ns
        if self._offset_ns is None or since_ns < 0 or abs(offset_ns - self._offset_ns) > _FORGET_NS:
            self._offset_ns = offset_ns
        else:
            self._offset_ns = min(self._offset_ns + round(self._drift * since_ns), offset_ns)
        return device_ns + self._offset_ns
