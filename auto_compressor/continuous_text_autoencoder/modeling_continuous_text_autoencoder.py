"""Continuous text autoencoder: tokens -> a few continuous latents -> tokens, as a variational autoencoder.

The encoder gives a normal distribution for every latent, training decodes samples, everything else the means.
"""

import torch
from torch import nn
from torch.nn import functional as F
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers import initialization as init
from transformers.utils import can_return_tuple

from .configuration_continuous_text_autoencoder import ContinuousTextAutoencoderConfig
from .layers import ChunkDecoder, ChunkEncoder, ConvDecoder, ConvEncoder
from .loading import load_tokenizer
from .outputs import ContinuousDecoderOutput, ContinuousEncoderOutput, ContinuousTextAutoencoderOutput
from .tensors import MAX_LOGITS_IN_MEMORY, RunningNorm, masked_mean, mean_over_targets, summed_cross_entropy


LAYERS = {"conv": (ConvEncoder, ConvDecoder), "chunk": (ChunkEncoder, ChunkDecoder)}
STATISTICS_DECAY = 0.99  # what the statistics of latents keep at every batch


def sample_normal(mean: torch.Tensor, logvar: torch.Tensor) -> torch.Tensor:
    """A sample of each normal distribution, differentiable (Kingma and Welling, arXiv 1312.6114, section 2.4)."""
    return mean + torch.randn_like(mean) * (logvar / 2).exp()


def kl_from_standard_normal(mean: torch.Tensor, logvar: torch.Tensor) -> torch.Tensor:
    """KL(N(mean, exp(logvar)) || N(0, 1)) of every dimension, in nats and float32 (the same paper, appendix B)."""
    mean, logvar = mean.float(), logvar.float()
    return -0.5 * (1 + logvar - mean.square() - logvar.exp())


def tokenizer_beside(name: str) -> PreTrainedTokenizerBase:
    """Returns the tokenizer beside a checkpoint; an `OSError` says so where there is none."""
    try:
        return load_tokenizer(name)
    except OSError as error:
        raise OSError(f"No tokenizer beside the model {name!r}: give `tokenizer`, or ids in place of text.") from error


def align_rows(
    input_ids: torch.LongTensor, attention_mask: torch.Tensor | None, total_stride: int
) -> tuple[torch.LongTensor, torch.BoolTensor, torch.LongTensor]:
    """
    Brings the tokens of every row to the front, and fills up to whole latents with the token 0.

    Returns:
        `tuple`: Ids and mask, each `(batch_size, latent_length * total_stride)`, and the place of what was in each
        column, `(batch_size, length)`.
    """
    mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask.long()
    # (batch, length); stable, so that tokens keep their order
    order = mask.argsort(dim=1, descending=True, stable=True)
    fill = (0, -input_ids.shape[1] % total_stride)
    mask = F.pad(mask.gather(1, order), fill).bool()  # (batch, latent_length * total_stride)
    return F.pad(input_ids.gather(1, order), fill).masked_fill(~mask, 0), mask, order.argsort(dim=1)


