"""Documents as a model reads them outside of training: images and token ids, without a packing.

B documents, T tokens, N images in all of them, S pixels a side, K text targets, D width of the features, V vocabulary.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from cornerstone.data.documents.batch import SequenceBatch
from cornerstone.data.documents.config import SpecialIds
from cornerstone.data.documents.reader import PADDING, targets
from cornerstone.errors import CornerstoneError
from cornerstone.models.lcl import Lcl


@torch.no_grad()
def encode_documents(model: nn.Module, images_N3SS: Tensor, token_ids_BT: Tensor) -> dict[str, Tensor]:
    """What LCL computes of some documents.

    Args:
        images_N3SS: All images of all documents in reading order, normalised floats or uint8.
        token_ids_BT: A document in each row, padded at its end; each image is <BoI>, its placeholders, <EoI>.

    Returns `image_features` and `text_features` (N, D), L2-normalised, of the images that L_con compares (a document's
    beginning is no context), `logits` (K, V) at the text targets in reading order, and `labels` (K,), the targets.
    """
    if not isinstance(model, Lcl):
        kind = getattr(getattr(model, "config", None), "kind", type(model).__name__)
        raise CornerstoneError(f"The method {kind!r} does not encode documents: expected lcl.")
    batch = sequence_batch(images_N3SS.cpu(), token_ids_BT.cpu(), model.ids).to(images_N3SS.device)
    image_ND, tokens_NPE = model.images(batch.image)
    hidden_BTE = model.read(batch, tokens_NPE)
    compared_N = model.compared(batch)
    row_K, place_K = torch.nonzero(batch.target[:, 1:], as_tuple=True)
    return {
        "image_features": image_ND[: len(compared_N)][compared_N],
        "text_features": model.contexts(hidden_BTE, batch)[compared_N],
        "logits": model.head(hidden_BTE[row_K, place_K]),
        "labels": batch.token_ids[row_K, place_K + 1],
    }


def sequence_batch(images_N3SS: Tensor, token_ids_BT: Tensor, ids: SpecialIds) -> SequenceBatch:
    """One document a row as a batch. Raises CornerstoneError if the images are not those that the ids name."""
    place_T = torch.arange(1, token_ids_BT.shape[1] + 1)
    length_B = ((token_ids_BT != ids.pad) * place_T).amax(1)
    document_BT = torch.where(place_T <= length_B[:, None], 0, PADDING)
    row_N, at_N = torch.nonzero(token_ids_BT == ids.boi, as_tuple=True)
    if len(row_N) != len(images_N3SS):
        raise CornerstoneError(
            f"{len(images_N3SS)} images, but the documents' token ids have {len(row_N)} places for one (<BoI>, id {ids.boi})."
        )
    special = torch.tensor([ids.bos, ids.eos, ids.pad, ids.image, ids.boi, ids.eoi])
    words_BT = (~torch.isin(token_ids_BT, special)).long().cumsum(1)
    wanted = targets(token_ids_BT.numpy(), document_BT.numpy(), ids)
    return SequenceBatch(
        step=0,
        row=torch.arange(len(token_ids_BT)),
        valid=torch.ones(len(token_ids_BT), dtype=torch.bool),
        bad=(),
        epoch=torch.zeros(len(token_ids_BT), dtype=torch.int64),
        token_ids=token_ids_BT.long(),
        document=document_BT,
        target=torch.from_numpy(np.ascontiguousarray(wanted)),
        image=images_N3SS,
        image_row=row_N,
        image_at=at_N,
        text_before=words_BT[row_N, at_N] > 0,
        image_valid=torch.ones(len(row_N), dtype=torch.bool),
    )
