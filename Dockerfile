# Every image of this project. Context: the repository root. Build with `docker compose build`.
# SERVICE is the folder of the process: services/sim-hal, ..., cli.
# BASE says what it stands on; the builder makes only the one that is asked for.
#   plain     a Python image: simulation, emulated robot, tests, training
#   jetpack7  CUDA and TensorRT for JetPack 7.2: Ubuntu 24.04, whose own Python 3.12 the TensorRT bindings are made for
#   jetpack6  JetPack 6.2: Ubuntu 22.04, whose own Python is 3.10, as are its TensorRT bindings. This project needs 3.11, which
#             Ubuntu packages beside it: CUDA works, TensorRT cannot be imported, policies run on ONNX Runtime.
ARG BASE=plain
ARG PYTHON_IMAGE=python:3.11-slim-bookworm
ARG JETPACK_IMAGE=nvidia/cuda:13.2.1-tensorrt-runtime-ubuntu24.04

FROM ${PYTHON_IMAGE} AS plain

# What the vendor packages for Python, and nothing else of the system's, is importable: /opt/vendor.
FROM ${JETPACK_IMAGE} AS jetpack7
RUN apt-get update -qq \
 && tensorrt=$(dpkg-query --show --showformat '${Version}' libnvinfer10) \
 && DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends \
      python3 python3-venv libusb-1.0-0 "python3-libnvinfer=$tensorrt" >/dev/null \
 && rm -rf /var/lib/apt/lists/* \
 && ln -s python3 /usr/bin/python \
 && mkdir /opt/vendor && ln -s /usr/lib/python3*/dist-packages/tensorrt /opt/vendor/tensorrt
ENV PYTHONPATH=/opt/vendor NVIDIA_VISIBLE_DEVICES=all NVIDIA_DRIVER_CAPABILITIES=compute,utility

FROM ${JETPACK_IMAGE} AS jetpack6
RUN apt-get update -qq \
 && DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends \
      python3.11 python3.11-venv >/dev/null \
 && rm -rf /var/lib/apt/lists/* \
 && ln -s python3.11 /usr/bin/python \
 && mkdir /opt/vendor
ENV PYTHONPATH=/opt/vendor NVIDIA_VISIBLE_DEVICES=all NVIDIA_DRIVER_CAPABILITIES=compute,utility

FROM ${BASE} AS builder
# pip and uv live in /opt/build; /opt/venv, which the final stage takes, has neither.
RUN python -m venv /opt/build
WORKDIR /src
COPY pyproject.toml uv.lock ./
COPY tools/install.py tools/
COPY proto proto
COPY libs libs
# The command line names these as an option; uv wants to see every member of the workspace that is named.
COPY services/camera/pyproject.toml services/camera/
COPY services/gameloop/pyproject.toml services/gameloop/
COPY services/sim-hal/pyproject.toml services/sim-hal/
# Part of the trainer's environment, too.
COPY services/sim-hal/src services/sim-hal/src
ARG SERVICE
COPY ${SERVICE} ${SERVICE}
# Extras of the distribution `krabby` that an image does not have by itself, such as "tracing".
ARG EXTRAS=
# A folder with its own lock is installed from that. The module that is started is the one with a `__main__`.
RUN --mount=type=cache,target=/root/.cache \
    export UV_COMPILE_BYTECODE=1 UV_LINK_MODE=copy \
 && if [ -e "$SERVICE/uv.lock" ]; then what="--project $SERVICE"; else what="--package krabby-${SERVICE##*/}"; fi \
 && if [ -n "$EXTRAS" ]; then what="$what --package krabby$(printf ' --extra %s' $EXTRAS)"; fi \
 && if [ -e /opt/vendor/tensorrt ]; then what="$what --extra jetpack"; fi \
 && /opt/build/bin/python tools/install.py /opt/venv --no-editable --no-dev $what \
 && module=$(basename "$(dirname "$SERVICE"/src/*/__main__.py)") \
 && printf '#!/bin/sh\nexec python -m %s "$@"\n' "$module" >/opt/venv/bin/start && chmod +x /opt/venv/bin/start

FROM ${BASE}
ARG SERVICE
# The ZED SDK is installed from what Stereolabs gave you: README.md in that folder. Without it the image has no `pyzed.sl`,
# and the source `zed` reports it. Depth networks and calibration are volumes, written by the service's user.
RUN --mount=type=bind,source=services/camera/sdk,target=/tmp/sdk \
    if [ "$SERVICE" = services/camera ]; then bash /tmp/sdk/install; fi
# Folders written by the service's user: recordings, calibration, TensorRT's engines, training runs and compiled kernels; and two private
# ones, for Unix sockets and for keys. A volume mounted on one of these folders starts out with its owner and mode.
RUN groupadd --system --gid 10001 krabby \
 && useradd --system --uid 10001 --gid krabby --no-create-home --shell /usr/sbin/nologin krabby \
 && install -d -o krabby -g krabby /recordings /var/lib/krabby /var/cache/krabby /runs /caches \
 && install -d -o krabby -g krabby -m 0700 /run/bus/krabby /var/lib/krabby-keys
COPY --from=builder /opt/venv /opt/venv
COPY assets /opt/krabby/assets
ENV PATH=/opt/venv/bin:$PATH PYTHONUNBUFFERED=1 KRABBY_ASSETS=/opt/krabby/assets XDG_RUNTIME_DIR=/run/bus
USER krabby
ENTRYPOINT ["/opt/venv/bin/start"]
