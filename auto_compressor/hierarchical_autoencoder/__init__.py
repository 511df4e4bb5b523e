"""The hierarchical byte autoencoder: bytes to discrete codes, and back."""
