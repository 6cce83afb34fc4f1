"""Policy networks on the robot's GPU: TensorRT engines, built there, cached, verified."""
