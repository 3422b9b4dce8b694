"""Masks over weights: read, checked, ranked; pruning by magnitude and by SynFlow's scores."""
