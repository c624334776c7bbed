"""Judges: rules, a local model, or any OpenAI-compatible endpoint, behind one interface."""
