import dataclasses
import functools
import math

import mujoco
import numpy as np
import pytest
from krabby.course.boxes import Box
from krabby.course.courses import COURSES, make_course
from krabby.mujoco.camera_faults import answer_fault_request
from krabby.mujoco.depth_camera import RANGE_M, DepthCamera, DepthRenderer, camera_pose
from krabby.robot import rotations

MS = 1_000_000


@pytest.fixture(scope="session")
def camera(desc):
    return desc.camera


@pytest.fixture(scope="session")
def flawless(camera):
    return dataclasses.replace(
        camera,
        noise_rel=0.0,
        hole_probability=0.0,
        drop_probability=0.0,
        latency_s=0.04,
        latency_jitter_s=0.0,
    )


def ground(top=0.0):
    return Box(center=(0.0, 0.0, top - 1.0), half_extents=(50.0, 50.0, 1.0), kind="ground")


def looking(pos, yaw=0.0, pitch=0.0):
    """Optical centre and optical-to-world matrix; positive pitch looks down."""
    forward = [math.cos(yaw) * math.cos(pitch), math.sin(yaw) * math.cos(pitch), -math.sin(pitch)]
    right = [math.sin(yaw), -math.cos(yaw), 0.0]
    return np.array(pos, float), np.column_stack([right, np.cross(forward, right), forward])


def ray_cast(course, camera, pose, range_m):
    """The same image by MuJoCo's rays, one at a time."""
    spec = mujoco.MjSpec()
    course.add_to_mjspec(spec)
    model = spec.compile()
    data = mujoco.MjData(model)
    mujoco.mj_forward(model, data)
    pos_w, optical_wc = pose
    depth = np.zeros((camera.height, camera.width))
    hit = np.zeros(1, np.int32)
    for row in range(camera.height):
        for column in range(camera.width):
            ray_c = np.array([(column - camera.cx) / camera.fx, (row - camera.cy) / camera.fy, 1.0])
            length = np.linalg.norm(ray_c)
            ray_w = optical_wc @ ray_c / length
            distance = mujoco.mj_ray(model, data, pos_w, ray_w, None, 1, -1, hit, None)
            depth[row, column] = distance / length
    depth[(depth < camera.near_m) | (depth > range_m)] = 0.0
    return depth


@pytest.mark.parametrize("name", COURSES)
def test_the_image_agrees_with_mujocos_rays(camera, name):
    course = make_course(name, difficulty=0.8, seed=3)
    renderer = DepthRenderer(camera, course.boxes)
    rng = np.random.default_rng(1)
    for _ in range(3):
        x, y = rng.uniform(0.5, course.length_m - 3.0), rng.uniform(-0.4, 0.4)
        base = np.array([x, y, max(0.0, float(course.height_at(x, y))) + rng.uniform(0.3, 0.6)])
        quat = rotations.from_euler(*rng.uniform(-0.2, 0.2, 2), rng.uniform(-0.6, 0.6))
        pose = camera_pose(camera, base, quat)
        if course.height_at(*pose[0][:2]) > pose[0][2]:
            continue  # inside an obstacle
        image, reference = renderer.render(*pose), ray_cast(course, camera, pose, RANGE_M)
        # On the very border of a box one of the two may hit and the other pass.
        off = np.abs(image - reference) > 1e-4
        assert np.count_nonzero(off) <= 2
        assert np.count_nonzero(image) > 2000


def test_level_ground_by_hand(camera):
    renderer = DepthRenderer(camera, [ground()])
    pitch = 0.5236
    image = renderer.render(*looking([0, 0, 0.5], pitch=pitch))
    # The ray of row v falls by sin(pitch) + tan(v) cos(pitch) per metre of depth.
    row, column = 45, 20
    fall = math.sin(pitch) + (row - camera.cy) / camera.fy * math.cos(pitch)
    assert image[row, column] == pytest.approx(0.5 / fall, abs=1e-5)
    assert image[row] == pytest.approx(np.full(camera.width, image[row, 0]), abs=1e-5)
    assert image.dtype == np.float32
    assert image.shape == (60, 106)


