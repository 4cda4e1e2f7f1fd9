"""A small tokenizer, learned from the texts that a small model is to read."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from tokenizers import AddedToken, Tokenizer, decoders, pre_tokenizers, processors, trainers
from tokenizers.models import BPE


def train_tokenizer(
    texts: Iterable[str], vocabulary: int, special_tokens: Sequence[str], begin: str | None = None
) -> Tokenizer:
    """A byte-level BPE tokenizer.

    Args:
        texts: what it learns its merges from.
        vocabulary: tokens in all, at most.
        special_tokens: their ids count from 0, in this order.
        begin: the special token that every text starts with.
    """
    tokenizer = Tokenizer(BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=[AddedToken(token, special=True, normalized=False) for token in special_tokens],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    if begin is not None:
        template = [(begin, special_tokens.index(begin))]
        tokenizer.post_processor = processors.TemplateProcessing(single=f"{begin} $A", special_tokens=template)
    return tokenizer
