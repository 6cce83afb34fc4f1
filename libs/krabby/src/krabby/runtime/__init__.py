"""What every process does alike: configuration, logs, metrics, health, pacing, signals.

`app` is the shape of a process, `config` its keys, `logging` and `metrics` what it tells, `rate`
its pace, `loop` how well it kept that, `realtime` what the kernel does for it, `health` its
proof of life, `testing` the fakes.
"""
