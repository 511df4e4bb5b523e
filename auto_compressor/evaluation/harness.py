"""The hierarchical autoencoder as the model `hier_ae` of the LM evaluation harness (lm-eval 0.4.13 or later).

Importing this module registers it; `auto-compressor evaluate` does so. What lm-eval calls tokens are bytes here.
"""

import torch
from lm_eval.api.instance import Instance
from lm_eval.api.model import LM
from lm_eval.api.registry import register_model
from lm_eval.models.utils import normalize_gen_kwargs, postprocess_generated_text
from tqdm import tqdm
from transformers import AutoConfig

from ..files.loading import load
from ..hierarchical_autoencoder.configuration_hierarchical_autoencoder import HierarchicalAutoencoderConfig
from ..hierarchical_autoencoder.likelihood import scoring_rows, text_log_likelihood
from ..hierarchical_autoencoder.modeling_hierarchical_autoencoder import HierarchicalAutoencoder, to_bytes


@register_model("hier_ae")
class HierarchicalAELM(LM):
    """
    Scores and generates text with a [`HierarchicalAutoencoder`]; the scores are those of `evaluation.likelihood`.

    Args:
        checkpoint (`str`): A folder or a hub name.
        device (`str`, *optional*): cpu, cuda, ... (default: cuda where there is one).
        batch_size (`int`, defaults to 1): Texts that are scored at once.

    Raises:
        ValueError: if `checkpoint` is another kind of model, or `batch_size` is no positive integer.
        OSError: if there is no such checkpoint.
    """

    def __init__(self, checkpoint: str, device: str | None = None, batch_size: int | str = 1):
        super().__init__()
        if not str(batch_size).isdecimal() or int(batch_size) < 1:
            raise ValueError(f"`batch_size` must be 1 or more, got {batch_size!r}.")
        config = load(AutoConfig, checkpoint)
        if not isinstance(config, HierarchicalAutoencoderConfig):
            raise ValueError(
                f"`checkpoint` must be a hierarchical_autoencoder, {checkpoint} is a {config.model_type}."
            )
        self.batch_size = int(batch_size)
        self._device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        self.model = load(HierarchicalAutoencoder, checkpoint, dtype="auto").eval().to(self._device)

    def score(self, texts: list[bytes], contexts: list[bytes], ends: bool, disable_tqdm: bool) -> list[float]:
        """Log-likelihoods in nats of texts of any length."""
        found, size = [], self.batch_size
        for start in tqdm(range(0, len(texts), size), desc="Scoring", disable=disable_tqdm):
            batch = slice(start, start + size)
            found += text_log_likelihood(self.model, texts[batch], contexts[batch], ends, size).total.tolist()
        return found

    def loglikelihood(self, requests: list[Instance], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        """
        log P(continuation | context) of each request, without an end, and whether greedy generation after the context
        begins with the continuation. Of a context that does not fit in `block_size` with the continuation, the end is
        taken.
        """
        contexts, texts = ([to_bytes(request.args[part]) for request in requests] for part in (0, 1))
        scores = self.score(texts, contexts, False, disable_tqdm)
        greedy = (self.is_greedy(context, text) for context, text in zip(contexts, texts, strict=True))
        return list(zip(scores, greedy, strict=True))

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = False) -> list[float]:
        """log P(text) of each request, with its end, in blocks of `block_size` that are conditioned on nothing."""
        texts = [to_bytes(request.args[0]) for request in requests]
        return self.score(texts, [b""] * len(texts), True, disable_tqdm)

    def is_greedy(self, context: bytes, continuation: bytes) -> bool:
        """Whether the likeliest codes, and the likeliest bytes of each, begin with the continuation."""
        _, context_length = scoring_rows(self.model.config, continuation, context, ends=False)[0]
        context = context[len(context) - context_length :]
        # A code is one byte at least, and its bytes do not depend on later codes: the first one settles most.
        for num_codes in (1, len(continuation)):
            generated = self.model.generate_bytes(context, num_codes, do_sample=False)[len(context) :]
            if generated.startswith(continuation) or not continuation.startswith(generated):
                break
        return generated.startswith(continuation)

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """What follows each context, at most `max_gen_toks` bytes (256 by default) and up to one of the `until`."""
        return [self.generate_one(*request.args) for request in tqdm(requests, "Generating", disable=disable_tqdm)]

    def generate_one(self, context: str, gen_kwargs: dict) -> str:
        """
        Generates greedily, or as `do_sample`, `temperature`, ... say. Of the context, the end is taken that leaves
        room for `max_gen_toks` bytes in `block_size`, or half a block.
        """
        options, block_size = dict(normalize_gen_kwargs(gen_kwargs)), self.model.config.block_size
        until, limit = options.pop("until"), options.pop("max_gen_toks")
        if not options["do_sample"]:
            options.pop("temperature", None)
        prompt = to_bytes(context)[-max(block_size - limit, (block_size + 1) // 2) :]
        generated = self.model.generate_bytes(prompt, limit, **options)[len(prompt) :]
        text = generated[:limit].decode("utf-8", errors="replace")
        return postprocess_generated_text(text, until, think_end_token=None)
