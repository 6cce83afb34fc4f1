"""Writes the Grafana dashboards, one JSON file each, from the panels listed here.

    python monitoring/dashboards.py            # writes monitoring/grafana/dashboards/
    python monitoring/dashboards.py --check    # fails when a file there is not what this writes

The JSON is Grafana's own model, built by Grafana's own typed builders. A dashboard is a list of
rows: a number is the height of a row, the panels behind it share its width.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from grafana_foundation_sdk.builders import common, heatmap, prometheus, stat, statetimeline
from grafana_foundation_sdk.builders import dashboard as build
from grafana_foundation_sdk.builders import timeseries as graphs
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models import common as common_models
from grafana_foundation_sdk.models import dashboard as models
from grafana_foundation_sdk.models import heatmap as heatmap_models
from grafana_foundation_sdk.models.prometheus import PromQueryFormat
from krabby_proto import FEATURES, SAFETY_STATES, STATE

FOLDER = Path(__file__).parent / "grafana" / "dashboards"
SOURCE = models.DataSourceRef(type_val="prometheus", uid="prometheus")
WIDTH = 24

Panel = graphs.Panel | heatmap.Panel | stat.Panel | statetimeline.Panel
Queries = Mapping[str, str]
"""Legend to PromQL; a legend may hold {{label}}."""

NO_COLOURS: Mapping[str, str] = {}
LOOP = 'job="gameloop"'
HAL = 'job=~"sim-hal|jetson-hal"'
HAL_STATE = f'{HAL}, stream="state"'
STATE_P99 = f"krabby:observation_age_seconds:p99{{{HAL_STATE}}}"

CHOSEN = {"robot": "Robot", "instance": "Process"}
"""Variables of every dashboard, and their labels."""
SERIES = re.compile(r"\b(krabby_\w+|krabby:[\w:]+|process_\w+|ALERTS)\b(\{)?")
FILE = "max by (robot, path) (krabby_recorder_file_info)"
"""1 for the recording that is being written."""
MARKS = {
    "Falls": ("increase(krabby_falls_total[3s]) > 0", "The robot fell", "orange"),
    "Faults": ("max by (robot, fault) (krabby_fault_active) == 1", "Fault {{fault}}", "purple"),
    "E-stops": ('max by (robot) (krabby_safety_state{state="estop"}) == 1', "E-stop", "red"),
}
"""Annotations on every dashboard: PromQL, title, colour."""

COLOURS = ("blue", "purple", "green", "yellow", "orange", "red")
SAFETY_COLOURS = dict(zip(SAFETY_STATES, COLOURS, strict=True))
MODE_COLOURS = {
    "silent": "red", "passive": "blue", "stand_up": "purple",
    "policy": "green", "sit_down": "yellow", "no_lease": "orange",
}  # fmt: skip


def per_second(counter: str) -> str:
    """Rate over as short a time as the resolution allows."""
    return f"rate({counter}[$__rate_interval])"


def quantile(q: float, histogram: str, by: str = "", selector: str = "") -> str:
    """Of the last 30 s, for each value of the label `by`."""
    labels = f"{by}, le" if by else "le"
    return f"histogram_quantile({q}, sum by ({labels}) (rate({histogram}_bucket{selector}[30s])))"


def p99_p50(histogram: str, by: str = "") -> Queries:
    """Two quantiles, for each value of the label `by`."""
    name = f"{{{{{by}}}}} " if by else ""
    return {f"{name}p99": quantile(0.99, histogram, by), f"{name}p50": quantile(0.5, histogram, by)}


def effort_budget() -> graphs.Panel:
    """On two dashboards: how near the gate is to damping the drives."""
    title = "Hardest working joint: RMS torque over rated"
    return graph(title, {"ratio": "krabby_effort_budget_ratio"}, "percentunit", budget=0.9)


def stages(jobs: str) -> Queries:
    """Mean time per tick in each stage of a loop's work."""
    work, job = "krabby_loop_work_seconds", f'job=~"{jobs}"'
    return {
        "{{stage}}": f"sum by (stage) (rate({work}_sum{{{job}}}[10s]))"
        f" / on () group_left () sum(rate(krabby_loop_period_seconds_count{{{job}}}[10s]))"
    }


