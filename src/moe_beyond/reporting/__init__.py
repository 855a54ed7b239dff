"""Figures and the page, from the tables of earlier stages."""
