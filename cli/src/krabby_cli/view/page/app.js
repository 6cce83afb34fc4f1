// The page: one WebSocket in, texts, buttons, plots and the scene out.

import {Drive} from "./drive.js";
import {Plot} from "./plots.js";
import {Stage} from "./scene.js";

const RETRY_MS = 1000;
const SILENT_MS = 1500;
const STOP_AGAIN_MS = 300;
const STOP_FOR_MS = 10000;
const REFUSED = 4401;
const HEAD_BYTES = 16;
const STATE = 1, DEPTH = 2, COLOUR = 3, TRUTH = 1;
const COLOUR_MS = 3000;
const SIGHTS = {memory: "no picture: walks on memory", lost: "no picture: stands"};
const WAITS = {passive: "The robot rests: stand.", stand_up: "The robot stands up.", sit_down: "The robot sits down.", silent: "The game loop gets no measurements.", no_lease: "Another game loop commands the robot."};
const SIMULATOR = "sim-hal";
const GOOD_GATES = ["active"], LIMP = ["estop", "damp"];

const $ = (id) => document.getElementById(id);
const text = (id, value) => { const at = $(id); if (at.textContent !== value) at.textContent = value; };

// --- the secret: out of the address, so that it is in no screenshot ------------------------------

const fresh = location.hash.slice(1);
if (fresh) {
  sessionStorage.setItem("krabby", fresh);
  history.replaceState(null, "", location.pathname);
}
const token = sessionStorage.getItem("krabby") ?? "";

// --- state of the page ---------------------------------------------------------------------------

const stage = new Stage($("scene"));
const plots = {
  speed: new Plot($("plot-speed"), 2, {floor: 0.3}),
  torque: new Plot($("plot-torque"), 3, {floor: 60, mark: 100}),
  age: new Plot($("plot-age"), 3, {floor: 10}),
};
let layout = [], robot = null, facts = {}, line = null, newest = null, heard = 0, stopSince = null, seeking = false;

const link = {
  socket: null,
  get open() { return this.socket?.readyState === WebSocket.OPEN; },
  send(message) { if (this.open) this.socket.send(JSON.stringify(message)); },
};
const drive = new Drive(link, act);

// --- connection ----------------------------------------------------------------------------------

function connect() {
  const socket = new WebSocket(`${location.protocol === "https:" ? "wss" : "ws"}://${location.host}/socket`);
  socket.binaryType = "arraybuffer";
  link.socket = socket;
  socket.onopen = () => {
    socket.send(JSON.stringify({t: "token", token}));
    heard = performance.now();
    if (stopSince !== null) link.send({t: "estop"});
  };
  socket.onmessage = ({data}) => {
    heard = performance.now();
    if (data instanceof ArrayBuffer) frame(data);
    else take(JSON.parse(data));
  };
  socket.onclose = ({code}) => {
    if (link.socket !== socket) return;
    drive.enabled = false;
    facts.link = "";
    if (code === REFUSED) {
      banner("This address is not valid any more. Open the one that krabby view or krabby up printed.");
      chip("link", "refused", "bad");
      return;
    }
    chip("link", "connection lost", "bad");
    banner(facts.hal === SIMULATOR ? "Connection lost: the simulation or its cockpit has ended."
      : "Connection lost: the robot was told to stand. If it does not, use the switch on the robot.");
    setTimeout(connect, RETRY_MS);
  };
}

function take(message) {
  if (message.t === "pong") text("link", `${facts.link === "lost" ? "robot silent" : "link"} ${(performance.now() - message.at).toFixed(0)} ms`);
  else if (message.t === "robot") setRobot(message);
  else if (message.t === "course") { stage.setCourse(message); stage.courseName = message; }
  else if (message.t === "line") setLine(message);
  else if (message.t === "facts") setFacts(message);
}

function setRobot(message) {
  robot = message;
  layout = message.layout;
  stage.setRobot(message);
  text("title", `Krabby ${message.name}`);
  document.title = `Krabby ${message.name}`;
  $("policy").replaceChildren(...message.policies.map((name) => new Option(name)));
}

// --- frames --------------------------------------------------------------------------------------

