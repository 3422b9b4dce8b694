"""Metrics as pure functions of tensors (mia, svc, tow), evaluation of a model, tables and plots over finished runs."""
