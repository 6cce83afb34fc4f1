"""What is true of the robot wherever it runs.

Import the module you need (`from krabby.robot.description import RobotDescription`): nothing is
re-exported here, so that a process on the robot never loads the simulator or the course generator.
"""
