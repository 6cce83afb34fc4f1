"""`gameloop`, the process."""

import sys

from krabby_proto import ProtoError
from krabby_robot.errors import RobotError
from krabby_service import app

from gameloop.config import GameloopCfg
from gameloop.service import Gameloop


def main() -> int:
    return app.main("gameloop", GameloopCfg, Gameloop, errors=(ProtoError, RobotError))


if __name__ == "__main__":
    sys.exit(main())
