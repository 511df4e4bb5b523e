"""A key/value cache that really shrinks: slots that stand for many tokens, and the attention that weighs them.

A layer holds slots, and after them the tokens that were read since the last compression. A slot adds its log-mass to
its attention scores, so that it draws the attention of all the tokens that it stands for; that of one token is 0.
Positions go on counting tokens, not slots: what has been read keeps the position that it was read with.
"""

import copy
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial

import torch
from torch import nn
from transformers import AttentionInterface, AttentionMaskInterface, Cache, PreTrainedConfig, PreTrainedModel
from transformers.cache_utils import DynamicLayer
from transformers.masking_utils import eager_mask, sdpa_mask
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from .cache_names import cache_in, renamed


MERGING_ATTENTION = {"eager": "merging_eager", "sdpa": "merging_sdpa"}
# Options of `generate` that let others draft tokens.
ASSISTANCE = ("assistant_model", "prompt_lookup_num_tokens", "assistant_early_exit")
BASES = ("gpt2", "llama", "mistral", "opt", "qwen2", "qwen3")


class MergingLayer(DynamicLayer):
    r"""
    Keys and values of one layer: slots, of which some may be in int8, and recent tokens.

    Attributes:
        keys, values (`torch.Tensor` of shape `(batch_size, num_kv_heads, slots + recent tokens, head_dim)`):
            Of the slots that are not in int8, and of the recent tokens.
        log_mass (`torch.Tensor` of shape `(batch_size, num_kv_heads, all slots)`, *optional*):
            What is added to the scores of all slots; `None` until the first compression.
        int8_keys, int8_values, int8_scales (`torch.Tensor`, *optional*):
            Slots in int8, `(batch_size, num_kv_heads, int8 slots, head_dim)`, and a scale for each key and value.
        queries (`torch.Tensor` of shape `(batch_size, num_heads, queries, head_dim)`, *optional*):
            The last queries of the last forward pass, scaled; kept if `observation_window` is above 0.
        seen_length (`int`): Tokens that were read, padding too.
        observation_window (`int`): Queries to keep for the next compression.
        int8_start (`int`): Slots in front of those in int8.
    """

    TENSORS = ("keys", "values", "log_mass", "int8_keys", "int8_values", "int8_scales", "queries")

    def __init__(self):
        super().__init__()
        self.observation_window = 0
        # Whether the attention that reads on now is one that weighs slots.
        self.weighed = False
        self.reset()

    def reset(self):
        for name in self.TENSORS:
            setattr(self, name, None)
        self.seen_length, self.int8_start, self.is_initialized = 0, 0, False

    @property
    def num_slots(self) -> int:
        return 0 if self.log_mass is None else self.log_mass.shape[-1]

    @property
    def num_int8(self) -> int:
        return 0 if self.int8_keys is None else self.int8_keys.shape[2]

    @property
    def recent_length(self) -> int:
        """Tokens after the slots."""
        return 0 if self.keys is None else self.keys.shape[2] - (self.num_slots - self.num_int8)

    @property
    def num_bytes(self) -> int:
        """Bytes of all tensors that are held."""
        held = [getattr(self, name) for name in self.TENSORS]
        return sum(tensor.numel() * tensor.element_size() for tensor in held if tensor is not None)

    def update(self, key_states: torch.Tensor, value_states: torch.Tensor, *args, **kwargs):
        """Appends tokens; returns the keys and values of all slots and recent tokens."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
            self.keys, self.values = key_states[:, :, :0], value_states[:, :, :0]
        self._repeat_rows(key_states.shape[0])
        self.seen_length += key_states.shape[2]
        super().update(key_states, value_states)
        return self.states()

    def _repeat_rows(self, count: int):
        """Lets every row serve as many queries as came for it: beams, or several questions about one text."""
        rows = self.keys.shape[0]
        if count % rows != 0:
            raise ValueError(f"The rows that read on must be a multiple of those in the cache, {rows}, got {count}.")
        if count > rows:
            self.batch_repeat_interleave(count // rows)

    def states(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values `(batch_size, num_kv_heads, all slots + recent tokens, head_dim)`."""
        if self.num_int8 == 0:
            return self.keys, self.values
        keys = self.int8_keys * self.int8_scales[..., :1]  # (batch, kv_heads, int8 slots, head_dim)
        values = self.int8_values * self.int8_scales[..., 1:]
        return insert(self.keys, keys, self.int8_start), insert(self.values, values, self.int8_start)

    def replace(
        self,
        keys: torch.Tensor,
        values: torch.Tensor,
        log_mass: torch.Tensor,
        int8: slice = slice(0, 0),
    ):
        """
        Puts slots in the place of all that is held.

        Args:
            keys, values (`torch.Tensor` of shape `(batch_size, num_kv_heads, slots, head_dim)`): The slots.
            log_mass (`torch.Tensor` of shape `(batch_size, num_kv_heads, slots)`): What is added to their scores.
            int8 (`slice`, defaults to none): Slots to be held in int8, with a scale for each key and value.
        """
        self.log_mass, self.int8_start, self.queries = log_mass, int8.start, None
        self.int8_keys = self.int8_values = self.int8_scales = None
        if int8.stop > int8.start:
            (self.int8_keys, key_scales), (self.int8_values, value_scales) = (
                quantize(states[:, :, int8]) for states in (keys, values)
            )
            self.int8_scales = torch.cat([key_scales, value_scales], dim=-1)  # (batch, kv_heads, int8 slots, 2)
            keys, values = (
                torch.cat([states[:, :, : int8.start], states[:, :, int8.stop :]], dim=2) for states in (keys, values)
            )
        self.keys, self.values = keys, values

    def observe(self, query: torch.Tensor, scaling: float):
        """Keeps the last of the queries `(batch_size, num_heads, length, head_dim)`."""
        if self.observation_window > 0:
            self.queries = query[:, :, -self.observation_window :].detach() * scaling

    def get_seq_length(self) -> int:
        return self.seen_length

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Length and offset of the recent tokens: the mask of the model is over these, that of the slots is theirs."""
        return self.recent_length + query_length, self.seen_length - self.recent_length

    def crop(self, tokens_to_remove: int):
        """
        Removes the last `-tokens_to_remove` tokens.

        Raises:
            ValueError: if they are not all there any more.
        """
        count = abs(tokens_to_remove)
        if tokens_to_remove > 0 or count > self.recent_length:
            raise ValueError(
                f"`tokens_to_remove` must be between {-self.recent_length}, the tokens after the slots, and 0,"
                f" got {tokens_to_remove}."
            )
        if count > 0:
            super().crop(tokens_to_remove)
            self.seen_length -= count

    def reorder_cache(self, beam_idx: torch.LongTensor):
        self._select_rows(lambda tensor: tensor.index_select(0, beam_idx.to(tensor.device)))

    def batch_repeat_interleave(self, repeats: int):
        self._select_rows(lambda tensor: tensor.repeat_interleave(repeats, dim=0))

    def batch_select_indices(self, indices: torch.Tensor):
        self._select_rows(lambda tensor: tensor[indices.to(tensor.device)])

    def offload(self):
        self._select_rows(lambda tensor: tensor.to("cpu", non_blocking=True))

    def prefetch(self):
        self._select_rows(lambda tensor: tensor.to(self.device, non_blocking=True))

    def _select_rows(self, select):
        for name in self.TENSORS:
            tensor = getattr(self, name)
            if tensor is not None:
                setattr(self, name, select(tensor))


class MergingCache(Cache):
    """
    A cache of [`MergingLayer`]s, for `model(..., cache=cache)` and `model.generate` within
    [`merging_attention`]. `get_seq_length()` is the number of tokens that were read. `generate` takes the whole
    prompt, or the new tokens alone with an `attention_mask` over all. Reading on changes the cache: pass [`fork`] of
    it to use it again. With a multiple of its rows (beams, several questions) each of them is repeated.

    Args:
        config (`PreTrainedConfig`): The config of the base model.

    Attributes:
        input_ids (`torch.Tensor` of shape `(batch_size, seen_length or more)`, *optional*):
            The tokens that were read, and perhaps more that were cropped; `None` if not known. By them `generate`
            tells a whole prompt from new tokens alone.
    """

    input_ids: torch.Tensor | None = None

    def __init__(self, config: PreTrainedConfig):
        super().__init__(layers=[MergingLayer() for _ in range(config.num_hidden_layers)])
        self.config = config

    @property
    def num_bytes(self) -> int:
        """Bytes of all that the layers hold."""
        return sum(layer.num_bytes for layer in self.layers)

    @property
    def num_slots(self) -> list[int]:
        """Slots of every layer, those of padding too; 0 until the first compression."""
        return [layer.num_slots for layer in self.layers]

    def fork(self) -> "MergingCache":
        """A cache that holds the same tensors, and goes its own way from here."""
        fork = copy.copy(self)
        fork.layers = [copy.copy(layer) for layer in self.layers]
        return fork

    def __deepcopy__(self, memo: dict) -> "MergingCache":
        # The config stays that of the base model.
        copied = copy.copy(self)
        copied.layers = copy.deepcopy(self.layers, memo)
        return copied

    def remember(self, input_ids: torch.Tensor | None):
        """Takes down the ids `(batch_size, length)` of tokens that are read now, before their keys are written."""
        seen, held = self.get_seq_length(), self.input_ids
        if seen > 0 and (held is None or input_ids is None or len(input_ids) % len(held) != 0):
            input_ids = None
        elif seen > 0:
            repeated = held[:, :seen].repeat_interleave(len(input_ids) // len(held), dim=0)
            input_ids = torch.cat([repeated, input_ids.to(held.device)], dim=1)  # (batch, seen + length)
        self.input_ids = input_ids

    def is_beginning_of(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> bool:
        """Whether `(batch_size, length)` ids, or those that the mask shows, begin with the text, where it is known."""
        if self.input_ids is None or len(input_ids) % len(self.input_ids) != 0:
            return True
        held = self.input_ids[:, : self.get_seq_length()]  # (rows of the cache, seen)
        held = held.repeat_interleave(len(input_ids) // len(held), dim=0).to(input_ids.device)
        given, hidden = input_ids[:, : held.shape[1]], attention_mask[:, : held.shape[1]] == 0
        return bool(((given == held) | hidden).all())

    def reset(self):
        super().reset()
        self.input_ids = None

    def reorder_cache(self, beam_idx: torch.LongTensor):
        super().reorder_cache(beam_idx)
        self._select_ids(lambda ids: ids.index_select(0, beam_idx.to(ids.device)))

    def batch_repeat_interleave(self, repeats: int):
        super().batch_repeat_interleave(repeats)
        self._select_ids(lambda ids: ids.repeat_interleave(repeats, dim=0))

    def batch_select_indices(self, indices: torch.Tensor):
        super().batch_select_indices(indices)
        self._select_ids(lambda ids: ids[indices.to(ids.device)])

    def _select_ids(self, select: Callable[[torch.Tensor], torch.Tensor]):
        self.input_ids = None if self.input_ids is None else select(self.input_ids)

    def observe(self, num_queries: int):
        """Keeps the last queries of every forward pass from now on, or none (0)."""
        for layer in self.layers:
            layer.observation_window = num_queries
            layer.queries = None if num_queries == 0 else layer.queries

    def update(self, key_states: torch.Tensor, value_states: torch.Tensor, layer_idx: int, *args, **kwargs):
        layer = self.layers[layer_idx]
        weighed, layer.weighed = layer.weighed, False
        if layer.num_slots > 0 and not weighed:
            raise ValueError(
                "A compressed `MergingCache` needs the attention that weighs its slots: call the model within"
                " `with merging_attention(model):` or `with compressor.attach(model):`."
            )
        return super().update(key_states, value_states, layer_idx, *args, **kwargs)


def insert(outer: torch.Tensor, inner: torch.Tensor, start: int) -> torch.Tensor:
    """Puts slots into the midst of others, `(batch_size, num_kv_heads, slots, ...)`."""
    return torch.cat([outer[:, :, :start], inner, outer[:, :, start:]], dim=2)


def quantize(vectors: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Rounds `(..., dim)` to int8 with the scale `(..., 1)` that takes the largest entry of each vector to 127."""
    scales = vectors.detach().abs().amax(dim=-1, keepdim=True).clamp_min(torch.finfo(vectors.dtype).tiny) / 127
    return (vectors.detach() / scales).round().clamp(-127, 127).to(torch.int8), scales


