"""Sweeps over recipes: points, the schedule of trials, the Ray Tune driver, statistics, tables and plots.

An experiment file names its points and calls `main`; it is the only file that a new experiment needs.
"""

from cornerstone.sweeps.main import main
from cornerstone.sweeps.points import Candidate, Claim, FollowUp, Place, Point, Sweep, Variant
from cornerstone.sweeps.transfers import TransferOptions, Transfers, with_transfers

__all__ = [
    "Candidate",
    "Claim",
    "FollowUp",
    "Place",
    "Point",
    "Sweep",
    "TransferOptions",
    "Transfers",
    "Variant",
    "main",
    "with_transfers",
]
