"""The querying transformer of BLIP-2 (Li et al. 2023, section 3.1): a BERT in which learned queries look at an image.

What attends to what, query → key, in every self-attention:

    pass        | image queries see | text sees
    images      | all queries       | -
    texts       | -                 | all of the text
    matching    | queries and text  | queries and text
    captioning  | all queries       | all queries, and the text up to itself

The image queries alone attend to the image's patches, in layers 0, k, 2k, .., and have a feed-forward of their own. In
captioning the queries see no text, so their outputs are those of a pass of the images alone: one pass gives both. (The released
code keeps the queries' keys and values of the image pass, which is the same.)

B rows, P patches, V width of the tower, Q image queries, T tokens ([CLS] first), E width inside, D width of the features,
W token ids.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple, Self

import torch
import torch.nn.functional as functional
from torch import Tensor, nn
from transformers import BertModel, Blip2QFormerConfig, Blip2QFormerModel
from transformers.models.bert.modeling_bert import BertPredictionHeadTransform

from cornerstone.errors import CornerstoneError
from cornerstone.models.bert import bert_config, build_bert, pretrained_bert
from cornerstone.models.text_tower import TextFeatures, TextTower
from cornerstone.objectives.contrastive import at_least_fp32
from cornerstone.recipes.blip2 import QFormerText

_NEW_PARTS_SEED = 0x71_66_6F_72
_IN_BERT = {
    "attention.attention.": "attention.self.",
    "intermediate_query.": "intermediate.",
    "output_query.": "output.",
}
"""What parts of a layer are called in BERT, whose weights they begin with."""


class Captions(NamedTuple):
    """What a pass of images and captions gives."""

    image_BQD: Tensor
    """Features of the image queries, L2-normalised, which have seen no text."""
    hidden_BTE: Tensor
    """Hidden states from which `next_token` predicts the token behind each."""


class Words(nn.Module):
    """Token embeddings, and their transpose as the last layer of the language model's head.

    Both in one module, since ZeRO-3 gathers weights by module, and saved tensors must not share memory.
    """

    def __init__(self, weight_WE: Tensor) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight_WE)
        self.bias = nn.Parameter(torch.zeros(len(weight_WE)))

    def forward(self, given: Tensor) -> Tensor:
        """(.., E) embeddings of token ids, or (.., W) logits of hidden states."""
        if given.is_floating_point():
            return functional.linear(given, self.weight, self.bias)
        return functional.embedding(given, self.weight)


class QFormer(TextTower):
    """A text tower that also reads images, each through `queries` learned queries, alone or with a text."""

    def __init__(self, config: Blip2QFormerConfig, queries: int, embedding: int, seed: int = 0) -> None:
        super().__init__()
        width = config.hidden_size
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed ^ _NEW_PARTS_SEED)
            self.blocks = Blip2QFormerModel(config)
            self.words = Words(config.initializer_range * torch.randn(config.vocab_size, width))
            self.positions = nn.Embedding(config.max_position_embeddings, width)
            self.queries = nn.Embedding(queries, width)
            nn.init.normal_(self.positions.weight, std=config.initializer_range)
            nn.init.normal_(self.queries.weight, std=config.initializer_range)
            self.to_image_feature = nn.Linear(width, embedding)
            self.to_text_feature = nn.Linear(width, embedding)
            self.to_match = nn.Linear(width, 2)
            self.to_next = BertPredictionHeadTransform(config)

    @classmethod
    def build(
        cls, config: QFormerText, vocab_size: int, width: int, seed: int, described: Mapping[str, Any] | None = None
    ) -> Self:
        """The tower of a recipe, for an image tower of this width; it begins with the weights of a BERT, new or pretrained.

        One more token id follows the tokenizer's own: [DEC], which begins a caption.
        """
        if described is not None:
            return cls(Blip2QFormerConfig.from_dict(dict(described)), config.queries, config.embedding)
        bert = build_bert(config, vocab_size, seed)
        settings = {name: getattr(bert.config, name) for name in _SHARED}
        of_blocks = Blip2QFormerConfig(
            **settings,
            vocab_size=vocab_size + 1,
            cross_attention_frequency=config.cross_every,
            encoder_hidden_size=width,
            use_qformer_text_input=True,
        )
        tower = cls(of_blocks, config.queries, config.embedding, seed)
        tower.begin_with(bert)
        return tower

    @torch.no_grad()
    def begin_with(self, bert: BertModel) -> None:
        """Take the weights of a BERT; the queries' feed-forward begins as a copy of the texts'."""
        given = bert.state_dict()
        for name, parameter in self.blocks.encoder.named_parameters():
            for mine, theirs in _IN_BERT.items():
                name = name.replace(mine, theirs)
            if ".crossattention." not in name:
                parameter.copy_(given[f"encoder.{name}"])
        self.blocks.layernorm.load_state_dict(bert.embeddings.LayerNorm.state_dict())
        self.words.weight[: bert.config.vocab_size] = bert.embeddings.word_embeddings.weight
        self.positions.weight.copy_(bert.embeddings.position_embeddings.weight)

    @classmethod
    def pretrained(cls, config: QFormerText, vocab_size: int) -> tuple[nn.Module, dict[str, Any]]:
        """The BERT that the recipe names."""
        return pretrained_bert(config, vocab_size)

    @classmethod
    def most_tokens(cls, config: QFormerText) -> int:
        """The positions of the BERT that it begins with."""
        most: int = bert_config(config).max_position_embeddings
        return most

    @property
    def token_width(self) -> int:
        """The blocks' width."""
        return int(self.blocks.config.hidden_size)

    def pooling_parameters(self) -> Iterator[nn.Parameter]:
        """The projection of a text's feature."""
        return self.to_text_feature.parameters()

    @property
    def reserved_tokens(self) -> int:
        """None: [DEC] takes the place of [CLS]."""
        return 0

    @property
    def vocabulary(self) -> int:
        """Token ids, [DEC] included."""
        return int(self.blocks.config.vocab_size)

    def described(self) -> dict[str, Any]:
        """The configuration of the blocks."""
        described: dict[str, Any] = self.blocks.config.to_dict()
        return described

    def forward(
        self, ids_BT: Tensor, length_B: Tensor, *, extra: bool = True, tokens: bool = False, buckets: int = 1
    ) -> TextFeatures:
        """Features of texts alone. Length buckets are not used: the blocks skip no padding."""
        hidden_BTE = self._run(self._embedded(ids_BT), _up_to(length_B, ids_BT), 0, None)
        feature_BD = functional.normalize(at_least_fp32(self.to_text_feature(hidden_BTE[:, 0])), dim=-1)
        return TextFeatures(feature_BD, None, hidden_BTE if tokens else None)

    def images(self, patches_BPV: Tensor) -> Tensor:
        """(B, Q, D): the L2-normalised features of images alone."""
        queries_BQE = self._queries(len(patches_BPV))
        return self._image_features(self._run(queries_BQE, None, queries_BQE.shape[1], patches_BPV))

    def captions(self, patches_BPV: Tensor, ids_BT: Tensor) -> Captions:
        """Images, and their captions read causally: [DEC] stands for the first token, whatever it is."""
        ids_BT = torch.cat([torch.full_like(ids_BT[:, :1], self.vocabulary - 1), ids_BT[:, 1:]], dim=1)
        queries_BQE = self._queries(len(patches_BPV))
        count, length = queries_BQE.shape[1], queries_BQE.shape[1] + ids_BT.shape[1]
        causal_SS = torch.ones(length, length, dtype=torch.bool, device=ids_BT.device).tril()
        causal_SS[:count, :count] = True
        mask_B1SS = causal_SS.expand(len(ids_BT), 1, -1, -1)  # what lies behind a text is seen by nothing in it
        hidden_BSE = self._run(torch.cat([queries_BQE, self._embedded(ids_BT)], dim=1), mask_B1SS, count, patches_BPV)
        return Captions(self._image_features(hidden_BSE[:, :count]), hidden_BSE[:, count:])

    def next_token(self, hidden_KE: Tensor) -> Tensor:
        """(K, W): logits of the token that follows each hidden state of a caption."""
        logits_KW: Tensor = self.words(self.to_next(hidden_KE))
        return logits_KW

    def match(self, patches_BPV: Tensor, ids_BT: Tensor, length_B: Tensor) -> Tensor:
        """(B, 2): logits of an image and a text that do not (0) or do (1) belong together, means over the queries."""
        queries_BQE = self._queries(len(patches_BPV))
        count = queries_BQE.shape[1]
        seen_B11S = functional.pad(_up_to(length_B, ids_BT), (count, 0), value=True)
        hidden_BSE = self._run(torch.cat([queries_BQE, self._embedded(ids_BT)], dim=1), seen_B11S, count, patches_BPV)
        logits_B2: Tensor = self.to_match(hidden_BSE[:, :count]).mean(1)
        return logits_B2

    def _queries(self, rows: int) -> Tensor:
        places_Q = torch.arange(self.queries.num_embeddings, device=self.queries.weight.device)
        queries_QE: Tensor = self.queries(places_Q)
        return queries_QE.expand(rows, -1, -1)

    def _image_features(self, hidden_BQE: Tensor) -> Tensor:
        return functional.normalize(at_least_fp32(self.to_image_feature(hidden_BQE)), dim=-1)

    def _embedded(self, ids_BT: Tensor) -> Tensor:
        if ids_BT.shape[1] > self.positions.num_embeddings:
            raise CornerstoneError(
                f"Texts padded to {ids_BT.shape[1]} tokens do not fit the {self.positions.num_embeddings} positions of the "
                f"Q-Former: lower --recipe.method.text.token-limit."
            )
        embedded_BTE: Tensor = self.words(ids_BT) + self.positions(torch.arange(ids_BT.shape[1], device=ids_BT.device))
        return embedded_BTE

    def _run(self, x_BSE: Tensor, mask: Tensor | None, queries: int, patches_BPV: Tensor | None) -> Tensor:
        """(B, S, E) hidden states. Masks have four dimensions, (B, 1, 1 or S, S): transformers passes such ones on."""
        hidden_BSE: Tensor = self.blocks(
            query_embeds=x_BSE, query_length=queries, attention_mask=mask, encoder_hidden_states=patches_BPV
        ).last_hidden_state
        return hidden_BSE


_SHARED = (
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "intermediate_size",
    "hidden_act",
    "hidden_dropout_prob",
    "attention_probs_dropout_prob",
    "max_position_embeddings",
    "initializer_range",
    "layer_norm_eps",
    "pad_token_id",
)
"""Settings that a Q-Former has of its BERT."""


def _up_to(length_B: Tensor, ids_BT: Tensor) -> Tensor:
    """(B, 1, 1, T) bool: the tokens of each text, at least one."""
    place_T = torch.arange(ids_BT.shape[1], device=ids_BT.device)
    return (place_T < length_B.clamp(min=1)[:, None])[:, None, None]