function frame(buffer) {
  const view = new DataView(buffer);
  const kind = view.getUint8(0), time = view.getFloat64(8, true);
  if (kind === DEPTH) { showDepth(buffer.slice(HEAD_BYTES)); return; }
  if (kind === COLOUR) { showColour(buffer.slice(HEAD_BYTES)); return; }
  if (kind !== STATE || !robot) return;
  const floats = Array.from(new Float32Array(buffer, HEAD_BYTES));
  const state = {time, truth: (view.getUint8(1) & TRUTH) !== 0};
  let at = 0;
  for (const [name, size] of layout) { state[name] = floats.slice(at, at + size); at += size; }
  newest = state;
  const commanded = facts.loop?.nav ?? null;
  stage.show(state, commanded);
  plots.speed.add(time, [commanded ? commanded[0] : NaN, state.walked[0]]);
  plots.torque.add(time, [0, 1, 2].map((kind) => Math.max(...robot.rated_torque.map(
    (rated, i) => i % 3 === kind ? 100 * Math.abs(state.joint_effort[i]) / rated : 0))));
  plots.age.add(time, state.ages_ms);
}

let decoding = false;
async function showDepth(png) {
  if (decoding) return;
  decoding = true;
  try {
    const image = await createImageBitmap(new Blob([png], {type: "image/png"}));
    const canvas = $("depth");
    if (canvas.width !== image.width || canvas.height !== image.height) { canvas.width = image.width; canvas.height = image.height; }
    const pen = canvas.getContext("2d", {willReadFrequently: true});
    pen.drawImage(image, 0, 0);
    const pixels = pen.getImageData(0, 0, image.width, image.height);
    for (let i = 0; i < pixels.data.length; i += 4) pixels.data.set(shade(pixels.data[i]), i);
    pen.putImageData(pixels, 0, 0);
  } finally {
    decoding = false;
  }
}

// Shown while images come: an old one beside a robot that moves would be taken for a new one.
let colourHides = 0;
async function showColour(jpeg) {
  const image = await createImageBitmap(new Blob([jpeg], {type: "image/jpeg"}));
  const canvas = $("colour");
  if (canvas.width !== image.width || canvas.height !== image.height) { canvas.width = image.width; canvas.height = image.height; }
  canvas.getContext("2d").drawImage(image, 0, 0);
  image.close();
  $("colour-eye").hidden = false;
  clearTimeout(colourHides);
  if (!facts.recorded) colourHides = setTimeout(() => { $("colour-eye").hidden = true; }, COLOUR_MS);
}

// Near is warm and light, far is blue and dark, no measurement is black.
function shade(depth) {
  if (depth === 0) return [0, 0, 0, 255];
  const far = (depth - 1) / 254;
  const near = 1 - far;
  return [255 * near ** 0.7, 225 * near ** 1.4 + 20 * far, 90 * near ** 3 + 150 * far * near + 45 * far, 255];
}

// --- facts ---------------------------------------------------------------------------------------

function setFacts(message) {
  facts = message;
  const live = !message.recorded;
  const operates = live && message.role === "operate";
  const loop = message.loop ?? {};
  $("drive").hidden = !operates;
  $("estop").hidden = !live;
  drive.enabled = operates;
  if (message.play) setPlay(message.play);
  if (!live) {
    chip("link", "recording", "");
    $("asked").hidden = true;
    $("gate").hidden = !message.gate;
    $("mode").hidden = !loop.mode;
    if (message.gate) showGate(message);
    row("commanded", loop.nav);
    banner("");
    return;
  }
  if (message.link === "lost") chip("link", $("link").textContent.startsWith("robot") ? $("link").textContent : "robot silent", "bad");
  else $("link").className = "chip good";
  banner(message.link === "lost" ? message.problem || "The robot is silent: is it running?" : message.problem);
  showGate(message);
  text("said", message.said);
  $("said").classList.toggle("bad", /NOT CONFIRMED|refused|no answer/.test(message.said));
  if (message.gate === "estop") stopSince = null;
  $("estop").classList.toggle("done", message.gate === "estop");
  $("estop").classList.toggle("sent", stopSince !== null);
  $("faults").replaceChildren(...message.faults.map((fault) => Object.assign(document.createElement("li"), {textContent: fault})));
  if (loop.policy && document.activeElement !== $("policy")) {
    if (![...$("policy").options].some((option) => option.value === loop.policy)) $("policy").add(new Option(loop.policy));
    $("policy").value = loop.policy;
  }
  row("asked", message.asked ?? (loop.nav_source === "mission" ? loop.nav_asked : null));
  row("commanded", loop.nav);
  text("notes", notes(loop));
  text("cannot", message.cannot && `${message.cannot}: it hardly follows such a command and may drift off.`);
  $("busy").hidden = !message.busy;
  text("busy", message.busy);
  driver(message);
}

