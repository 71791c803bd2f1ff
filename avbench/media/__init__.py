"""From ids to valid clips on disk."""
