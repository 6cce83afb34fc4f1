"""The 100 Hz policy loop: newest observation in, joint position targets out."""
