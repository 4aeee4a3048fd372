"""Equipoise compares remedies for class imbalance in medical image classification under the same fair conditions."""

__version__ = "0.1.0"
