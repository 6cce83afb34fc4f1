"""The cockpit in a real browser: a lap by its keys, every way to let go, the e-stop, a phone."""

import math
import re
import subprocess
import sys
import time

import numpy as np
import psutil
import pytest
from krabby.hal.jpeg import to_jpeg
from krabby.runtime.testing import until
from krabby_browser import PATIENCE_S, SECRET, Page, View
from krabby_proto import COLOUR, TRUTH, LatestSubscriber, WatchedPublisher, unpack

pytestmark = [pytest.mark.browser, pytest.mark.timeout(600)]

LAP_S = 240.0
STILL = 0.05
"""Speed of a robot that stands, and marches on the spot for a moment [m/s]."""


def heading(state):
    x, y, z, w = state["base_quat"]
    return math.atan2(2 * (w * z + x * y), 1 - 2 * (y * y + z * z))


def commanded(page):
    return page.facts()["loop"].get("nav", [0, 0, 0])


def walk(page, *keys):
    """Hold keys until the robot is commanded to walk by this page, and by no mission."""
    page.make_walk()
    end = time.monotonic() + PATIENCE_S

    def walks():
        facts = page.facts()
        mine = facts["driver"] == "you" and facts["loop"].get("nav_source") == "operator"
        return mine and any(facts["asked"]) and any(abs(value) > 0.1 for value in commanded(page))

    while not walks():
        page.press(*keys)  # a key that is down already repeats
        assert time.monotonic() < end, page.facts()
        time.sleep(0.05)


def asked(robot):
    """The loop's status, on a busy machine too."""
    return robot.loop.request("status", timeout_s=PATIENCE_S)


def gate(robot):
    return robot.hal.safety("status", "test", PATIENCE_S)["state"]


def stands(robot):
    """Whether the loop follows a person who asks for zero, and the command has reached it."""
    status = asked(robot)
    return status["nav_source"] == "operator" and not any(status["nav"])


def test_colour_images_are_shown_while_they_come(cockpit, robot):
    """This robot's own are off: they are published here in its place."""
    eye = cockpit.tab.locator("#colour-eye")
    assert eye.is_hidden()
    assert cockpit.tab.locator("#depth").is_visible()
    red = to_jpeg(np.full((120, 212, 3), (200, 40, 40), np.uint8))
    colour_at = "() => [...document.querySelector('#colour').getContext('2d')"
    colour_at += ".getImageData(100, 60, 1, 1).data]"
    with WatchedPublisher(robot.endpoints["colour"], COLOUR) as publisher:

        def shown():
            publisher.publish(red, capture_ns=time.monotonic_ns())
            if not eye.is_visible():
                return False
            return cockpit.tab.evaluate(colour_at)[:3] == pytest.approx([200, 40, 40], abs=8)

        until(shown, PATIENCE_S)
    until(eye.is_hidden, PATIENCE_S)


def test_the_page_draws_the_robot_and_asks_no_other_host(cockpit):
    until(lambda: cockpit.state() and cockpit.state()["truth"], PATIENCE_S)
    assert len(cockpit.state()["joint_pos"]) == 18
    until(lambda: cockpit.tab.inner_text("#title") == "Krabby crab_hex", PATIENCE_S)
    until(lambda: "flat" in cockpit.tab.inner_text("#where"), PATIENCE_S)
    scene = cockpit.tab.locator("#scene")
    # A picture of one colour has some 1000 bytes.
    until(lambda: len(scene.screenshot()) > 5000, PATIENCE_S)


def test_a_lap_by_the_keys_of_the_page(cockpit, figures):
    """Forward and turning left until it has turned once around and is back where it began."""
    cockpit.make_walk()
    start = cockpit.state()
    began_s, turned, last, furthest = time.monotonic(), 0.0, heading(start), 0.0
    while True:
        cockpit.press("w", "q")
        time.sleep(0.05)
        state = cockpit.state()
        now = heading(state)
        turned += math.remainder(now - last, 2 * math.pi)
        last = now
        away = math.dist(state["base_pos"][:2], start["base_pos"][:2])
        furthest = max(furthest, away)
        if turned > 1.9 * math.pi and away < 0.45:
            break
        if cockpit.facts()["gate"] != "active":  # a busy machine may have damped it
            cockpit.make_walk()
        assert time.monotonic() - began_s < LAP_S, f"{turned:.2f} rad, {away:.2f} m away"
    assert furthest > 0.5  # and not turned on the spot
    figures["a lap by the keys of the page"] = (
        f"{time.monotonic() - began_s:.1f} s, {furthest:.2f} m across, ends {away:.2f} m from its "
        "start"
    )


