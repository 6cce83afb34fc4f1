// The robot from its description, the course, where the feet stand; drawn by three.js, z up.

import {
  ArrowHelper, BoxGeometry, CircleGeometry, Color, CylinderGeometry, DirectionalLight, Fog, GridHelper, Group,
  HemisphereLight, InstancedMesh, LoadingManager, Matrix4, Mesh, MeshBasicMaterial, MeshLambertMaterial,
  OrbitControls, PerspectiveCamera, RingGeometry, Scene, URDFLoader, Vector3, WebGLRenderer,
} from "./vendor/three.js";

const LEAST_FRAME_MS = 32;
// Drawn by the processor, which the robot's loops need.
const LEAST_SOFTWARE_MS = 100;
const SOFTWARE = /swiftshader|llvmpipe|softpipe|software/i;
const FIRST_DRAWS = 6;
const SLOW_MS = 80;
const SLOW_FRAMES = 8;
const PRINTS = 150;
const EYE = [-1.9, -2.5, 1.5];

export class Stage {
  constructor(canvas) {
    this.canvas = canvas;
    this.renderer = new WebGLRenderer({canvas, antialias: true, powerPreference: "low-power"});
    this.renderer.shadowMap.enabled = true;
    const gl = this.renderer.getContext();
    const named = gl.getExtension("WEBGL_debug_renderer_info");
    const drawnBy = gl.getParameter(named ? named.UNMASKED_RENDERER_WEBGL : gl.RENDERER);
    this.leastFrameMs = SOFTWARE.test(drawnBy) ? LEAST_SOFTWARE_MS : LEAST_FRAME_MS;
    this.scene = new Scene();
    this.camera = new PerspectiveCamera(45, 1, 0.05, 80);
    this.camera.up.set(0, 0, 1);
    this.camera.position.set(...EYE);
    this.controls = new OrbitControls(this.camera, canvas);
    this.controls.maxDistance = 25;
    this.controls.minDistance = 0.6;
    this.controls.maxPolarAngle = 1.55;
    this.controls.addEventListener("change", () => this.ask());
    this.follow = true;
    this.robot = null;
    this.joints = [];
    this.standing = [];
    this.prints = 0;
    this.busyUntil = 0;
    this.drawn = 0;
    this.wanted = false;
    this.slow = 0;
    this._lights();
    this._helpers();
    this._colours();
    const dark = matchMedia("(prefers-color-scheme: dark)");
    dark.addEventListener("change", () => this._colours());
    new ResizeObserver(() => this._fit()).observe(canvas.parentElement);
    this._fit();
  }

  _lights() {
    this.sky = new HemisphereLight(0xffffff, 0x77706a, 1.9);
    this.sky.position.set(0, 0, 1);
    this.sun = new DirectionalLight(0xfff4e2, 2.2);
    this.sun.castShadow = true;
    this.sun.shadow.mapSize.set(1024, 1024);
    const eye = this.sun.shadow.camera;
    [eye.left, eye.right, eye.top, eye.bottom, eye.near, eye.far] = [-2.2, 2.2, 2.2, -2.2, 0.5, 12];
    this.sun.shadow.bias = -0.002;
    this.scene.add(this.sky, this.sun, this.sun.target);
  }

  _helpers() {
    this.grid = new GridHelper(40, 40);
    this.grid.rotation.x = Math.PI / 2;
    this.course = new Group();
    this.marks = new InstancedMesh(new RingGeometry(0.022, 0.036, 16), new MeshBasicMaterial({color: 0x2563c9, transparent: true, opacity: 0.65}), PRINTS);
    this.marks.count = 0;
    this.marks.frustumCulled = false;
    this.feet = new InstancedMesh(new CircleGeometry(0.05, 20), new MeshBasicMaterial({color: 0x16a34a, transparent: true, opacity: 0.85}), 6);
    this.feet.count = 0;
    this.feet.frustumCulled = false;
    const arrow = (colour) => {
      const made = new ArrowHelper(new Vector3(1, 0, 0), new Vector3(), 1, colour, 0.12, 0.07);
      made.visible = false;
      return made;
    };
    this.commanded = arrow(0x2563c9);
    this.walked = arrow(0x1b8a4f);
    this.scene.add(this.grid, this.course, this.marks, this.feet, this.commanded, this.walked);
  }

  _colours() {
    const dark = matchMedia("(prefers-color-scheme: dark)").matches;
    this.dark = dark;
    const back = new Color(dark ? 0x1a2026 : 0xdfe7ee);
    this.scene.background = back;
    this.scene.fog = new Fog(back, 9, 34);
    this.sky.intensity = dark ? 1.5 : 2.0;
    this.grid.material.color = new Color(dark ? 0x46505a : 0x9aa6b1);
    this.grid.material.vertexColors = false;
    this.grid.material.needsUpdate = true;
    this.ask();
  }

  _fit() {
    const {clientWidth: width, clientHeight: height} = this.canvas.parentElement;
    if (!width || !height) return;
    this.renderer.setPixelRatio(this.slow < SLOW_FRAMES ? Math.min(devicePixelRatio, 2) : 0.75);
    this.renderer.setSize(width, height, false);
    this.camera.aspect = width / height;
    this.camera.updateProjectionMatrix();
    this.ask();
  }

  setRobot(message) {
    if (this.robot) this.scene.remove(this.robot);
    const loader = new URDFLoader(new LoadingManager());
    this.robot = loader.parse(message.urdf);
    this.robot.traverse((part) => {
      if (part.isMesh) part.castShadow = part.receiveShadow = true;
    });
    this.joints = message.joints.map((name) => this.robot.joints[name]);
    for (const joint of this.joints) joint.ignoreLimits = true;
    this.footRadius = message.foot_radius;
    this.scene.add(this.robot);
    this.placed = false;
    this.clearPrints();
  }

