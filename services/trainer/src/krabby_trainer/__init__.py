"""Isaac Lab and rsl-rl: teacher, student, evaluation, export."""
