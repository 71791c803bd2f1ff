"""Which clips: benchmark facts and per-clip tables."""
