"""Integrations: other tools that run a converted model."""
