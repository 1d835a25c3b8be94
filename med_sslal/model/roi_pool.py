"""RoI pooling: torchvision's, and one that is faster on the CPU and deterministic on a GPU.

Shape shorthand: B images, R RoIs, L levels, C channels, P bins along a side, S samples along a side
of a bin.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F
from torchvision.ops import MultiScaleRoIAlign
from torchvision.ops.poolers import initLevelMapper


class RoIPool(MultiScaleRoIAlign):
    """torchvision's pooling with 7 bins of 2 samples along a side, by sums of cells on the CPU.

    RoIAlign averages samples of the map, each a weighted mean of four cells: a bin is a weighted
    sum of (2S)^2 cells. torchvision's CPU kernel goes through them channel by channel; here a bin
    is one bag of `F.embedding_bag` over the cells' rows of C values, which takes an eighth of the
    time with its gradient. It gives the same within rounding of the coordinates, so a pass in
    eval mode at full precision without channels last, which is torchvision's bit for bit, keeps
    torchvision's kernel.

    On a GPU torchvision's kernel is the fast one, but the order of the additions in its gradient
    is left to chance. With deterministic algorithms the bags stand in: their gradient sorts the
    cells. torchvision's own substitute sorts an entry for every channel of every sample.
    """

    scales: list[float]

    def __init__(self, strides: Sequence[int]) -> None:
        # The stock layer derives the scales from the first batch it sees, and keeps them.
        super().__init__([str(level) for level in range(len(strides))], 7, 2)
        self.scales = [1 / stride for stride in strides]
        self.map_levels = initLevelMapper(int(math.log2(strides[0])), int(math.log2(strides[-1])))

    def forward(
        self, x: dict[str, Tensor], boxes: list[Tensor], image_shapes: list[tuple[int, int]]
    ) -> Tensor:
        """Pool B tensors of boxes float32 [*, 4] from levels by name, [B, C, h, w].

        `image_shapes` is unused, as the scales are set. Returns [R, C, P, P] in the maps' dtype.
        """
        levels = [x[name] for name in self.featmap_names]
        if levels[0].device.type == "cpu":
            exact = levels[0].dtype == torch.float32 and levels[0].is_contiguous()
            # ONNX has an operator for the kernel, and none for bags.
            stock = (exact and not self.training) or torch.jit.is_tracing()
        else:
            stock = not torch.are_deterministic_algorithms_enabled()
        if stock:
            return super().forward(x, boxes, image_shapes)
        return self._bags(levels, boxes)

    def _bags(self, levels: Sequence[Tensor], boxes: Sequence[Tensor]) -> Tensor:
        rois = torch.cat(list(boxes))
        device = rois.device
        n_cells = torch.tensor([level[0, 0].numel() for level in levels], device=device)
        starts = (n_cells * len(boxes)).cumsum(0) - n_cells * len(boxes)
        counts = torch.tensor([len(of_image) for of_image in boxes])
        owners = torch.arange(len(boxes)).repeat_interleave(counts, output_size=len(rois))
        owners = owners.to(device)
        if len(levels) == 1:
            numbers = torch.zeros_like(owners)
        else:
            assert self.map_levels is not None
            numbers = self.map_levels(list(boxes))
        sides = torch.tensor([level.shape[:1:-1] for level in levels], device=device)[numbers]
        own_scales = torch.tensor(self.scales, device=device)[numbers]
        cells, weights = self._samples(rois * own_scales[:, None], sides)
        # [R, P, 2S] rows and columns become [R, P, P, 2S, 2S] cells of all maps in a row.
        first = starts[numbers] + owners * n_cells[numbers]
        rows = first[:, None, None] + cells[:, 1] * sides[:, :1, None]
        bags = rows[:, :, None, :, None] + cells[:, 0][:, None, :, None, :]
        shares = weights[:, 1][:, :, None, :, None] * weights[:, 0][:, None, :, None, :]
        size = bags.shape[-1] ** 2
        values = torch.cat([level.permute(0, 2, 3, 1).flatten(0, 2) for level in levels])
        with torch.autocast(device.type, enabled=False):
            pooled = F.embedding_bag(
                bags.view(-1, size),
                values.float(),
                mode="sum",
                per_sample_weights=shares.view(-1, size),
            )
        pooled = pooled.view(*bags.shape[:3], values.shape[1]).permute(0, 3, 1, 2)
        return pooled.to(values.dtype)

    def _samples(self, rois: Tensor, sides: Tensor) -> tuple[Tensor, Tensor]:
        """Cells and weights [R, 2, P, 2S], the two being (x, y), of the samples along each axis.

        RoIs are in cells of their level, and `sides` [R, 2] its (width, height).
        """
        per_bin, n_bins = self.sampling_ratio, self.output_size[0]
        low, high = rois[:, :2, None, None], rois[:, 2:, None, None]
        sides_of_bin = (high - low).clamp(min=1) / n_bins
        # In RoIAlign's order, so that it rounds alike.
        bins = torch.arange(n_bins, device=rois.device)[:, None]
        samples = torch.arange(per_bin, device=rois.device)
        starts = low + bins * sides_of_bin
        places = (starts + (samples + 0.5) * sides_of_bin / per_bin).flatten(2)
        ends = sides[:, :, None].to(places.dtype)
        # As in RoIAlign: a sample more than a cell outside counts as 0, others move to the border.
        counts = (places >= -1) & (places <= ends)
        places = places.clamp(min=0).minimum(ends - 1)
        before = places.floor()
        share = places - before
        cells = torch.stack([before, (before + 1).minimum(ends - 1)], -1).long()
        weights = torch.stack([1 - share, share], -1) * counts[..., None] / per_bin
        shape = (len(rois), 2, n_bins, 2 * per_bin)
        return cells.view(shape), weights.view(shape)
