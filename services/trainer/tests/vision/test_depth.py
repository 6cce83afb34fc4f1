"""What robots see in training is what they see in the runtime; time and errors come on top."""

import importlib.util
import math
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from krabby.course.courses import make_course
from krabby.mujoco import depth_camera
from krabby.policy import depth_image as runtime
from krabby.robot import rotations
from krabby.robot.description import RobotDescription
from krabby_trainer.errors import ConfigError
from krabby_trainer.graphs import Replayed
from krabby_trainer.run import depth_bench
from krabby_trainer.task.config import TerrainCfg
from krabby_trainer.task.terrain import Terrain
from krabby_trainer.vision import depth
from krabby_trainer.vision.cameras import Cameras
from krabby_trainer.vision.config import RANGE_M, DepthErrorsCfg, described, flawless
from krabby_trainer.vision.depth import DepthCamera
from krabby_trainer.vision.stream import (
    NO_IMAGE_S,
    DepthErrors,
    DepthPreprocessor,
    DepthStream,
    mirror_image,
)
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode

TYPES = ["steps", "gap", "hurdle", "ramps", "mixed", "flat"]
DESC = RobotDescription.load()
CAMERA = DESC.camera
DEVICES = [
    "cpu",
    pytest.param(
        "cuda",
        marks=[
            pytest.mark.gpu,
            pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
        ],
    ),
]


@pytest.fixture(scope="module")
def terrain():
    """Six types, four difficulties up to beyond the published suite."""
    return Terrain(TerrainCfg(types=TYPES, shares=[1.0] * 6, levels=4, columns=6))


@pytest.fixture(scope="module", params=DEVICES)
def device(request):
    return request.param


@pytest.fixture(scope="module")
def camera(terrain, device):
    return DepthCamera(DESC, terrain, device)


def course_of(terrain, tile):
    level, column = divmod(int(tile), terrain.columns)
    course = terrain.courses[level][column]
    return make_course(course.name, course.difficulty, course.seed), terrain.corner(level, column)


def wild_poses(terrain, per_tile, seed=0):
    """Everywhere on every tile, tilted and turned more than a robot that walks would be."""
    rng = np.random.default_rng(seed)
    tile = np.repeat(np.arange(terrain.tiles), per_tile)
    pos, quat = np.zeros((len(tile), 3)), np.zeros((len(tile), 4))
    for i in range(len(tile)):
        course, corner = course_of(terrain, tile[i])
        x, y = rng.uniform(0.3, course.length_m - 1.0), rng.uniform(-2.5, 2.5)
        z = max(0.0, float(course.height_at(x, y))) + rng.uniform(0.2, 0.6)
        pos[i] = corner + np.array([x, y, z])
        roll, pitch, yaw = rng.uniform((-0.5, -0.5, -1.5), (0.5, 0.5, 1.5))
        quat[i] = rotations.from_euler(roll, pitch, yaw)
    return tile, pos, quat


def tensors(device, tile, *poses):
    return (
        torch.as_tensor(tile, device=device),
        *(torch.as_tensor(p, dtype=torch.float32, device=device) for p in poses),
    )


def one_pose(terrain, x, y, z, *, tile=0, yaw=0.0, pitch=0.0, roll=0.0, device="cpu"):
    _, corner = course_of(terrain, tile)
    quat = rotations.from_euler(roll, pitch, yaw)
    return tensors(device, [tile], corner[None] + (x, y, z), quat[None])


def runtime_images(terrain, tile, pos, quat, camera=CAMERA):
    images = []
    for k, p, q in zip(tile, pos, quat, strict=True):
        course, corner = course_of(terrain, k)
        renderer = depth_camera.DepthRenderer(camera, course.boxes)
        images.append(renderer.render(*depth_camera.camera_pose(camera, p - corner, q)))
    return np.stack(images)


def assert_same_images(images, reference, *, stray_share=1e-5, tolerance=3e-4):
    """Within `tolerance` of depths up to 4 m and their square beyond, but for stray pixels.

    On the very border of a box one of two may hit and the other pass.
    """
    error = np.abs(images - reference)
    allowed = tolerance * np.maximum(1.0, (reference / 4.0) ** 2)
    assert np.count_nonzero(error > allowed) <= max(1.0, stray_share * images.size)


