"""Statistics, comparison and the report: everything here reads run directories and never a model."""
