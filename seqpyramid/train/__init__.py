"""Training and evaluation: one loop, which names no model and no task."""