def biased_mask(
    log_mass: torch.Tensor, attention_mask: torch.Tensor | None, query: torch.Tensor, recent_length: int
) -> torch.Tensor:
    """
    The mask over slots and recent tokens, to be added to the scores.

    Args:
        log_mass (`torch.Tensor` of shape `(batch_size, num_kv_heads, slots)`): Of all slots, which every query sees.
        attention_mask (`torch.Tensor` of shape `(batch_size, 1, length, recent_length)`, *optional*):
            Over the recent tokens, boolean or to be added; `None` if each query sees all up to its own.
        query (`torch.Tensor` of shape `(batch_size, num_heads, length, head_dim)`): The queries.
        recent_length (`int`): Keys after the slots, those of the queries included.

    Returns:
        `torch.Tensor` of shape `(batch_size, num_heads, length, slots + recent_length)`.
    """
    batch_size, num_heads, length, _ = query.shape
    if attention_mask is None:
        # (length, recent): the last query sees all recent tokens, each one before it a token less
        attention_mask = query.new_ones(length, recent_length, dtype=torch.bool).tril(recent_length - length)
    if attention_mask.dtype == torch.bool:
        # Eager attention takes its softmax in float32, where the lowest of float64 is -inf.
        hidden = max(torch.finfo(query.dtype).min, torch.finfo(torch.float32).min)
        attention_mask = query.new_zeros(()).where(attention_mask, hidden)  # (..., length, recent)
    # (batch, heads, 1, slots): every query of a head sees the slots of its key/value head alike
    bias = log_mass.repeat_interleave(num_heads // log_mass.shape[1], dim=1)[:, :, None]
    shape = (batch_size, num_heads, length, -1)
    return torch.cat([bias.expand(shape), attention_mask.expand(shape)], dim=-1)


def merging_attention_forward(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    slots: MergingLayer | None = None,
    scaling: float | None = None,
    *,
    implementation: str,
    **kwargs,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """The base model's own attention, eager or sdpa, over `slots` and the recent tokens; shapes as there."""
    if slots is not None:
        slots.observe(query, query.shape[-1] ** -0.5 if scaling is None else scaling)
        if slots.num_slots > 0:
            attention_mask = biased_mask(slots.log_mass, attention_mask, query, key.shape[2] - slots.num_slots)
    eager = sys.modules[type(module).__module__].eager_attention_forward
    attention = ALL_ATTENTION_FUNCTIONS.get_interface(implementation, eager)
    return attention(module, query, key, value, attention_mask, scaling=scaling, **kwargs)


def pass_slots(module: nn.Module, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
    """Forward pre-hook: gives the slots of its layer to the attention, as an argument."""
    cache = cache_in(kwargs)
    if not isinstance(cache, MergingCache):
        return args, kwargs
    slots = cache.layers[module.layer_idx]
    slots.weighed = True
    return args, kwargs | {"slots": slots}


def check_assistance(model: PreTrainedModel, args: tuple, kwargs: dict):
    """Raises a `ValueError` for assisted decoding: it reads a whole prompt again, or misplaces drafts."""
    config = kwargs.get("generation_config") or next(iter(args), None) or model.generation_config
    options = [name for name in ASSISTANCE if kwargs.get(name) or getattr(config, name, None)]
    if options:
        raise ValueError(
            f"`{options[0]}` must not be given with a cache that holds tokens: drafts would be misplaced."
        )


def remember_text(module: nn.Module, args: tuple, kwargs: dict):
    """Forward pre-hook of a model without its head: the cache takes down what is read."""
    cache = cache_in(kwargs)
    if isinstance(cache, MergingCache):
        cache.remember(args[0] if args else kwargs.get("input_ids"))


def check_prompt(cache: MergingCache, prompt: torch.Tensor | None, attention_mask: torch.Tensor | None):
    """
    Raises a `ValueError` unless it is clear what `generate` shall read after a cache that holds tokens.

    Args:
        cache ([`MergingCache`]): The cache.
        prompt (`torch.Tensor` of shape `(batch_size, length)` or `(batch_size, length, embedding_dim)`, *optional*):
            The ids or embeddings that are given; one token if there are none.
        attention_mask (`torch.Tensor` of shape `(batch_size, length)` or `(batch_size, seen_length + length)`,
            *optional*): With the latter, the prompt is new tokens alone.
    """
    seen, length = cache.get_seq_length(), 1 if prompt is None else prompt.shape[1]
    mask_length = length if attention_mask is None else attention_mask.shape[1]
    if mask_length == seen + length:
        return
    if mask_length == length > seen and (prompt.ndim > 2 or begins_with(cache, prompt, attention_mask)):
        return
    raise ValueError(
        f"`input_ids` have {length} tokens and `attention_mask` covers {mask_length}; the cache has read {seen}. Pass"
        f" either the new tokens alone, with an `attention_mask` of {seen} + their number; or the whole prompt, which"
        " begins with what the cache has read and has at least one token more: compress `input_ids[:, :-1]` to"
        " generate after `input_ids`."
    )


def begins_with(cache: MergingCache, ids: torch.Tensor, attention_mask: torch.Tensor | None) -> bool:
    return cache.is_beginning_of(ids, torch.ones_like(ids) if attention_mask is None else attention_mask)


def checked_generate(generate: Callable, inputs: torch.Tensor | None = None, *args, **kwargs):
    """`generate` of a base model, which would silently cut or repeat what does not fit to a [`MergingCache`]."""
    cache = cache_in(kwargs)
    if isinstance(cache, MergingCache) and cache.get_seq_length() > 0:
        prompts = (inputs, kwargs.get("input_ids"), kwargs.get("inputs_embeds"))
        prompt = next((prompt for prompt in prompts if prompt is not None), None)
        check_prompt(cache, prompt, kwargs.get("attention_mask"))
        check_assistance(generate.__self__, args, kwargs)
    return generate(inputs, *args, **renamed(kwargs))


def is_merging(config: PreTrainedConfig) -> bool:
    """Whether the model of this config is within [`merging_attention`]."""
    return config._attn_implementation in MERGING_ATTENTION.values()


def check_base(config: PreTrainedConfig):
    """Raises a `ValueError` unless a model of this config can attend to slots."""
    if config.model_type not in BASES:
        raise ValueError(f"A base model must be one of {', '.join(BASES)}, got {config.model_type!r}.")
    if "sliding_attention" in (getattr(config, "layer_types", None) or ()) or (
        getattr(config, "layer_types", None) is None and getattr(config, "sliding_window", None) is not None
    ):
        raise ValueError(f"The base must see all tokens: `sliding_window` must be None, got {config.sliding_window}.")
    if getattr(config, "add_cross_attention", False):
        raise ValueError("The base must be decoder-only: `add_cross_attention` must be False, got True.")
    if config._attn_implementation not in MERGING_ATTENTION and not is_merging(config):
        raise ValueError(
            "Slots are weighed by a bias on the attention scores, which `attn_implementation` 'eager' or 'sdpa' can"
            f" add, got {config._attn_implementation!r}."
        )


@contextmanager
def merging_attention(model: PreTrainedModel) -> Iterator[PreTrainedModel]:
    """
    Lets a base model attend to the slots of a [`MergingCache`]; nothing of it stays behind. May be nested.

    Args:
        model (`PreTrainedModel`): A GPT-2, Llama, Mistral, OPT, Qwen2 or Qwen3 with eager or sdpa attention.

    Raises:
        ValueError: for another base model or attention.
    """
    check_base(model.config)
    before = model.config._attn_implementation
    if is_merging(model.config):
        yield model
        return
    with ExitStack() as undo:
        undo.callback(model.set_attn_implementation, before)
        model.set_attn_implementation(MERGING_ATTENTION[before])
        undo.callback(model.get_decoder().register_forward_pre_hook(remember_text, with_kwargs=True).remove)
        for module in model.modules():
            if hasattr(module, "layer_idx") and hasattr(module, "is_causal"):
                undo.callback(module.register_forward_pre_hook(pass_slots, with_kwargs=True).remove)
        if hasattr(model, "generate"):
            undo.callback(model.__dict__.pop, "generate")
            model.generate = partial(checked_generate, model.generate)
        yield model


for _implementation, _mask in (("eager", eager_mask), ("sdpa", sdpa_mask)):
    AttentionInterface.register(
        MERGING_ATTENTION[_implementation], partial(merging_attention_forward, implementation=_implementation)
    )
    AttentionMaskInterface.register(MERGING_ATTENTION[_implementation], _mask)


__all__ = ["MergingCache", "MergingLayer", "check_base", "insert", "merging_attention"]
