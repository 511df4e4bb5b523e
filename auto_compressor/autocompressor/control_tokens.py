"""The tokens `<sum>` and `<eoc>` of variable-length summaries: in the tokenizer, and in the embeddings of a model."""

import torch
from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase


SUM_TOKEN, EOC_TOKEN = "<sum>", "<eoc>"


def add_control_tokens(tokenizer: PreTrainedTokenizerBase) -> dict[str, int]:
    """Adds the control tokens as special ones, unless they are there; returns `sum_token_id` and `eoc_token_id`."""
    tokens = {"extra_special_tokens": [SUM_TOKEN, EOC_TOKEN]}
    tokenizer.add_special_tokens(tokens, replace_extra_special_tokens=False)
    ids = tokenizer.convert_tokens_to_ids([SUM_TOKEN, EOC_TOKEN])
    return dict(zip(("sum_token_id", "eoc_token_id"), ids, strict=True))


def check_tokenizer(tokenizer: PreTrainedTokenizerBase, config: PreTrainedConfig):
    """Raises a `ValueError` if the control tokens of a model are not special tokens of the tokenizer."""
    if not getattr(config, "variable_length", False):
        return
    for name in ("sum_token_id", "eoc_token_id"):
        if getattr(config, name) not in tokenizer.all_special_ids:
            raise ValueError(
                f"The tokenizer has no special token {getattr(config, name)}, the `{name}` of the model: use the one"
                " that is saved with the model, or `add_control_tokens(tokenizer)` before training."
            )


@torch.no_grad()
def resize_for_control_tokens(model: PreTrainedModel, num_tokens: int):
    """Gives new control tokens their rows in the embeddings of `model`, copies of that of the end-of-text token."""
    if model.get_input_embeddings().num_embeddings < num_tokens:
        model.resize_token_embeddings(num_tokens, mean_resizing=False)
    config = model.config
    if config.end_of_text_id is None:
        return
    for module in (model.get_input_embeddings(), model.get_output_embeddings()):
        module.weight[[config.sum_token_id, config.eoc_token_id]] = module.weight[config.end_of_text_id].clone()


__all__ = ["EOC_TOKEN", "SUM_TOKEN", "add_control_tokens", "check_tokenizer", "resize_for_control_tokens"]
