"""Radius graphs, representations (PaiNN, SchNet), heads, and models of one of each."""

from dipolegnn.nn.calibration import Calibration
from dipolegnn.nn.card import ModelCard
from dipolegnn.nn.energy import ConformerEnergyHead, EnergyOutput
from dipolegnn.nn.graph import RadiusGraph, radius_graph
from dipolegnn.nn.heads import AtomwiseHead, BaseDipoleHead, DipoleHead, DipoleOutput
from dipolegnn.nn.model import DipoleModel, PropertyModel, build_model
from dipolegnn.nn.painn import PaiNN
from dipolegnn.nn.parts import (
    AtomFeatures,
    Geometry,
    Head,
    HeadMetric,
    OutputField,
    Representation,
    Target,
    label,
)
from dipolegnn.nn.radial import BesselRBF, CosineCutoff, GaussianRBF
from dipolegnn.nn.schnet import SchNet

__all__ = [
    "AtomFeatures",
    "AtomwiseHead",
    "BaseDipoleHead",
    "BesselRBF",
    "Calibration",
    "ConformerEnergyHead",
    "CosineCutoff",
    "DipoleHead",
    "DipoleModel",
    "DipoleOutput",
    "EnergyOutput",
    "GaussianRBF",
    "Geometry",
    "Head",
    "HeadMetric",
    "ModelCard",
    "OutputField",
    "PaiNN",
    "PropertyModel",
    "RadiusGraph",
    "Representation",
    "SchNet",
    "Target",
    "build_model",
    "label",
    "radius_graph",
]