def test_a_key_that_is_let_go_stops_the_robot(cockpit, robot):
    walk(cockpit, "w")
    cockpit.tab.keyboard.up("w")
    until(lambda: stands(robot), PATIENCE_S)


def test_closing_the_tab_stops_the_robot_and_no_mission_takes_over(cockpit, robot, figures):
    walk(cockpit, "w")
    began_s = time.monotonic()
    cockpit.tab.close()
    until(lambda: asked(robot)["nav_asked"] == [0, 0, 0], PATIENCE_S)
    figures["tab closed to zero asked"] = f"{time.monotonic() - began_s:.2f} s"
    until(lambda: stands(robot), PATIENCE_S)
    with LatestSubscriber(robot.endpoints["truth"], TRUTH) as truth:

        def rests():
            message = truth.wait(PATIENCE_S)
            assert message is not None
            return math.hypot(*unpack(TRUTH, message.payload)["base_lin_vel_w"][:2]) < STILL

        until(rests, PATIENCE_S)
    until(lambda: stands(robot), PATIENCE_S)


def test_a_frozen_page_stops_the_robot(cockpit, robot):
    walk(cockpit, "w")
    browser = cockpit.context.new_cdp_session(cockpit.tab)
    browser.send("Page.setWebLifecycleState", {"state": "frozen"})
    until(lambda: stands(robot), PATIENCE_S)
    browser.send("Page.setWebLifecycleState", {"state": "active"})


def test_a_hidden_page_lets_go(cockpit, robot):
    walk(cockpit, "w")
    hide = """() => {
      Object.defineProperty(document, "hidden", {value: true, configurable: true});
      document.dispatchEvent(new Event("visibilitychange"));
    }"""
    cockpit.tab.evaluate(hide)
    until(lambda: stands(robot), PATIENCE_S)


def test_a_computer_that_stops_without_a_word_stops_the_robot(cockpit, robot, figures):
    """All processes of the browser are stopped: its connection stays open and is silent."""
    walk(cockpit, "w")
    processes = psutil.Process().children(recursive=True)
    browsers = [each for each in processes if each.name().startswith("chrom")]
    assert browsers
    began_s = time.monotonic()
    try:
        for each in browsers:
            each.suspend()
        until(lambda: asked(robot)["nav_asked"] == [0, 0, 0], PATIENCE_S)
        figures["browser stopped to zero asked"] = f"{time.monotonic() - began_s:.2f} s"
        until(lambda: stands(robot), PATIENCE_S)
    finally:
        for each in browsers:
            each.resume()


def test_the_e_stop_by_its_key_and_by_its_button(cockpit, robot, figures):
    cockpit.make_walk()
    began_s = time.monotonic()
    cockpit.tab.keyboard.press("x")
    until(lambda: gate(robot) == "estop", PATIENCE_S)
    figures["e-stop by the page's key"] = f"{1e3 * (time.monotonic() - began_s):.0f} ms"
    cockpit.until(lambda facts: facts["gate"] == "estop", "the page's word of the e-stop")
    until(lambda: "emergency stop" in cockpit.tab.inner_text("#faults"), PATIENCE_S)
    until(lambda: "reset, arm, stand" in cockpit.tab.inner_text("#deadman"), PATIENCE_S)
    cockpit.make_walk()
    cockpit.tab.click("#estop")
    until(lambda: gate(robot) == "estop", PATIENCE_S)