  setCourse(message) {
    this.course.clear();
    this.clearPrints();
    this.grid.visible = message.boxes.length === 0;
    const materials = {};
    for (const [kind, x, y, z, hx, hy, hz, ...quat] of message.boxes) {
      const rgb = message.colours[kind] ?? [0.6, 0.6, 0.6];
      materials[kind] ??= new MeshLambertMaterial({color: new Color().setRGB(...rgb, "srgb")});
      const box = new Mesh(new BoxGeometry(2 * hx, 2 * hy, 2 * hz), materials[kind]);
      box.position.set(x, y, z);
      box.quaternion.set(...quat);
      box.receiveShadow = true;
      this.course.add(box);
    }
    const post = new CylinderGeometry(0.012, 0.012, 0.5);
    this.posts = message.waypoints.map(([x, y, z]) => {
      const mark = new Mesh(post, new MeshBasicMaterial({color: 0xd97706}));
      mark.rotation.x = Math.PI / 2;
      mark.position.set(x, y, z + 0.25);
      this.course.add(mark);
      return mark;
    });
  }

  clearPrints() {
    this.prints = 0;
    this.marks.count = 0;
    this.standing = [];
  }

  // state: fields by name. command: [vx, vy, turn] or null.
  show(state, command) {
    if (!this.robot) return;
    const [x, y, z] = state.base_pos;
    if (![x, y, z].every(Number.isFinite)) return;
    const moved = new Vector3(x, y, z).sub(this.robot.position);
    if (moved.length() > 0.6) this.clearPrints();
    this.robot.position.set(x, y, z);
    this.robot.quaternion.set(...state.base_quat);
    this.joints.forEach((joint, i) => joint.setJointValue(state.joint_pos[i]));
    this._look(moved);
    this._feet(state);
    this._arrows(state, command);
    this.sun.position.set(x + 1.6, y - 2.4, z + 4.5);
    this.sun.target.position.set(x, y, z);
    this.grid.position.set(Math.round(x), Math.round(y), 0);
    const reached = state.course[1];
    this.posts?.forEach((post, i) => post.material.color.set(i < reached ? 0x1b8a4f : i === reached ? 0xd97706 : 0x8a949e));
    this.ask();
  }

  _look(moved) {
    const base = this.robot.position;
    if (!this.placed || moved.length() > 3) {
      this.placed = true;
      this.lookAgain();
    } else if (this.follow) {
      // The height changes slowly, so that a walking robot does not shake the picture.
      const step = new Vector3(moved.x, moved.y, 0.1 * (base.z - this.controls.target.z));
      this.camera.position.add(step);
      this.controls.target.add(step);
    }
    this.controls.update();
  }

  lookAgain() {
    const base = this.robot ? this.robot.position : new Vector3();
    this.controls.target.copy(base);
    this.camera.position.copy(base).add(new Vector3(...EYE));
    this.controls.update();
  }

  _feet(state) {
    const at = new Matrix4();
    let shown = 0;
    state.foot_contact.forEach((contact, i) => {
      const [x, y, z] = state.foot_pos.slice(3 * i, 3 * i + 3);
      const ground = z - this.footRadius + 0.004;
      const stands = contact > 0.5;
      if (stands) this.feet.setMatrixAt(shown++, at.makeTranslation(x, y, ground + 0.002));
      if (stands && !this.standing[i]) {
        this.marks.setMatrixAt(this.prints++ % PRINTS, at.makeTranslation(x, y, ground));
        this.marks.count = Math.min(this.prints, PRINTS);
        this.marks.instanceMatrix.needsUpdate = true;
      }
      this.standing[i] = stands;
    });
    this.feet.count = shown;
    this.feet.instanceMatrix.needsUpdate = true;
  }

  _arrows(state, command) {
    const [qx, qy, qz, qw] = state.base_quat;
    const heading = Math.atan2(2 * (qw * qz + qx * qy), 1 - 2 * (qy * qy + qz * qz));
    const place = (arrow, velocity, above) => {
      const speed = velocity ? Math.hypot(velocity[0], velocity[1]) : 0;
      arrow.visible = speed > 0.03;
      if (!arrow.visible) return;
      const angle = heading + Math.atan2(velocity[1], velocity[0]);
      arrow.position.copy(this.robot.position).add(new Vector3(0, 0, above));
      arrow.setDirection(new Vector3(Math.cos(angle), Math.sin(angle), 0));
      arrow.setLength(0.25 + 1.2 * speed, 0.1, 0.06);
    };
    place(this.commanded, command, 0.26);
    place(this.walked, state.walked, 0.20);
  }

  // Draw soon: thirty times a second at most, ten without a graphics processor, and never more than two fifths of the browser's time, so
  // that a slow computer still answers the e-stop at once.
  ask() {
    if (this.wanted) return;
    this.wanted = true;
    if (this.busyUntil !== Infinity) this._soon();
  }

  _soon() {
    const wait = Math.max(0, this.busyUntil - performance.now());
    setTimeout(() => requestAnimationFrame(() => this._draw()), wait);
  }

  _draw() {
    this.wanted = false;
    const began = performance.now();
    this.renderer.render(this.scene, this.camera);
    this.busyUntil = Infinity;
    // A graphics processor that is behind delays the next callback.
    requestAnimationFrame(() => {
      const took = performance.now() - began;
      // The first ones compile shaders, which happens once.
      const pause = ++this.drawn > FIRST_DRAWS ? 2.5 * took : took;
      this.busyUntil = began + Math.max(this.leastFrameMs, pause);
      if (took > SLOW_MS && ++this.slow === SLOW_FRAMES) this._fit();
      if (this.wanted) this._soon();
    });
  }
}