def test_a_wall_is_at_its_optical_axis_distance_everywhere(camera):
    wall = Box(center=(3.0, 0.0, 0.0), half_extents=(0.5, 20.0, 20.0), kind="step")
    image = DepthRenderer(camera, [wall]).render(*looking([0, 0, 0]))
    assert image == pytest.approx(np.full((60, 106), 2.5), abs=1e-5)


def test_what_is_on_the_left_is_in_the_left_columns_and_up_is_in_the_top_rows(camera):
    post = Box(center=(2.0, 0.8, 0.5), half_extents=(0.1, 0.1, 0.1), kind="step")
    image = DepthRenderer(camera, [post]).render(*looking([0, 0, 0]))
    rows, columns = np.nonzero(image)
    assert columns.max() < 53
    assert rows.max() < 30
    # Its middle is at 0.8 / 1.9 to the left and 0.5 / 1.9 up, face at 1.9 m.
    assert columns.mean() == pytest.approx(camera.cx - 0.8 / 1.95 * camera.fx, abs=1.0)
    assert rows.mean() == pytest.approx(camera.cy - 0.5 / 1.95 * camera.fy, abs=1.0)


def test_the_nearer_of_two_boxes_hides_the_other_whatever_their_order(camera):
    near = Box(center=(2.0, 0.0, 0.0), half_extents=(0.1, 0.5, 0.5), kind="step")
    far = Box(center=(4.0, 0.0, 0.0), half_extents=(0.1, 5.0, 5.0), kind="step")
    pose = looking([0, 0, 0])
    for boxes in ([near, far], [far, near]):
        image = DepthRenderer(camera, boxes).render(*pose)
        assert image[30, 53] == pytest.approx(1.9, abs=1e-5)
        assert image[30, 2] == pytest.approx(3.9, abs=1e-5)


def test_beyond_the_range_and_too_near_there_is_no_reading(camera):
    pose = looking([0, 0, 0])
    for face_m, seen in ((0.05, False), (0.2, True), (14.9, True), (15.1, False)):
        wall = Box(center=(face_m + 1, 0, 0), half_extents=(1, 40, 40), kind="step")
        image = DepthRenderer(camera, [wall]).render(*pose)
        assert bool(image.any()) is seen, face_m


def test_the_sky_and_what_is_behind_have_no_reading(camera):
    behind = Box(center=(-2.0, 0.0, 0.0), half_extents=(0.5, 5.0, 5.0), kind="step")
    assert not DepthRenderer(camera, [behind]).render(*looking([0, 0, 0])).any()
    assert not DepthRenderer(camera, [ground()]).render(*looking([0, 0, 0.5], pitch=-1.2)).any()


def test_a_box_that_reaches_from_behind_the_camera_to_its_front_is_seen(camera):
    beside = Box(center=(0.0, 1.0, 0.0), half_extents=(5.0, 0.2, 3.0), kind="step")
    image = DepthRenderer(camera, [beside]).render(*looking([0, 0, 0]))
    # Column 0 looks 52.5 / 55.85 to the left: it meets y = 0.8 at a depth of 0.851 m.
    assert image[30, 0] == pytest.approx(0.8 * camera.fx / camera.cx, abs=1e-4)


def test_the_mount_looks_30_degrees_down_from_the_brow(camera):
    pos_w, optical_wc = camera_pose(camera, np.array([1.0, 2.0, 0.42]), rotations.IDENTITY)
    assert pos_w == pytest.approx([1.33, 2.0, 0.50])
    right, down, axis = optical_wc.T
    assert axis == pytest.approx([math.cos(0.5236), 0.0, -math.sin(0.5236)], abs=1e-5)
    assert right == pytest.approx([0.0, -1.0, 0.0])
    assert down == pytest.approx([-math.sin(0.5236), 0.0, -math.cos(0.5236)], abs=1e-5)


def test_the_mount_turns_with_the_base(camera):
    quat = rotations.from_yaw(math.pi / 2)
    pos_w, optical_wc = camera_pose(camera, np.zeros(3), quat)
    assert pos_w == pytest.approx([0.0, 0.33, 0.08])
    assert optical_wc[:, 0] == pytest.approx([1.0, 0.0, 0.0])


