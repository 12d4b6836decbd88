"""Train, evaluate, profile and compare sequence classifiers that see many time scales."""

__version__ = "0.1.0"
