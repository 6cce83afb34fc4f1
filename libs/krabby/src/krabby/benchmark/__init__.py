"""The benchmark: scenarios, trials through the real loop, outcomes, figures and reports."""
