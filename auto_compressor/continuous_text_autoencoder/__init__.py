"""The continuous text autoencoder: tokens to latent vectors, and back."""

# module -> the names in it that are public
PUBLIC_NAMES = {
    "configuration_continuous_text_autoencoder": ["ContinuousTextAutoencoderConfig"],
    "outputs": ["ContinuousDecoderOutput", "ContinuousEncoderOutput", "ContinuousTextAutoencoderOutput"],
    "modeling_continuous_text_autoencoder": ["ContinuousTextAutoencoder"],
}
