"""Activation compression: a key/value cache that shrinks."""

# module -> the names in it that are public
PUBLIC_NAMES = {
    "bases": ["load_activation_compressor"],
    "cache_policies": ["POLICIES"],
    "configuration_activation_compressor": ["ActivationCompressorConfig"],
    "merging_cache": ["MergingCache", "merging_attention"],
    "modeling_activation_compressor": ["ActivationCompressor", "ActivationCompressorOutput"],
}
