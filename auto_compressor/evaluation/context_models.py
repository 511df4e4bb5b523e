"""Models of the LM evaluation harness (lm-eval 0.4.13 or later) that read most of a context compressed.

- `autocompressor`: summary vectors in place of the beginning of the context;
- `merging_cache`: a compressed cache of it, of any language model and policy;
- `byte`: byte language models, which read everything as it is.

Importing this module registers them; `auto-compressor evaluate` does so.
"""

from abc import abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from lm_eval.api.instance import Instance
from lm_eval.api.model import TemplateLM
from lm_eval.api.registry import register_model
from lm_eval.models.utils import normalize_gen_kwargs, postprocess_generated_text
from torch.nn import functional as F
from tqdm import tqdm
from transformers import PreTrainedModel

from ..activation_compressor.bases import load_activation_compressor
from ..activation_compressor.cache_policies import POLICIES
from ..activation_compressor.modeling_activation_compressor import ActivationCompressor
from ..autocompressor.bases import load_autocompressor
from ..cache_names import as_cache
from ..files.bases import load_base_model, resolve_tokenizer
from ..files.loading import load_tokenizer


DEMONSTRATIONS_END = "\n\n"  # what lm-eval puts behind each solved example
FORMS = ("compressed", "truncated", "none")


def whole_number(name: str, value: int | str | None, least: int = 1) -> int | None:
    """An argument of the command line of lm-eval as a number; a `ValueError` unless it is one, `least` or more."""
    if value is None:
        return None
    if not str(value).isdecimal() or int(value) < least:
        raise ValueError(f"`{name}` must be a whole number of {least} or more, got {value!r}.")
    return int(value)


def one_of(name: str, value: str, choices: tuple[str, ...]) -> str:
    if value not in choices:
        raise ValueError(f"`{name}` must be one of {', '.join(choices)}, got {value!r}.")
    return value


