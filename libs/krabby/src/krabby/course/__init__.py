"""Courses: boxes, lanes and obstacles, the way through them, and when a robot has fallen."""
