"""The laws of ``harness.laws``, handed each YAML of ``conf``."""