def number(
    title: str,
    expr: str,
    unit: str = "none",
    *,
    limits: tuple[float, float] | None = None,
    decimals: int | None = None,
) -> stat.Panel:
    """One figure; yellow from the first limit, red from the second."""
    panel = (
        stat.Panel()
        .title(title)
        .unit(unit)
        .graph_mode(common_models.BigValueGraphMode.AREA)
        .reduce_options(common.ReduceDataOptions().calcs(["lastNotNull"]))
        .thresholds(thresholds(*limits) if limits else thresholds())
        .with_target(query(expr, title))
    )
    return panel if decimals is None else panel.decimals(decimals)


def graph(
    title: str,
    queries: Queries,
    unit: str = "none",
    *,
    budget: float | None = None,
    least: float | None = None,
    stacked: bool = False,
    description: str = "",
) -> graphs.Panel:
    """Lines over time; the budget, or the least that is well, is a dashed line."""
    panel = (
        graphs.Panel()
        .title(title)
        .description(description)
        .unit(unit)
        .fill_opacity(30 if stacked else 0)
        .show_points(common_models.VisibilityMode.NEVER)
        .legend(
            common.VizLegendOptions()
            .show_legend(True)
            .display_mode(common_models.LegendDisplayMode.LIST)
            .placement(common_models.LegendPlacement.BOTTOM)
        )
        .tooltip(
            common.VizTooltipOptions()
            .mode(common_models.TooltipDisplayMode.MULTI)
            .sort(common_models.SortOrder.DESCENDING)
        )
    )
    if stacked:
        panel = panel.stacking(
            common.StackingConfig().mode(common_models.StackingMode.NORMAL).group("A")
        )
    if budget is not None or least is not None:
        steps = thresholds(budget) if budget is not None else thresholds(least=least)
        panel = panel.thresholds(steps).thresholds_style(
            common.GraphThresholdsStyleConfig().mode(common_models.GraphThresholdsStyleMode.DASHED)
        )
    for index, (legend, expr) in enumerate(queries.items()):
        panel = panel.with_target(query(expr, legend, chr(ord("A") + index)))
    return panel


seconds = partial(graph, unit="s")
share = partial(graph, unit="percentunit")
rate = partial(graph, unit="cps")
torque = partial(graph, unit="suffix: N·m")
angle = partial(graph, unit="radian")


def heat(title: str, metric: str, selector: str) -> heatmap.Panel:
    """A histogram over time, one row a bucket, dark is rare."""
    expr = f"sum by (le) (rate({metric}_bucket{{{selector}}}[$__rate_interval]))"
    return (
        heatmap.Panel()
        .title(title)
        .calculate(False)
        .y_axis(heatmap.YAxisConfig().unit("s").axis_placement(common_models.AxisPlacement.LEFT))
        .rows_frame(heatmap.RowsHeatmapOptions().layout(common_models.HeatmapCellLayout.LE))
        .color(
            heatmap.HeatmapColorOptions()
            .mode(heatmap_models.HeatmapColorMode.SCHEME)
            .scheme("Viridis")
            .scale(heatmap_models.HeatmapColorScale.EXPONENTIAL)
            .exponent(0.3)
            .steps(64)
            .reverse(False)
        )
        .with_target(query(expr, "{{le}}", form=PromQueryFormat.HEATMAP))
    )


def states(
    title: str,
    expr: str,
    legend: str,
    colours: Mapping[str, str] = NO_COLOURS,
    *,
    by_value: bool = False,
) -> statetimeline.Panel:
    """What held when: a bar for each series, or for each value."""
    legend = legend if "{{" in legend else f"{{{{{legend}}}}}"
    panel = (
        statetimeline.Panel()
        .title(title)
        .show_value(common_models.VisibilityMode.NEVER)
        .row_height(0.8)
        .fill_opacity(80)
        .legend(common.VizLegendOptions().show_legend(False))
        .with_target(query(expr, legend))
    )
    if by_value:
        results = {
            value: models.ValueMappingResult(text=text, color=colours[value])
            for value, text in (("0", "off"), ("1", "on"))
        }
        return panel.mappings([models.ValueMap(options=results)])
    for name, colour in colours.items():
        value = {"mode": "fixed", "fixedColor": colour}
        panel.override_by_name(name, [models.DynamicConfigValue(id_val="color", value=value)])
    return panel


def chosen(expr: str) -> str:
    """The expression for the robot and the processes that are chosen above the dashboard.

    Recorded series and alerts are not kept by process, only by robot.
    """

    def narrowed(found: re.Match[str]) -> str:
        own = ', instance=~"$instance"' if found[1].startswith(("krabby_", "process_")) else ""
        label = f'robot=~"$robot"{own}'
        return f"{found[1]}{{{label}" + (", " if found[2] else "}")

    return SERIES.sub(narrowed, expr)


