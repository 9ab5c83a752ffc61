"""The peer of `training_speed.py`: a translation model and its training step as a user of PyTorch writes them."""

import math
import warnings

import torch
from torch import Tensor, nn
from torch.nn import functional

from dragoman.model.batching import Batch
from dragoman.model.recipe import TrainingSettings
from dragoman.model.tokenizer import PADDING_ID
from dragoman.model.transformer import Dimensions, sinusoidal_positions

__all__ = ["NnTransformer", "NnTransformerStep"]


class NnTransformer(nn.Module):
    """nn.Transformer between an embedding and an output projection that share one matrix."""

    def __init__(self, dims: Dimensions) -> None:
        """Raises ValueError when `dims` has what nn.Transformer has not."""
        super().__init__()
        if dims.activation == "swiglu" or dims.num_kv_heads != dims.num_heads:
            raise ValueError(
                f"nn.Transformer has no activation {dims.activation!r} with {dims.num_kv_heads} key heads "
                f"of {dims.num_heads}: there is no peer of this shape"
            )
        self.embedding = nn.Embedding(dims.vocabulary_size, dims.width, padding_idx=PADDING_ID)
        nn.init.normal_(self.embedding.weight, std=dims.width**-0.5)
        length = max(dims.max_source_tokens, dims.max_target_tokens) + 1
        self.register_buffer("position", sinusoidal_positions(length, dims.width), persistent=False)
        self.position: Tensor
        self.dropout = nn.Dropout(dims.dropout)
        with warnings.catch_warnings():  # it says that norm_first rules out nested tensors
            warnings.simplefilter("ignore", UserWarning)
            self.transformer = nn.Transformer(
                d_model=dims.width,
                nhead=dims.num_heads,
                num_encoder_layers=dims.num_encoder_layers,
                num_decoder_layers=dims.num_decoder_layers,
                dim_feedforward=dims.feed_forward_width,
                dropout=dims.dropout,
                activation=dims.activation,
                batch_first=True,
                norm_first=dims.norm == "pre",
            )
        for module in self.transformer.modules():
            if isinstance(module, nn.MultiheadAttention):
                module.dropout = dims.attention_dropout
        self.output = nn.Linear(dims.width, dims.vocabulary_size, bias=False)
        self.output.weight = self.embedding.weight

    def forward(self, source_ids: Tensor, target_ids: Tensor) -> Tensor:
        """source_ids (B, S), target_ids (B, T) -> logits (B, T, vocabulary)."""
        source_padding = source_ids == PADDING_ID
        length = target_ids.shape[1]
        future = torch.ones(length, length, dtype=torch.bool, device=target_ids.device).triu(1)
        states = self.transformer(
            self._embed(source_ids),
            self._embed(target_ids),
            tgt_mask=future,
            src_key_padding_mask=source_padding,
            tgt_key_padding_mask=target_ids == PADDING_ID,
            memory_key_padding_mask=source_padding,
            tgt_is_causal=True,
        )
        logits: Tensor = self.output(states)
        return logits

    def _embed(self, token_ids: Tensor) -> Tensor:
        scaled = self.embedding(token_ids) * math.sqrt(self.embedding.embedding_dim)
        embedded: Tensor = self.dropout(scaled + self.position[: token_ids.shape[1]])
        return embedded


class NnTransformerStep:
    """Forward, cross-entropy, backward, clipping, AdamW."""

    def __init__(self, network: NnTransformer, settings: TrainingSettings) -> None:
        self._network, self._settings = network.train(), settings
        self._optimizer = torch.optim.AdamW(
            network.parameters(),
            lr=settings.max_learning_rate,
            betas=(settings.beta1, settings.beta2),
            weight_decay=settings.weight_decay,
        )

    def __call__(self, batch: Batch) -> Tensor:
        assert batch.source_ids is not None
        logits = self._network(batch.source_ids, batch.input_ids)
        loss = functional.cross_entropy(
            logits.flatten(0, 1),
            batch.label_ids.flatten(),
            ignore_index=PADDING_ID,
            label_smoothing=self._settings.label_smoothing,
        )
        self._optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(self._network.parameters(), self._settings.max_gradient_norm or math.inf)
        self._optimizer.step()
        return loss.detach()
