"""Attacks on models before and after unlearning: planted triggers."""
