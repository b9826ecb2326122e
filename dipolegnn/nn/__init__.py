"""Radius graphs, representations (PaiNN, SchNet), heads, and models of one of each."""

from dipolegnn.nn.calibration import Calibration
from dipolegnn.nn.features import AtomFeatures
from dipolegnn.nn.graph import RadiusGraph, radius_graph
from dipolegnn.nn.heads import AtomwiseHead, DipoleHead, DipoleOutput
from dipolegnn.nn.model import DipoleModel, build_model
from dipolegnn.nn.painn import PaiNN
from dipolegnn.nn.radial import BesselRBF, CosineCutoff, GaussianRBF
from dipolegnn.nn.schnet import SchNet

__all__ = [
    "AtomFeatures",
    "AtomwiseHead",
    "BesselRBF",
    "Calibration",
    "CosineCutoff",
    "DipoleHead",
    "DipoleModel",
    "DipoleOutput",
    "GaussianRBF",
    "PaiNN",
    "RadiusGraph",
    "SchNet",
    "build_model",
    "radius_graph",
]
