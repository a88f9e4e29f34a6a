"""How a trained network is asked for samples: mask schedules, guidance, and decoding of masked tokens."""
