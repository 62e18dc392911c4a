"""Works with checkpoints: loading, rotary geometry, injection of factors, exact losses."""
