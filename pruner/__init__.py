"""Masks over weights: read, checked, ranked."""