# The geometry.


def test_images_are_those_of_the_runtimes_simulation(terrain, camera, device):
    tile, pos, quat = wild_poses(terrain, 12)
    images = camera.render(*tensors(device, tile, pos, quat)).cpu().numpy()
    reference = runtime_images(terrain, tile, pos, quat)
    assert images.shape == (288, 60, 106)
    assert (reference > 0).mean() > 0.6
    assert_same_images(images, reference)
    assert RANGE_M == depth_camera.RANGE_M


def test_images_agree_with_mujocos_rays(terrain, camera, device):
    mujoco = pytest.importorskip("mujoco")
    right, down = np.meshgrid(
        (np.arange(106) - CAMERA.cx) / CAMERA.fx, (np.arange(60) - CAMERA.cy) / CAMERA.fy
    )
    rays_c = np.stack([right, down, np.ones_like(right)], axis=-1).reshape(-1, 3)
    length = np.linalg.norm(rays_c, axis=1)
    tile, pos, quat = wild_poses(terrain, 1, seed=1)
    reference = []
    for k, p, q in zip(tile, pos, quat, strict=True):
        course, corner = course_of(terrain, k)
        spec = mujoco.MjSpec()
        course.add_to_mjspec(spec)
        model = spec.compile()
        data = mujoco.MjData(model)
        mujoco.mj_forward(model, data)
        eye = p - corner + rotations.rotate(q, CAMERA.mount_xyz)
        axis, image_right, image_down = CAMERA.axes_b
        optical = rotations.to_matrix(q) @ np.column_stack([image_right, image_down, axis])
        rays = rays_c @ optical.T / length[:, None]
        distance, hit = np.zeros(len(rays)), np.zeros(len(rays), np.int32)
        mujoco.mj_multiRay(
            model, data, eye, rays.ravel(), None, 1, -1, hit, distance, None, len(rays), 100.0
        )
        image = distance / length
        image[(distance < 0) | (image < CAMERA.near_m) | (image > RANGE_M)] = 0.0
        reference.append(image.reshape(60, 106))
    images = camera.render(*tensors(device, tile, pos, quat)).cpu().numpy()
    assert_same_images(images, np.stack(reference), stray_share=5e-5)


def test_level_ground_by_hand(terrain, camera, device):
    flat = TYPES.index("flat")
    image = camera.render(*one_pose(terrain, 5.0, 0.0, 0.42, tile=flat, device=device))[0].cpu()
    # Eye at 0.42 + 0.08; the ray of row v falls by sin(30 deg) + tan(v) cos(30 deg) per metre.
    row = 45
    fall = 0.5 + (row - 29.5) / CAMERA.fy * math.cos(math.pi / 6)
    assert image[row].tolist() == pytest.approx([0.5 / fall] * 106, abs=1e-5)


def test_only_the_robots_own_course_is_seen(terrain, camera, device):
    """As in the runtime: a border of level ground, then nothing."""
    flat = TYPES.index("flat")
    to_the_left = one_pose(terrain, 5.0, 2.0, 0.42, tile=flat, yaw=math.pi / 2, device=device)
    image = camera.render(*to_the_left)[0].cpu()
    # The eye is 2.33 m left of the middle; the border ends at 5 m. Along the middle column that is
    # 2.67 m ahead: at a depth of 2.67 cos(30 deg) + 0.5 sin(30 deg).
    middle = image[:, 53]
    assert float(middle.max()) == pytest.approx(2.562, abs=0.1)
    assert float(middle[middle > 0].min()) < 0.7


def test_any_robots_in_any_order_and_number(terrain, camera, device, monkeypatch):
    poses = tensors(device, *wild_poses(terrain, 1))
    whole = camera.render(*poses)
    chosen = torch.tensor([7, 3, 20, 3], device=device)
    torch.testing.assert_close(camera.render(*(p[chosen] for p in poses)), whole[chosen])
    monkeypatch.setitem(depth._AT_ONCE, device, 1)
    torch.testing.assert_close(camera.render(*poses), whole)
    assert camera.render(*(p[:0] for p in poses)).shape == (0, 60, 106)