function showGate({gate, loop}) {
  chip("gate", gate || "no gate", GOOD_GATES.includes(gate) ? "good" : LIMP.includes(gate) ? "bad" : "warn");
  const mode = loop?.mode;
  chip("mode", mode ? `${mode.replace("_", " ")}${mode === "policy" ? `: ${loop.walking}` : ""}` : "no game loop", mode ? "" : "bad");
}

function notes(loop) {
  const said = [];
  if (loop.nav_clamped?.length) said.push(`clamped: ${loop.nav_clamped.join(", ")}`);
  if (loop.mode !== "policy") return "";
  if (loop.blind) said.push(`${loop.walking} walks blind in place of ${loop.policy}`);
  else if (SIGHTS[loop.sight]) said.push(SIGHTS[loop.sight]);
  for (const [axis, [low, high]] of Object.entries(loop.command_range ?? {})) said.push(`${axis} ${low}..${high}`);
  return said.join(" · ");
}

// What has to happen before the robot walks; empty while it can.
function waits({gate, loop, arms_itself}) {
  if (gate === "estop") return "Stopped by the e-stop: reset, arm, stand.";
  if (gate === "damp" && arms_itself) return "The robot is limp after a fault; the simulation arms it again.";
  if (LIMP.includes(gate) || gate === "disarmed") return "The robot is limp: arm, then stand.";
  if (gate === "arming") return "The robot is being armed.";
  return WAITS[loop?.mode] ?? "";
}

// Whether the mission has nothing left to do.
function done() {
  const of = stage.posts?.length;
  return facts.loop?.nav_source === "mission" && of > 0 && newest?.course[1] >= of;
}

function driver(message) {
  const mine = message.driver === "you";
  const waiting = waits(message), stops_in_s = waiting ? null : message.stops_in_s;
  let words = waiting || "Hold a stick or a key to drive.";
  if (message.engaged && !mine) words = message.driver ? `Another page drives. ${waiting}` : `The page that drove has gone. ${waiting || "The robot is told to stand."}`;
  else if (mine && waiting) words = `You drive. ${waiting}`;
  else if (mine) words = stops_in_s === null ? "You drive. The robot stands." : `You drive. Stops in ${stops_in_s.toFixed(1)} s without input.`;
  else if (done()) words = waiting || "The course is done. Take control, or hold a stick or a key, to drive on.";
  else if (message.loop?.nav_source === "mission") words = waiting ? `${waiting} Then a mission drives.` : "A mission drives. Take control, or hold a stick or a key, to drive.";
  text("deadman", words);
  $("deadman").classList.toggle("warn", mine && stops_in_s !== null && stops_in_s < 1);
  text("take", mine ? "hand back" : "take control");
  $("take").classList.toggle("on", mine);
}

function row(id, values) {
  $(id).hidden = false;
  [...$(id).children].slice(1).forEach((cell, i) => {
    const value = values?.[i];
    const shown = Number.isFinite(value) ? `${(Math.abs(value) < 0.005 ? 0 : value).toFixed(2)}` : "–";
    if (cell.textContent !== shown) cell.textContent = shown;
  });
}

function chip(id, words, kind) {
  const at = $(id);
  at.hidden = false;
  at.className = `chip ${kind}`;
  if (at.textContent !== words) at.textContent = words;
}

function banner(words) {
  $("banner").hidden = !words;
  text("banner", words ?? "");
}

// --- requests ------------------------------------------------------------------------------------

function act(op) {
  if (op === "estop") { estop(); return; }
  if (!drive.enabled) return;
  if (op === "sit" || op === "disarm") drive.release();
  link.send({t: "ask", op, at: performance.now()});
}

// Sent again until the gate says that it is stopped, also over a new connection.
function estop() {
  if (facts.recorded) return;
  drive.release();
  stopSince = performance.now();
  $("estop").classList.add("sent");
  if (link.open) link.send({t: "estop"});
  else banner(`E-STOP NOT SENT: no connection.${facts.hal === SIMULATOR ? "" : " Use the switch on the robot."}`);
}

setInterval(() => {
  if (stopSince === null) return;
  if (performance.now() - stopSince > STOP_FOR_MS) { stopSince = null; return; }
  link.send({t: "estop"});
}, STOP_AGAIN_MS);

