"""Depth cameras of thousands of robots."""
