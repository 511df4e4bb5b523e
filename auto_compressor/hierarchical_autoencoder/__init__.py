"""The hierarchical byte autoencoder: bytes to discrete codes, and back."""

# module -> the names in it that are public
PUBLIC_NAMES = {
    "configuration_hierarchical_autoencoder": [
        "CodeSequenceConfig",
        "HierarchicalAutoencoderConfig",
        "HierarchicalLevelConfig",
    ],
    "outputs": ["HierarchicalAutoencoderOutput", "HierarchicalDecoderOutput", "HierarchicalEncoderOutput"],
    "modeling_hierarchical_autoencoder": [
        "ByteSegmentCompressor",
        "CodeExpander",
        "CodeSequenceTransformer",
        "HierarchicalAutoencoder",
        "LearnedQueryAttention",
        "SlidingWindowAttention",
        "VectorQuantizer",
    ],
}
