"""Conversations as text: messages in the chat template of a tokenizer."""

from transformers import PreTrainedTokenizerBase


Message = dict[str, str]  # role and content


def has_template(tokenizer: PreTrainedTokenizerBase) -> bool:
    return tokenizer.chat_template is not None


def render(tokenizer: PreTrainedTokenizerBase, messages: list[Message], asks: bool = False) -> str:
    """
    Messages in the template of the tokenizer; with `asks`, up to where the assistant begins.

    Raises:
        ValueError: for a tokenizer without a template, or messages that it does not take.
    """
    if not has_template(tokenizer):
        raise ValueError("A conversation needs a tokenizer with a chat template, as those of instruct models.")
    try:
        return tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=asks)
    except Exception as error:  # a template raises what it likes
        raise ValueError(f"The chat template does not take these messages: {error}") from error


__all__ = ["Message", "has_template", "render"]
