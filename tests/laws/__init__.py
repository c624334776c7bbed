"""What every plug-in must keep, as plain functions: the tests here hand them each YAML of ``conf``."""

import pytest

pytest.register_assert_rewrite("laws.method_laws", "laws.evaluator_laws", "laws.states")
