"""From clips to frozen features."""
