"""Locomotion control without sockets: modes, policies, walking commands and one tick's decision."""
