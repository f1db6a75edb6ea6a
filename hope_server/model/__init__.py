"""What a HOPE model computes: configuration, slow weights, fast state, attention window, memory levels."""
