"""Stable Audio Open of diffusers (arXiv 2407.14358), which is told when a sound begins and ends."""

from __future__ import annotations

from typing import Any

import diffusers
import torch
from diffusers.models.embeddings import get_1d_rotary_pos_embed
from diffusers.pipelines.stable_audio import StableAudioProjectionModel
from torch import Tensor

_Original: Any = diffusers.StableAudioDiTModel  # diffusers is untyped
_Projection: Any = StableAudioProjectionModel


class StableAudio(_Original):  # type: ignore[misc]
    """The transformer and the projections of its pipeline as one network, with positions.

    Args:
        projection: options of the pipeline's projection model.
        options: of the transformer.
    """

    def __init__(self, projection: dict[str, Any], **options: Any) -> None:
        super().__init__(**options)
        made = _Projection(**projection)
        self.text_projection = made.text_projection
        self.start_number_conditioner = made.start_number_conditioner
        self.end_number_conditioner = made.end_number_conditioner

    def forward(
        self,
        hidden_states: Tensor,
        timestep: Tensor,
        encoder_hidden_states: Tensor,
        start_seconds: Tensor,
        end_seconds: Tensor,
    ) -> Tensor:
        """The prediction, shaped as ``hidden_states``.

        Args:
            hidden_states: noisy latents, float32 [B, channels, L].
            timestep: float32 [B], from 1 (noise) to 0.
            encoder_hidden_states: embeddings of the text, [B, tokens, width], 0 where there is
                padding; 0 throughout stands for no condition.
            start_seconds: where the sound begins, float32 [B].
            end_seconds: where it ends, likewise.
        """
        said = encoder_hidden_states.abs().amax(dim=2, keepdim=True) > 0
        text = self.text_projection(encoder_hidden_states) * said
        start = self.start_number_conditioner(start_seconds)
        end = self.end_number_conditioner(end_seconds)
        seconds = torch.cat([start, end], dim=1) * said.any(dim=1, keepdim=True)
        prediction: Tensor = super().forward(
            hidden_states,
            timestep,
            encoder_hidden_states=torch.cat([text, seconds], dim=1),
            global_hidden_states=torch.cat([start, end], dim=2),
            rotary_embedding=get_1d_rotary_pos_embed(
                self.config.attention_head_dim // 2,
                hidden_states.shape[2] + 1,
                use_real=True,
                repeat_interleave_real=False,
            ),
            return_dict=False,
        )[0]
        return prediction