class ContinuousTextAutoencoder(PreTrainedModel):
    """
    Tokens to continuous latents, one for every `config.total_stride` tokens, and back.

    Example:

    ```python
    >>> from auto_compressor import ContinuousTextAutoencoder

    >>> model = ContinuousTextAutoencoder.from_pretrained("checkpoints/continuous")
    >>> model.reconstruct("In the beginning")
    'In the beginning'
    ```
    """

    config: ContinuousTextAutoencoderConfig
    base_model_prefix = "model"
    accepts_loss_kwargs = True
    supports_gradient_checkpointing = True
    _tied_weights_keys = {"lm_head.weight": "embed_tokens.weight"}
    _keep_in_fp32_modules_strict = ["latent_norm"]

    def __init__(self, config: ContinuousTextAutoencoderConfig):
        super().__init__(config)
        encoder_class, decoder_class = LAYERS[config.architecture]
        self.embed_tokens = nn.Embedding(config.vocab_size, config.embedding_size)
        # As a head, embeddings are small (Vaswani et al., arXiv 1706.03762, section 3.4).
        self.embedding_scale = config.embedding_size**0.5 if config.tie_word_embeddings else 1.0
        self.encoder = encoder_class(config)
        self.mean_head = nn.Linear(self.encoder.output_size, config.latent_dim)
        self.logvar_head = nn.Linear(self.encoder.output_size, config.latent_dim)
        self.latent_norm = RunningNorm(config.latent_dim, STATISTICS_DECAY)
        self.decoder = decoder_class(config)
        self.lm_head = nn.Linear(self.decoder.output_size, config.vocab_size)
        self.post_init()

    def _init_weights(self, module):
        super()._init_weights(module)
        if isinstance(module, (nn.Linear, nn.Conv1d)):
            init.normal_(module.weight, std=self.config.initializer_range * module.weight[0].numel() ** -0.5)
        elif isinstance(module, nn.Embedding):
            init.normal_(module.weight, std=self.config.initializer_range / self.embedding_scale)
        elif isinstance(module, nn.ConvTranspose1d):  # half of the kernel reaches an output
            inputs = module.in_channels * module.kernel_size[0] / module.stride[0]
            init.normal_(module.weight, std=self.config.initializer_range * inputs**-0.5)
        elif isinstance(module, RunningNorm):
            init.zeros_(module.mean)
            init.ones_(module.variance)
            init.zeros_(module.num_batches)

    def embed(self, input_ids: torch.LongTensor) -> torch.Tensor:
        """Token embeddings `(batch_size, length, embedding_size)`; in training, token dropout zeroes some."""
        embeddings = self.embed_tokens(input_ids) * self.embedding_scale  # (batch, length, embedding_size)
        if self.training and self.config.token_dropout:
            seen = torch.rand(input_ids.shape, device=input_ids.device) >= self.config.token_dropout  # (batch, length)
            embeddings = embeddings * seen[..., None]
        return embeddings

    def posterior(self, input_ids: torch.LongTensor, mask: torch.BoolTensor) -> ContinuousEncoderOutput:
        """`encode` for ids and mask from `align_rows`."""
        if not self.training:  # where it would wait for the device at every step
            check_vocabulary(input_ids, self.config.vocab_size)
        hidden_states = self.encoder(self.embed(input_ids), mask)  # (batch, latent_length, output_size)
        return ContinuousEncoderOutput(
            mean=self.mean_head(hidden_states),
            logvar=self.logvar_head(hidden_states),
            latent_attention_mask=mask.unflatten(1, (-1, self.config.total_stride)).any(dim=-1).long(),
        )

    def encode(
        self, input_ids: torch.LongTensor, attention_mask: torch.Tensor | None = None
    ) -> ContinuousEncoderOutput:
        """
        The distribution of the latents of texts.

        Args:
            input_ids (`torch.LongTensor` of shape `(batch_size, length)`): Tokens, of any length from 1.
            attention_mask (`torch.Tensor` of shape `(batch_size, length)`, *optional*): 0 for padding, on any side.

        Raises:
            ValueError: for ids or a mask of another shape or dtype, or, except in training, ids outside the
                vocabulary.
        """
        check_input_ids(input_ids, attention_mask)
        return self.posterior(*align_rows(input_ids, attention_mask, self.config.total_stride)[:2])

    def decode(
        self, latents: torch.Tensor, latent_attention_mask: torch.Tensor | None = None
    ) -> ContinuousDecoderOutput:
        """
        Tokens of latents, and of nothing else.

        Args:
            latents (`torch.Tensor` of shape `(batch_size, latent_length, latent_dim)`): Means, samples, or others.
            latent_attention_mask (`torch.Tensor` of shape `(batch_size, latent_length)`, *optional*): 0 behind the
                last latent of a row.

        Raises:
            ValueError: for latents of another width, or a mask of another shape.
        """
        states = self.decoder_states(latents, latent_attention_mask)  # (batch, length, output_size)
        return ContinuousDecoderOutput(logits=self.lm_head(states))

    @torch.no_grad()
    def decode_tokens(self, latents: torch.Tensor, latent_attention_mask: torch.Tensor | None = None) -> torch.Tensor:
        """
        The likeliest tokens of latents, `(batch_size, latent_length * total_stride)`, without all logits at once.

        Args:
            latents, latent_attention_mask: As in [`~ContinuousTextAutoencoder.decode`].

        Raises:
            ValueError: as `decode`.
        """
        return self.likeliest_tokens(self.decoder_states(latents, latent_attention_mask))

    def decoder_states(self, latents: torch.Tensor, latent_attention_mask: torch.Tensor | None) -> torch.Tensor:
        check_latents(latents, latent_attention_mask, self.config.latent_dim)
        if latent_attention_mask is None:
            latent_attention_mask = torch.ones(latents.shape[:2], device=latents.device)
        return self.decoder(latents.to(self.dtype), latent_attention_mask.bool())  # (batch, length, output_size)

    def likeliest_tokens(self, states: torch.Tensor) -> torch.Tensor:
        """Tokens `(batch_size, length)` of states `(batch_size, length, output_size)`."""
        # each (tokens, output_size): the logits of a long text would not fit into memory
        parts = states.flatten(0, 1).split(max(1, MAX_LOGITS_IN_MEMORY // self.config.vocab_size))
        return torch.cat([self.lm_head(part).argmax(dim=-1) for part in parts]).view(states.shape[:2])

    def decode_columns(
        self, latents: torch.Tensor, latent_attention_mask: torch.Tensor, places: torch.LongTensor
    ) -> torch.Tensor:
        """What the head reads, in the columns that `align_rows` moved: `(batch_size, length, output_size)`."""
        # (batch, latent_length * total_stride, output_size)
        states = self.decoder(latents, latent_attention_mask.bool())
        return states.gather(1, places[..., None].expand(-1, -1, states.shape[-1]))

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.LongTensor,
        attention_mask: torch.Tensor | None = None,
        labels: torch.LongTensor | None = None,
        sample: bool | None = None,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> ContinuousTextAutoencoderOutput:
        """
        Encodes and decodes.

        Args:
            input_ids, attention_mask: As in [`~ContinuousTextAutoencoder.encode`].
            labels (`torch.LongTensor` of shape `(batch_size, length)`, *optional*): The tokens to give back, in their
                own columns; -100, and those that `attention_mask` takes out, count for nothing.
            sample (`bool`, *optional*): Decode samples in place of means (default: in training only).
            num_items_in_batch (`torch.Tensor` or `int`, *optional*): Labels of all that the optimizer takes at once,
                of which these are a part; the loss is then the share of this part.

        Raises:
            ValueError: as `encode`, and for labels of another shape.
        """
        check_input_ids(input_ids, attention_mask)
        ids, mask, places = align_rows(input_ids, attention_mask, self.config.total_stride)
        encoded = self.posterior(ids, mask)
        if self.latent_norm.training:
            self.latent_norm.update(encoded.mean, encoded.latent_attention_mask.bool())
        latents = self.draw(encoded, self.training if sample is None else sample)
        latents = F.dropout(latents, self.config.latent_dropout, self.training)  # (batch, latent_length, latent_dim)
        # (batch, length, vocab)
        logits = self.lm_head(self.decode_columns(latents, encoded.latent_attention_mask, places))
        output = ContinuousTextAutoencoderOutput(logits=logits, latents=latents, **encoded)
        if labels is not None:
            check_labels(labels, input_ids)
            targets = labels if attention_mask is None else labels.masked_fill(attention_mask == 0, -100)
            output.losses = self.losses(targets, logits, encoded)
            share = 1 if num_items_in_batch is None else (targets != -100).sum() / num_items_in_batch
            output.loss = share * (output.losses["reconstruction"] + self.kl_weight() * output.losses["kl"])
        return output

    def draw(self, encoded: ContinuousEncoderOutput, sample: bool) -> torch.Tensor:
        """Latents `(batch_size, latent_length, latent_dim)`: samples of their distributions, or the means."""
        return sample_normal(encoded.mean, encoded.logvar) if sample else encoded.mean

    def losses(
        self, targets: torch.LongTensor, logits: torch.Tensor, encoded: ContinuousEncoderOutput
    ) -> dict[str, torch.Tensor]:
        """Means by name: nats per target, and per latent and dimension, of which `kl_clip` are free."""
        # (batch, latent_length, latent_dim)
        divergence = kl_from_standard_normal(encoded.mean, encoded.logvar).clamp(min=self.config.kl_clip)
        return {
            "reconstruction": mean_over_targets(summed_cross_entropy(logits, targets), targets),
            "kl": masked_mean(divergence.mean(dim=-1), encoded.latent_attention_mask.bool()),
        }

    def kl_weight(self) -> torch.Tensor | float:
        """`kl_loss_weight`, or in training the part of it that is due after the batches so far."""
        weight, steps = self.config.kl_loss_weight, self.config.kl_warmup_steps
        if not self.training or not steps:
            return weight
        return weight * (self.latent_norm.num_batches / steps).clamp(max=1.0)

    def normalize_latents(self, latents: torch.Tensor) -> torch.Tensor:
        """Brings latents `(..., latent_dim)` to mean 0 and variance 1 in every dimension, as found in training."""
        return ((latents - self.latent_norm.mean) / self.latent_scale()).to(latents.dtype)

    def denormalize_latents(self, latents: torch.Tensor) -> torch.Tensor:
        """Undoes `normalize_latents`."""
        return (latents * self.latent_scale() + self.latent_norm.mean).to(latents.dtype)

    def latent_scale(self) -> torch.Tensor:
        """The standard deviation of every dimension, as found in training: `(latent_dim,)`."""
        return (self.latent_norm.variance + 1e-6).sqrt()

    @torch.no_grad()
    def reconstruct(
        self,
        text: str | torch.LongTensor,
        attention_mask: torch.Tensor | None = None,
        tokenizer: PreTrainedTokenizerBase | None = None,
        sample: bool = False,
    ) -> str | torch.LongTensor:
        """
        What is left of a text after it went through its latents.

        Args:
            text (`str`, or `torch.LongTensor` of shape `(batch_size, length)`): A text, or tokens.
            attention_mask (`torch.Tensor` of shape `(batch_size, length)`, *optional*): With tokens: 0 for padding,
                which is given back as it is.
            tokenizer ([`PreTrainedTokenizerBase`], *optional*): With a text (default: the one beside the checkpoint).
            sample (`bool`, defaults to `False`): Decode samples in place of means.

        Returns:
            `str` or `torch.LongTensor`: As `text`.

        Raises:
            OSError: if there is no tokenizer beside the checkpoint.
            ValueError: as `encode`, or if the tokenizer is not that of the model.
        """
        if isinstance(text, str):
            return self.reconstruct_text(text, tokenizer or tokenizer_beside(self.name_or_path), sample)
        check_input_ids(text, attention_mask)
        # (batch, latent_length * total_stride) each, and (batch, length)
        ids, mask, places = align_rows(text, attention_mask, self.config.total_stride)
        encoded = self.posterior(ids, mask)
        states = self.decode_columns(self.draw(encoded, sample), encoded.latent_attention_mask, places)
        tokens = self.likeliest_tokens(states)
        return tokens if attention_mask is None else torch.where(attention_mask.bool(), tokens, text)

    def reconstruct_text(self, text: str, tokenizer: PreTrainedTokenizerBase, sample: bool) -> str:
        check_tokenizer(tokenizer, self.config.vocab_size)
        ids = tokenizer(text, add_special_tokens=False, verbose=False, return_tensors="pt").input_ids
        if not ids.numel():
            return ""
        tokens = self.reconstruct(ids.long().to(self.device), sample=sample)
        return tokenizer.decode(tokens[0], clean_up_tokenization_spaces=False)


def check_input_ids(input_ids: torch.LongTensor, attention_mask: torch.Tensor | None):
    if input_ids.ndim != 2 or not input_ids.numel() or input_ids.dtype != torch.long:
        raise ValueError(
            "`input_ids` must be int64 of the shape (batch_size, length), with one token at least, got"
            f" {input_ids.dtype} {tuple(input_ids.shape)}."
        )
    if attention_mask is not None and attention_mask.shape != input_ids.shape:
        raise ValueError(
            f"`attention_mask` must have the shape {tuple(input_ids.shape)}, got {tuple(attention_mask.shape)}."
        )


def check_vocabulary(input_ids: torch.LongTensor, vocab_size: int):
    if input_ids.min() < 0 or input_ids.max() >= vocab_size:
        raise ValueError(
            f"`input_ids` must be from 0 to {vocab_size - 1}, got {int(input_ids.min())} to {int(input_ids.max())}."
        )


def check_labels(labels: torch.LongTensor, input_ids: torch.LongTensor):
    if labels.shape != input_ids.shape:
        raise ValueError(f"`labels` must have the shape {tuple(input_ids.shape)}, got {tuple(labels.shape)}.")


def check_latents(latents: torch.Tensor, latent_attention_mask: torch.Tensor | None, latent_dim: int):
    if latents.ndim != 3 or not latents.numel() or latents.shape[-1] != latent_dim:
        raise ValueError(
            f"`latents` must have the shape (batch_size, latent_length, {latent_dim}), with one latent at least, got"
            f" {tuple(latents.shape)}."
        )
    if latent_attention_mask is not None and latent_attention_mask.shape != latents.shape[:2]:
        raise ValueError(
            f"`latent_attention_mask` must have the shape {tuple(latents.shape[:2])}, got"
            f" {tuple(latent_attention_mask.shape)}."
        )


def check_tokenizer(tokenizer: PreTrainedTokenizerBase, vocab_size: int):
    if len(tokenizer) != vocab_size:
        raise ValueError(
            f"`tokenizer` must be the one that the model was trained with, of {vocab_size} tokens (`vocab_size`), it"
            f" has {len(tokenizer)}."
        )


__all__ = ["ContinuousTextAutoencoder"]
