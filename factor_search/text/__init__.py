"""Documents to tokens to samples, and needles hidden in them."""
