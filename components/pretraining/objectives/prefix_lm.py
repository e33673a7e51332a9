"""Prefix language modelling: the first part of a document is read from both sides, the rest predicted from the left.

    loss = - sum over t >= s of log p(x_t | x_<t, the prefix x_<s seen whole) / number of such t

Raffel et al. 2020 (arXiv:1910.10683, 3.2.1 and 3.2.2), as the decoder-only network with a mask of UniLM (Dong et al.
2019, arXiv:1905.03197). The prefix has s tokens, from 1 to all but one, each as likely, keyed by document. Half of the
tokens are targets on average, so a step learns from half as much as one of causal_lm.

When not to use it: for a decoder that goes on under a causal mask, as `prompt`, `tune_decoder` and `generate` of
transformers run it. No mask of a prefix is handed on to them; the model card says so.

Shapes: B sequences, L tokens, D documents, N tokens of all of them.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from components.pretraining.hashing import uint64_of
from components.pretraining.objectives.causal_lm import CausalLm
from components.pretraining.objectives.objective import Sequences, Targets, sequence_keys
from components.pretraining.objectives.ragged import below, documents_of, lay_out, within

LENGTH = 41


@dataclass(frozen=True, kw_only=True, slots=True)
class PrefixLm(CausalLm):
    """The objective."""

    seed: int = 0

    def prepare(self, sequences: Sequences, *, validation: bool = False) -> Targets:
        """Chooses prefixes, and makes each later token the target of the position before it."""
        keys_B = sequence_keys(self.seed, sequences, validation=validation)
        documents = documents_of(sequences, self.vocabulary, keys_B)
        lengths_D = documents.lengths_D
        prefix_D = 1 + below(documents.keys_D, lengths_D - 1, uint64_of(LENGTH))
        in_prefix_N = within(lengths_D) < np.repeat(prefix_D, lengths_D)
        shape = (sequences.tokens_BL.shape[0], sequences.tokens_BL.shape[1])
        prefix_BL = lay_out(in_prefix_N.astype(np.int64), lengths_D, documents.rows_D, shape, 0).astype(bool)
        causal = CausalLm.prepare(self, sequences, validation=validation)
        after_BL = np.zeros_like(prefix_BL)
        after_BL[:, :-1] = ~prefix_BL[:, 1:]
        return replace(causal, mask_BX=causal.mask_BX & after_BL, prefix_BL=prefix_BL)
