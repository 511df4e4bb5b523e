"""Conversations with instruct models whose older turns are summary vectors."""

from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..files.chat_template import Message, render
from .control_tokens import check_tokenizer


class Chat:
    """
    A conversation in the chat template of a model, which may go on for ever: what does not fit is compressed.

    The turns are read as one text. As soon as more than `max_tokens` of it are not compressed, the whole segments of
    all turns but the last are, behind the summary vectors that there are.

    Args:
        model (`PreTrainedModel`): An AutoCompressor in evaluation mode, trained on such conversations or merged into
            an instruct model.
        tokenizer (`PreTrainedTokenizerBase`): With a chat template.
        system (`str`, *optional*): What the model is told first; it is compressed at once with `compress_system`.
        compress_system (`bool`, defaults to `False`): Whether the system prompt is read as summary vectors from the
            first turn on.
        max_tokens (`int`, *optional*): Tokens that are read as they are (default: four segments).
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
        self.messages: list[Message] = []
        self.text = ""  # of the messages, as far as it is in `ids` or was compressed
        self.ids = torch.empty(1, 0, dtype=torch.long, device=model.device)
        self.check_template(system)
        if system is not None:
            self.messages.append({"role": "system", "content": system})
        if compress_system:
            self.compress_system(system)

    def check_template(self, system: str | None):
        """Raises a `ValueError` for a template that writes earlier messages otherwise when later ones follow."""
        messages = [] if system is None else [{"role": "system", "content": system}]
        text = ""
        for role in ("user", "assistant", "user"):
            messages.append({"role": role, "content": "a"})
            longer = render(self.tokenizer, messages, asks=role == "user")
            if not longer.startswith(text):
                raise ValueError("The chat template must write earlier messages the same whatever follows.")
            text = longer

    def compress_system(self, system: str | None):
        """Reads the conversation up to the end of its system prompt as summary vectors."""
        if system is None:
            raise ValueError("`compress_system` needs a `system` prompt, got None.")
        begin = render(self.tokenizer, [*self.messages, {"role": "user", "content": ""}])
        if system.strip() not in begin:
            raise ValueError("`compress_system` needs a chat template that writes the system prompt as it is.")
        self.read(begin[: begin.rindex(system.strip()) + len(system.strip())])
        self.compress(self.ids.shape[1])

    def say(self, role: str, content: str):
        """Adds a message of the user or the assistant to what the model reads next."""
        self.messages.append({"role": role, "content": content})
        self.read(render(self.tokenizer, self.messages, asks=role == "user"))

    def read(self, text: str):
        """Appends what a longer text of the conversation adds."""
        new = self.tokenizer(text[len(self.text) :], add_special_tokens=False, return_tensors="pt").input_ids
        self.ids = torch.cat([self.ids, new.to(self.ids.device)], dim=1)
        self.text = text

    def compress(self, num_tokens: int):
        """Turns the first tokens into summary vectors, behind those that there are."""
        if num_tokens == 0:
            return
        compressed, self.ids = self.ids[:, :num_tokens], self.ids[:, num_tokens:]
        options = {"segment_lengths": self.segment_length, "softprompt": self.softprompt}
        self.softprompt = self.model.compress(compressed, **options)

    @torch.no_grad()
    def answer(self, message: str, **options: Any) -> str:
        """
        What the assistant says to a message.

        Args:
            message (`str`): Of the user.
            options: As for [`~transformers.GenerationMixin.generate`].
        """
        before, state = self.ids.shape[1], dict(vars(self), messages=list(self.messages))
        try:
            return self.reply(message, before, **options)
        except BaseException:
            vars(self).update(state)  # as if the message had not been said
            raise

    def reply(self, message: str, before: int, **options: Any) -> str:
        """Reads a message behind `before` tokens, generates, and keeps both."""
        self.say("user", message)
        if self.ids.shape[1] > self.max_tokens:
            self.compress(before - before % self.segment_length)
        options.setdefault("pad_token_id", self.tokenizer.eos_token_id)
        mask = torch.ones_like(self.ids)
        generated = self.model.generate(self.ids, attention_mask=mask, softprompt=self.softprompt, **options)
        content = self.tokenizer.decode(generated[0, self.ids.shape[1] :], skip_special_tokens=True).strip()
        self.say("assistant", content)
        return content


__all__ = ["Chat"]
