// What the person holds: keys, on-screen sticks, a gamepad. Sent twenty times a second while held.
// The server ends motion without it; this side lets go as soon as the page is left.

const SEND_MS = 50;
const DEAD_ZONE = 0.12;
const MOVES = {
  w: [1, 0, 0], arrowup: [1, 0, 0], s: [-1, 0, 0], arrowdown: [-1, 0, 0],
  a: [0, 1, 0], d: [0, -1, 0], q: [0, 0, 1], arrowleft: [0, 0, 1], e: [0, 0, -1], arrowright: [0, 0, -1],
};
const REQUESTS = {1: "stand", 2: "sit", 3: "arm"};
const BUTTONS = {0: "stand", 1: "estop", 2: "sit", 3: "arm"};  // of an Xbox-style pad: A, B, X, Y
const HOLD_BUTTON = 4;

export class Drive {
  // link: send(message), clock(); act(op): carry out a request or "estop".
  constructor(link, act) {
    this.link = link;
    this.act = act;
    this.enabled = false;
    this.pace = 1;
    this.inputs = 0;
    this.keys = new Set();
    this.sticks = {walk: [0, 0], turn: [0, 0]};
    this.pads = {};
    this.padStick = [0, 0, 0];
    this.zeros = 0;
    addEventListener("keydown", (event) => this._keydown(event));
    addEventListener("keyup", (event) => this.keys.delete(event.key.toLowerCase()));
    addEventListener("blur", () => this.release());
    addEventListener("pagehide", () => this.release());
    document.addEventListener("visibilitychange", () => { if (document.hidden) this.release(); });
    for (const name of ["walk", "turn"]) this._stick(document.getElementById(name), name);
    setInterval(() => this._send(), SEND_MS);
  }

  _keydown(event) {
    if (event.ctrlKey || event.altKey || event.metaKey) return;
    const key = event.key.toLowerCase();
    if (key === "x") {
      if (!event.repeat) this.act("estop");
      return;
    }
    if (event.target.tagName === "SELECT") return;
    if (key in MOVES) {
      event.preventDefault();
      this.keys.add(key);
      this.inputs++;
    } else if (key === " ") {
      event.preventDefault();
      this.release();
    } else if (key in REQUESTS && !event.repeat) {
      this.act(REQUESTS[key]);
    }
  }

  _stick(element, name) {
    const knob = element.querySelector("i");
    const move = (event) => {
      const box = element.getBoundingClientRect();
      const radius = box.width / 2 - 20;
      let x = (event.clientX - box.left - box.width / 2) / radius;
      let y = name === "turn" ? 0 : (event.clientY - box.top - box.height / 2) / radius;
      const length = Math.max(1, Math.hypot(x, y));
      x /= length; y /= length;
      this.sticks[name] = [beyond(-y), beyond(-x)];
      knob.style.transform = `translate(${x * radius}px, ${y * radius}px)`;
      this.inputs++;
    };
    const let_go = () => {
      this.sticks[name] = [0, 0];
      knob.style.transform = "";
    };
    element.addEventListener("pointerdown", (event) => {
      if (!this.enabled) return;
      element.setPointerCapture(event.pointerId);
      move(event);
    });
    element.addEventListener("pointermove", (event) => {
      if (element.hasPointerCapture(event.pointerId)) move(event);
    });
    for (const end of ["pointerup", "pointercancel", "lostpointercapture"]) element.addEventListener(end, let_go);
    this[`_let_go_${name}`] = let_go;
  }

  _readPads() {
    this.padStick = [0, 0, 0];
    for (const pad of navigator.getGamepads?.() ?? []) {
      if (!pad?.connected) continue;
      const known = this.pads[pad.index] ??= {timestamp: pad.timestamp, pressed: []};
      if (pad.timestamp !== known.timestamp) this.inputs++;
      known.timestamp = pad.timestamp;
      pad.buttons.forEach((button, i) => {
        if (button.pressed && known.pressed[i] === false && i in BUTTONS) this.act(BUTTONS[i]);
        known.pressed[i] = button.pressed;
      });
      if (pad.buttons[HOLD_BUTTON]?.pressed) {
        this.padStick = [beyond(-pad.axes[1]), beyond(-pad.axes[0]), beyond(-(pad.axes[2] ?? 0))];
      }
    }
  }

  // Let go of everything; the zeros go out at once.
  release() {
    this.keys.clear();
    this._let_go_walk();
    this._let_go_turn();
    if (this.enabled) this._send();
  }

  get command() {
    const sum = [0, 1, 2].map((axis) => {
      let value = this.padStick[axis];
      for (const key of this.keys) value += MOVES[key]?.[axis] ?? 0;
      return value;
    });
    sum[0] += this.sticks.walk[0];
    sum[1] += this.sticks.walk[1];
    sum[2] += this.sticks.turn[1];
    return sum.map((value) => this.pace * Math.min(Math.max(value, -1), 1) || 0);
  }

  _send() {
    this._readPads();
    if (!this.enabled) return;
    const command = document.hidden ? [0, 0, 0] : this.command;
    const moves = command.some((value) => value !== 0);
    if (moves) this.zeros = 3;
    else if (this.zeros-- <= 0) { this.zeros = 0; return; }
    this.link.send({t: "sticks", s: command, n: this.inputs, at: performance.now()});
  }
}

// From -1 to 1, continuous at the edge of the dead zone.
function beyond(value) {
  const far = Math.max(0, Math.abs(value) - DEAD_ZONE) / (1 - DEAD_ZONE);
  return Math.sign(value) * Math.min(far, 1) || 0;
}
