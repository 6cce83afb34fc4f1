"""Holds the dashboards against Grafana's own definition of one: the types of `@grafana/schema`.

    python monitoring/check_schema.py

Grafana takes any JSON and draws what it understands; a key it does not know is a setting that has
no effect. The generator that `dashboards.py` uses knows the keys of Grafana 11, so this asks those
of the version in compose.yaml. Needs npm and its registry, and is therefore no part of the tests.
"""

import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
TYPESCRIPT = "5.6.3"
PANELS = {
    "heatmap": "heatmap",
    "stat": "stat",
    "state-timeline": "statetimeline",
    "timeseries": "timeseries",
}
"""Kinds of panels in use, and where their types are."""
RAW = "@grafana/schema/dist/types/raw"
HEAD = """
type Plain<T> = T extends string ? `${T}` : T extends number | boolean | null | undefined ? T
  : unknown extends T ? T : T extends (infer U)[] ? Plain<U>[]
  : T extends object ? { [K in keyof T]: Plain<T[K]> } : T;
type Query = {
  expr: string; refId: string; legendFormat?: string; instant?: boolean; range?: boolean;
  format?: "time_series" | "table" | "heatmap"; exemplar?: boolean; hide?: boolean;
  interval?: string; intervalFactor?: number; editorMode?: "code" | "builder";
  queryType?: string; datasource?: { type?: string; uid?: string };
};
type Mark = Plain<D.AnnotationQuery> & {
  expr: string; step?: string; titleFormat?: string; textFormat?: string; tagKeys?: string;
  useValueForTime?: boolean;
};
"""
"""Plain<T>: T as JSON has it, an enumeration being its values. Mark: an annotation with the keys
that the data source Prometheus adds to it (`PromQuery` in Grafana's `public/app/plugins`)."""


def main() -> int:
    """Compile the dashboards; 0 when they fit."""
    (version,) = re.findall(r"image: grafana/grafana:(\S+)", (ROOT / "compose.yaml").read_text())
    boards = sorted((ROOT / "monitoring/grafana/dashboards").glob("*.json"))
    with tempfile.TemporaryDirectory() as folder:
        wanted = [f"typescript@{TYPESCRIPT}", f"@grafana/schema@{version}"]
        options = ["--silent", "--ignore-scripts", "--no-audit", "--no-fund"]
        subprocess.run(["npm", "install", *options, *wanted], cwd=folder, check=True)
        lines = _program([json.loads(path.read_text()) for path in boards])
        Path(folder, "boards.ts").write_text("\n".join(lines))
        compiler = ["node_modules/.bin/tsc", "--noEmit", "--strict", "--skipLibCheck"]
        checked = subprocess.run(
            [*compiler, "--moduleResolution", "node", "--module", "commonjs", "boards.ts"],
            cwd=folder,
            stdout=subprocess.PIPE,
            text=True,
            check=False,
        )
    for number, said in re.findall(r"boards\.ts\((\d+),.*?\): (.+)", checked.stdout):
        sys.stdout.write(f"{lines[int(number) - 1].rpartition(' // ')[2]}: {said}\n")
    if not checked.returncode:
        sys.stdout.write(f"{len(boards)} dashboards fit Grafana {version}\n")
    return checked.returncode


def _program(boards: list[dict[str, Any]]) -> list[str]:
    """TypeScript that compiles when every part of every dashboard is of its type."""
    types = {"D": "dashboard"} | {each: f"composable/{each}/panelcfg" for each in PANELS.values()}
    lines = [f'import type * as {n} from "{RAW}/{at}/x/types.gen";' for n, at in types.items()]
    lines += HEAD.splitlines()
    parts: list[tuple[str, Any, str]] = []
    for board in boards:
        panels = board.pop("panels")
        marks = board.pop("annotations")["list"]
        parts += [("Mark", mark, f"{board['title']}, {mark['name']}") for mark in marks]
        parts.append(('Omit<D.Dashboard, "panels" | "annotations">', board, board["title"]))
        for panel in panels:
            parts += _parts_of(panel, f"{board['title']}, {panel['title']}")
    lines += [
        f"export const part{number}: Plain<{kind}> = {json.dumps(value)}; // {where}"
        for number, (kind, value, where) in enumerate(parts)
    ]
    return lines


def _parts_of(panel: dict[str, Any], where: str) -> list[tuple[str, Any, str]]:
    module = PANELS[panel["type"]]
    queries = panel.pop("targets")
    options = panel.pop("options", {})
    custom = panel.get("fieldConfig", {}).get("defaults", {}).pop("custom", {})
    fields = "{}" if module == "stat" else f"Partial<{module}.FieldConfig>"
    return [
        ("D.Panel", panel, where),
        (f"Partial<{module}.Options>", options, where),
        (fields, custom, where),
        *(("Query", query, where) for query in queries),
    ]


if __name__ == "__main__":
    sys.exit(main())
