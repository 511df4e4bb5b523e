"""What the card of an AutoCompressor says."""

from transformers import PreTrainedConfig

from ..files.model_card import Card


WHAT = """An [AutoCompressor](https://arxiv.org/abs/2305.14788): a language model that compresses a long text, segment
by segment, into summary vectors, and reads these in place of the text."""
CITATION = """Alexis Chevalier, Alexander Wettig, Anirudh Ajith, Danqi Chen. *Adapting Language Models to Compress
Contexts.* EMNLP 2023. https://arxiv.org/abs/2305.14788"""
LOAD = """from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained(name).eval()
tokenizer = AutoTokenizer.from_pretrained(name)
"""
GENERATE = 'prompt = tokenizer("Then he said", add_special_tokens=False, return_tensors="pt").input_ids\n'
GENERATE += "print(tokenizer.decode(model.generate(prompt, {}max_new_tokens=20)[0]))"
COMPRESS = """text = "In the beginning God created the heavens and the earth."
context = tokenizer(text, add_special_tokens=False, return_tensors="pt").input_ids
softprompt = model.compress(context)  # (1, vectors, width)
print(context.shape[1], "tokens are", softprompt.shape[1], "vectors")
"""


def ratio(config: PreTrainedConfig) -> str:
    if config.max_vectors == 0:
        return "It makes no summary vectors: it is a plain language model, to compare others with."
    number = f"at most {config.max_vectors}" if config.variable_length else str(config.max_vectors)
    if config.segment_length is None:
        return f"A segment becomes {number} summary vectors."
    times = config.segment_length / config.max_vectors
    return f"A segment of {config.segment_length} tokens becomes {number} summary vectors, {times:.3g} tokens each."


def example(config: PreTrainedConfig) -> str:
    if config.max_vectors == 0:
        return LOAD + GENERATE.format("")
    return LOAD + COMPRESS + GENERATE.format("softprompt=softprompt, ")


CARD = Card(what=WHAT, ratio=ratio, example=example, pipeline="text-generation", citation=CITATION)

__all__ = ["CARD"]