def test_the_crop_is_a_part_of_the_image(terrain, camera, device):
    poses = tensors(device, *wild_poses(terrain, 1))
    whole, cropped = camera.inverse(*poses, crop=False), camera.inverse(*poses)
    assert cropped.shape == (24, 58, 98)
    torch.testing.assert_close(cropped, whole[..., *runtime.CROP])


def test_a_camera_off_its_mount_is_a_camera_mounted_otherwise(terrain, camera, device):
    error = [0.01, -0.008, 0.005, 0.0, 0.03, 0.0]
    x, y, z = CAMERA.mount_xyz
    moved = replace(
        CAMERA,
        mount_xyz=(x + 0.01, y - 0.008, z + 0.005),
        mount_pitch_rad=CAMERA.mount_pitch_rad + 0.03,
    )
    tile, pos, quat = wild_poses(terrain, 2, seed=2)
    errors = torch.tensor([error] * len(tile), device=device)
    images = camera.render(*tensors(device, tile, pos, quat), errors).cpu().numpy()
    assert_same_images(images, runtime_images(terrain, tile, pos, quat, moved))


def test_a_turned_camera_by_hand(terrain, camera, device):
    flat = TYPES.index("flat")
    pose = one_pose(terrain, 5.0, 0.0, 0.42, tile=flat, device=device)

    def seen(roll=0.0, yaw=0.0):
        error = torch.tensor([[0.0, 0.0, 0.0, roll, 0.0, yaw]], device=device)
        return camera.render(*pose, error)[0, 40].cpu()

    # The right side sinks: there the ground is nearer, on the left farther.
    rolled = seen(roll=0.05)
    assert rolled[100] < seen()[100] - 0.01
    assert rolled[5] > seen()[5] + 0.01
    # Turned about its own vertical axis, which leans by 30 degrees, to the left: the optical axis
    # keeps its fall but for the cosine, and the rays to its right fall faster.
    turned = seen(yaw=0.05)
    assert turned[100] < seen()[100] - 0.005
    assert turned[5] > seen()[5] + 0.005


def test_the_kernel_of_the_gpu_sees_the_same(terrain):
    """Interpreted, a pixel block at a time: without a GPU too."""
    pytest.importorskip("triton")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRITON_INTERPRET", "1")
        path = Path(depth.__file__).with_name("raycast.py")
        spec = importlib.util.spec_from_file_location("raycast_interpreted", path)
        kernel = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(kernel)
        poses = tensors("cpu", *wild_poses(terrain, 1))
        few = [p[[8, 16]] for p in poses]
        by_kernel = DepthCamera(DESC, terrain, "cpu", caster=kernel.cast_rays).inverse(*few)
    by_torch = DepthCamera(DESC, terrain, "cpu", caster=depth.cast_rays).inverse(*few)
    torch.testing.assert_close(by_kernel, by_torch, rtol=0.0, atol=1e-6)


def test_the_kernel_compiles_for_a_gpu_that_is_not_here():
    triton = pytest.importorskip("triton")
    from krabby_trainer.vision import raycast
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    pointers = dict.fromkeys(("planes", "right", "down", "out"), "*fp32")
    numbers = dict.fromkeys(("boxes", "width", "pixels"), "i32")
    signature = {"count": "*i64", "block": "constexpr", **pointers, **numbers}
    order = raycast._cast.arg_names
    source = ASTSource(
        fn=raycast._cast,
        signature={name: signature[name] for name in order},
        constexprs={"block": raycast._PIXELS},
    )
    compiled = triton.compile(source, target=GPUTarget("cuda", 90, 32))
    assert len(compiled.asm["cubin"]) > 1000


@pytest.mark.parametrize("device", DEVICES[1:], scope="function")
def test_the_kernel_on_the_gpu_agrees_with_torch_there(terrain, device):
    poses = tensors(device, *wild_poses(terrain, 40))
    by_kernel = DepthCamera(DESC, terrain, device).inverse(*poses)
    by_torch = DepthCamera(DESC, terrain, device, caster=depth.cast_rays).inverse(*poses)
    off = (by_kernel - by_torch).abs() > 1e-5
    assert int(off.sum()) <= 1e-5 * off.numel()


# The mirror.


def mirrored_course(course):
    """Left and right exchanged: a rotation keeps its part about y, the others change sign."""
    boxes = tuple(
        replace(
            box,
            center=(box.center[0], -box.center[1], box.center[2]),
            quat=(-box.quat[0], box.quat[1], -box.quat[2], box.quat[3]),
        )
        for box in course.boxes
    )
    return replace(course, boxes=boxes)


