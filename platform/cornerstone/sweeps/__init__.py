"""Grids of recipes: points, the Ray Tune driver, statistics, tables and plots beside the papers.

An experiment file names its points and calls `main`; nothing else has to be touched for the next one.
"""

from cornerstone.sweeps.main import main
from cornerstone.sweeps.points import Point, Sweep

__all__ = ["Point", "Sweep", "main"]
