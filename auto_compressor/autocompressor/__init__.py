"""AutoCompressors: language models that compress their own context into summary vectors."""

# module -> the names in it that are public
PUBLIC_NAMES = {
    "outputs": ["AutoCompressorOutput", "SegmentSummary"],
    "configuration_autocompressor": [
        "AutoCompressorConfigMixin",
        "GemmaAutoCompressorConfig",
        "LlamaAutoCompressorConfig",
        "MistralAutoCompressorConfig",
        "OPTAutoCompressorConfig",
        "Qwen2AutoCompressorConfig",
        "Qwen3AutoCompressorConfig",
    ],
    "modeling_autocompressor": [
        "AutoCompressorMixin",
        "AutoCompressorModel",
        "GemmaAutoCompressorModel",
        "LlamaAutoCompressorModel",
        "MistralAutoCompressorModel",
        "OPTAutoCompressorModel",
        "Qwen2AutoCompressorModel",
        "Qwen3AutoCompressorModel",
    ],
    "softprompt_cache": ["SoftpromptCache"],
    "bases": ["load_autocompressor"],
}
