"""`camera`, the process."""

import sys

from krabby.robot.errors import RobotError
from krabby.runtime import app
from krabby_proto import ProtoError

from krabby_camera.config import CameraCfg
from krabby_camera.errors import CameraError
from krabby_camera.service import CameraService


def main() -> int:
    return app.main(
        "camera", CameraCfg, CameraService, errors=(CameraError, ProtoError, RobotError)
    )


if __name__ == "__main__":
    sys.exit(main())