def test_a_gamepad_walks_while_its_shoulder_button_is_held(browser, view, robot):
    """The browser's own interface, with a device in place of the one that is not plugged in."""
    page = Page(browser, "about:blank")
    page.context.add_init_script(
        """window.pad = {connected: true, index: 0, timestamp: 1, axes: [0, 0, 0, 0],
             buttons: Array.from({length: 17}, () => ({pressed: false}))};
           navigator.getGamepads = () => [window.pad];
           setInterval(() => { window.pad.timestamp += 1; }, 30);"""
    )
    page.tab.goto(view.address)
    page.until(lambda facts: facts.get("gate") and facts.get("loop"), "an answer")
    page.make_walk()
    page.tab.click("#take")
    page.until(lambda facts: facts["driver"] == "you", "control")
    page.tab.evaluate("window.pad.axes = [0, -1, 0, 0]")
    page.until(lambda facts: facts["asked"] == [0, 0, 0], "zero without the shoulder button")
    page.tab.evaluate("window.pad.buttons[4].pressed = true")
    page.until(lambda facts: facts["asked"][0] > 0.2, "walking")
    page.tab.evaluate("window.pad.buttons[4].pressed = false")
    until(lambda: stands(robot), PATIENCE_S)
    page.close()


def test_on_a_phone_all_fits_and_a_stick_walks(browser, view, robot):
    page = Page(browser, view.address, width=390, height=844, has_touch=True, color_scheme="dark")
    page.until(lambda facts: facts.get("gate") and facts.get("loop"), "an answer")
    assert page.tab.evaluate("document.documentElement.scrollWidth") <= 390
    stop = page.tab.locator("#estop").bounding_box()
    assert stop["width"] > 300
    assert stop["height"] >= 60
    assert stop["y"] + stop["height"] <= 844
    page.make_walk()
    if page.facts()["driver"] != "you":
        page.tab.click("#take")
    stick = page.tab.locator("#walk")
    stick.scroll_into_view_if_needed()
    box = stick.bounding_box()
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    page.tab.mouse.move(x, y)
    page.tab.mouse.down()
    end = time.monotonic() + PATIENCE_S
    while not page.facts()["loop"]["nav"][0] > 0.1:
        for step in (60, 62):  # a thumb is never quite still
            page.tab.mouse.move(x, y - step)
        assert time.monotonic() < end, page.facts()
        time.sleep(0.05)
    page.tab.mouse.up()
    until(lambda: stands(robot), PATIENCE_S)
    page.close()


def test_a_viewer_has_no_controls_but_the_e_stop(browser, view):
    from krabby_cli.view.access import Tokens

    page = Page(browser, view.address.replace(SECRET, Tokens(SECRET).see))
    page.until(lambda facts: facts.get("role") == "see", "the viewer's role")
    page.tab.locator("#drive").wait_for(state="hidden")
    page.tab.locator("#estop").wait_for()
    page.close()


def test_an_old_address_is_said_to_be_one(browser, view):
    page = Page(browser, view.address.replace(SECRET, "z" * 26))
    page.tab.locator("#banner", has_text="not valid").wait_for()
    page.tab.locator("#drive").wait_for(state="hidden")
    page.close()


def test_a_recording_plays_pauses_and_is_searched(browser, tmp_path):
    run = subprocess.run(
        [sys.executable, "-m", "krabby_cli", "up", "--speed", "0", "--duration", "6",
         "--policy", "gait", "--course", "flat", "--base-port", "0", "--record", "run.mcap"],
        cwd=tmp_path, capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    view = View(tmp_path, str(tmp_path / "run.mcap"))
    page = Page(browser, view.address)
    page.until(lambda facts: facts.get("play"), "a time line")
    page.tab.locator("#estop").wait_for(state="hidden")
    page.tab.locator("#where", has_text=re.compile("^flat")).wait_for()
    page.until(lambda facts: facts["loop"].get("mode") == "policy", "the loop's mode")
    page.until(lambda facts: facts["play"]["at_s"] > 0.5, "playing")
    page.tab.click("#play")
    page.until(lambda facts: not facts["play"]["playing"], "a pause")
    page.tab.evaluate(
        """() => { const seek = document.getElementById("seek"); seek.value = 4;
          seek.dispatchEvent(new Event("input")); seek.dispatchEvent(new Event("change")); }"""
    )
    page.until(lambda facts: facts["play"]["at_s"] == 4, "that time")
    end = time.monotonic() + PATIENCE_S
    while abs(page.state()["time"] - 4.0) > 0.06:
        assert time.monotonic() < end, page.state()["time"]
        time.sleep(0.1)
    page.close()
    view.close()
