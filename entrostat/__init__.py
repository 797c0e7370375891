"""Entrostat: reinforcement learning from verified rewards that holds the policy's entropy where learning happens."""

__version__ = "0.1.0"
