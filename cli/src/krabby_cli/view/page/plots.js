// Small plots of the last seconds: each a ring of samples per line, drawn when asked.

const SPAN_S = 10;

export class Plot {
  // lines: number of curves; floor: least top of the vertical axis; mark: a value with a line across.
  constructor(canvas, lines, {floor = 1, mark = null, low = 0} = {}) {
    this.canvas = canvas;
    this.lines = lines;
    this.floor = floor;
    this.low = low;
    this.mark = mark;
    this.times = [];
    this.values = Array.from({length: lines}, () => []);
  }

  // Time that steps back, as on a time line, begins the plot again.
  add(time, values) {
    const last = this.times.at(-1);
    if (last !== undefined && (time < last || time > last + SPAN_S)) this.clear();
    this.times.push(time);
    values.forEach((value, i) => this.values[i].push(value));
    while (this.times[0] < time - SPAN_S) {
      this.times.shift();
      this.values.forEach((line) => line.shift());
    }
  }

  clear() {
    this.times = [];
    this.values = this.values.map(() => []);
  }

  draw() {
    const {canvas} = this;
    const ratio = Math.min(devicePixelRatio, 2);
    const width = canvas.clientWidth, height = canvas.clientHeight;
    if (!width) return;
    if (canvas.width !== Math.round(width * ratio)) {
      canvas.width = Math.round(width * ratio);
      canvas.height = Math.round(height * ratio);
    }
    const style = getComputedStyle(document.documentElement);
    const colour = (name) => style.getPropertyValue(name);
    const pen = canvas.getContext("2d");
    pen.setTransform(ratio, 0, 0, ratio, 0, 0);
    pen.clearRect(0, 0, width, height);
    const finite = this.values.flat().filter(Number.isFinite);
    const top = Math.max(this.floor, ...finite) * 1.08;
    const low = Math.min(this.low, ...finite) * 1.08;
    const left = 34, right = width - 2;
    const y = (value) => 3 + (height - 6) * (top - value) / (top - low);
    const newest = this.times.at(-1) ?? 0;
    const x = (time) => right - (right - left) * (newest - time) / SPAN_S;
    pen.font = "10.5px system-ui, sans-serif";
    pen.fillStyle = colour("--soft");
    pen.strokeStyle = colour("--grid");
    pen.lineWidth = 1;
    const levels = [0, top / 1.08, low / 1.08].filter((value, i) => i === 0 || Math.abs(y(value) - y(0)) > 9);
    for (const value of levels) {
      pen.beginPath(); pen.moveTo(left, y(value)); pen.lineTo(right, y(value)); pen.stroke();
      pen.textAlign = "right"; pen.textBaseline = "middle";
      pen.fillText(shown(value), left - 4, Math.min(Math.max(y(value), 6), height - 6));
    }
    if (this.mark !== null && this.mark < top) {
      pen.setLineDash([4, 3]); pen.strokeStyle = colour("--soft");
      pen.beginPath(); pen.moveTo(left, y(this.mark)); pen.lineTo(right, y(this.mark)); pen.stroke();
      pen.setLineDash([]);
    }
    this.values.forEach((line, i) => {
      pen.strokeStyle = colour(`--c${i + 1}`);
      pen.lineWidth = 1.5;
      pen.beginPath();
      let down = false;
      line.forEach((value, k) => {
        if (!Number.isFinite(value)) { down = false; return; }
        const place = [x(this.times[k]), y(value)];
        if (down) pen.lineTo(...place); else pen.moveTo(...place);
        down = true;
      });
      pen.stroke();
    });
  }
}

function shown(value) {
  if (Math.abs(value) >= 100) return value.toFixed(0);
  return Math.abs(value) >= 10 ? value.toFixed(0) : String(Number(value.toFixed(2)));
}
