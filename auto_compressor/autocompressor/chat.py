"""Conversations with instruct models whose older turns are summary vectors."""

from typing import Any
from uuid import uuid4

import torch
from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging

from ..files.chat_template import Message, render
from .control_tokens import check_tokenizer


logger = logging.get_logger(__name__)

DEFAULT_NEW_TOKENS = 20  # of `generate`, where nothing else is said


def context_length(config: PreTrainedConfig) -> int:
    """Summary vectors and tokens, read and generated, that a model takes together."""
    most, window = config.max_position_embeddings, getattr(config, "sliding_window", None)
    return most if window is None else min(most, window)


class Chat:
    """
    A conversation in the chat template of a model, which may go on for ever: what does not fit is compressed.

    The turns are read as one text. As soon as more than `max_tokens` of it are not compressed, the whole segments of
    all turns but the last are, behind the summary vectors that there are. The text takes half of the model's context
    at most: of a turn that is longer, the beginning is compressed too. When the vectors no longer fit beside the text
    and the tokens to generate, the oldest of the conversation are dropped, and last those of `softprompt` and of the
    system prompt.

    Args:
        model (`PreTrainedModel`): An AutoCompressor in evaluation mode, trained on such conversations or merged into
            an instruct model.
        tokenizer (`PreTrainedTokenizerBase`): With a chat template.
        system (`str`, *optional*): What the model is told first; it is compressed at once with `compress_system`.
        compress_system (`bool`, defaults to `False`): Whether the system prompt is read as summary vectors from the
            first turn on.
        max_tokens (`int`, *optional*): Tokens that are read as they are (default: four segments), where half of the
            model's context holds them.
        softprompt (`torch.Tensor` of shape `(1, vectors, embedding_dim)`, *optional*): Summary vectors of a text that
            the conversation is about.

    Raises:
        ValueError: for a tokenizer without a template, or `max_tokens` below 1.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        system: str | None = None,
        compress_system: bool = False,
        max_tokens: int | None = None,
        softprompt: torch.Tensor | None = None,
    ):
        check_tokenizer(tokenizer, model.config)
        if max_tokens is not None and max_tokens < 1:
            raise ValueError(f"`max_tokens` must be 1 or more, got {max_tokens}.")
        self.model, self.tokenizer, self.softprompt = model, tokenizer, softprompt
        self.segment_length = model.default_segment_length
        self.max_tokens = max_tokens or 4 * self.segment_length
        self.context_length = context_length(model.config)
        self.num_given = self.num_vectors  # vectors that are dropped last
        self.has_forgotten = False
        self.messages: list[Message] = []
        self.text = ""  # what is in `ids` or was compressed
        self.ids = torch.empty(1, 0, dtype=torch.long, device=model.device)
        self.check_template(system)
        if system is not None:
            self.messages.append({"role": "system", "content": system})
        if compress_system:
            self.compress_system(system)

    @property
    def num_vectors(self) -> int:
        return 0 if self.softprompt is None else self.softprompt.shape[1]

    def check_template(self, system: str | None):
        """Raises a `ValueError` for a template in which a turn cannot be told from what came before."""
        turns = [{"role": role, "content": "a"} for role in ("user", "assistant", "user")]
        self.turn(turns if system is None else [{"role": "system", "content": system}, *turns])

    def compress_system(self, system: str | None):
        """Reads the conversation up to the end of its system prompt as summary vectors."""
        if system is None or not system.strip():
            raise ValueError(f"`compress_system` needs a `system` prompt, got {system!r}.")
        if self.model.config.max_vectors == 0:
            raise ValueError("`compress_system` needs a model that makes summary vectors, this one makes none.")
        begin = render(self.tokenizer, [*self.messages, {"role": "user", "content": ""}])
        if system.strip() not in begin:
            raise ValueError("`compress_system` needs a chat template that writes the system prompt as it is.")
        self.read(begin[: begin.rindex(system.strip()) + len(system.strip())])
        self.compress(self.ids.shape[1])
        self.num_given = self.num_vectors

    def turn(self, messages: list[Message]) -> str:
        """
        What the model reads next: of messages up to one of the user, what the template writes behind the last answer.

        What comes before it was read, and may be written otherwise now: without thoughts, or with another time.
        """
        if len(messages) < 2 or messages[-2]["role"] != "assistant":
            text = render(self.tokenizer, messages, asks=True)
            if not text.startswith(self.text):
                raise ValueError("The chat template must write the system prompt the same whatever follows.")
            return text[len(self.text) :]
        answer = str(uuid4().int)  # in no message
        marked = [*messages[:-2], {"role": "assistant", "content": answer}, messages[-1]]
        _, found, rest = render(self.tokenizer, marked, asks=True).rpartition(answer)
        if not found:
            raise ValueError("The chat template must write the last answer as it is.")
        return rest

    def read(self, text: str):
        """Appends a text to the conversation."""
        new = torch.tensor([self.tokenizer(text, add_special_tokens=False).input_ids], dtype=torch.long)
        self.ids = torch.cat([self.ids, new.to(self.ids.device)], dim=1)
        self.text += text

    def compress(self, num_tokens: int):
        """Turns the first tokens into summary vectors, behind those that there are, or drops them if it makes none."""
        if num_tokens == 0:
            return
        compressed, self.ids, config = self.ids[:, :num_tokens], self.ids[:, num_tokens:], self.model.config
        if config.max_vectors == 0:
            return self.warn_once()
        for segment in compressed.split(self.segment_length, dim=1):
            length = segment.shape[1]
            self.keep(self.context_length - length - self.model.summaries.num_sum_tokens - config.max_vectors)
            self.softprompt = self.model.compress(segment, segment_lengths=length, softprompt=self.softprompt)
            if not config.accumulate_summary:
                self.num_given = 0

    def keep(self, num_vectors: int):
        """Drops all summary vectors but so many: the oldest of the conversation first, then those it began with."""
        if self.softprompt is None or self.num_vectors <= num_vectors:
            return
        given, others = self.softprompt[:, : self.num_given], self.softprompt[:, self.num_given :]
        self.num_given = min(self.num_given, max(0, num_vectors))
        num_others = max(0, num_vectors - self.num_given)
        self.softprompt = torch.cat([last(given, self.num_given), last(others, num_others)], dim=1)
        self.warn_once()

    def warn_once(self):
        if not self.has_forgotten:
            logger.warning(
                f"The conversation no longer fits into the model's context of {self.context_length} positions: from"
                " here on, the oldest is dropped."
            )
        self.has_forgotten = True

    def num_new_tokens(self, options: dict[str, Any]) -> int:
        """
        Most tokens of the answer: `max_new_tokens`, else what `max_length` has beyond the text, as in `generate`; but
        `DEFAULT_NEW_TOKENS` at least, as the text may be longer than that before it is compressed.
        """
        configs = [options.get("generation_config"), self.model.generation_config]

        def first(name: str) -> int | None:
            values = [options.get(name), *(getattr(config, name, None) for config in configs)]
            return next((value for value in values if value is not None), None)

        given, most = first("max_new_tokens"), self.context_length // 2
        if given is None:
            return min(most, max(DEFAULT_NEW_TOKENS, (first("max_length") or 0) - self.ids.shape[1]))
        if given > most:  # of the text and its summary vectors too little would be left
            raise ValueError(
                f"`max_new_tokens` must be half of the model's context of {self.context_length} positions at most, got"
                f" {given}."
            )
        return given

    def make_room(self, before: int, num_new: int):
        """Compresses and drops until vectors, text and new tokens fit; the last turn begins at token `before`."""
        room = self.context_length - num_new
        if self.ids.shape[1] > min(self.max_tokens, room // 2):
            self.compress(before - before % self.segment_length)
            self.compress(max(0, self.ids.shape[1] - room // 2))
        self.keep(room - self.ids.shape[1])

    @torch.no_grad()
    def answer(self, message: str, **options: Any) -> str:
        """
        What the assistant says to a message.

        Args:
            message (`str`): Of the user.
            options: As for [`~transformers.GenerationMixin.generate`].

        Raises:
            ValueError: for bad options, or `max_new_tokens` above half of the model's context. The conversation is
                then as if the message had not been said.
        """
        before, state = self.ids.shape[1], dict(vars(self), messages=list(self.messages))
        try:
            return self.reply(message, before, **options)
        except BaseException:
            vars(self).update(state)
            raise

    def reply(self, message: str, before: int, **options: Any) -> str:
        """Reads a message behind `before` tokens, generates, and keeps both."""
        self.messages.append({"role": "user", "content": message})
        self.read(self.turn(self.messages))
        num_new = self.num_new_tokens(options)
        self.make_room(before, num_new)
        options = {"pad_token_id": self.tokenizer.eos_token_id} | options
        options |= {"max_new_tokens": num_new, "max_length": None, "softprompt": self.softprompt}
        generated = self.model.generate(self.ids, attention_mask=torch.ones_like(self.ids), **options)
        generated = getattr(generated, "sequences", generated)  # with `return_dict_in_generate`
        content = self.tokenizer.decode(generated[0, self.ids.shape[1] :], skip_special_tokens=True).strip()
        self.messages.append({"role": "assistant", "content": content})
        self.read(content)
        return content


def last(tensor: torch.Tensor, count: int) -> torch.Tensor:
    """The last `count` columns of `(batch, columns, ...)`."""
    return tensor[:, tensor.shape[1] - count :]


__all__ = ["Chat"]