$("estop").addEventListener("pointerdown", (event) => { event.preventDefault(); estop(); });
$("estop").addEventListener("click", (event) => { if (event.detail === 0) estop(); });  // Enter on the button
for (const button of document.querySelectorAll("[data-op]")) button.addEventListener("click", () => act(button.dataset.op));
$("policy").addEventListener("change", () => {
  link.send({t: "policy", name: $("policy").value, at: performance.now()});
  $("policy").blur();
});
$("take").addEventListener("click", () => {
  drive.release();
  link.send(facts.driver === "you" ? {t: "back"} : {t: "take", at: performance.now()});
});
$("pace").addEventListener("input", () => {
  drive.pace = $("pace").value / 100;
  text("pace-text", `${$("pace").value} %`);
});
const toggleFollow = () => {
  stage.follow = !stage.follow;
  $("follow").classList.toggle("on", stage.follow);
};
$("follow").addEventListener("click", toggleFollow);
$("reset-view").addEventListener("click", () => stage.lookAgain());
addEventListener("keydown", (event) => { if (event.key === "f" && !event.repeat && event.target.tagName !== "SELECT") toggleFollow(); });
// A button that was clicked keeps no focus: space and Enter belong to driving.
addEventListener("click", (event) => { if (event.target.tagName === "BUTTON") event.target.blur(); });

// --- time line -----------------------------------------------------------------------------------

function setLine(message) {
  line = message;
  $("line").hidden = false;
  $("seek").max = message.length_s;
  $("speed").replaceChildren(...message.speeds.map((value) => new Option(`${value} ×`, value)));
  $("speed").value = 1;
  text("line-note", [message.file, message.problem].filter(Boolean).join(" · "));
  $("marks").replaceChildren(...message.marks.map(([at, words]) => Object.assign(document.createElement("i"), {
    title: `${words} at ${at} s`, style: `left: ${100 * at / message.length_s}%`,
  })));
}

function setPlay(play) {
  text("play", play.playing ? "pause" : "play");
  if (!seeking) $("seek").value = play.at_s;
  if (document.activeElement !== $("speed")) $("speed").value = play.speed;
  text("clock", `${play.at_s.toFixed(1)} of ${line?.length_s.toFixed(1)} s`);
}

$("play").addEventListener("click", () => link.send({t: "play", playing: !facts.play?.playing}));
$("speed").addEventListener("change", () => { link.send({t: "play", speed: Number($("speed").value)}); $("speed").blur(); });
$("seek").addEventListener("input", () => { seeking = true; link.send({t: "play", at_s: Number($("seek").value)}); });
$("seek").addEventListener("change", () => { seeking = false; $("seek").blur(); });
addEventListener("keydown", (event) => {
  if (!facts.recorded || !line || event.target.tagName === "SELECT") return;
  if (event.key === " ") link.send({t: "play", playing: !facts.play?.playing});
  else if (event.key === "ArrowLeft" || event.key === "ArrowRight") {
    link.send({t: "play", at_s: Math.max(0, facts.play.at_s + (event.key === "ArrowLeft" ? -1 : 1))});
  }
});

// --- a few times a second ------------------------------------------------------------------------

setInterval(() => {
  if (document.hidden) return;
  for (const plot of Object.values(plots)) plot.draw();
  if (!newest) return;
  row("walked", newest.walked);
  const [distance, reached, falls] = newest.course;
  const course = stage.courseName?.name;
  const where = [];
  if (course) where.push(`${course}, difficulty ${stage.courseName.difficulty}, seed ${stage.courseName.seed}`);
  if (Number.isFinite(distance)) where.push(`${distance.toFixed(2)} m, waypoint ${reached} of ${stage.posts?.length || "?"}, ${falls} fall${falls === 1 ? "" : "s"}`);
  else if (!newest.truth) where.push("position and speed estimated from the legs");
  text("where", where.join(" · "));
}, 200);

setInterval(() => {
  if (link.open) link.send({t: "ping", at: performance.now()});
  if (link.open && performance.now() - heard > SILENT_MS) {
    chip("link", "connection silent", "bad");
    if (performance.now() - heard > 6 * SILENT_MS) link.socket.close();
  }
}, 1000);

// For tests and for people with the console open.
window.cockpit = {get facts() { return facts; }, get state() { return newest; }, get link() { return link.open; }};

connect();
