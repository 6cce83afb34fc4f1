// What the page uses of its libraries; esbuild leaves out the rest.
export {
  AmbientLight, BoxGeometry, BufferGeometry, CanvasTexture, Color, CylinderGeometry, DirectionalLight, Float32BufferAttribute, Fog, GridHelper,
  Group, HemisphereLight, InstancedMesh, Line, LineBasicMaterial, LineSegments, LoadingManager, Matrix4, Mesh, MeshBasicMaterial, MeshLambertMaterial, MeshStandardMaterial,
  PerspectiveCamera, PlaneGeometry, Quaternion, RingGeometry, Scene, SphereGeometry, Vector3, WebGLRenderer, CircleGeometry, ArrowHelper,
} from "three";
export { OrbitControls } from "three/examples/jsm/controls/OrbitControls.js";
export { default as URDFLoader } from "urdf-loader/src/URDFLoader.js";
