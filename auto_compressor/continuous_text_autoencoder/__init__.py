"""The continuous text autoencoder: tokens to latent vectors, and back."""
