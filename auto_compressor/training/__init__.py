"""What training is made of in every family: arguments, data, checkpoints, the optimizer and the report."""