def marks() -> list[dict[str, Any]]:
    """Falls, faults and e-stops, with the recording in which they can be seen again."""
    return [
        {
            "datasource": {"type": SOURCE.type_val, "uid": SOURCE.uid},
            "enable": True,
            "expr": chosen(
                f"(({expr}) * on (robot) group_left (path) {FILE}) or on (robot) ({expr})"
            ),
            "iconColor": colour,
            "name": name,
            "step": "1s",
            "textFormat": "recording: {{path}}",
            "titleFormat": title,
        }
        for name, (expr, title, colour) in MARKS.items()
    ] + [
        {
            "datasource": {"type": SOURCE.type_val, "uid": SOURCE.uid},
            "enable": True,
            "expr": chosen("krabby_recorder_incident_timestamp_seconds * 1000"),
            "iconColor": "blue",
            "name": "Black box",
            "step": "1s",
            "textFormat": "black box: {{path}}",
            "titleFormat": "Last minute before: {{kind}}",
            # The value is the time of the incident; the file begins a moment later.
            "useValueForTime": True,
        }
    ]


def variable(name: str, label: str, metric: str) -> build.QueryVariable:
    """All values of a label, all chosen at first."""
    return (
        build.QueryVariable(name)
        .label(label)
        .datasource(SOURCE)
        .query(f"label_values({metric}, {name})")
        .multi(True)
        .include_all(True)
        .all_value(".*")
        .current(models.VariableOption(selected=True, text="All", value="$__all"))
        .refresh(models.VariableRefresh.ON_TIME_RANGE_CHANGED)
    )


def query(
    expr: str, legend: str, ref: str = "A", form: PromQueryFormat = PromQueryFormat.TIME_SERIES
) -> prometheus.Dataquery:
    """One PromQL expression over the dashboard's time range."""
    return (
        prometheus.Dataquery()
        .datasource(SOURCE)
        .expr(chosen(expr))
        .legend_format(legend)
        .format(form)
        .range()
        .ref_id(ref)
    )


def thresholds(*limits: float, least: float | None = None) -> build.ThresholdsConfig:
    """Green below the first limit, red from the last, yellow between; red below `least`."""
    if least is not None:
        steps = [
            models.Threshold(value=None, color="red"),
            models.Threshold(value=least, color="green"),
        ]
        return build.ThresholdsConfig().mode(models.ThresholdsMode.ABSOLUTE).steps(steps)
    colours = ["red"] if len(limits) == 1 or limits[:1] == limits[1:] else ["yellow", "red"]
    steps = [models.Threshold(value=None, color="green")]
    steps += [
        models.Threshold(value=limit, color=colour)
        for limit, colour in zip(sorted(set(limits)), colours, strict=False)
    ]
    return build.ThresholdsConfig().mode(models.ThresholdsMode.ABSOLUTE).steps(steps)


def board(title: str, description: str, *content: Panel | int) -> build.Dashboard:
    """A number begins a row of that height; the panels behind it share its width."""
    result = (
        build.Dashboard(title)
        .uid(f"krabby-{title.lower()}")
        .description(description)
        .tags(["krabby"])
        .refresh("1s")
        .time("now-5m", "now")
        .timezone("browser")
        .readonly()
        .tooltip(models.DashboardCursorSync.CROSSHAIR)
        .link(
            build.DashboardLink("krabby")
            .type(models.DashboardLinkType.DASHBOARDS)
            .tags(["krabby"])
            .keep_time(True)
        )
    )
    for name, label in CHOSEN.items():
        metric = "up" if name == "robot" else 'up{robot=~"$robot"}'
        result = result.with_variable(variable(name, label, metric))
    rows: list[tuple[int, list[Panel]]] = []
    for each in content:
        if isinstance(each, int):
            rows.append((each, []))
        else:
            rows[-1][1].append(each)
    top = 0
    for height, panels in rows:
        width = WIDTH // len(panels)
        for column, panel in enumerate(panels):
            place = models.GridPos(h=height, w=width, x=column * width, y=top)
            result = result.with_panel(panel.datasource(SOURCE).grid_pos(place))
        top += height
    return result


