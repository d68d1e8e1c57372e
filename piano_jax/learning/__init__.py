"""How a model learns: objectives, the optimizer, the train step, checkpoints, metrics and the one loop."""