def test_frames_come_30_times_a_second_on_the_grid_of_odd_slots(flawless):
    sensor = DepthCamera(flawless, seed=0)
    depth = np.ones((60, 106), np.float32)
    captures = []
    for slot in range(1, 2 * 1000, 2):  # 10 s of odd 5 ms slots
        if sensor.due(slot * 5 * MS):
            sensor.capture(depth, slot * 5 * MS)
            captures.append(slot * 5)
    assert len(captures) == 300
    assert set(np.diff(captures)) == {30, 40}


def test_a_stall_is_not_made_up_for_with_a_burst(flawless):
    sensor = DepthCamera(flawless, seed=0)
    depth = np.ones((60, 106), np.float32)
    assert sensor.due(0)
    sensor.capture(depth, 0)
    assert sensor.due(1000 * MS)
    sensor.capture(depth, 1000 * MS)
    assert not sensor.due(1005 * MS)


def test_a_frame_arrives_after_its_latency_with_its_capture_time(flawless):
    sensor = DepthCamera(flawless, seed=0)
    sensor.due(0)
    sensor.capture(np.ones((60, 106), np.float32), 0)
    assert sensor.pop(39 * MS) is None
    frame = sensor.pop(40 * MS)
    assert frame.capture_ns == 0
    assert sensor.pop(400 * MS) is None


def test_latency_jitters_within_its_bounds_and_frames_keep_their_order(camera):
    jittery = dataclasses.replace(camera, latency_s=0.04, latency_jitter_s=0.04, rate_hz=1000.0)
    sensor = DepthCamera(dataclasses.replace(jittery, drop_probability=0.0), seed=0)
    depth = np.ones((60, 106), np.float32)
    frames_ = [sensor.capture(depth, ms * MS) for ms in range(200)]
    publish = [frame.publish_ns for frame in frames_]
    assert publish == sorted(publish)
    first = [DepthCamera(jittery, seed=seed).capture(depth, 0) for seed in range(60)]
    delays_ms = [frame.publish_ns / MS for frame in first if frame is not None]
    assert 0.0 <= min(delays_ms) < 10.0
    assert 70.0 < max(delays_ms) <= 80.0


def test_noise_grows_with_depth_and_holes_are_zero(camera):
    noisy = dataclasses.replace(camera, noise_rel=0.02, hole_probability=0.1, drop_probability=0.0)
    depth = np.where(np.arange(60)[:, None] < 30, np.float32(1.0), np.float32(4.0))
    depth = np.broadcast_to(depth, (60, 106)).astype(np.float32)
    image = DepthCamera(noisy, seed=5).capture(depth, 0).image
    assert np.mean(image == 0.0) == pytest.approx(0.1, abs=0.02)
    near, far = image[:30][image[:30] > 0], image[30:][image[30:] > 0]
    assert near.std() == pytest.approx(0.02, rel=0.1)
    assert far.std() == pytest.approx(0.08, rel=0.1)
    assert near.mean() == pytest.approx(1.0, abs=0.002)


def test_pixels_without_a_reading_stay_without(camera):
    image = DepthCamera(camera, seed=0).capture(np.zeros((60, 106), np.float32), 0).image
    assert not image.any()


def test_lost_frames_are_counted_and_never_arrive(flawless):
    lossy = dataclasses.replace(flawless, drop_probability=0.25)
    sensor = DepthCamera(lossy, seed=2)
    depth = np.ones((60, 106), np.float32)
    sent = [sensor.capture(depth, k * 33 * MS) is not None for k in range(400)]
    assert sensor.captured == 400
    assert sensor.dropped == 400 - sum(sent)
    assert sensor.dropped == pytest.approx(100, abs=25)


def test_the_same_seed_gives_the_same_frames(camera):
    depth = np.full((60, 106), 2.0, np.float32)

    def shoot(seed):
        sensor = DepthCamera(camera, seed=seed)
        return [sensor.capture(depth, k * 33 * MS) for k in range(20)]

    for one, two in zip(shoot(7), shoot(7), strict=True):
        assert (one is None) == (two is None)
        if one is not None and two is not None:
            assert np.array_equal(one.image, two.image)
            assert one.publish_ns == two.publish_ns
    assert not np.array_equal(shoot(7)[0].image, shoot(8)[0].image)


