"""Settings of other libraries' learners, as Isaac Lab's scripts read them."""
