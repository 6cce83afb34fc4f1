"""The page of `krabby report`: one HTML document without a script and without another host."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from html import escape
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from krabby_cli.svg import Band, Line, bands, bars, chart

if TYPE_CHECKING:
    from krabby.course.courses import Course
    from krabby.diagnosis.diagnose import Diagnosis
    from krabby.robot.description import RobotDescription
    from krabby_proto.recording import RunFacts
    from numpy.typing import NDArray

    from krabby_cli.report_data import ReportData

__all__ = ["page"]

_THUMBNAILS: Final = 8
_FAR_M: Final = 4.0
_STYLE: Final = """
:root{color-scheme:light dark;--fg:#1b1f24;--dim:#626b75;--bg:#fff;--card:#f5f6f8;--rule:#d5d9de}
@media(prefers-color-scheme:dark){
:root{--fg:#e6e8eb;--dim:#9aa3ad;--bg:#15181c;--card:#1e2329;--rule:#353c45}}
*{box-sizing:border-box}
body{font:15px/1.45 system-ui,sans-serif;color:var(--fg);background:var(--bg)}
body{margin:0 auto;max-width:900px;padding:12px}
h1{font-size:1.35em;margin:.3em 0}h2{font-size:1.05em;margin:1.6em 0 .4em}
p{margin:.4em 0}.none,.dim{color:var(--dim)}
table{border-collapse:collapse;width:100%;font-size:.93em}
td,th{padding:3px 8px 3px 0;text-align:left;vertical-align:top;border-bottom:1px solid var(--rule)}
td:first-child{color:var(--dim);white-space:nowrap}
svg{width:100%;height:auto;background:var(--card);border-radius:6px;display:block}
.wide{overflow-x:auto}.wide svg{min-width:520px}
.finding{background:var(--card);border-left:4px solid #d1495b;border-radius:4px}
.finding{padding:6px 10px;margin:8px 0}
.ok{border-left-color:#2e933c}
.thumbs{display:grid;grid-template-columns:repeat(auto-fill,minmax(150px,1fr));gap:8px}
figure{margin:0}figure img{width:100%;image-rendering:pixelated;border-radius:4px}
figcaption{font-size:.8em;color:var(--dim)}
.film{width:100%;border-radius:6px}
.grid{stroke:var(--rule);stroke-width:.7}.tick,.label{fill:var(--dim);font-size:11px}
.mark{stroke:var(--fg);stroke-width:1.5}.box{fill:#8a93a0;fill-opacity:.22;stroke:none}
polyline{fill:none;stroke-width:1.6;stroke-linejoin:round}
.legend{font-size:.85em;margin:.2em 0}.legend span{margin-right:1em;white-space:nowrap}
.legend i{display:inline-block;width:12px;height:12px;border-radius:2px}
.legend i{margin-right:5px;vertical-align:-1px}
"""
_LINES: Final = ("#2176ae", "#e07a1f", "#2e933c", "#b3569c", "#d1495b", "#6b7785")
_BARS: Final = (
    "#c3c9d1", "#2e6f9e", "#e8a33d", "#2e933c", "#8f63b5", "#6b7785", "#d1495b", "#4fb3a5",
    "#b98b5e", "#d98fb5",
)  # fmt: skip
_GATE_STYLES: Final = {"disarmed": 0, "arming": 2, "active": 3, "hold": 8, "damp": 6, "estop": 4}
_MODE_STYLES: Final = {
    "silent": 0, "passive": 5, "stand_up": 2, "policy": 3, "sit_down": 7, "no_lease": 4,
}  # fmt: skip


def page(
    name: str,
    data: ReportData,
    facts: RunFacts,
    desc: RobotDescription,
    diagnosis: Diagnosis,
    *,
    course: Course | None = None,
    film: bytes | None = None,
    notes: Sequence[str] = (),
) -> str:
    """The document.

    Args:
        name: of the recording.
        data: what was recorded.
        facts: what the file says of the run.
        desc: the robot.
        diagnosis: what is wrong.
        course: that the robot walked on, where it is known.
        film: a .webp animation.
        notes: what could not be shown, and why.
    """
    parts = [
        f"<h1>{escape(name)}</h1>",
        _summary(data, facts, desc),
        _diagnosis(diagnosis),
        _section("Film", _film(film), skip=film is None),
        _section("Path on the course", _path(data, course)),
        _section("Time line", _timeline(data)),
        _section("Velocity", _velocity(data)),
        _section("Gait", _gait(data, desc)),
        _section("Torque and speed", _envelope(data, desc)),
        _section("Ages", _ages(data)),
        _section("Depth pictures", _thumbnails(data, desc)),
        _section("Not shown", "".join(f"<p>{escape(n)}</p>" for n in notes), skip=not notes),
        f'<p class="dim">krabby report; revision {escape(facts.revision or "unknown")}</p>',
    ]
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f"<title>{escape(name)}</title><style>{_STYLE}{_colours()}</style></head><body>"
        + "\n".join(part for part in parts if part)
        + "</body></html>\n"
    )


def _colours() -> str:
    lines = "".join(
        f".c{i}{{stroke:{c}}}.p{i}{{fill:{c};fill-opacity:.55}}.k-c{i}{{background:{c}}}"
        for i, c in enumerate(_LINES)
    )
    return lines + "".join(
        f".b{i}{{fill:{c}}}.k-b{i}{{background:{c}}}" for i, c in enumerate(_BARS)
    )


def _section(title: str, body: str, *, skip: bool = False) -> str:
    return "" if skip else f'<h2>{escape(title)}</h2><div class="wide">{body}</div>'


def _summary(data: ReportData, facts: RunFacts, desc: RobotDescription) -> str:
    log, last = data.log, data.truth_last
    course = "" if facts.course is None else (
        f"{facts.course}, difficulty {facts.difficulty:g}, seed {facts.seed}"
        if facts.difficulty is not None else facts.course
    )  # fmt: skip
    policies = ", ".join(str(each.get("name", "?")) for each in facts.policies)
    rows: list[tuple[str, Any]] = [
        ("run", facts.run_id),
        ("robot", facts.robot or desc.name),
        ("policy", policies or ", ".join(data.policies)),
        ("course", course),
        ("time", f"{log.duration_s:.1f} s" + (" in lock-step" if facts.lockstep else "")),
        ("followed commands", f"{float(log.following.sum()) * 0.01:.1f} s"),
    ]
    if last:
        rows += [
            ("distance", f"{last['distance']:.2f} m"),
            ("waypoints", f"{last['waypoint_index']:.0f} of {last['waypoint_count']:.0f}"),
            ("falls", f"{last['falls']:.0f}"),
        ]
    if data.blind_s > 0.0:
        rows.append(("blind policy in place", f"{data.blind_s:.1f} s"))
    faults = sorted({fault for _, _, names in data.gate for fault in names})
    rows += [
        ("faults of the gate", ", ".join(faults) or ("none" if data.gate else "not recorded")),
        ("states", f"{log.states}, {log.missed} missing"),
        ("late ticks", f"{log.pace.late} of {log.pace.due}" if log.pace.due else ""),
        ("refused commands", ", ".join(f"{n} {name}" for name, n in data.refused.items())),
        ("requests", "; ".join(f"{t:.1f} s {op}" for t, op, _ in data.operator[:12])),
        ("damage", log.damage),
    ]
    cells = "".join(
        f"<tr><td>{escape(key)}</td><td>{escape(str(value))}</td></tr>"
        for key, value in rows
        if value
    )
    return f"<table>{cells}</table>"


def _diagnosis(diagnosis: Diagnosis) -> str:
    body = "".join(
        f'<div class="finding"><b>{escape(each.kind)} {escape(", ".join(each.where))}</b> '
        f"{escape(each.evidence)}.<br>Remedy: {escape(each.remedy)}</div>"
        for each in diagnosis.findings
    )
    if not body:
        body = '<div class="finding ok">Wiring, mounts and timing: nothing wrong.</div>'
    notes = "".join(f'<p class="dim">{escape(note)}</p>' for note in diagnosis.notes)
    return f"<h2>Diagnosis</h2>{body}{notes}"


def _film(film: bytes | None) -> str:
    if film is None:
        return ""
    return f'<img class="film" alt="film of the run" src="{_data_url("image/webp", film)}">'


def _path(data: ReportData, course: Course | None) -> str:
    if not data.base_pos_w:
        return '<p class="none">No ground truth: only a simulation knows where the robot was.</p>'
    path = np.array(data.base_pos_w)
    lines = [Line(name="base", x=path[:, 0], y=path[:, 1])]
    shapes: list[list[tuple[float, float]]] = []
    if course is not None:
        near = path[:, :2].min(0) - 2.0, path[:, :2].max(0) + 2.0
        shapes = [corners for box in course.boxes if (corners := _outline(box, near))]
        marks = np.asarray(course.waypoints)[:, :2]
        lines.append(
            Line(name="waypoints", x=marks[:, 0], y=marks[:, 1], style=1, points=True, radius=4.0)
        )
    if data.fall_s:
        at = np.searchsorted(data.truth_s, data.fall_s).clip(0, len(path) - 1)
        lines.append(
            Line(name="falls", x=path[at, 0], y=path[at, 1], style=4, points=True, radius=5.0)
        )
    return chart(lines, x_label="x [m]", y_label="y [m]", equal=True, shapes=shapes)


def _outline(
    box: Any, near: tuple[NDArray[np.float64], NDArray[np.float64]]
) -> list[tuple[float, float]]:
    """The top face of a box seen from above, cut to what is near; empty when all of it is far."""
    from krabby.robot import rotations

    half = np.asarray(box.half_extents, float)
    corners = np.array([(x, y, 1.0) for x, y in ((-1, -1), (1, -1), (1, 1), (-1, 1))]) * half
    around = (np.asarray(box.center) + rotations.rotate(box.quat, corners))[:, :2]
    cut = np.clip(around, near[0], near[1])
    if np.ptp(cut[:, 0]) < 1e-6 or np.ptp(cut[:, 1]) < 1e-6:
        return []
    return [(float(x), float(y)) for x, y in cut]


def _timeline(data: ReportData) -> str:
    end_s = data.end_s
    stretches: list[Band] = []
    rows = ["gate", "mode", "faults", "falls"]
    for i, (time_s, state, faults) in enumerate(data.gate):
        until_s = data.gate[i + 1][0] if i + 1 < len(data.gate) else end_s
        begin_s = max(time_s, 0.0)
        style = _GATE_STYLES.get(state, 5)
        stretches.append(Band(row=0, begin=begin_s, end=until_s, style=style, name=state))
        if faults:
            names = ", ".join(faults)
            stretches.append(Band(row=2, begin=begin_s, end=until_s, style=6, name=names))
    for i, (time_s, mode) in enumerate(data.mode):
        until_s = data.mode[i + 1][0] if i + 1 < len(data.mode) else end_s
        style = _MODE_STYLES.get(mode, 5)
        begin_s = max(time_s, 0.0)
        stretches.append(Band(row=1, begin=begin_s, end=until_s, style=style, name=mode))
    stretches += [
        Band(row=3, begin=time_s, end=time_s + 0.01 * end_s, style=6, name="fall")
        for time_s in data.fall_s
    ]
    seen = {each.name for each in stretches}
    known = [(style, name) for name, style in _GATE_STYLES.items() if name in seen]
    known += [(style, name) for name, style in _MODE_STYLES.items() if name in seen]
    listed = "".join(
        f"<p>{time_s:.2f} s: {escape(', '.join(names))}</p>"
        for time_s, _, names in data.gate
        if names
    )
    return bands(rows, stretches, end=end_s, styles=known) + listed


def _velocity(data: ReportData) -> str:
    lines: list[Line] = []
    parts: list[str] = []
    walked = np.array(data.base_lin_vel_b).reshape(-1, 3)
    asked = np.array(data.nav_command).reshape(-1, 3)
    for axis, label in ((0, "vx, forward [m/s]"), (1, "vy, left [m/s]")):
        lines = []
        if len(walked):
            smooth = _smoothed(walked[:, axis], 50)
            lines.append(Line(name="walked, mean over 0.5 s", x=data.truth_s, y=smooth))
        if len(asked):
            lines.append(
                Line(name="commanded", x=data.nav_s, y=asked[:, axis], style=1, dashed=True)
            )
        parts.append(chart(lines, x_label="time [s]", y_label=label, height=170))
    lines = []
    log = data.log
    lines.append(
        Line(name="gyro, mean over 0.5 s", x=log.time_s, y=_smoothed(log.base_ang_vel_b[:, 2], 50))
    )
    if len(asked):
        lines.append(Line(name="commanded", x=data.nav_s, y=asked[:, 2], style=1, dashed=True))
    parts.append(chart(lines, x_label="time [s]", y_label="yaw rate [rad/s]", height=170))
    if not len(walked):
        parts.insert(0, '<p class="none">No ground truth: the walked velocity is not known.</p>')
    return "".join(parts)


def _smoothed(values: NDArray[np.float64], width: int) -> NDArray[np.float64]:
    if len(values) < 2 * width:
        return values
    padded = np.pad(values, (width // 2, width - 1 - width // 2), "edge")
    return np.convolve(padded, np.full(width, 1.0 / width), "valid")


def _gait(data: ReportData, desc: RobotDescription) -> str:
    log = data.log
    stretches: list[Band] = []
    for leg in range(log.foot_contact.shape[1]):
        down = np.concatenate([[False], log.foot_contact[:, leg], [False]])
        changes = np.flatnonzero(down[1:] != down[:-1])
        for begin, end in zip(changes[::2], changes[1::2], strict=True):
            last = min(int(end), len(log.time_s) - 1)
            stretches.append(
                Band(row=leg, begin=float(log.time_s[begin]), end=float(log.time_s[last]), style=1)
            )
    share = log.foot_contact[log.following].mean(0) if log.following.any() else None
    names = [
        name if share is None else f"{name} {share[i]:.0%}" for i, name in enumerate(desc.leg_names)
    ]
    return bands(names, stretches, end=data.end_s, styles=((1, "foot on the ground"),))


def _envelope(data: ReportData, desc: RobotDescription) -> str:
    from krabby.robot.kinematics import torque_speed_limit

    log = data.log
    use = log.following if log.following.any() else np.ones(len(log.time_s), bool)
    effort, speed = log.joint_effort[use], log.joint_vel[use]
    # Along the motion the torque falls with speed, against it the whole peak is there.
    driving = np.sign(effort) * np.sign(speed) > 0.0
    lines = []
    for i, kind in enumerate(("hip_yaw", "hip_pitch", "knee")):
        joints = [j for j, name in enumerate(desc.joint_names) if name.endswith(kind)]
        along = np.where(driving, np.abs(speed), -np.abs(speed))[:, joints].ravel()
        lines.append(
            Line(name=kind, x=along, y=np.abs(effort[:, joints]).ravel(), style=i, points=True)
        )
    most = float(min(max(np.abs(speed).max(), 1.0), desc.no_load_speed.max()))
    axis = np.linspace(-most, most, 80)
    hardest = int(desc.peak_torque.argmax())
    high = np.array([torque_speed_limit(desc, np.full(18, s))[1][hardest] for s in axis])
    lines.append(Line(name="limit of the drive", x=axis, y=high, style=4))
    rated = np.full(2, desc.rated_torque[hardest])
    lines.append(Line(name="rated", x=[-most, most], y=rated, style=5, dashed=True))
    rms = np.sqrt((effort**2).mean(0)) if len(effort) else np.zeros(18)
    return (
        chart(
            lines, x_label="joint speed, positive along the torque [rad/s]",
            y_label="torque [N·m]", height=260,
        )
        + "<p>RMS torque of each joint that followed commands; the mark is the rated torque.</p>"
        + bars(desc.joint_names, rms, desc.rated_torque, unit="N·m")
    )  # fmt: skip


def _ages(data: ReportData) -> str:
    parts: list[str] = []
    if data.command_age_ms:
        ages = np.array(data.command_age_ms)
        low, high = np.quantile(ages, (0.5, 0.99))
        parts.append(f"<p>State to command: median {low:.2f} ms, p99 {high:.2f} ms.</p>")
        line = Line(name="", x=data.command_s, y=ages)
        parts.append(chart([line], x_label="time [s]", y_label="age [ms]", height=150))
    else:
        parts.append('<p class="none">No commands were recorded.</p>')
    seen = np.array(data.features_age_ms)
    if np.isfinite(seen).any():
        low, high = np.nanquantile(seen, (0.5, 0.99))
        parts.append(f"<p>Picture in use: median {low:.0f} ms old, p99 {high:.0f} ms.</p>")
        line = Line(name="", x=data.tick_s, y=seen, style=2)
        parts.append(chart([line], x_label="time [s]", y_label="age [ms]", height=150))
    step_ms = np.diff(data.log.time_s) * 1e3
    parts.append("<p>From state to state, thinned to 100 Hz.</p>")
    line = Line(name="", x=data.log.time_s[1:], y=step_ms, style=3)
    parts.append(chart([line], x_label="time [s]", y_label="step [ms]", height=130))
    return "".join(parts)


def _thumbnails(data: ReportData, desc: RobotDescription) -> str:
    frames = data.log.frames
    camera = desc.camera
    if frames is None:
        return '<p class="none">No depth pictures were recorded.</p>'
    if frames.depth[0].size != camera.width * camera.height:
        return '<p class="none">The pictures have another size than the robot\'s camera.</p>'
    chosen = np.unique(np.linspace(0, len(frames.time_s) - 1, _THUMBNAILS).round().astype(int))
    figures = []
    for i in chosen:
        depth = frames.depth[i].reshape(camera.height, camera.width)
        url = _data_url("image/png", _picture(depth))
        figures.append(
            f'<figure><img alt="depth" src="{url}"><figcaption>{frames.time_s[i]:.1f} s, '
            f"{np.count_nonzero(depth) / depth.size:.0%} seen</figcaption></figure>"
        )
    return (
        f'<div class="thumbs">{"".join(figures)}</div>'
        f'<p class="dim">Near is light, {_FAR_M:g} m and beyond is dark; red has no reading.</p>'
    )


def _picture(depth: NDArray[np.float32]) -> bytes:
    from PIL import Image

    seen = depth > 0.0
    light = (255.0 * (1.0 - np.clip(depth, 0.0, _FAR_M) / _FAR_M)).astype(np.uint8)
    picture = np.stack([light] * 3, axis=-1)
    picture[~seen] = (150, 40, 40)
    out = io.BytesIO()
    Image.fromarray(picture).save(out, "PNG", optimize=True)
    return out.getvalue()


def _data_url(kind: str, content: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"
