"""What the processes share, by subject; README.md lists the packages and who may import whom."""
