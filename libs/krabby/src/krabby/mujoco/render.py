"""Pictures of a MuJoCo scene by casting rays: no OpenGL, no display, no GPU.

Good for documentation, run strips and headless machines, where MuJoCo's own renderer has no
context to draw in. How rays are shaded: `krabby.mujoco.rays`; films: `krabby.mujoco.film`.
"""

# mujoco is compiled and comes without type stubs.
# pyright: reportAttributeAccessIssue=false

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import mujoco
import numpy as np
from numpy.typing import ArrayLike
from PIL import Image, ImageDraw, ImageFont

from krabby.mujoco.model import TERRAIN_GROUP, VISUAL_GROUP
from krabby.mujoco.rays import (
    HAZE_M,
    HORIZON,
    Picture,
    Scene,
    View,
    camera_rays,
    shade,
    sky,
    strata_of,
    to_display,
)

__all__ = [
    "Picture",
    "View",
    "contact_sheet",
    "render_rays",
    "save_animation",
    "save_picture",
    "write_captions",
]

_LABEL_PX = 18
_LABEL_COLOUR = (60, 64, 70)
_CAPTION_SHARE = 0.04
"""Height of a line of captions, of the picture's."""


def render_rays(
    model: mujoco.MjModel,
    data: mujoco.MjData,
    view: View,
    *,
    width: int = 640,
    height: int = 360,
    supersample: int = 2,
    sky_samples: int = 0,
    groups: Sequence[int] = (TERRAIN_GROUP, VISUAL_GROUP),
    background: ArrayLike | None = None,
) -> Picture:
    """Picture of the scene as `data` has it (after `mj_forward` or `mj_step`).

    Args:
        model: The compiled model.
        data: Its state; only geom poses are read.
        view: Where to look from.
        width: Of the picture [px].
        height: Of the picture [px].
        supersample: Rays per pixel and axis; 1 is fast and jagged.
        sky_samples: Lights that make up the sky, shared among the rays of a pixel; 0 shades the
            sky by direction only, 32 to 64 add soft shadows.
        groups: Geom groups to draw; by default terrain and the robot's visuals.
        background: Plain sRGB colour (3,) in 0..1 instead of sky and haze.
    """
    scene = Scene(model, data, groups)
    directions, origin = camera_rays(view, width * supersample, height * supersample)
    hit = scene.cast(origin, directions)
    colour = sky(directions)
    if hit.mask.any():
        points = origin + directions[hit.mask] * hit.distance[hit.mask, None]
        strata = strata_of(width, height, supersample)[hit.mask]
        shaded = shade(scene, hit, points, directions[hit.mask], view, strata, sky_samples)
        haze = np.exp(-((hit.distance[hit.mask] / HAZE_M) ** 2))[:, None]
        if background is not None:
            haze = np.ones_like(haze)
        colour[hit.mask] = shaded * haze + HORIZON * (1.0 - haze)
    display = to_display(colour)
    if background is not None:
        display[~hit.mask] = background
    display = display.reshape(height, supersample, width, supersample, 3).mean(axis=(1, 3))
    return np.round(display * 255.0).astype(np.uint8)


def save_picture(picture: Picture, path: Path) -> None:
    """Write a picture in the format of the suffix, as small as it gets without loss."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(picture).save(path, optimize=True)


def save_animation(pictures: Sequence[Picture], path: Path, *, fps: float) -> None:
    """Write an endless loop as .webp (small) or .gif (works everywhere)."""
    if not pictures:
        raise ValueError("an animation needs at least one picture")
    frames = [Image.fromarray(picture) for picture in pictures]
    options: dict[str, Any] = (
        {"quality": 70, "method": 4} if path.suffix == ".webp" else {"optimize": True}
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    frames[0].save(
        path,
        save_all=True,
        append_images=frames[1:],
        duration=round(1000.0 / fps),
        loop=0,
        **options,
    )


def write_captions(picture: Picture, lines: Sequence[str]) -> Picture:
    """The picture with lines of text in its upper left corner, on a dark ground."""
    size = max(9, round(_CAPTION_SHARE * picture.shape[0]))
    font = ImageFont.load_default(size=size)
    image = Image.fromarray(picture)
    draw = ImageDraw.Draw(image, "RGBA")
    text = "\n".join(lines)
    left, top, right, bottom = draw.multiline_textbbox((size, size // 2), text, font=font)
    margin = size // 3
    draw.rounded_rectangle(
        (left - margin, top - margin, right + margin, bottom + margin),
        radius=margin,
        fill=(20, 24, 30, 150),
    )
    draw.multiline_text((size, size // 2), text, font=font, fill=(245, 246, 248))
    return np.asarray(image)


def contact_sheet(
    pictures: Sequence[Picture], *, columns: int, labels: Sequence[str] = (), gap: int = 4
) -> Picture:
    """Pictures of one size in rows of `columns`, white between them and where one is missing.

    `labels`, if given, are written into the pictures' upper left corners.
    """
    shapes = {picture.shape for picture in pictures}
    if len(shapes) != 1:
        raise ValueError(f"a contact sheet needs pictures of one size, not {sorted(shapes)}")
    if labels and len(labels) != len(pictures):
        raise ValueError(f"{len(pictures)} pictures need as many labels, not {len(labels)}")
    height, width, _ = shapes.pop()
    rows = -(-len(pictures) // columns)
    size = (columns * (width + gap) - gap, rows * (height + gap) - gap)
    sheet = Image.new("RGB", size, (255, 255, 255))
    draw = ImageDraw.Draw(sheet)
    font = ImageFont.load_default(size=_LABEL_PX)
    for i, picture in enumerate(pictures):
        left, top = i % columns * (width + gap), i // columns * (height + gap)
        sheet.paste(Image.fromarray(picture), (left, top))
        if labels:
            draw.text((left + 10, top + 6), labels[i], fill=_LABEL_COLOUR, font=font)
    return np.asarray(sheet)
