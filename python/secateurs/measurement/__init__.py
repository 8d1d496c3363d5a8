"""Measurement: speed, memory, quality and the machine they were measured on."""