def picture(value):
    return np.full((60, 106), value, np.float32)


def frames_of(depth_camera, values):
    """Frames of exposures of flat pictures, 40 ms apart, None where the sensor gives none."""
    return [depth_camera.capture(picture(v), k * 40 * MS) for k, v in enumerate(values)]


def test_a_frozen_camera_repeats_its_last_picture_with_fresh_stamps_until_it_is_mended(flawless):
    camera = DepthCamera(flawless, seed=0)
    first = frames_of(camera, [1.0, 2.0])
    camera.break_down("camera-frozen")
    broken = frames_of(camera, [3.0, 4.0])
    camera.mend()
    after = frames_of(camera, [5.0])
    assert [f.image[0, 0] for f in first + broken + after] == [1.0, 2.0, 2.0, 2.0, 5.0]
    assert [f.capture_ns for f in broken] == [0, 40 * MS]


@pytest.mark.parametrize(("fault", "value"), [("camera-black", 0.0), ("camera-nan", np.nan)])
def test_a_fault_shows_in_every_pixel_for_as_long_as_was_asked(flawless, fault, value):
    camera = DepthCamera(flawless, seed=0)
    camera.break_down(fault, until_ns=80 * MS)
    seen = [frame.image for frame in frames_of(camera, [1.0, 1.0, 1.0])]
    np.testing.assert_array_equal(seen[0], picture(value))
    np.testing.assert_array_equal(seen[1], picture(value))
    np.testing.assert_array_equal(seen[2], picture(1.0))


def test_a_stopped_camera_gives_no_frames_and_they_count_as_lost(flawless):
    camera = DepthCamera(flawless, seed=0)
    camera.break_down("camera-stop", until_ns=80 * MS)
    assert [f is None for f in frames_of(camera, [1.0, 1.0, 1.0])] == [True, True, False]
    assert camera.dropped == 2


def test_a_fault_changes_no_draw_of_what_comes_after_it(camera):
    whole, broken = DepthCamera(camera, seed=3), DepthCamera(camera, seed=3)
    broken.break_down("camera-black", until_ns=80 * MS)
    pairs = zip(frames_of(whole, [1.0] * 6), frames_of(broken, [1.0] * 6), strict=True)
    for before, after in list(pairs)[2:]:
        assert (before is None) == (after is None)
        if before is not None:
            np.testing.assert_array_equal(before.image, after.image)
            assert before.publish_ns == after.publish_ns


def test_a_request_breaks_and_mends_the_camera_and_says_so(flawless):
    camera = DepthCamera(flawless, seed=0)
    ask = functools.partial(answer_fault_request, camera, now_ns=0)
    assert ask({"op": "status"}) == {"ok": True, "fault": ""}
    asked = ask({"op": "fault", "kind": "camera-nan", "for_s": 0.5})
    assert asked == {"ok": True, "fault": "camera-nan"}
    assert camera.fault(499 * MS) == "camera-nan"
    assert camera.fault(500 * MS) is None
    ask({"op": "fault", "kind": "camera-stop"})
    assert camera.fault(10**15) == "camera-stop"
    assert ask({"op": "clear"}) == {"ok": True, "fault": ""}


@pytest.mark.parametrize(
    ("request_", "said"),
    [
        ({"op": "fault", "kind": "camera-blue"}, "use one of camera-frozen"),
        ({"op": "fault", "kind": "camera-nan", "for_s": -1}, "for_s is '-1'; give seconds"),
        ({"op": "explode"}, "unknown op 'explode'; use fault, clear or status"),
    ],
)
def test_a_request_that_makes_no_sense_is_refused_with_what_does(flawless, request_, said):
    answer = answer_fault_request(DepthCamera(flawless, seed=0), request_, 0)
    assert not answer["ok"]
    assert said in answer["reason"]


def test_without_a_camera_there_is_nothing_to_break():
    answer = answer_fault_request(None, {"op": "status"}, 0)
    assert "camera.enabled=true" in answer["reason"]