def test_the_mirrored_image_is_the_image_of_the_mirrored_world(
    terrain, camera, device, monkeypatch
):
    real = depth.make_course
    monkeypatch.setattr(depth, "make_course", lambda *a, **k: mirrored_course(real(*a, **k)))
    mirrored = DepthCamera(DESC, terrain, device)
    tile, pos, quat = wild_poses(terrain, 4, seed=3)
    corner = np.array([course_of(terrain, k)[1] for k in tile])
    other_pos = corner + (pos - corner) * (1.0, -1.0, 1.0)
    other_quat = quat * (-1.0, 1.0, -1.0, 1.0)
    error = torch.tensor([[0.01, 0.01, 0.01, 0.02, 0.02, 0.02]] * len(tile), device=device)
    flip = torch.tensor([1.0, -1.0, 1.0, -1.0, 1.0, -1.0], device=device)
    preprocess = DepthPreprocessor(CAMERA, device)
    here = camera.render(*tensors(device, tile, pos, quat), error)
    there = mirrored.render(*tensors(device, tile, other_pos, other_quat), error * flip)
    assert_same_images(mirror_image(there).cpu().numpy(), here.cpu().numpy())
    off = (mirror_image(preprocess(there)) - preprocess(here)).abs() > 1e-3
    assert int(off.sum()) <= 2e-5 * off.numel()


# The policy image.


def holed(images, rng):
    """Images with every kind of missing reading in them."""
    images, kind = images.copy(), rng.random(images.shape)
    for value, share in ((0.0, 0.1), (np.nan, 0.12), (np.inf, 0.14), (-np.inf, 0.15), (0.05, 0.16)):
        images[(kind < share) & (kind >= share - 0.02)] = value
    images[:, 20:25, 30:40] = 0.0
    return images


@pytest.mark.parametrize("with_holes", [False, True])
def test_policy_images_are_the_runtimes(terrain, camera, device, with_holes):
    images = camera.render(*tensors(device, *wild_poses(terrain, 4))).cpu().numpy()
    images = holed(images, np.random.default_rng(0)) if with_holes else images
    expected = runtime.DepthPreprocessor(CAMERA)(images)
    preprocess = DepthPreprocessor(CAMERA, device)
    seen = preprocess(torch.as_tensor(images, device=device))
    assert np.abs(seen.cpu().numpy() - expected).max() <= 1e-6
    cropped = torch.as_tensor(images[..., *runtime.CROP], device=device)
    torch.testing.assert_close(preprocess(cropped), seen)


# Errors of the sensor.


def cfg_without_errors(**given):
    cfg = flawless(CAMERA)
    for name, value in given.items():
        assert name in {f.name for f in fields(cfg)}
        setattr(cfg, name, value)
    return cfg


def spoilt(image, device="cpu", *, count=1, **given):
    """Depth (count, ...) that cameras with these errors report of a depth image."""
    torch.manual_seed(0)
    errors = DepthErrors(cfg_without_errors(**given), CAMERA, count, device)
    inverse = torch.as_tensor(image, device=device).reciprocal().expand(count, -1, -1)
    return errors(inverse, torch.arange(count, device=device)).cpu()


def test_noise_and_holes_have_the_statistics_of_the_runtimes_simulation():
    image = np.broadcast_to(np.linspace(0.5, 5.0, 106, dtype=np.float32), (60, 106)).copy()
    cfg = described(CAMERA)
    torch.manual_seed(0)
    errors = DepthErrors(cfg, CAMERA, 40, "cpu")
    ours = errors(torch.tensor(image).reciprocal().expand(40, -1, -1), torch.arange(40)).numpy()
    sensor = depth_camera.DepthCamera(replace(CAMERA, drop_probability=0.0), seed=0)
    theirs = np.stack([sensor.capture(image, i).image for i in range(40)])
    for seen in (ours, theirs):
        # 254400 pixels: a share of 2 % is known to 0.03 %, a standard deviation of 1 % to 0.0014 %.
        assert (seen == 0.0).mean() == pytest.approx(0.02, abs=0.0015)
        noise = (seen / image)[seen > 0] - 1.0
        assert noise.std() == pytest.approx(0.01, rel=0.01)
        assert noise.mean() == pytest.approx(0.0, abs=1e-4)
        assert np.abs(noise).max() < 0.06


