"""What is asked: one task per file, each a frozen dataclass built from ``conf/task/<name>.yaml``."""
