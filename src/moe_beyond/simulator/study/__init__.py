"""Grids of replays for the tables of the simulate stage."""