def test_without_errors_nothing_changes():
    image = torch.rand(1, 58, 98) + 0.5
    torch.testing.assert_close(spoilt(image[0]), image)


def test_nothing_is_seen_too_near_or_beyond_the_robots_own_range():
    image = torch.full((58, 98), 3.0)
    image[0], image[1], image[2] = 0.05, 7.0, 20.0
    near_sighted = spoilt(image, range_m=[6.0, 6.0])
    assert near_sighted[0, :4, 0].tolist() == pytest.approx([0.0, 0.0, 0.0, 3.0])
    assert spoilt(image)[0, :4, 0].tolist() == pytest.approx([0.0, 7.0, 0.0, 3.0])


def test_edges_bleed_and_lose_readings_and_nothing_else_does():
    wall = torch.full((58, 98), 3.0)
    wall[:, 40:] = 1.0
    seen = spoilt(wall, count=50, bleed_px=[1.0, 1.0], edge_hole_probability=[0.5, 0.5])
    edge = slice(38, 42)  # two pixels on either side
    torch.testing.assert_close(seen[..., :38], wall[:, :38].expand(50, -1, -1))
    torch.testing.assert_close(seen[..., 42:], wall[:, 42:].expand(50, -1, -1))
    read = seen[..., edge] > 0.0
    assert bool((seen[..., edge][read] >= 1.0 - 1e-6).all())
    assert bool((seen[..., edge][read] <= 3.0 + 1e-6).all())
    changed = (seen[..., edge] - wall[:, edge]).abs() > 1e-3
    # Next to the edge a shift towards it of at least 0.5 standard deviations crosses it: 31 %.
    assert changed[..., 1:3].float().mean() == pytest.approx(0.31, abs=0.03)
    # Two pixels away, of at least 1.5: 7 %. Half of all loses its reading.
    assert changed[..., [0, 3]].float().mean() == pytest.approx(0.067, abs=0.02)
    assert (~read)[..., 1:3].float().mean() == pytest.approx(0.154, abs=0.03)


def test_pixels_of_a_window_err_together():
    seen = spoilt(torch.full((58, 98), 2.0), count=200, window_noise_rel=[0.02, 0.02])
    assert bool((seen[:, :4, :4] == seen[:, :1, :1]).all())
    assert (seen / 2.0 - 1.0).std() == pytest.approx(0.02, rel=0.03)


def test_every_robot_has_its_own_camera_until_it_is_reset():
    torch.manual_seed(0)
    cfg = DepthErrorsCfg()
    errors = DepthErrors(cfg, CAMERA, 2000, "cpu")
    for name in ("noise_rel", "hole_probability", "bleed_px", "range_m"):
        low, high = getattr(cfg, name)
        drawn = errors.drawn[name]
        assert low <= float(drawn.min()) < low + 0.01 * (high - low)
        assert high - 0.01 * (high - low) < float(drawn.max()) <= high
    angle = errors.mount_error[:, 3:]
    assert float(angle.abs().max()) == pytest.approx(math.radians(2.0), rel=0.01)
    assert float(errors.mount_error[:, :3].abs().max()) == pytest.approx(0.01, rel=0.01)
    before = errors.mount_error.clone()
    errors.reset(chosen(2000, [3, 5]))
    changed = (errors.mount_error != before).all(dim=1)
    assert changed.nonzero()[:, 0].tolist() == [3, 5]


# Time.


def chosen(count, robots, device="cpu"):
    mask = torch.zeros(count, dtype=torch.bool, device=device)
    mask[robots] = True
    return mask


def still(terrain, device, count):
    """Tiles and poses of robots that stand."""
    poses = wild_poses(terrain, math.ceil(count / terrain.tiles))
    return tensors(device, *(p[:count] for p in poses))


