"""Steering along directions and what it changes: `morfi steer`."""

from morfi.interventions.config import SteerConfig, configure_steer
from morfi.interventions.run import run_steer

__all__ = ["SteerConfig", "configure_steer", "run_steer"]