FLIGHT = board(
    "Flight",
    "Is it safe, and does it move? Timing says why not, Hardware says with what effort.",
    4,
    number("Alerts", 'count(ALERTS{alertstate="firing"}) or vector(0)', limits=(1, 1)),
    number("Loop rate", f"krabby:loop_rate:hz{{{LOOP}}}", "hertz", decimals=1),
    number("Observation age at actuation, p99", STATE_P99, "s", limits=(0.01, 0.03)),
    number(
        "Deadline misses, last minute",
        f"sum(increase(krabby_loop_deadline_misses_total{{{LOOP}}}[1m]))",
        limits=(6, 60),
        decimals=0,
    ),
    number("Falls", "sum(krabby_falls_total)", limits=(1, 3)),
    number("Distance", "max(krabby_course_distance_meters)", "lengthm", decimals=1),
    5,
    states("Safety gate", "krabby_safety_state == 1", "state", SAFETY_COLOURS),
    states("Game loop", "krabby_gameloop_mode == 1", "mode", MODE_COLOURS),
    8,
    seconds(
        "Observation age at actuation: sensor to actuator write, 30 s",
        {"p99": STATE_P99, "p50": STATE_P99.replace("p99", "p50")},
        budget=0.01,
    ),
    graph("Loop rate", {"{{job}}": "krabby:loop_rate:hz"}, "hertz"),
    share(
        "Age of what the game loop used, p99, over its limit",
        {
            f"{stream.name} ({1e3 * stream.max_age_s:g} ms)": "krabby:message_age_seconds:p99"
            f'{{{LOOP}, stream="{stream.name}"}} / {stream.max_age_s:g}'
            for stream in (STATE, FEATURES)
        },
        budget=1.0,
    ),
    8,
    graph(
        "Asked to walk",
        {"{{axis}}": "krabby_nav_command"},
        description="vx and vy in m/s, yaw_rate in rad/s, after the limits",
    ),
    graph(
        "Speed along the course",
        {"speed": "max(deriv(krabby_course_distance_meters[5s]))"},
        "velocityms",
    ),
    effort_budget(),
    6,
    states("Active faults", "krabby_fault_active == 1", "fault"),
    states("Firing alerts", 'ALERTS{alertstate="firing"}', "alertname"),
)

LATENESS = "krabby_loop_wakeup_lateness_seconds"
TIMING = board(
    "Timing",
    "Where each millisecond goes. Budgets are in the titles and drawn as lines.",
    8,
    heat("Game loop: period (10 ms)", "krabby_loop_period_seconds", LOOP),
    heat("Game loop: wake-up lateness", LATENESS, LOOP),
    heat("HAL: wake-up lateness", LATENESS, HAL),
    8,
    heat(
        "State: sensor to actuator write (budget 10 ms)",
        "krabby_observation_age_at_actuation_seconds",
        HAL_STATE,
    ),
    heat(
        "Features: age when the game loop used them (budget 150 ms)",
        "krabby_message_age_seconds",
        f'{LOOP}, stream="features"',
    ),
    heat("Command round trip (budget 4 ms)", "krabby_command_round_trip_seconds", LOOP),
    8,
    seconds("Game loop: mean work by stage", stages("gameloop"), stacked=True),
    seconds(
        "Game loop: p99 of each stage",
        {"{{stage}}": quantile(0.99, "krabby_loop_work_seconds", "stage", f"{{{LOOP}}}")},
        budget=0.004,
    ),
    seconds("HAL: mean work by stage", stages("sim-hal|jetson-hal"), stacked=True),
    8,
    seconds("Policy inference", p99_p50("krabby_inference_seconds", "policy")),
    seconds(
        "Camera: frame received to features published", p99_p50("krabby_camera_processing_seconds")
    ),
    seconds(
        "Camera: age of a frame when its features were published",
        p99_p50("krabby_camera_publish_age_seconds"),
    ),
    8,
    rate(
        "Deadline misses and skipped cycles",
        {
            "{{job}} misses": per_second("krabby_loop_deadline_misses_total"),
            "{{job}} skipped": per_second("krabby_loop_skipped_cycles_total"),
        },
    ),
    seconds(
        "Worst wake-up of the last 5 to 10 s",
        {"{{job}}": "krabby_loop_wakeup_lateness_max_seconds > 0"},
    ),
    rate("Commands by what became of them", {"{{status}}": per_second("krabby_commands_total")}),
    8,
    rate(
        "Messages off the wire", {"{{job}} {{stream}}": per_second("krabby_stream_received_total")}
    ),
    rate(
        "Messages dropped, missing, invalid",
        {
            f"{{{{job}}}} {{{{stream}}}} {word}": per_second(f"krabby_stream_{name}_total")
            for word, name in (
                ("superseded", "discarded"),
                ("missing", "gap_messages"),
                ("invalid", "invalid"),
            )
        },
    ),
    graph(
        "Processor time of each process, in cores",
        {"{{job}}": "rate(process_cpu_seconds_total[10s])"},
    ),
    5,
    states(
        "Real-time features asked for, and whether they are in effect",
        "krabby_runtime_realtime_enabled and on (job, feature)"
        " krabby_runtime_realtime_requested == 1",
        "{{job}} {{feature}}",
        {"1": "green", "0": "text"},
        by_value=True,
    ),
)