class Watched:
    """Runs a stream and keeps, per step, who exposed, whose image arrived, and how old it was."""

    def __init__(self, stream, poses, steps):
        exposed, arrived, age = [], [], []
        for _ in range(steps):
            before = stream.exposures.clone()
            stream.step(*poses)
            exposed.append(stream.exposures - before)
            arrived.append(stream.arrived.clone())
            age.append(stream.age_s.clone())
        self.exposed = torch.stack(exposed).cpu()
        self.arrived = torch.stack(arrived).cpu()
        self.age_s = torch.stack(age).cpu()


def test_on_time_images_come_30_times_a_second_40_ms_old(terrain, camera, device):
    poses = still(terrain, device, 8)
    seen = Watched(DepthStream(camera, flawless(CAMERA), 8), poses, 200)
    for robot in range(8):
        exposed = seen.exposed[:, robot].nonzero()[:, 0]
        arrived = seen.arrived[:, robot].nonzero()[:, 0]
        assert len(exposed) in (60, 61)
        assert set(exposed.diff().tolist()) == {3, 4}
        assert (arrived - exposed[: len(arrived)]).tolist() == [4] * len(arrived)
        assert seen.age_s[arrived, robot].tolist() == pytest.approx([0.04] * len(arrived), abs=1e-5)
        # In between it grows older.
        between = ~seen.arrived[arrived[0] + 1 :, robot]
        grown = seen.age_s[arrived[0] :, robot].diff()[between]
        assert grown.tolist() == pytest.approx([0.01] * len(grown), abs=1e-5)
    # Not all at once.
    assert len({tuple(seen.exposed[:4, i].tolist()) for i in range(8)}) > 1


def test_an_image_shows_where_the_robot_was_when_it_was_taken(terrain, camera, device):
    stream = DepthStream(camera, flawless(CAMERA), 4, dtype=torch.float32)
    preprocess = DepthPreprocessor(CAMERA, device)
    tile, pos, quat = still(terrain, device, 4)
    taken, shown = [], 0
    for step in range(40):
        pos = pos + torch.tensor([0.01, 0.0, 0.001], device=device)
        taken.append(preprocess(camera.render(tile, pos, quat)))
        stream.step(tile, pos, quat)
        for robot in stream.arrived.nonzero()[:, 0].tolist():
            torch.testing.assert_close(
                stream.image[robot], taken[step - 4][robot], rtol=0, atol=1e-5
            )
            shown += 1
    assert shown > 30


def test_the_robots_state_at_exposure_is_known_half_a_second_later(terrain, device):
    errors = cfg_without_errors(latency_s=[0.5, 0.5])
    cameras = Cameras(DESC, terrain, errors, 2, device, torch.arange(3))
    tile, pos, quat = still(terrain, device, 2)
    shown = 0
    for step in range(100):
        frame = torch.full((2, 69), float(step), device=device)
        cameras.step(frame, tile, pos, quat)
        for robot in cameras.arrived.nonzero()[:, 0].tolist():
            assert cameras.eye[robot].tolist() == [step - 50.0] * 3
            shown += 1
    assert shown > 20


def test_before_the_first_image_there_is_distance_all_over(terrain, camera, device):
    poses = still(terrain, device, 4)
    stream = DepthStream(camera, flawless(CAMERA), 4)
    assert stream.image.shape == (4, 58, 87)
    assert stream.image.dtype == torch.float16
    assert bool((stream.image == 0.5).all())
    stream.step(*poses)
    assert float(stream.age_s.min()) >= NO_IMAGE_S
    assert not bool(stream.arrived.any())


def test_a_reset_forgets_what_is_on_its_way(terrain, camera, device):
    poses = still(terrain, device, 8)
    stream = DepthStream(camera, cfg_without_errors(latency_s=[0.2, 0.2]), 8)
    Watched(stream, poses, 30)
    stream.reset(chosen(8, [1, 6], device))
    assert float(stream.age_s[[1, 6]].min()) >= NO_IMAGE_S
    after = Watched(stream, poses, 30)
    assert not bool(after.arrived[:20, [1, 6]].any())
    assert bool(after.arrived[20:, [1, 6]].any(dim=0).all())
    assert bool(after.arrived[:20, [0, 2, 3, 4, 5, 7]].any(dim=0).all())


