"""Writes the pictures of a film to a file that is there as a whole or not at all."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Generator, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from krabby_cli.errors import CliError, UsageError

if TYPE_CHECKING:
    from krabby.mujoco.render import Picture

__all__ = ["ANIMATIONS", "STRIPS", "SUFFIXES", "VIDEOS", "check_writer", "write_film"]

VIDEOS: Final = (".mp4", ".webm")
ANIMATIONS: Final = (".webp", ".gif")
STRIPS: Final = (".png",)
SUFFIXES: Final = (*VIDEOS, *ANIMATIONS, *STRIPS)
_CODECS: Final = {
    ".mp4": ("libx264", {"crf": "23", "preset": "veryfast"}),
    ".webm": ("libvpx-vp9", {"crf": "33", "b": "0", "deadline": "realtime", "cpu-used": "6"}),
}
_LOOK: Final = "it plays everywhere"


def check_writer(path: Path) -> None:
    """Refuse a file that cannot be written, before anything is drawn.

    Raises:
        UsageError: Another suffix, no such folder, or a video without PyAV.
    """
    suffix = path.suffix.lower()
    if suffix not in SUFFIXES:
        raise UsageError(f"{path}: choose a name ending in {', '.join(SUFFIXES)}")
    if not os.access(path.parent, os.W_OK):
        raise UsageError(f"cannot write {path}: no such writable folder; choose another place")
    if suffix in VIDEOS:
        _av(path)


def write_film(pictures: Iterable[Picture], path: Path, *, fps: float) -> int:
    """Write an animation or a video; returns the number of pictures.

    When the block of pictures ends early, by Ctrl-C too, nothing is left at `path`.
    """
    with _whole(path) as part:
        if path.suffix.lower() in VIDEOS:
            return _write_video(pictures, part, path, fps)
        from krabby.mujoco.render import save_animation

        held: Sequence[Picture] = list(pictures)
        save_animation(held, part, fps=fps)
        return len(held)


@contextlib.contextmanager
def _whole(path: Path) -> Generator[Path, None, None]:
    """A file beside `path` that takes its place when the block ends well, and goes otherwise."""
    part = path.with_name(f".{path.stem}.part{path.suffix}")
    try:
        yield part
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def _write_video(pictures: Iterable[Picture], part: Path, path: Path, fps: float) -> int:
    av = _av(path)
    codec, options = _CODECS[path.suffix.lower()]
    count = 0
    with av.open(str(part), "w") as container:
        stream = None
        for picture in pictures:
            if stream is None:
                try:
                    stream = container.add_stream(codec, rate=_rate(fps), options=options)
                except (ValueError, av.FFmpegError) as error:
                    raise CliError(
                        f"PyAV has no encoder {codec} ({error}); choose .webp, which needs none"
                    ) from error
                stream.height, stream.width = picture.shape[:2]
                stream.pix_fmt = "yuv420p"  # what browsers and players show
                stream.thread_count = 1  # the drawing has the processors
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
            count += 1
        if stream is not None:
            container.mux(stream.encode(None))
    return count


def _rate(fps: float) -> Any:
    from fractions import Fraction

    return Fraction(fps).limit_denominator(1000)


def _av(path: Path) -> Any:
    try:
        import av
    except ImportError as error:
        raise UsageError(
            f"{path}: videos need PyAV: in a checkout make setup-film, else pip install av; or "
            "choose a name ending in .webp"
        ) from error
    return av
