"""PaLM (Chowdhery et al. 2022, arXiv:2204.02311): parallel, multi-query, SwiGLU, tied."""

PALM = dict(
    norm="layer",
    norm_eps=1e-6,
    position="rope",
    positions=2048,
    activation="silu",
    gated=True,
    parallel=True,
    tied=True,
    embed_scale=True,
    kv_heads=1,
    head_width=256,
    vocab=256000,
)

PALM_SIZES = {
    "8b": dict(layers=32, width=4096, heads=16, mlp_width=16384),
    "62b": dict(layers=64, width=8192, heads=32, mlp_width=32768),
    "540b": dict(layers=118, width=18432, heads=48, mlp_width=73728),
}