ANGLE = "krabby_joint_position_radians"
HARDWARE = board(
    "Hardware",
    "Joints, torque against the envelope, camera; drives, buses and IMU where there are any.",
    9,
    share(
        "Torque of each joint: how much of what its drive may give now",
        {
            "{{joint}}": "krabby_joint_effort_newton_meters"
            " / krabby_joint_effort_limit_newton_meters"
        },
        budget=1.0,
    ),
    torque(
        "RMS torque of each joint (rated 40 N·m)",
        {"{{joint}}": "krabby_joint_effort_rms_newton_meters"},
        budget=40.0,
    ),
    9,
    angle("Joint angles", {"{{joint}}": ANGLE}),
    angle(
        "Distance between target and angle",
        {"{{joint}}": f"abs(krabby_joint_target_radians - {ANGLE})"},
    ),
    graph(
        "Joint speeds", {"{{joint}}": "abs(krabby_joint_velocity_radians_per_second)"}, "rotrads"
    ),
    8,
    share(
        "Share of commands in which the gate cut the worst joint",
        {"{{kind}}": "krabby:command_clamps:ratio"},
        budget=0.9,
    ),
    effort_budget(),
    rate(
        "Targets the gate cut, by joint",
        {"{{joint}} {{kind}}": "rate(krabby_command_clamped_total[10s]) > 0"},
    ),
    8,
    share("Camera: pixels with a reading", {"share": "krabby_camera_depth_valid_ratio"}, least=0.5),
    rate(
        "Camera: frames",
        {
            "published": per_second("krabby_camera_frames_total"),
            "dropped, {{reason}}": per_second("krabby_camera_frames_dropped_total"),
        },
    ),
    seconds(
        "Camera: age of the newest frame", {"age": "krabby_camera_frame_age_seconds"}, budget=0.15
    ),
    8,
    graph(
        "Drives: temperature (effort is cut from 100 °C on)",
        {"{{joint}}": "krabby_drive_temperature_celsius"},
        "celsius",
        budget=90.0,
    ),
    graph(
        "Drives: supply",
        {"{{joint}}": "krabby_drive_voltage_volts"},
        "volt",
        description="Under 42 V effort is cut, at 36 V nothing of it is left.",
    ),
    states("Drives: faults", "krabby_drive_fault_active == 1", "{{joint}} {{fault}}"),
    8,
    share(
        "Buses: load (most that a plan may use is 70 %)",
        {"{{bus}}": "krabby_bus_load_ratio"},
        budget=0.7,
    ),
    rate("Buses: replies missed", {"{{joint}}": per_second("krabby_drive_replies_missed_total")}),
    heat("Buses: period (5 ms)", "krabby_bus_period_seconds", 'job="jetson-hal"'),
    8,
    rate(
        "IMU: samples",
        {
            "good": per_second("krabby_imu_samples_total"),
            "damaged": per_second("krabby_imu_bad_checksums_total"),
        },
    ),
    seconds(
        "IMU: age of the sample that was used (failed at 30 ms)",
        {"age": "krabby_imu_age_seconds"},
        budget=0.03,
    ),
    graph(
        "Load of each foot, told from torques", {"{{leg}}": "krabby_foot_load_newtons"}, "suffix: N"
    ),
    8,
    graph(
        "Host: temperatures (throttled from about 95 °C)",
        {"{{sensor}}": "krabby_host_temperature_celsius"},
        "celsius",
        budget=90.0,
    ),
    share(
        "Host: ceiling of the clock, of the most it can",
        {"clock": "krabby_host_clock_ceiling_ratio"},
        least=0.8,
    ),
    share(
        "Host: free disk and memory",
        {
            "disk": "krabby_host_disk_free_bytes / krabby_host_disk_bytes",
            "memory": "krabby_host_memory_available_bytes / krabby_host_memory_bytes",
        },
        least=0.1,
    ),
    8,
    graph("Simulated over real time", {"factor": "krabby_real_time_factor"}),
    graph("Memory of each process", {"{{job}}": "process_resident_memory_bytes"}, "bytes"),
    states("Which runs", "krabby_service_info", "{{service}} {{version}}"),
    states("Which policy", "krabby_policy_info", "{{name}}"),
)

