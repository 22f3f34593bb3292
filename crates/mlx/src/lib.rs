//! A thin binding to MLX.
