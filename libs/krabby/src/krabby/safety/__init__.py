"""The safety gate, through which every command goes, and the moves to stand up and sit down."""
