"""What robots have to do: commands, rewards, terminations, observations, terrain, curriculum."""
