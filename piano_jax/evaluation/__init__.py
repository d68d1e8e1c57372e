"""How good it is: metrics and pictures."""
