"""`gameloop`, the process."""

import sys

from krabby.robot.errors import RobotError
from krabby.runtime import app
from krabby_proto import ProtoError

from krabby_gameloop.config import GameloopCfg
from krabby_gameloop.service import Gameloop


def main() -> int:
    return app.main("gameloop", GameloopCfg, Gameloop, errors=(ProtoError, RobotError))


if __name__ == "__main__":
    sys.exit(main())
