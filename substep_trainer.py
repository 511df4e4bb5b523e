import math
import torch
def random_segment_lengths(length: int, num_segments: int, max_position_embeddings: int) -> list[int]:
    if num_segments == 1:
        return [length]
    shortest = max(math.ceil((length - max_position_embeddings) / (num_segments - 1)), 2)
    spare = length - shortest * num_segments
    if num_segments - 1 > spare:
        raise ValueError("segments")
    borders = torch.randperm(spare)[: num_segments - 1].sort().values
    ends = torch.cat([torch.tensor([0]), borders, torch.tensor([spare])])
    return (shortest + ends.diff()).tolist()