def test_lost_frames_never_arrive(terrain, camera, device):
    torch.manual_seed(0)
    poses = still(terrain, device, 16)
    stream = DepthStream(camera, cfg_without_errors(drop_probability=[0.3, 0.3]), 16)
    seen = Watched(stream, poses, 300)
    exposed, lost = int(stream.exposures.sum()), int(stream.lost.sum())
    # 1440 frames: the share is known to 1.2 %.
    assert lost / exposed == pytest.approx(0.3, abs=0.04)
    under_way = int(torch.isfinite(stream._arrives_s).sum())
    assert int(seen.arrived.sum()) == exposed - lost - under_way


def test_in_an_outage_nothing_arrives_for_a_while(terrain, camera, device):
    torch.manual_seed(0)
    poses = still(terrain, device, 16)
    stream = DepthStream(camera, cfg_without_errors(outage_per_s=0.5, outage_s=[0.3, 0.3]), 16)
    seen = Watched(stream, poses, 400)
    # Without an outage the age stays below 40 + 40 ms, with one it grows to 0.3 s more.
    begun = seen.age_s < NO_IMAGE_S
    oldest = torch.where(begun, seen.age_s, 0.0).amax(dim=0)
    assert float(oldest.median()) > 0.3
    assert float(oldest.max()) < 1.0
    # About 0.5 * 0.3 of the time is spent in them.
    assert float(stream.lost.sum() / stream.exposures.sum()) == pytest.approx(0.14, abs=0.06)


def test_rates_and_latencies_differ_between_robots_and_jitter(terrain, camera, device):
    torch.manual_seed(1)
    poses = still(terrain, device, 48)
    cfg = cfg_without_errors(
        rate_hz=[10.0, 30.0], period_jitter=0.1, latency_s=[0.04, 0.12], latency_jitter_s=0.01
    )
    stream = DepthStream(camera, cfg, 48)
    seen = Watched(stream, poses, 300)
    per_second = seen.exposed.sum(dim=0) / 3.0
    assert 9.0 < float(per_second.min()) < 12.0
    assert 27.0 < float(per_second.max()) < 31.0
    age = seen.age_s[seen.arrived]
    assert 0.03 - 1e-4 <= float(age.min()) <= 0.05
    assert 0.11 <= float(age.max()) <= 0.14 + 1e-4
    assert float(age.mean()) == pytest.approx(0.085, abs=0.01)
    exposed = seen.exposed[:, 0].nonzero()[:, 0].diff()
    assert len(set(exposed.tolist())) > 1


def test_images_never_come_out_of_order_nor_overwrite_one_another(
    terrain, camera, device, monkeypatch
):
    """With as many places as there are, the same arrives as with many more."""
    poses = still(terrain, device, 24)
    cfg = cfg_without_errors(
        rate_hz=[25.0, 30.0], period_jitter=0.1, latency_s=[0.1, 0.12], latency_jitter_s=0.05
    )

    def run():
        torch.manual_seed(0)
        return Watched(DepthStream(camera, cfg, 24), poses, 200)

    few = run()
    monkeypatch.setattr(DepthStream, "_slots", lambda self: 40)
    many = run()
    assert torch.equal(few.arrived, many.arrived)
    torch.testing.assert_close(few.age_s, many.age_s)
    taken = torch.arange(200)[:, None] * 0.01 - few.age_s  # when the newest image was taken
    assert bool((taken.diff(dim=0)[few.age_s[1:] < NO_IMAGE_S] > -1e-4).all())


def test_with_too_little_capacity_robots_wait_and_all_have_their_turn(terrain, camera, device):
    poses = still(terrain, device, 12)
    stream = DepthStream(camera, flawless(CAMERA), 12, capacity=2)
    seen = Watched(stream, poses, 120)
    assert int(seen.exposed.sum(dim=1).max()) == 2
    # Two in each of 120 steps, over twelve robots: 20 each.
    per_robot = seen.exposed.sum(dim=0)
    assert 18 <= int(per_robot.min()) <= int(per_robot.max()) <= 22


def test_the_usual_capacity_is_enough(terrain, camera):
    torch.manual_seed(0)
    cfg, robots = DepthErrorsCfg(), 4096
    stream = DepthStream(camera, cfg, 8)
    stream.num_envs = robots
    enough = stream._usual_capacity()
    # Twenty a second on average, a hundred steps.
    assert 0.2 * robots < enough < 0.31 * robots
    period = 1.0 / (10.0 + 20.0 * torch.rand(robots))
    first = period * torch.rand(robots)
    due = [int((((first - 0.01 * k) % period) >= period - 0.01).sum()) for k in range(1, 100)]
    assert max(due) < enough


