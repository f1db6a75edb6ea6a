"""The outer loop: how a HOPE model's slow weights are trained, through the writes that it makes while it reads."""
