"""Budgets chosen per layer on the user's own texts, with the error promised and kept: `bert_cluster.calibrate`."""

from bert_cluster.calibration.api import calibrate, run
from bert_cluster.calibration.result import Calibration, HeldOut, LayerChoice, Point
from bert_cluster.calibration.timing import Timings

__all__ = ["Calibration", "HeldOut", "LayerChoice", "Point", "Timings", "calibrate", "run"]
