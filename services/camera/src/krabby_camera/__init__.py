"""Depth source to policy depth image or encoder features."""
