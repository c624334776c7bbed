"""Fitted methods as files: bundles of our own, and the formats of other tools."""
