"""Pictures of activation compression: quality against bytes, clusters of keys, and what is looked at.

They need matplotlib and scikit-learn, which are imported where they are used.
"""

import io
import math
from itertools import cycle

import torch
from torch.nn import functional as F

from .cache_policies import LayerState, Slots
from .metrics import FULL_CACHE, NO_CONTEXT, SHARES, Fidelity, Setting


# Lower KL is not told apart from that of the full cache.
LEAST_KL = 1e-4
MARKERS = "osD^v<>PX*"
COLOURS = ("#0067a5", "#9dc3e0", "#d9d4c8")
SINGLE_COLOUR = "#c9c5bd"


def png_bytes(figure) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=120)
    return buffer.getvalue()


def draw_quality(results: dict[Setting, Fidelity]):
    """
    KL and top-1 agreement against the bytes held: a line for each policy, a column for each mode.

    Args:
        results (`dict[Setting, Fidelity]`): From [`~metrics.compare_policies`]. Lines of policies whose names begin
            with `merging` are thick.

    Returns:
        `matplotlib.figure.Figure`.
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import EngFormatter, LogLocator, NullLocator

    measured = [setting for setting in results if setting not in (FULL_CACHE, NO_CONTEXT)]
    modes = list(dict.fromkeys(setting.mode for setting in measured))
    figure = Figure(figsize=(6 * len(modes) + 2, 8), layout="constrained")
    axes = figure.subplots(2, len(modes), squeeze=False, sharex=True, sharey="row")
    for column, mode in enumerate(modes):
        axes[0, column].set_title(f"{mode} compression")
        for axis, quantity in zip(axes[:, column], ("kl", "top1_agreement"), strict=True):
            draw_lines(axis, {s: results[s] for s in measured if s.mode == mode}, quantity)
            axis.axhline(getattr(results[NO_CONTEXT], quantity), color="gray", linestyle="--", label="no context")
            axis.axvline(results[FULL_CACHE].num_bytes, color="gray", linestyle=":", label="full cache")
            axis.grid(alpha=0.3)
        axes[1, column].set(xscale="log", xlabel="bytes held")
        full_bytes = results[FULL_CACHE].num_bytes
        axes[1, column].set_xticks(sorted({full_bytes / setting.ratio for setting in measured} | {full_bytes}))
        axes[1, column].xaxis.set(major_formatter=EngFormatter("B", places=1), minor_locator=NullLocator())
    axes[0, 0].set(yscale="log", ylabel="KL to the full cache (nats)")
    axes[0, 0].set_ylim(bottom=max(LEAST_KL, axes[0, 0].get_ylim()[0]))
    ticks = LogLocator(subs=(1, 2, 5), numticks=20)
    axes[0, 0].yaxis.set(major_locator=ticks, major_formatter="{x:g}", minor_locator=NullLocator())
    axes[1, 0].set_ylabel("top-1 agreement with the full cache")
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside right center")
    return figure


def draw_lines(axis, results: dict[Setting, Fidelity], quantity: str):
    """One line for each policy, in order of bytes."""
    policies = dict.fromkeys(setting.policy for setting in results)
    for policy, marker in zip(policies, cycle(MARKERS)):  # noqa: B905, the markers go on
        fidelities = [fidelity for setting, fidelity in results.items() if setting.policy == policy]
        fidelities.sort(key=lambda fidelity: fidelity.num_bytes)
        values = [getattr(fidelity, quantity) for fidelity in fidelities]
        width = 2.5 if policy.startswith("merging") else 1.2
        axis.plot([f.num_bytes for f in fidelities], values, marker=marker, linewidth=width, label=policy)


def cluster_silhouettes(vectors: torch.Tensor, assignment: torch.LongTensor) -> tuple[float, float]:
    """
    How much closer tokens are to those of their own slot than to those of the next one, by cosine, from -1 to 1
    (Rousseeuw, "Silhouettes", 1987).

    Args:
        vectors (`torch.Tensor` of shape `(tokens, dim)`): Keys or values of one head.
        assignment (`torch.LongTensor` of shape `(tokens,)`): The slot of each token, or -1. Those of slots of two
            tokens or more count.

    Returns:
        The mean silhouette, and as a control that of the same assignments shuffled; NaN with fewer than two slots.
    """
    from sklearn.metrics import silhouette_score

    members = shared_slots(assignment)
    vectors, labels = vectors[members].float().cpu().numpy(), assignment[members].cpu()
    if labels.unique().numel() < 2:
        return math.nan, math.nan
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
    own, shuffled = (silhouette_score(vectors, part.numpy(), metric="cosine") for part in (labels, labels[order]))
    return float(own), float(shuffled)


def shared_slots(assignment: torch.LongTensor) -> torch.BoolTensor:
    """Tokens `(tokens,)` that are not alone in their slot."""
    counts = torch.bincount(assignment + 1)
    return (assignment >= 0) & (counts[assignment + 1] > 1)


def draw_clusters(state: LayerState, slots: Slots, head: int = 0):
    """
    Principal components and t-SNE of the keys of a head in the first row, coloured by slot, pivots marked.

    Args:
        state, slots: A layer and what it was compressed to.
        head (`int`, defaults to 0): The key/value head.

    Returns:
        `matplotlib.figure.Figure`; its title has the silhouettes, see [`cluster_silhouettes`].
    """
    from matplotlib.figure import Figure
    from sklearn.decomposition import PCA
    from sklearn.manifold import TSNE

    valid = state.valid[0, head]
    keys, assignment = state.keys[0, head][valid], slots.assignment[0, head][valid].cpu()
    pivots = slots.kept[0, head][valid].cpu()
    own, shuffled = cluster_silhouettes(keys, assignment)
    vectors = F.normalize(keys.float(), dim=-1).cpu().numpy()
    perplexity = min(30, (len(vectors) - 1) / 3)
    maps = {
        "principal components": PCA(2, random_state=0),
        f"t-SNE, perplexity {perplexity:.0f}": TSNE(perplexity=perplexity, metric="cosine", random_state=0),
    }
    figure = Figure(figsize=(13, 6.5), layout="constrained")
    for axis, (name, method) in zip(figure.subplots(1, 2), maps.items(), strict=True):
        draw_points(axis, method.fit_transform(vectors), assignment, pivots)
        axis.set(title=name, xticks=[], yticks=[])
    figure.suptitle(
        f"Keys of layer {state.layer_idx}, head {head}: {len(keys)} tokens in {slots.log_mass.shape[-1]} slots;"
        f" silhouette {own:.3f}, of shuffled slots {shuffled:.3f}"
    )
    figure.legend(*axis.get_legend_handles_labels(), loc="outside lower center", ncols=3)
    return figure


def draw_points(axis, points, assignment: torch.LongTensor, pivots: torch.BoolTensor):
    """Tokens at `points` `(tokens, 2)`; slots take turns with the colours, grey is that of tokens alone."""
    from matplotlib import colormaps

    shared = shared_slots(assignment)
    palette = [colour for colour in colormaps["tab20"].colors if max(colour) - min(colour) > 0.1]
    alone, joined, pivots = ~shared, shared & ~pivots, shared & pivots
    axis.scatter(*points[alone].T, s=8, color=SINGLE_COLOUR, label="tokens with a slot of their own")
    for part, marker, size, edge, label in (
        (joined, "o", 12, "none", "tokens that joined a slot"),
        (pivots, "*", 90, "black", "pivots of several tokens"),
    ):
        colours = [palette[slot * 7 % len(palette)] for slot in assignment[part].tolist()]  # neighbours differ
        axis.scatter(*points[part].T, s=size, marker=marker, c=colours, edgecolors=edge, linewidths=0.6, label=label)


def draw_attention(shares: dict[str, torch.Tensor]):
    """
    What the continuation looks at, layer by layer: a column for each compressor.

    Args:
        shares (`dict[str, torch.Tensor]` of shape `(num_hidden_layers, len(SHARES))`): By name, from
            [`~metrics.attention_shares`].

    Returns:
        `matplotlib.figure.Figure`.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6 * len(shares) + 1, 4.5), layout="constrained")
    axes = figure.subplots(1, len(shares), squeeze=False, sharey=True)[0]
    for axis, (name, parts) in zip(axes, shares.items(), strict=True):
        parts = parts.cpu()
        bottoms = parts.cumsum(dim=1) - parts
        for column, colour in enumerate(COLOURS):
            heights, bottom = parts[:, column].numpy(), bottoms[:, column].numpy()
            axis.bar(range(len(parts)), heights, bottom=bottom, color=colour, label=SHARES[column])
        axis.set(title=name, xlabel="layer", ylim=(0, 1))
    axes[0].set_ylabel("share of the attention of the continuation")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=3)
    return figure


__all__ = ["cluster_silhouettes", "draw_attention", "draw_clusters", "draw_quality", "png_bytes"]
