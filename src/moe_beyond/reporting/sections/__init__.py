"""Sections of the page: tables in, blocks out."""
