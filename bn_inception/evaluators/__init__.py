"""Evaluators: from a state to metrics with an exact count."""
