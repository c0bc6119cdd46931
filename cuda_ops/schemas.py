"""The operators' schemas: one per operator, in the namespace ``torch.ops.cuda_ops``.

The schema is declared here, in Python, once. The ``reference*.py`` files implement every operator in plain PyTorch (dispatch key
``CompositeExplicitAutograd``: any device without a kernel of its own); the compiled library overrides them for its
devices; ``fakes.py`` adds the fake kernels and ``autograd.py`` the gradients. What each operator computes is written in
``stages.py``, ``refined_stages.py`` and ``ops.py``.
"""

import torch

NAMESPACE = "cuda_ops"

SCHEMAS = (
    # The stages.
    "hash_vectors(Tensor x, Tensor planes, Tensor? mask) -> Tensor",
    "cluster_codes(Tensor codes, Tensor? mask, int bits, int clusters, int iterations) -> (Tensor, Tensor)",
    "group_mean(Tensor x, Tensor assignment, int clusters, float scale) -> Tensor",
    "centroid_scores(Tensor centroids, Tensor k, Tensor? mask) -> Tensor",
    "top_keys(Tensor scores, Tensor? mask, int topk) -> Tensor",
    "centroid_attention(Tensor scores, Tensor v, Tensor? mask, Tensor top_keys) -> (Tensor, Tensor, Tensor)",
    "exact_attention(Tensor q, Tensor k, Tensor v, Tensor assignment, Tensor top_keys, Tensor top_mass, float scale)"
    " -> Tensor",
    "group_scatter(Tensor values, Tensor assignment) -> Tensor",
    "full_attention(Tensor q, Tensor k, Tensor v, Tensor? mask, float scale) -> (Tensor, Tensor)",
    "cluster_rows(Tensor x, Tensor? mask, int clusters, int rounds, int sample) -> Tensor",
    "tail(Tensor scores, Tensor k, Tensor v, Tensor key_clusters, Tensor top_keys, int key_clusters_count)"
    " -> (Tensor log_mass, Tensor spread, Tensor keys, Tensor values)",
    "refined_attention(Tensor q, Tensor k, Tensor v, Tensor? mask, Tensor centroids, Tensor scores,"
    " Tensor tail_log_mass, Tensor tail_spread, Tensor tail_keys, Tensor tail_values, Tensor query_clusters,"
    " Tensor key_clusters, Tensor top_keys, int band, float scale) -> (Tensor out, Tensor log_mass)",
    # One operator per method for the whole forward.
    "clustered(Tensor q, Tensor k, Tensor v, Tensor? mask, Tensor planes, int clusters, int iterations, float scale,"
    " int exact_below) -> (Tensor out, Tensor log_mass, Tensor assignment)",
    "improved_clustered(Tensor q, Tensor k, Tensor v, Tensor? mask, Tensor planes, int clusters, int topk,"
    " int iterations, float scale, int exact_below)"
    " -> (Tensor out, Tensor log_mass, Tensor assignment, Tensor top_keys)",
    "refined_clustered(Tensor q, Tensor k, Tensor v, Tensor? mask, int clusters, int topk, int key_clusters, int band,"
    " int rounds, int sample, float scale, int exact_below, int[] longer=[])"
    " -> (Tensor out, Tensor log_mass, Tensor query_clusters, Tensor key_clusters, Tensor top_keys)",
    # Their gradients, decisions held constant.
    "clustered_backward(Tensor grad, Tensor q, Tensor k, Tensor v, Tensor? mask, Tensor out, Tensor log_mass,"
    " Tensor assignment, int clusters, float scale, int exact_below) -> (Tensor, Tensor, Tensor)",
    "improved_clustered_backward(Tensor grad, Tensor q, Tensor k, Tensor v, Tensor? mask, Tensor out, Tensor log_mass,"
    " Tensor assignment, Tensor top_keys, int clusters, float scale, int exact_below) -> (Tensor, Tensor, Tensor)",
    "refined_clustered_backward(Tensor grad, Tensor q, Tensor k, Tensor v, Tensor? mask, Tensor out, Tensor log_mass,"
    " Tensor query_clusters, Tensor key_clusters, Tensor top_keys, int clusters, int key_clusters_count, int band,"
    " float scale, int exact_below, int[] longer=[]) -> (Tensor, Tensor, Tensor)",
    "full_attention_backward(Tensor grad, Tensor q, Tensor k, Tensor v, Tensor? mask, Tensor out, Tensor log_mass,"
    " float scale) -> (Tensor, Tensor, Tensor)",
)

# The registrations live as long as these objects. The second holds the references alone, for compiled operators that
# leave a dtype to them.
LIBRARY = torch.library.Library(NAMESPACE, "DEF")
REFERENCES = torch.library.Library(f"{NAMESPACE}_reference", "DEF")
for schema in SCHEMAS:
    # flexible_layout: every kernel reads its inputs by strides, so a compiler need not copy them into an order of its
    # own choice.
    LIBRARY.define(schema, tags=(torch.Tag.pt2_compliant_tag, torch.Tag.flexible_layout))
    REFERENCES.define(schema)
