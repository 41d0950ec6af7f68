"""Figures and colors."""
