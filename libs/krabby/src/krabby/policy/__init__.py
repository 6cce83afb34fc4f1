"""Policies: bundles, what they observe, and what runs their networks."""