OF = "krabby_training_"
TRAINING = board(
    "Training",
    "Does it learn, and how fast? There is data while the profile train runs.",
    4,
    number("Iteration", f"{OF}iteration", decimals=0),
    number("Of", f"{OF}iterations", decimals=0),
    number("Time left", f"{OF}eta_seconds", "s", decimals=0),
    number("Robot-steps per second", f"{OF}env_steps_per_second", "short"),
    number("Waypoints reached (MXD)", f"{OF}mxd_ratio", decimals=2),
    number("Mean level", f'{OF}level{{type="mean"}}', decimals=2),
    number(
        "Since the last iteration",
        f"time() - {OF}last_iteration_timestamp_seconds",
        "s",
        limits=(30, 120),
        decimals=0,
    ),
    8,
    graph("Mean sum of rewards of an episode", {"reward": f"{OF}reward"}),
    share(
        "Episodes",
        {
            "waypoints reached (MXD)": f"{OF}mxd_ratio",
            "reached the end": f"{OF}completed_ratio",
            "ended in a fall": f"{OF}fall_ratio",
        },
    ),
    graph("Level of the curriculum", {"{{type}}": f"{OF}level"}),
    8,
    torque(
        "RMS torque over joints and robots (rated 40 N·m)",
        {"torque": f"{OF}torque_rms_newton_meters"},
        budget=40.0,
    ),
    share(
        "Share of joint-steps at the drive's limit", {"saturated": f"{OF}torque_saturation_ratio"}
    ),
    graph("Mean feet on an edge (MEV)", {"feet": f"{OF}mev"}),
    8,
    graph("Losses", {"{{term}}": f"{OF}loss"}),
    graph("KL divergence of an update (asked for 0.01)", {"KL": f"{OF}kl"}, budget=0.01),
    graph("Learning rate", {"rate": f"{OF}learning_rate"}, "sci"),
    graph("Standard deviation of the actions", {"std": f"{OF}action_std"}),
    8,
    seconds(
        "Time of an iteration",
        {"collect": f"{OF}collect_seconds", "learn": f"{OF}learn_seconds"},
        stacked=True,
    ),
    graph(
        "Robot-steps per second, learning included",
        {"steps": f"rate({OF}env_steps_total[1m])"},
        "short",
    ),
    graph("Length of an episode", {"steps": f"{OF}episode_steps"}),
)

DASHBOARDS = {"flight": FLIGHT, "timing": TIMING, "hardware": HARDWARE, "training": TRAINING}


def rendered() -> dict[Path, str]:
    """Every file and what is to be in it."""
    encoder, files = JSONEncoder(), {}
    for name, each in DASHBOARDS.items():
        # The typed builders have no titles and texts of annotations.
        model = json.loads(encoder.encode(each.build())) | {"annotations": {"list": marks()}}
        for variable in model["templating"]["list"]:
            for key in ("auto", "auto_count", "auto_min"):  # of intervals, not of queries
                variable.pop(key, None)
        text = json.dumps(model, sort_keys=True, indent=1, ensure_ascii=False)
        files[FOLDER / f"{name}.json"] = f"{text}\n"
    return files


def main() -> int:
    """Write, or check."""
    parser = argparse.ArgumentParser(description="write the Grafana dashboards")
    parser.add_argument("--check", action="store_true", help="only say which files are not current")
    check = parser.parse_args().check
    files = rendered()
    stale = [path for path, text in files.items() if not path.exists() or path.read_text() != text]
    stale += sorted(set(FOLDER.glob("*.json")) - set(files))
    if check:
        sys.stderr.writelines(
            f"{path.relative_to(FOLDER.parents[2])} is not what monitoring/dashboards.py writes; "
            "run: make dashboards\n"
            for path in stale
        )
        return 1 if stale else 0
    FOLDER.mkdir(parents=True, exist_ok=True)
    for path in stale:
        if path in files:
            path.write_text(files[path])
        else:
            path.unlink()
    return 0


if __name__ == "__main__":
    sys.exit(main())
