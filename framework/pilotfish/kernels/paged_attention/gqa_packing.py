"""GQAPacking: where the rows of requests computed together go, and where their results come from.

Knows: rows and heads. Does not know: keys, windows or modes.
Letters as in the package, and: R requests computed together, t their packed rows, M rows of one
request with its query heads folded in (row i, head g of the group: i * G + g), padded.
"""

from __future__ import annotations

from collections.abc import Sequence

import attrs
import numpy as np
import torch

from pilotfish.kernels.paged_attention.plan import AttentionPlan


@attrs.frozen(kw_only=True)
class GQAPacking:
    """Gathers [T'*N] rows of q into [R, K, M], and results [R, K, M] into [t, N].

    num_folded: M. group: G.
    q_index: [R*K*M] int64; padding repeats the request's first row.
    out_index: [t*N] int64. rows: [t] int64 packed rows.
    """

    num_folded: int
    group: int
    q_index: torch.Tensor
    out_index: torch.Tensor
    rows: torch.Tensor


def pack_gqa(
    plan: AttentionPlan, requests: Sequence[int], num_heads: int, num_kv_heads: int
) -> GQAPacking:
    """requests: indices of the requests that are computed together, in order."""
    group = num_heads // num_kv_heads
    count_R = np.array([plan.row_counts[b] for b in requests])
    start_R = np.array([plan.offsets[b] for b in requests])
    num_folded = -(-int(count_R.max()) * group // plan.row_multiple) * plan.row_multiple
    row_M, group_M = np.divmod(np.arange(num_folded), group)
    row_RM = np.where(row_M < count_R[:, None], row_M, 0) + start_R[:, None]
    head_KM = np.arange(num_kv_heads)[:, None] * group + group_M
    q_index = row_RM[:, None, :] * num_heads + head_KM
    request_t = np.repeat(np.arange(len(requests)), count_R)
    i_t = np.arange(len(request_t)) - np.repeat(count_R.cumsum() - count_R, count_R)
    kv_head_N, group_N = np.divmod(np.arange(num_heads), group)
    run_tN = request_t[:, None] * num_kv_heads + kv_head_N
    out_index = run_tN * num_folded + i_t[:, None] * group + group_N
    return GQAPacking(
        num_folded=num_folded,
        group=group,
        q_index=torch.from_numpy(q_index.ravel()),
        out_index=torch.from_numpy(out_index.ravel()),
        rows=torch.from_numpy(start_R[request_t] + i_t),
    )