class ContextLM(TemplateLM):
    """
    A language model that reads the front of a context in another form than the rest, and one request after the other.

    Args:
        model (`PreTrainedModel`): A causal language model.
        name (`str`): Where its tokenizer lies.
        device (`str`, *optional*): cpu, cuda, ... (default: cuda where there is one).
        compress (`str`, defaults to `"context"`): What the front is: `"context"`, all but the last `keep` tokens, or
            `"demonstrations"`, the solved examples in front of the question.
        keep (`int`, defaults to 32): Tokens at the end of a context that are read as they are.
        form (`str`, defaults to `"compressed"`): How the front is read. For comparison: `"truncated"`, its last
            tokens, as many as its compressed form takes positions; or `"none"`, not at all.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        name: str,
        device: str | None = None,
        compress: str = "context",
        keep: int | str = 32,
        form: str = "compressed",
    ):
        super().__init__()
        self.compress = one_of("compress", compress, ("context", "demonstrations"))
        self.form, self.keep = one_of("form", form, FORMS), whole_number("keep", keep) or 1
        self._device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        self.model, self.tokenizer = model.eval().to(self._device), load_tokenizer(resolve_tokenizer(name))
        self.front: list[int] = []  # what was read last
        self.read: dict[str, Any] = {}

    @abstractmethod
    def read_front(self, ids: torch.Tensor) -> dict[str, Any]:
        """Arguments of the model that stand for the front of a context, `(1, length)` with at least one token."""

    @abstractmethod
    def num_positions(self, front: list[int]) -> int:
        """How many positions the compressed form of a front takes."""

    @contextmanager
    def reading(self) -> Iterator[None]:
        """What the model needs while it reads a compressed front."""
        yield

    @property
    def eot_token_id(self) -> int:
        return self.tokenizer.eos_token_id

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **kwargs) -> list[int]:
        return self.tokenizer(string, add_special_tokens=bool(add_special_tokens), verbose=False).input_ids

    def split(self, context: str, ids: list[int]) -> tuple[list[int], list[int]]:
        """The front of a context and what is read as it is, at least a token."""
        cut = len(ids) - self.keep
        if self.compress == "demonstrations":
            demonstrations, end, _ = context.rpartition(DEMONSTRATIONS_END)
            cut = len(self.tok_encode(demonstrations + end)) if end else 0
        cut = min(max(cut, 0), len(ids) - 1)
        return ids[:cut], ids[cut:]

    def given(self, front: list[int], text: list[int]) -> tuple[dict[str, Any], list[int]]:
        """Arguments of the model for the front, and the text behind it. Texts of one task often share their front."""
        if not front or self.form == "none":
            return {}, text
        if self.form == "truncated":
            return {}, front[len(front) - self.num_positions(front) :] + text
        if front != self.front:
            self.front, self.read = front, self.read_front(self.tensor(front))
        return self.read, text

    def tensor(self, ids: list[int]) -> torch.Tensor:
        return torch.tensor([ids], device=self._device)

    @torch.no_grad()
    def score(self, front: list[int], text: list[int], num_scored: int) -> tuple[float, bool]:
        """log P of the last tokens of a text in nats, and whether each of them is the likeliest one."""
        with self.reading():
            given, text = self.given(front, text)
            ids = self.tensor(text)
            logits = self.model(ids, **self.forked(given), logits_to_keep=num_scored + 1).logits[0, :-1].float()
        targets = ids[0, -num_scored:]
        return float(-F.cross_entropy(logits, targets, reduction="sum")), bool((logits.argmax(-1) == targets).all())

    def forked(self, given: dict[str, Any]) -> dict[str, Any]:
        """The arguments for one call, which may write to a cache."""
        return given | {"use_cache": False}

    def _loglikelihood_tokens(
        self, requests: list[tuple[tuple[str, str], list[int], list[int]]], disable_tqdm: bool = False, **kwargs
    ) -> list[tuple[float, bool]]:
        """log P(continuation | context) of each request, and whether the continuation is what greedy search gives."""
        found = []
        for (context, _), ids, continuation in tqdm(requests, "Scoring", disable=disable_tqdm):
            front, kept = self.split(context, ids)
            found.append(self.score(front, kept + continuation, len(continuation)))
        return found

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = False) -> list[float]:
        """log P(text) of each request, in blocks of `keep` tokens, each after everything in front of it."""
        return [self.score_text(*request.args) for request in tqdm(requests, "Scoring", disable=disable_tqdm)]

    def score_text(self, text: str) -> float:
        ids = [self.prefix_token_id, *self.tok_encode(text)]
        total = 0.0
        for start in range(1, len(ids), self.keep):
            block = ids[start : start + self.keep]
            total += self.score(ids[: start - 1], [ids[start - 1], *block], len(block))[0]
        return total

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """What follows each context, at most `max_gen_toks` tokens (256 by default) and up to one of the `until`."""
        return [self.generate_one(*request.args) for request in tqdm(requests, "Generating", disable=disable_tqdm)]

    @torch.no_grad()
    def generate_one(self, context: str, gen_kwargs: dict) -> str:
        options = dict(normalize_gen_kwargs(gen_kwargs))
        until, limit = options.pop("until"), options.pop("max_gen_toks")
        if not options["do_sample"]:
            options.pop("temperature", None)
        ids = self.tok_encode(context) or [self.prefix_token_id]
        with self.reading():
            given, text = self.given(*self.split(context, ids))
            generated = self.generate(self.tensor(text), given, max_new_tokens=limit, **options)
        return postprocess_generated_text(self.tokenizer.decode(generated), until, think_end_token=None)

    def generate(self, ids: torch.Tensor, given: dict[str, Any], **options) -> torch.Tensor:
        """The new tokens."""
        mask = torch.ones_like(ids)
        pad = self.model.config.pad_token_id
        options |= {"attention_mask": mask, "pad_token_id": self.eot_token_id if pad is None else pad}
        return self.model.generate(ids, **given, **options)[0, ids.shape[1] :]


@register_model("autocompressor")
class AutoCompressorLM(ContextLM):
    """
    An AutoCompressor, which reads the front of a context as summary vectors.

    Args:
        pretrained (`str`): A folder, a hub name or adapters.
        segment_length (`int`, *optional*): Tokens of a segment (default: as the model was trained).
        ratio (`int`, *optional*): Tokens for each summary vector (default: as many vectors as the model makes).
        dtype (`str`, defaults to `"auto"`): Of the weights.
        kwargs: See [`ContextLM`].
    """

    def __init__(
        self,
        pretrained: str,
        segment_length: int | str | None = None,
        ratio: int | str | None = None,
        dtype: str = "auto",
        batch_size: int | str = 1,
        **kwargs: Any,
    ):
        super().__init__(load_autocompressor(pretrained, dtype=dtype), pretrained, **kwargs)
        length = whole_number("segment_length", segment_length)
        self.segment_length = length or self.model.default_segment_length
        ratio = whole_number("ratio", ratio)
        self.max_vectors = None if ratio is None else max(1, self.segment_length // ratio)

    def read_front(self, ids: torch.Tensor) -> dict[str, Any]:
        options = {"segment_lengths": self.segment_length, "max_summary_length": self.max_vectors}
        return {"softprompt": self.model.compress(ids, **options)}

    def num_positions(self, front: list[int]) -> int:
        return self.read_front(self.tensor(front))["softprompt"].shape[1]


@register_model("merging_cache")
class MergingCacheLM(ContextLM):
    """
    A language model with a compressed key/value cache of the front of a context.

    Args:
        pretrained (`str`): The language model.
        compressor (`str`, *optional*): A trained activation compressor (default: the rule alone).
        policy (`str`, *optional*): One of `POLICIES`; by default slots merge.
        ratio (`float`, *optional*): Bytes of the full cache by those of the compressed one.
        dtype (`str`, defaults to `"auto"`): Of the weights.
        kwargs: See [`ContextLM`].
    """

    def __init__(
        self,
        pretrained: str,
        compressor: str | None = None,
        policy: str | None = None,
        ratio: float | str | None = None,
        dtype: str = "auto",
        batch_size: int | str = 1,
        **kwargs: Any,
    ):
        super().__init__(load_base_model(pretrained, dtype=dtype), pretrained, **kwargs)
        self.policy = None if policy is None else POLICIES[one_of("policy", policy, tuple(POLICIES))]
        if compressor is None:
            self.compressor = ActivationCompressor.from_base(self.model)
        else:
            self.compressor = load_activation_compressor(compressor)
        self.compressor.to(self._device)
        self.ratio = self.compressor.config.compression_ratio if ratio is None else float(ratio)

    @contextmanager
    def reading(self) -> Iterator[None]:
        with self.compressor.attach(self.model):
            yield

    def read_front(self, ids: torch.Tensor) -> dict[str, Any]:
        options = {"compression_ratio": self.ratio, "policy": self.policy}
        return {"cache": self.compressor.compress(self.model, ids, **options)}

    def num_positions(self, front: list[int]) -> int:
        return max(1, round(len(front) / self.ratio))

    def forked(self, given: dict[str, Any]) -> dict[str, Any]:
        return as_cache(given["cache"].fork()) if given else {"use_cache": False}

    def generate(self, ids: torch.Tensor, given: dict[str, Any], **options) -> torch.Tensor:
        if not given:
            return super().generate(ids, given, **options)
        cache = given["cache"].fork()
        mask = ids.new_ones(1, cache.get_seq_length() + ids.shape[1])
        options |= {"attention_mask": mask, "pad_token_id": self.eot_token_id}
        return self.model.generate(ids, **as_cache(cache), **options)[0, ids.shape[1] :]


@register_model("byte")
class ByteLM(ContextLM):
    """
    A byte language model, which reads a context as it is.

    Args:
        pretrained (`str`): A folder or a hub name.
        dtype (`str`, defaults to `"auto"`): Of the weights.
        device (`str`, *optional*): cpu, cuda, ... (default: cuda where there is one).
    """

    def __init__(self, pretrained: str, dtype: str = "auto", device: str | None = None, batch_size: int | str = 1):
        super().__init__(load_base_model(pretrained, dtype=dtype), pretrained, device=device, keep=1024)

    def split(self, context: str, ids: list[int]) -> tuple[list[int], list[int]]:
        return [], ids

    def read_front(self, ids: torch.Tensor) -> dict[str, Any]:
        return {}

    def num_positions(self, front: list[int]) -> int:
        return len(front)

    def given(self, front: list[int], text: list[int]) -> tuple[dict[str, Any], list[int]]:
        return {}, front + text


__all__ = ["AutoCompressorLM", "ByteLM", "ContextLM", "MergingCacheLM"]
