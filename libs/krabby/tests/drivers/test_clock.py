from krabby.drivers.clock import ClockMap

MS = 1_000_000


def test_the_shortest_journey_tells_how_far_the_clocks_are_apart():
    to_host = ClockMap(drift_ppm=0)
    # device clock 0 is 1000 ms here; journeys of 5, 2, 16 and 3 ms
    arrivals = [(0, 1005), (10, 1012), (20, 1036), (30, 1033)]
    stamps = [to_host(device * MS, host * MS) / MS for device, host in arrivals]
    # first 5 ms off, then 2 ms off, and stays so: 14 ms of jitter are gone
    assert stamps == [1005, 1012, 1022, 1032]


def test_no_stamp_lies_in_the_future():
    to_host = ClockMap()
    assert all(to_host(i * MS, 50 * MS + i * 999_900) <= 50 * MS + i * 999_900 for i in range(1000))


def test_a_slow_crystal_is_followed():
    to_host = ClockMap(drift_ppm=200)
    error_ms = 0.0
    for i in range(100_000):  # 1000 s at 100 Hz; the device loses 100 us each second
        host_ns = i * 10 * MS
        device_ns = round(host_ns * (1 - 100e-6))
        error_ms = (host_ns - to_host(device_ns, host_ns)) / MS
    assert abs(error_ms) < 0.01  # 100 ms of drift


def test_a_restarted_device_is_a_new_device():
    to_host = ClockMap()
    to_host(60_000 * MS, 100_000 * MS)
    assert to_host(5 * MS, 101_000 * MS) == 101_000 * MS
