"""An aligned backbone with its tokenizer: pictures, patches and words as vectors of one space.

Legend: n texts, B pictures, N patches, E joint width, C = E / 2 (reference.md section 7).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from scholarch.data.tokenizer import Tokenizer
from scholarch.errors import UserError
from scholarch.models.alignment import AlignedBackbone, image_embedding, text_embedding
from scholarch.models.features import Backbone, Views

TEMPLATES = (
    "{}",
    "a {}",
    "a picture of a {}",
    "a photo of a {}",
    "a photograph showing a {}",
    "a close view of a {}",
    "a blurry photo of a {}",
    "a drawing of a {}",
)
"""Sentences that a class is named in, where no others are given; the source averages over 80 of them."""
_AT_ONCE = 256
_WINDOWS_AT_ONCE = 32


class Words:
    """Texts as vectors.

    Args:
        backbone: an aligned one, in evaluation mode, that knows its merges.

    Raises:
        UserError: if it reads no text.
    """

    def __init__(self, backbone: Backbone) -> None:
        if not isinstance(backbone, AlignedBackbone) or not backbone.merges:
            raise UserError(
                "this model reads no text",
                fix="align it first: scholarch align --backbone MODEL data=PICTURES-WITH-CAPTIONS",
            )
        self.backbone, options = backbone, backbone.options.text
        self.length = options.length
        self.tokenizer = Tokenizer.parse(backbone.merges, options.vocabulary, "merges")

    @torch.no_grad()
    def texts(self, texts: Sequence[str]) -> Tensor:
        """[n, E] of length 1, float32, on the model's device."""
        device = self.backbone.logit_scale.device
        found = []
        for start in range(0, len(texts), _AT_ONCE):
            rows = [self.tokenizer.encode(text, self.length) for text in texts[start : start + _AT_ONCE]]
            tokens = torch.stack([torch.from_numpy(row) for row in rows])
            (features,) = self.backbone([Views(tokens.to(device))])
            found.append(text_embedding(features.cls))
        return torch.cat([torch.empty(0, self.backbone.options.joint, device=device), *found])

    def classes(self, names: Sequence[str], templates: Sequence[str] = TEMPLATES) -> Tensor:
        """[classes, E] of length 1: of each, the mean over all templates.

        Raises:
            UserError: if a template has no place for the name.
        """
        if not names or not templates:
            raise UserError("there is nothing to tell apart", fix="name classes, and one template or more")
        if wrong := [template for template in templates if template.count("{}") != 1]:
            raise UserError(f"{wrong[0]!r} has no place for a name", fix="write {} where the name goes")
        texts = [template.replace("{}", name) for name in names for template in templates]
        each = self.texts(texts).view(len(names), len(templates), -1)
        return F.normalize(each.mean(dim=1), dim=-1)

    def where(self, patches: Tensor, texts: Sequence[str]) -> Tensor:
        """[..., N, C] -> [..., n, N]: cosines of patches with each text, less those with an empty one.

        Training compares texts with one another; what all of them share may point anywhere, and often does to the
        ground (Li et al., "CLIP Surgery for Better Explainability with Enhancement in Open-Vocabulary Tasks", 2023,
        where an empty text stands for it too).
        """
        cosines = patch_cosines(patches, self.texts([*texts, ""]))
        return (cosines[..., :-1] - cosines[..., -1:]).mT

    @torch.no_grad()
    def where_by_windows(
        self,
        picture: Tensor,
        texts: Sequence[str],
        window: int,
        progress: Callable[[int, int], None] | None = None,
    ) -> Tensor:
        """[C, H, W], normalised, whole patches -> [n, h, w]: as `where`, of a window around each patch by itself.

        Each is enlarged to the shorter side and seen as a picture, so that it holds nothing of what is beside it, which
        patch tokens do; for that, the backbone runs once for each patch. Beyond borders, their pixels go on.

        Args:
            window: its side in pixels.
            progress: called with the numbers of windows that were seen and that there are.
        """
        patch, side, around = self.backbone.patch, min(picture.shape[1:]), window // 2
        wider = F.pad(picture[None], (around,) * 4, mode="replicate")[0, :, patch // 2 :, patch // 2 :]
        windows = wider.unfold(1, window, patch).unfold(2, window, patch)  # [C, h, w, window, window]
        rows, columns = windows.shape[1:3]
        each = windows.permute(1, 2, 0, 3, 4).flatten(0, 1)
        named, found = self.texts([*texts, ""]), []
        for number, part in enumerate(torch.split(each, _WINDOWS_AT_ONCE)):
            seen = F.interpolate(part, (side, side), mode="bicubic", antialias=True, align_corners=False)
            (features,) = self.backbone([Views(seen)])
            found.append(image_embedding(features.cls, features.patches) @ named.T)
            if progress:
                progress(number * _WINDOWS_AT_ONCE + len(part), len(each))
        cosines = torch.cat(found).T.view(-1, rows, columns)
        return cosines[:-1] - cosines[-1:]

    @property
    def scale(self) -> float:
        """What cosines are multiplied by before a softmax over texts."""
        return float(self.backbone.logit_scale.exp())


def patch_cosines(patches: Tensor, texts: Tensor) -> Tensor:
    """Cosines of patches with the half of texts that stands for them: [..., N, C] and [n, 2 C] -> [..., N, n]."""
    own = F.normalize(texts[:, texts.shape[1] // 2 :].float(), dim=-1)
    return F.normalize(patches.float(), dim=-1) @ own.T
