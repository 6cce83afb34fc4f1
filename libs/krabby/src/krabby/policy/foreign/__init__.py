"""Policies of other training code as bundles: `formats` reads them, `convert` writes the bundle.

Read are ONNX networks as Isaac Lab, mjlab and unitree_rl_lab export them. What a bundle cannot
express is refused by name. Needs the extra `import`.
"""
