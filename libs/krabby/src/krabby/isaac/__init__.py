"""The robot in Isaac Lab: the scene that the trainer and sim-hal's back end `isaaclab` share.

Needs the environment of `make train-setup`: Python 3.12, torch, Isaac Lab.
"""
