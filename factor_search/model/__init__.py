"""Everything that touches a checkpoint: loading, rotary geometry, injection of factors, exact losses."""
