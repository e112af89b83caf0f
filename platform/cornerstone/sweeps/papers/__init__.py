"""Printed numbers, one module per paper, and the names of the evaluation sets that papers share."""
