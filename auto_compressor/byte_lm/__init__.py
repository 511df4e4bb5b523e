"""Byte language models: with adaptive borders, and their GRU baseline; a lossless codec."""

# module -> the names in it that are public
PUBLIC_NAMES = {
    "outputs": ["ByteLMOutput"],
    "configuration_adaptive_byte": ["AdaptiveByteConfig"],
    "configuration_gru_byte": ["GRUByteConfig"],
    "modeling_adaptive_byte": ["AdaptiveByteForCausalLM"],
    "modeling_gru_byte": ["GRUByteForCausalLM"],
    "recurrent_cache": ["RecurrentCache"],
}