def test_switched_off_the_images_are_true_but_still_late(terrain, camera, device):
    stream = DepthStream(camera, DepthErrorsCfg(enabled=False), 4, dtype=torch.float32)
    poses = still(terrain, device, 4)
    seen = Watched(stream, poses, 30)
    true = DepthPreprocessor(CAMERA, device)(camera.render(*poses))
    torch.testing.assert_close(stream.image, true, rtol=0.0, atol=1e-5)
    assert float(seen.age_s[seen.arrived].min()) == pytest.approx(0.04, abs=1e-5)


def test_on_a_gpu_no_shape_depends_on_a_value_and_nothing_is_waited_for(terrain):
    """On tensors without values, which refuse to be asked for one; without a GPU too."""
    with FakeTensorMode():
        camera = DepthCamera(DESC, terrain, "cuda", caster=depth.cast_rays)
        stream = DepthStream(camera, DepthErrorsCfg(), 4096)
        tile = torch.zeros(4096, dtype=torch.long, device="cuda")
        pos, quat = torch.zeros(4096, 3, device="cuda"), torch.zeros(4096, 4, device="cuda")
        stream.step(tile, pos, quat)
        stream.reset(tile > 0)
        assert stream.image.shape == (4096, 58, 87)
        with pytest.raises(DataDependentOutputException):
            bool(stream.arrived.any())


@pytest.mark.parametrize("device", DEVICES[1:], scope="function")
def test_a_step_can_be_recorded(terrain, device):
    camera, poses = DepthCamera(DESC, terrain, device), still(terrain, device, 64)
    torch.manual_seed(0)
    stream = DepthStream(camera, DepthErrorsCfg(), 64)
    step = Replayed(lambda: stream.step(*poses), device)
    arrived, images = 0, set()
    for k in range(100):
        step()
        if k == 50:
            stream.reset(chosen(64, list(range(8)), device))
        arrived += int(stream.arrived.sum())
        images.add(round(float(stream.image.float().sum()), 3))
    assert step._graph is not None
    # 20 a second for a second, less those under way at its end, lost or in an outage.
    assert 700 < arrived < 1400
    assert len(images) > 80


# Bad input.


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"rate_hz": [0.0, 30.0]}, r"rate_hz = \[0.0, 30.0\]; give \[low, high\] within 1 to 100"),
        ({"latency_s": [0.2, 0.1]}, r"latency_s = \[0.2, 0.1\]"),
        ({"range_m": [2.0, 15.0]}, r"range_m .* within 4 to 15"),
        ({"hole_probability": [0.5]}, r"hole_probability = \[0.5\]"),
        ({"oldest_s": 11.0}, r"oldest_s = 11.0; give a number from 0 to 10"),
        ({"period_jitter": 0.9}, r"period_jitter = 0.9; give a number from 0 to 0.5"),
    ],
)
def test_a_wrong_value_is_refused_with_its_range(terrain, camera, wrong, message):
    with pytest.raises(ConfigError, match=message):
        DepthStream(camera, cfg_without_errors(**wrong), 2)


def test_a_camera_of_another_size_is_refused(terrain):
    other = replace(DESC, camera=replace(CAMERA, width=640))
    with pytest.raises(ConfigError, match="60 x 640 pixels, policies see 60 x 106"):
        DepthCamera(other, terrain, "cpu")


# The benchmark.


def test_the_benchmark_measures_and_draws(tmp_path):
    report = depth_bench.measure(4, 2, "cpu")
    assert report["images_per_s"] >= 0
    assert set(report["part_ms"]) == {"render", "errors", "preprocess"}
    depth_bench.draw(tmp_path / "seen.png")
    assert (tmp_path / "seen.png").stat().st_size > 10_000


def test_every_camera_may_look_lower_than_it_says():
    errors = DepthErrors(replace(flawless(CAMERA), mount_pitch_rad=0.05), CAMERA, 3, "cpu")
    assert errors.mount_error[:, 4].tolist() == pytest.approx([0.05] * 3)
    assert errors.mount_error[:, [0, 1, 2, 3, 5]].abs().sum() == 0.0
