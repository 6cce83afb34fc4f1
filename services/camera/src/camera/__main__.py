"""`camera`, the process."""

import sys

from krabby_proto import ProtoError
from krabby_robot.errors import RobotError
from krabby_service import app

from camera.config import CameraCfg
from camera.errors import CameraError
from camera.service import CameraService


def main() -> int:
    return app.main(
        "camera", CameraCfg, CameraService, errors=(CameraError, ProtoError, RobotError)
    )


if __name__ == "__main__":
    sys.exit(main())
