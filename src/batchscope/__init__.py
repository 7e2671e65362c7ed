"""batchscope."""
